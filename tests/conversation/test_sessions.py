"""Tests of session ids, sessions and their state."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest
from blockops.conversation.context_window import TrimPoint
from blockops.conversation.messages import MessageParser
from blockops.conversation.sessions import (
    MAX_HISTORIES,
    MAX_SESSION_ID_LENGTH,
    ClientIdentity,
    Sessions,
    session_id,
)
from tests.conversation.histories import system, user


def identify(
    header: str = "",
    address: str = "",
    key: str = "",
    first_user: str = "Please",
    **fields: Any,
) -> str:
    messages = [system(), user(first_user)]
    request = ChatRequest(json.dumps({"messages": messages, **fields}).encode())
    client = ClientIdentity(header, address, key, is_reset_requested=False)
    first_user_message = MessageParser().parse(request.messages())[1]
    return session_id(request, client, first_user_message.info.digest)


class SessionIdTests(SynchronousTestCase):
    def test_order_of_sources(self) -> None:
        fields: dict[str, Any] = {
            "header": "h",
            "metadata": {"session_id": " m "},
            "prompt_cache_key": 7,
            "user": "u",
        }
        for name in ("header:h", "metadata:m", "cache_key:7", "user:u"):
            self.assertEqual(identify(**fields), name)
            del fields[next(iter(fields))]

    def test_values_that_are_no_ids(self) -> None:
        values: list[Any] = [None, "", " ", [], {}, 1.5]
        for value in values:
            self.assertEqual(identify(user=value, metadata=value), identify(), value)

    def test_same_value_of_another_source(self) -> None:
        self.assertNotEqual(identify(header="x"), identify(user="x"))

    def test_without_an_id_from_the_client(self) -> None:
        base: dict[str, Any] = {"address": "1", "key": "k", "model": "m", "first_user": "f"}
        self.assertEqual(identify(**base), identify(**base))
        for field, other in (
            ("address", "2"),
            ("key", "l"),
            ("model", "n"),
            ("first_user", "g"),
        ):
            self.assertNotEqual(identify(**base), identify(**{**base, field: other}), field)
        shifted = {**base, "address": "1k", "key": ""}
        self.assertNotEqual(identify(**base), identify(**shifted))

    def test_no_secret_in_the_id(self) -> None:
        self.assertNotIn("sesame", identify(key="Bearer sesame"))

    def test_long_and_unprintable_ids(self) -> None:
        for value in ("x" * 10_000, "two\nlines", "\ud83d"):
            name = identify(header=value)
            self.assertLess(len(name), MAX_SESSION_ID_LENGTH + 10)
            self.assertTrue(name.isprintable())
        self.assertNotEqual(identify(header="x" * 100), identify(header="x" * 101))


class SessionsTests(SynchronousTestCase):
    def test_same_id_is_the_same_session(self) -> None:
        sessions = Sessions(10, 60)
        one = sessions.get_or_create("one", 0)
        self.assertIs(sessions.get_or_create("one", 59), one)
        self.assertIsNot(sessions.get_or_create("two", 59), one)

    def test_idle_sessions_expire(self) -> None:
        sessions = Sessions(10, 60)
        one = sessions.get_or_create("one", 0)
        self.assertIsNot(sessions.get_or_create("one", 60), one)
        sessions.get_or_create("two", 130)
        self.assertEqual(len(sessions), 1)

    def test_without_an_idle_time_every_request_is_a_session(self) -> None:
        sessions = Sessions(10, 0)
        one = sessions.get_or_create("one", 5)
        self.assertIsNot(sessions.get_or_create("one", 5), one)
        self.assertEqual(len(sessions), 0)

    def test_limit_forgets_the_least_recent(self) -> None:
        sessions = Sessions(2, 1_000)
        one = sessions.get_or_create("one", 0)
        sessions.get_or_create("two", 1)
        sessions.get_or_create("one", 2)
        sessions.get_or_create("three", 3)
        self.assertEqual(len(sessions), 2)
        self.assertIs(sessions.get_or_create("one", 4), one)

    def test_notices_are_marked_once(self) -> None:
        session = Sessions(1, 1).get_or_create("one", 0)
        self.assertEqual([session.mark("banner"), session.mark("banner")], [True, False])
        self.assertTrue(session.mark("context"))
        session.unmark("banner")
        self.assertTrue(session.mark("banner"))

    def test_reset(self) -> None:
        session = Sessions(1, 1).get_or_create("one", 0)
        session.mark("banner")
        session.history_state(b"f").trim_point = TrimPoint(dropped_steps=3)
        session.reset()
        self.assertTrue(session.mark("banner"))
        self.assertEqual(session.history_state(b"f").trim_point, TrimPoint())

    def test_history_states_are_separate_and_bounded(self) -> None:
        session = Sessions(1, 1).get_or_create("one", 0)
        session.history_state(b"main").trim_point = TrimPoint(dropped_steps=3)
        for number in range(MAX_HISTORIES * 10):
            self.assertEqual(session.history_state(b"%d" % number).trim_point, TrimPoint())
            self.assertEqual(session.history_state(b"main").trim_point.dropped_steps, 3)
