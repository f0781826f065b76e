"""Tests of parsing messages, of resets, and of the cache."""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation import messages as messages_module
from blockops.conversation.messages import (
    MessageInfo,
    MessageParser,
    estimate_tokens,
    first_user_digest,
    message_text,
    strip_reset_command,
)
from blockops.conversation.notices import leading_block, session_banner
from tests.conversation.histories import assistant, decoded, system, to_json, tool_result, user


def info_of(message: Any) -> MessageInfo:
    return MessageParser().parse(to_json(message))[0].info


class MessageInfoTests(SynchronousTestCase):
    def test_roles(self) -> None:
        for api_role, role in (
            ("system", "system"),
            ("developer", "system"),
            ("user", "user"),
            ("assistant", "assistant"),
            ("tool", "tool"),
            ("function", "tool"),
            ("critic", "other"),
        ):
            self.assertEqual(info_of({"role": api_role, "content": "x"}).role, role)

    def test_calls_and_results(self) -> None:
        self.assertEqual(info_of(assistant(None, "a", "b")).call_ids, ("a", "b"))
        self.assertEqual(info_of({"role": "assistant", "tool_calls": [{}]}).call_ids, ("",))
        self.assertEqual(
            info_of({"role": "assistant", "function_call": {"name": "f"}}).call_ids, ("",)
        )
        self.assertEqual(info_of({"role": "user", "tool_calls": [{"id": "a"}]}).call_ids, ())
        self.assertEqual(info_of(tool_result("a")).tool_call_id, "a")

    def test_long_call_ids_are_replaced_by_digests(self) -> None:
        for long in ("c" * 65, "c" * 2_000_000, "\ud83d" * 100):
            call, answer = info_of(assistant(None, long, "b")), info_of(tool_result(long))
            self.assertEqual(call.call_ids, (answer.tool_call_id, "b"))
            self.assertLessEqual(len(answer.tool_call_id), 64)
            self.assertNotEqual(info_of(tool_result(long + "d")).tool_call_id, answer.tool_call_id)
        self.assertEqual(info_of(tool_result("c" * 64)).tool_call_id, "c" * 64)

    def test_text_contains_all_that_a_template_writes(self) -> None:
        function = {"name": "read_file", "arguments": '{"path": "setup.cfg"}'}
        message = {
            "role": "assistant",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
            "reasoning_content": "thoughts",
            "tool_calls": [{"id": "c", "function": function}],
        }
        text = message_text(json.dumps(message).encode())
        for part in ("one", "two", "thoughts", "read_file", "setup.cfg"):
            self.assertIn(part, text)

    def test_images_are_counted_without_their_bytes(self) -> None:
        url = {"url": "data:image/png;base64," + "A" * 100_000}
        info = info_of(
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": url},
                    {"type": "text", "text": "What is it?"},
                ],
            }
        )
        self.assertEqual((info.images, info.text_bytes), (1, len("What is it?")))

    def test_invalid_messages(self) -> None:
        for odd in ({}, {"role": 7}, {"role": "user", "content": 5}, {"content": "x"}):
            self.assertFalse(info_of(odd).is_valid, odd)
            self.assertGreater(info_of(odd).text_estimate, 0)

    def test_lone_surrogate(self) -> None:
        info = info_of(user("half \ud83d"))
        self.assertEqual((info.role, info.is_valid), ("user", True))

    def test_each_message_is_parsed_once(self) -> None:
        parser = MessageParser()
        first, second = (parser.parse(to_json(user("x")))[0] for _ in range(2))
        self.assertIs(first.info, second.info)

    def test_raw_bytes_are_unchanged(self) -> None:
        odd = b'{ "content":"\\u00e9",  "role" : "user", "x": 1.50 }'
        self.assertEqual(MessageParser().parse([odd])[0].raw, odd)

    def test_message_of_only_notices_is_dropped(self) -> None:
        messages = MessageParser().parse(
            to_json(user(), assistant(leading_block([session_banner("Q")])), user("more"))
        )
        self.assertEqual(decoded(messages), [user(), user("more")])

    def test_first_user_digest(self) -> None:
        messages = MessageParser().parse(to_json(system(), user("a"), user("b")))
        self.assertEqual(first_user_digest(messages), messages[1].info.digest)
        self.assertEqual(first_user_digest(messages[:1]), b"")


class EstimateTokensTests(SynchronousTestCase):
    def test_scripts(self) -> None:
        for text, low, high in (
            ("The quick brown fox jumps over the lazy dog. " * 20, 200, 300),
            ("敏捷的棕色狐狸跳过了懒狗。" * 20, 200, 320),
            ("Быстрая коричневая лиса прыгает. " * 20, 250, 450),
            ("2026-11-22 16:00:00 " * 20, 200, 400),
        ):
            self.assertTrue(low < estimate_tokens(text) < high, (text[:10], estimate_tokens(text)))

    def test_empty_text(self) -> None:
        self.assertEqual(estimate_tokens(""), 0)


class ResetTests(SynchronousTestCase):
    def sent(self, *messages: Any, pattern: str | None = None) -> list[Any]:
        parser = MessageParser() if pattern is None else MessageParser(re.compile(pattern))
        parsed = parser.parse(to_json(*messages))
        is_reset = any(message.info.is_reset for message in parsed)
        return decoded(parser.after_reset(parsed) if is_reset else parsed)

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
            self.assertEqual(info_of(user(text)).is_reset, is_marker, text)
        self.assertTrue(
            info_of({"role": "user", "content": [{"type": "text", "text": "/new"}]}).is_reset
        )
        self.assertFalse(info_of(assistant("/new")).is_reset)

    def test_marker_alone(self) -> None:
        self.assertEqual(self.sent(system(), user("old"), assistant(), user("/new")), [system()])

    def test_text_after_the_marker_stays(self) -> None:
        received = [
            system(),
            user("old"),
            assistant(),
            {**user("/new  what is 2+2?"), "name": "Ann"},
        ]
        self.assertEqual(self.sent(*received), [system(), {**user("what is 2+2?"), "name": "Ann"}])

    def test_content_parts(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:"}}
        for text, remaining in (
            ("/new look", [{"type": "text", "text": "look"}, image]),
            ("/new", [image]),
        ):
            parts = [{"type": "text", "text": text}, image]
            self.assertEqual(
                self.sent({"role": "user", "content": parts}),
                [{"role": "user", "content": remaining}],
            )

    def test_reset_in_an_earlier_turn(self) -> None:
        received = [
            system(),
            user("old"),
            assistant(),
            user("/new"),
            assistant(leading_block([session_banner("")])),
            user("hi"),
            assistant("hello"),
            user("more"),
        ]
        self.assertEqual(self.sent(*received), [system(), *received[5:]])

    def test_newest_reset_counts(self) -> None:
        received = [user("/new a"), assistant("x"), user("/reset b"), assistant("y"), user("c")]
        self.assertEqual(self.sent(*received), [user("b"), *received[3:]])

    def test_custom_pattern(self) -> None:
        received = [user("old"), user("A new session was started. Greet the user.")]
        sent = self.sent(*received, pattern=r"A new session was started\.")
        self.assertEqual(sent, [user("Greet the user.")])
        self.assertEqual(
            self.sent(user("a"), user("/new"), pattern="/fresh"), [user("a"), user("/new")]
        )

    def test_second_marker_is_text(self) -> None:
        self.assertEqual(
            self.sent(user("/new /new x"), assistant("a")), [user("/new x"), assistant("a")]
        )

    def test_stripping_is_deterministic(self) -> None:
        message = json.dumps(user("/new x \u00e9")).encode()
        pattern = re.compile("/new")
        self.assertEqual(
            strip_reset_command(message, pattern), strip_reset_command(message, pattern)
        )


class CacheTests(SynchronousTestCase):
    def test_messages_that_are_used_stay_and_their_number_is_bounded(self) -> None:
        self.patch(messages_module, "MAX_MESSAGES", 10)
        parser = MessageParser()

        def info(number: int) -> MessageInfo:
            return parser.parse(to_json(user(f"{number}")))[0].info

        kept, forgotten, tools = info(0), info(1), parser.tools_info(b"[]")
        for number in range(2, 100):
            info(number)
            self.assertIs(info(0), kept)
            self.assertIs(parser.tools_info(b"[]"), tools)
        self.assertIsNot(info(1), forgotten)
