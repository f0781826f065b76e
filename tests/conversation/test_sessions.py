"""Who is who, what is remembered of them, and for how long."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.context_window import Cut
from blockops.conversation.sessions import LONGEST_NAME, MAX_THREADS, Identity, Sessions


class Names(SynchronousTestCase):
    def test_the_order(self) -> None:
        said: dict[str, Any] = {"header": "h", "metadata": "m", "cache_key": "k", "user": "u"}
        while said:
            source, value = next(iter(said.items()))
            self.assertEqual(Identity(**said).name(), f"{source}:{value}")
            del said[source]

    def test_the_same_word_from_elsewhere_is_another_session(self) -> None:
        self.assertNotEqual(Identity(header="x").name(), Identity(user="x").name())

    def test_without_a_word(self) -> None:
        base: dict[str, Any] = {"address": "1", "key": "k", "model": "m", "first_user": b"f"}
        name = Identity(**base).name()
        self.assertEqual(name, Identity(**base).name())
        for field, other in (("address", "2"), ("key", "l"), ("model", "n"), ("first_user", b"g")):
            self.assertNotEqual(name, Identity(**{**base, field: other}).name(), field)
        moved = {**base, "address": "1k", "key": ""}
        self.assertNotEqual(name, Identity(**moved).name())

    def test_no_secret_is_in_it(self) -> None:
        self.assertNotIn("sesame", Identity(key="Bearer sesame").name())

    def test_long_and_odd_words(self) -> None:
        for word in ("x" * 10_000, "two\nlines", "\ud83d"):
            name = Identity(header=word).name()
            self.assertLess(len(name), LONGEST_NAME + 10)
            self.assertTrue(name.isprintable())
        self.assertNotEqual(Identity(header="x" * 100).name(), Identity(header="x" * 101).name())


class Remembering(SynchronousTestCase):
    def test_a_session_stays_itself(self) -> None:
        sessions = Sessions(10, 60)
        one = sessions.of("one", 0)
        self.assertIs(sessions.of("one", 59), one)
        self.assertIsNot(sessions.of("two", 59), one)

    def test_idle_ones_expire(self) -> None:
        sessions = Sessions(10, 60)
        one = sessions.of("one", 0)
        self.assertIsNot(sessions.of("one", 60), one)
        sessions.of("two", 130)
        self.assertEqual(len(sessions), 1)

    def test_the_one_silent_longest_goes(self) -> None:
        sessions = Sessions(2, 1_000)
        one = sessions.of("one", 0)
        sessions.of("two", 1)
        sessions.of("one", 2)
        sessions.of("three", 3)
        self.assertEqual(len(sessions), 2)
        self.assertIs(sessions.of("one", 4), one)

    def test_each_thing_is_said_once(self) -> None:
        session = Sessions(1, 1).of("one", 0)
        self.assertEqual([session.say("banner"), session.say("banner")], [True, False])
        self.assertTrue(session.say("context"))
        session.unsay("banner")
        self.assertTrue(session.say("banner"))

    def test_anew(self) -> None:
        session = Sessions(1, 1).of("one", 0)
        session.say("banner")
        session.thread(b"f").cut = Cut(dropped=3)
        session.begin_anew()
        self.assertTrue(session.say("banner"))
        self.assertEqual(session.thread(b"f").cut, Cut())

    def test_threads_are_told_apart_and_bounded(self) -> None:
        session = Sessions(1, 1).of("one", 0)
        session.thread(b"main").cut = Cut(dropped=3)
        for number in range(MAX_THREADS * 10):
            self.assertEqual(session.thread(b"%d" % number).cut, Cut())
            self.assertEqual(session.thread(b"main").cut.dropped, 3)
