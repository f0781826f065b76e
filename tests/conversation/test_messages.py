"""Messages: what is found out about them, and where a session begins anew."""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.messages import (
    Facts,
    Reader,
    Recent,
    first_user,
    text_in,
    weigh,
    without_marker,
)
from blockops.conversation.notices import opening, session_banner
from tests.conversation.histories import assistant, raw, result, said, system, user


def facts(message: Any) -> Facts:
    return Reader().read(raw(message))[0].facts


class Finding(SynchronousTestCase):
    def test_roles(self) -> None:
        for role, found in (
            ("system", "system"),
            ("developer", "system"),
            ("user", "user"),
            ("assistant", "assistant"),
            ("tool", "result"),
            ("function", "result"),
            ("critic", "other"),
        ):
            self.assertEqual(facts({"role": role, "content": "x"}).role, found)

    def test_calls_and_results(self) -> None:
        self.assertEqual(facts(assistant(None, "a", "b")).calls, ("a", "b"))
        self.assertEqual(facts({"role": "assistant", "tool_calls": [{}]}).calls, ("",))
        self.assertEqual(facts({"role": "assistant", "function_call": {"name": "f"}}).calls, ("",))
        self.assertEqual(facts({"role": "user", "tool_calls": [{"id": "a"}]}).calls, ())
        self.assertEqual(facts(result("a")).answers, "a")

    def test_long_ids_are_not_kept_whole(self) -> None:
        for long in ("c" * 65, "c" * 2_000_000, "\ud83d" * 100):
            call, answer = facts(assistant(None, long, "b")), facts(result(long))
            self.assertEqual(call.calls, (answer.answers, "b"))
            self.assertLessEqual(len(answer.answers), 64)
            self.assertNotEqual(facts(result(long + "d")).answers, answer.answers)
        self.assertEqual(facts(result("c" * 64)).answers, "c" * 64)

    def test_all_that_a_template_writes_counts(self) -> None:
        function = {"name": "read_file", "arguments": '{"path": "setup.cfg"}'}
        message = {
            "role": "assistant",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
            "reasoning_content": "thoughts",
            "tool_calls": [{"id": "c", "function": function}],
        }
        text = text_in(json.dumps(message).encode())
        for each in ("one", "two", "thoughts", "read_file", "setup.cfg"):
            self.assertIn(each, text)

    def test_pictures_are_counted_and_their_bytes_are_not(self) -> None:
        url = {"url": "data:image/png;base64," + "A" * 100_000}
        found = facts(
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": url},
                    {"type": "text", "text": "What is it?"},
                ],
            }
        )
        self.assertEqual((found.images, found.size), (1, len("What is it?")))

    def test_what_is_no_message(self) -> None:
        for odd in ({}, {"role": 7}, {"role": "user", "content": 5}, {"content": "x"}):
            self.assertFalse(facts(odd).readable, odd)
            self.assertGreater(facts(odd).weight, 0)

    def test_half_a_surrogate_pair(self) -> None:
        found = facts(user("half \ud83d"))
        self.assertEqual((found.role, found.readable), ("user", True))

    def test_each_message_is_read_once(self) -> None:
        reader = Reader()
        first, second = (reader.read(raw(user("x")))[0] for _ in range(2))
        self.assertIs(first.facts, second.facts)

    def test_bytes_stay(self) -> None:
        odd = b'{ "content":"\\u00e9",  "role" : "user", "x": 1.50 }'
        self.assertEqual(Reader().read([odd])[0].raw, odd)

    def test_a_message_of_notices_alone_is_gone(self) -> None:
        lines = Reader().read(raw(user(), assistant(opening([session_banner("Q")])), user("more")))
        self.assertEqual(said(lines), [user(), user("more")])

    def test_the_first_user(self) -> None:
        lines = Reader().read(raw(system(), user("a"), user("b")))
        self.assertEqual(first_user(lines), lines[1].facts.digest)
        self.assertEqual(first_user(lines[:1]), b"")


class Weighing(SynchronousTestCase):
    def test_scripts(self) -> None:
        for text, low, high in (
            ("The quick brown fox jumps over the lazy dog. " * 20, 200, 300),
            ("敏捷的棕色狐狸跳过了懒狗。" * 20, 200, 320),
            ("Быстрая коричневая лиса прыгает. " * 20, 250, 450),
            ("2026-11-22 16:00:00 " * 20, 200, 400),
        ):
            self.assertTrue(low < weigh(text) < high, (text[:10], weigh(text)))

    def test_nothing(self) -> None:
        self.assertEqual(weigh(""), 0)


class Resets(SynchronousTestCase):
    def sent(self, *messages: Any, pattern: str | None = None) -> list[Any]:
        reader = Reader() if pattern is None else Reader(re.compile(pattern))
        return said(reader.since_reset(reader.read(raw(*messages))))

    def test_markers(self) -> None:
        for text, is_marker in (
            ("/new", True),
            ("/reset", True),
            ("/new and then", True),
            ("/reset\nand then", True),
            ("  /new", True),
            ("/newspaper", False),
            ("/new.", False),
            ("a /new", False),
            ("/NEW", False),
        ):
            self.assertEqual(facts(user(text)).reset, is_marker, text)
        self.assertTrue(
            facts({"role": "user", "content": [{"type": "text", "text": "/new"}]}).reset
        )
        self.assertFalse(facts(assistant("/new")).reset)

    def test_none(self) -> None:
        reader = Reader()
        lines = reader.read(raw(system(), user()))
        self.assertIs(reader.since_reset(lines), lines)

    def test_alone(self) -> None:
        self.assertEqual(self.sent(system(), user("old"), assistant(), user("/new")), [system()])

    def test_with_text(self) -> None:
        came = [system(), user("old"), assistant(), {**user("/new  what is 2+2?"), "name": "Ann"}]
        self.assertEqual(self.sent(*came), [system(), {**user("what is 2+2?"), "name": "Ann"}])

    def test_in_parts(self) -> None:
        picture = {"type": "image_url", "image_url": {"url": "data:"}}
        for text, left in (
            ("/new look", [{"type": "text", "text": "look"}, picture]),
            ("/new", [picture]),
        ):
            parts = [{"type": "text", "text": text}, picture]
            self.assertEqual(
                self.sent({"role": "user", "content": parts}), [{"role": "user", "content": left}]
            )

    def test_later_turns(self) -> None:
        came = [
            system(),
            user("old"),
            assistant(),
            user("/new"),
            assistant(opening([session_banner("")])),
            user("hi"),
            assistant("hello"),
            user("more"),
        ]
        self.assertEqual(self.sent(*came), [system(), *came[5:]])

    def test_the_newest_counts(self) -> None:
        came = [user("/new a"), assistant("x"), user("/reset b"), assistant("y"), user("c")]
        self.assertEqual(self.sent(*came), [user("b"), *came[3:]])

    def test_a_pattern_of_ones_own(self) -> None:
        came = [user("old"), user("A new session was started. Greet the user.")]
        sent = self.sent(*came, pattern=r"A new session was started\.")
        self.assertEqual(sent, [user("Greet the user.")])
        self.assertEqual(
            self.sent(user("a"), user("/new"), pattern="/fresh"), [user("a"), user("/new")]
        )

    def test_what_is_left_of_a_marker_is_no_marker_again(self) -> None:
        self.assertEqual(
            self.sent(user("/new /new x"), assistant("a")), [user("/new x"), assistant("a")]
        )

    def test_the_same_message_is_stripped_the_same(self) -> None:
        message = json.dumps(user("/new x \u00e9")).encode()
        pattern = re.compile("/new")
        self.assertEqual(without_marker(message, pattern), without_marker(message, pattern))


class Forgetting(SynchronousTestCase):
    def test_bounded(self) -> None:
        recent: Recent[int, int] = Recent(10)
        for number in range(1_000):
            recent.put(number, number)
            self.assertLessEqual(len(recent), 20)
        self.assertEqual(recent.get(999), 999)
        self.assertIsNone(recent.get(0))

    def test_what_is_asked_for_stays(self) -> None:
        recent: Recent[str, int] = Recent(10)
        recent.put("kept", 1)
        for number in range(1_000):
            recent.put(str(number), number)
            self.assertEqual(recent.get("kept"), 1)
