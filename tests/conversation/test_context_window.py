"""Tests of trimming: which messages are dropped, and that the trim point stays in place."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.context_window import (
    LONG_RESULT,
    MARKER_TOKENS,
    RESULT_HEAD_AND_TAIL,
    ContextLimits,
    ContextTrimmer,
    TrimPoint,
    TrimResult,
    make_marker,
    shorten_result,
    split_steps,
)
from blockops.conversation.messages import MessageParser
from blockops.conversation.token_counts import ModelCounts
from blockops.errors import ApiError
from tests import thorough
from tests.conversation.histories import (
    assistant,
    decoded,
    malformed_histories,
    system,
    to_json,
    tool_result,
    user,
    valid_histories,
)


class TrimmedConversation:
    """A history that is sent again and again, with the trimmer and the latest trim point."""

    def __init__(self, hard: int = 2_000, target: int | None = None) -> None:
        self.parser = MessageParser()
        self.counts = ModelCounts()
        self.limits = ContextLimits(hard, hard, hard // 2 if target is None else target)
        self.trimmer = ContextTrimmer(self.limits, self.parser.parse)
        self.trim_point = TrimPoint()

    def trim(self, messages: list[Any], overhead: int = 0) -> TrimResult:
        parsed = self.parser.parse(to_json(*messages))
        result = self.trimmer.trim(parsed, self.trim_point, self.counts.count, overhead=overhead)
        self.trim_point = result.trim_point
        return result

    def tokens(self, result: TrimResult) -> int:
        return sum(self.counts.count(message.info) for message in result.messages)


def text_of_tokens(tokens: int) -> str:
    return "abcdefg" * (tokens // 2)


def call_step(number: int, tokens: int = 100) -> list[dict[str, Any]]:
    return [assistant(None, f"c{number}"), tool_result(f"c{number}", text_of_tokens(tokens))]


def agent_history(steps: int, tokens: int = 100) -> list[dict[str, Any]]:
    head = [system("You are an agent."), user("Find the bug.")]
    return head + [message for number in range(steps) for message in call_step(number, tokens)]


def flatten(history: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [message for step in history for message in step]


def find_errors(messages: list[Any]) -> list[str]:
    """Return why OpenAI's API would reject a history; independent of the code under test."""
    errors = []
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role in {"tool", "function"}:
            call_id = message.get("tool_call_id") or ""
            match = next((call for call in open_calls if call_id in {call, ""} or not call), None)
            if match is None:
                errors.append(f"{index}: an orphaned result")
            else:
                open_calls.remove(match)
            continue
        if role in {"system", "developer"}:
            continue
        errors += [f"{index}: {call} has no result" for call in open_calls]
        open_calls = [call.get("id") or "" for call in message.get("tool_calls") or ()]
        if not open_calls and message.get("function_call"):
            open_calls = [""]
        if role not in {"user", "assistant"}:
            errors.append(f"{index}: the role {role!r}")
    return errors + [f"the end: {call} has no result" for call in open_calls]


class TrimTests(SynchronousTestCase):
    def test_history_without_the_shortened_result_is_unchanged(self) -> None:
        conversation = TrimmedConversation()
        task = [system("You are an agent."), user("Find the bug.")]
        result = conversation.trim([*task, *call_step(0, 10 * conversation.limits.hard)])
        self.assertEqual((result.dropped_steps, result.shortened_results), (0, 1))
        self.assertNotEqual(result.trim_point, TrimPoint())
        result = conversation.trim([*task, *call_step(1)])
        self.assertEqual(
            [message.raw for message in result.messages], to_json(*task, *call_step(1))
        )

    def test_history_that_fits_is_unchanged(self) -> None:
        conversation = TrimmedConversation()
        messages = agent_history(10)
        result = conversation.trim(messages)
        self.assertEqual([message.raw for message in result.messages], to_json(*messages))
        self.assertEqual((result.dropped_steps, result.tokens_before), (0, result.tokens_after))

    def test_whole_steps_are_dropped_down_to_the_target(self) -> None:
        conversation = TrimmedConversation()
        messages = agent_history(30)
        result = conversation.trim(messages)
        remaining = decoded(result.messages)
        self.assertEqual(remaining[:2], messages[:2])
        self.assertEqual(remaining[2], json.loads(make_marker(result.dropped_steps)))
        self.assertEqual(remaining[3:], messages[2 + 2 * result.dropped_steps :])
        self.assertLessEqual(conversation.tokens(result), conversation.limits.hard)
        self.assertGreater(result.tokens_before, conversation.limits.hard)

    def test_marker_contains_the_number_of_steps(self) -> None:
        self.assertEqual(json.loads(make_marker(1))["role"], "user")
        self.assertIn(
            "1 step of this conversation is left out", json.loads(make_marker(1))["content"]
        )
        self.assertIn("12 steps of this conversation are", json.loads(make_marker(12))["content"])

    def test_marker_tokens_are_an_upper_bound(self) -> None:
        conversation = TrimmedConversation()
        self.assertLess(
            conversation.counts.count(conversation.parser.parse([make_marker(99_999)])[0].info),
            MARKER_TOKENS,
        )

    def test_system_messages_in_the_middle_stay(self) -> None:
        conversation = TrimmedConversation()
        messages = agent_history(30)
        messages.insert(6, system("From now on, in French."))
        remaining = decoded(conversation.trim(messages).messages)
        self.assertEqual(
            [message["role"] for message in remaining[:4]], ["system", "user", "user", "system"]
        )
        self.assertEqual(remaining[3], messages[6])

    def test_later_user_message_is_a_step(self) -> None:
        infos = [
            message.info
            for message in MessageParser().parse(
                to_json(
                    system(),
                    user(),
                    user("more"),
                    assistant("a"),
                    assistant(None, "c"),
                    tool_result("c"),
                    user("and"),
                )
            )
        ]
        self.assertEqual([step.indexes for step in split_steps(infos)], [(2,), (3,), (4, 5), (6,)])

    def test_overhead_counts(self) -> None:
        conversation = TrimmedConversation()
        messages = agent_history(12)
        self.assertEqual(conversation.trim(messages).dropped_steps, 0)
        self.assertGreater(conversation.trim(messages, overhead=1_200).dropped_steps, 0)

    def test_long_result_of_the_newest_step_is_shortened(self) -> None:
        conversation = TrimmedConversation(hard=6_000)
        messages = [
            *agent_history(3),
            assistant(None, "x", "y"),
            tool_result("x", "A" * 30_000),
            tool_result("y", "B" * 9_000),
        ]
        result = conversation.trim(messages)
        remaining = decoded(result.messages)
        self.assertEqual((result.dropped_steps, result.shortened_results), (3, 1))
        head, tail = RESULT_HEAD_AND_TAIL
        short = remaining[-2]["content"]
        self.assertTrue(short.startswith("A" * head + "\n["))
        self.assertTrue(short.endswith("]\n" + "A" * tail))
        self.assertIn(str(30_000 - head - tail), short)
        self.assertEqual(remaining[-2]["tool_call_id"], "x")
        self.assertEqual(remaining[-1], messages[-1])
        # The shortened result keeps its bytes in the next request.
        again = conversation.trim([*messages, assistant("I see")])
        self.assertEqual(
            [message.raw for message in again.messages[:-1]],
            [message.raw for message in result.messages],
        )

    def test_history_that_cannot_fit_is_rejected(self) -> None:
        for messages in (
            [user(text_of_tokens(3_000))],
            [system(text_of_tokens(3_000)), user()],
            [*agent_history(20), user(text_of_tokens(3_000))],
            [
                *agent_history(2),
                assistant(None, *"abcdef"),
                *(tool_result(c, "x" * 9_000) for c in "abcdef"),
            ],
        ):
            error = self.assertRaises(ApiError, TrimmedConversation().trim, messages)
            self.assertEqual((error.status, error.code), (400, "context_length_exceeded"))
            self.assertIn("--token-hard-threshold", error.message)

    def test_a_result_with_few_characters_is_not_shortened(self) -> None:
        """It has 12,000 bytes, but only 4,000 characters."""
        history = [*agent_history(0), assistant(None, "c"), tool_result("c", "漢" * 4_000)]
        error = self.assertRaises(ApiError, TrimmedConversation().trim, history)
        self.assertEqual(error.code, "context_length_exceeded")

    def test_incomplete_last_step_is_rejected_with_its_reason(self) -> None:
        for end, reason in (
            ([assistant(None, "x")], "do not all have a result"),
            ([assistant(None, "x", "y"), tool_result("x")], "do not all have a result"),
            ([tool_result("x")], "no earlier message makes"),
            ([{"role": "critic", "content": "no"}], "does not have the role and fields"),
        ):
            error = self.assertRaises(
                ApiError, TrimmedConversation().trim, [*agent_history(40), *end]
            )
            self.assertEqual((error.status, error.code), (400, "invalid_messages"))
            self.assertIn(reason, error.message)
            self.assertEqual(TrimmedConversation().trim([*agent_history(2), *end]).dropped_steps, 0)

    def test_later_incomplete_steps_are_replaced_by_markers(self) -> None:
        conversation = TrimmedConversation()
        messages = [
            *agent_history(40),
            tool_result("orphan"),
            *call_step(90),
            assistant(None, "x"),
            user("go on"),
        ]
        remaining = decoded(conversation.trim(messages).messages)
        one = json.loads(make_marker(1))
        self.assertEqual(remaining[-5:], [one, *call_step(90), one, user("go on")])

    def test_incomplete_steps_count_at_least_as_markers(self) -> None:
        conversation = TrimmedConversation(hard=600)
        incomplete = [
            message for number in range(20) for message in (tool_result(f"{number}", ""), user(""))
        ]
        result = conversation.trim(
            [user("task"), user(text_of_tokens(500)), user(text_of_tokens(200)), *incomplete]
        )
        self.assertLessEqual(conversation.tokens(result), 600)

    def test_content_parts_are_shortened(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:"}}
        long = {"type": "text", "text": "C" * (LONG_RESULT + 1), "cache_control": {"x": 1}}
        message = {"role": "tool", "tool_call_id": "c", "content": [image, long]}
        short = json.loads(shorten_result(json.dumps(message).encode()) or b"")
        self.assertEqual(short["content"][0], image)
        self.assertEqual(short["content"][1]["cache_control"], {"x": 1})
        self.assertLess(len(short["content"][1]["text"]), LONG_RESULT)

    def test_short_and_invalid_results_are_not_shortened(self) -> None:
        for message in (
            tool_result("c"),
            {"role": "tool"},
            {"role": "tool", "content": ["x" * 9_000]},
        ):
            self.assertIsNone(shorten_result(json.dumps(message).encode()))
        self.assertIsNone(shorten_result(b"nonsense"))


class StableTrimPointTests(SynchronousTestCase):
    """While the trim point stays, each prompt begins with the one before it."""

    def test_trim_point_stays_until_the_threshold_is_exceeded(self) -> None:
        conversation = TrimmedConversation(hard=4_000)
        before: list[bytes] = []
        moved = []
        for steps in range(1, 120):
            now = [message.raw for message in conversation.trim(agent_history(steps)).messages]
            if now[: len(before)] != before:
                moved.append(steps)
            before = now
        gaps = [later - earlier for earlier, later in pairwise(moved)]
        self.assertTrue(moved)
        self.assertTrue(all(gap > 12 for gap in gaps), gaps)

    def test_repeated_request_has_the_same_bytes(self) -> None:
        conversation = TrimmedConversation()
        messages = agent_history(40)
        first = conversation.trim(messages)
        self.assertEqual(
            [message.raw for message in conversation.trim(messages).messages],
            [message.raw for message in first.messages],
        )

    def test_edited_history_is_examined_again(self) -> None:
        conversation = TrimmedConversation()
        conversation.trim(agent_history(40))
        messages = agent_history(40)
        messages[5] = tool_result("c1", "something else")
        result = conversation.trim(messages)
        self.assertEqual(
            [message.raw for message in result.messages],
            [message.raw for message in TrimmedConversation().trim(messages).messages],
        )

    def test_side_request_keeps_the_trim_point(self) -> None:
        """A client asks a side question at the end of the history; the undercount differs."""
        conversation = TrimmedConversation()
        before = [
            message.raw for message in conversation.trim(agent_history(40), overhead=500).messages
        ]
        side = conversation.trim([*agent_history(40), user("Who speaks next?")])
        self.assertEqual([message.raw for message in side.messages[:-1]], before)
        again = conversation.trim([*agent_history(40), *call_step(40)])
        self.assertEqual([message.raw for message in again.messages[:-2]], before)

    def test_edited_end_keeps_the_trim_point(self) -> None:
        conversation = TrimmedConversation()
        before = [
            message.raw
            for message in conversation.trim(
                [*agent_history(40), user("one")], overhead=500
            ).messages
        ]
        for end in (
            [user("two")],
            [user("two"), assistant("well"), user("three")],
            [user("a fourth, which is longer")],
        ):
            result = conversation.trim([*agent_history(40), *end])
            self.assertEqual([message.raw for message in result.messages[: -len(end)]], before[:-1])

    def test_moving_cache_control_keeps_the_trim_point(self) -> None:
        """Clients put cache_control on the two newest user messages, and only on these."""
        conversation = TrimmedConversation(hard=4_000)
        prompts = []
        for turns in range(1, 90):
            messages = [user("task")]
            for number in range(turns):
                messages += [assistant(f"a{number} " * 10), user(f"b{number} " * 40)]
            for message in messages[-3::2]:
                message["cache_control"] = {"type": "ephemeral"}
            # The undercount rises and falls from turn to turn.
            result = conversation.trim(messages, overhead=150 * (turns % 3))
            prompts.append(
                [(message["role"], message["content"]) for message in decoded(result.messages)],
            )
        moved = sum(now[: len(before)] != before for before, now in pairwise(prompts))
        self.assertGreater(moved, 0)
        self.assertLess(moved, 6)

    def test_short_side_request_keeps_the_trim_point(self) -> None:
        conversation = TrimmedConversation()
        before = [
            message.raw for message in conversation.trim(agent_history(40), overhead=500).messages
        ]
        self.assertEqual(
            [message.raw for message in conversation.trim(agent_history(3)).messages],
            to_json(*agent_history(3)),
        )
        again = conversation.trim([*agent_history(40), *call_step(40)])
        self.assertEqual([message.raw for message in again.messages[:-2]], before)

    def test_small_rollback_keeps_the_trim_point(self) -> None:
        conversation = TrimmedConversation()
        before = [
            message.raw for message in conversation.trim(agent_history(17), overhead=500).messages
        ]
        again = [message.raw for message in conversation.trim(agent_history(15)).messages]
        self.assertEqual(again, before[: len(again)])
        self.assertIn(b"left out here", again[2])

    def test_large_rollback_is_not_trimmed(self) -> None:
        conversation = TrimmedConversation()
        dropped = conversation.trim(agent_history(20)).dropped_steps
        self.assertGreater(dropped, 5)
        fitting = agent_history(dropped + 1)
        self.assertEqual(
            [message.raw for message in conversation.trim(fitting).messages], to_json(*fitting)
        )

    def test_short_history_after_a_long_one_is_not_trimmed(self) -> None:
        conversation = TrimmedConversation()
        conversation.trim(agent_history(40))
        messages = agent_history(3)
        self.assertEqual(
            [message.raw for message in conversation.trim(messages).messages], to_json(*messages)
        )

    def test_lost_trim_point_with_a_late_system_message(self) -> None:
        """A system message counts from its place on, not from the first step."""
        for tokens in range(100, 900, 50):
            every_request = TrimmedConversation()
            messages = agent_history(2)
            for number in range(2, 30):
                messages += call_step(number)
                if number == 24:
                    messages.append(system(text_of_tokens(tokens)))
                result = every_request.trim(messages)
            self.assertEqual(
                TrimmedConversation().trim(messages).dropped_steps, result.dropped_steps
            )

    @given(valid_histories())
    @thorough(150)
    def test_lost_trim_point_is_found_again(self, history: list[list[dict[str, Any]]]) -> None:
        """A history is trimmed at the same place however many of its requests were seen."""
        every_request = TrimmedConversation(hard=1_500)
        last_request = TrimmedConversation(hard=1_500)
        error_code = None
        for end in range(1, len(history) + 1):
            try:
                result = every_request.trim(flatten(history[:end]))
                error_code = None
            except ApiError as error:
                error_code = error.code
        try:
            result_of_last = last_request.trim(flatten(history))
        except ApiError as error:
            self.assertEqual(error.code, error_code)
        else:
            self.assertIsNone(error_code)
            self.assertEqual(
                [message.raw for message in result_of_last.messages],
                [message.raw for message in result.messages],
            )

    @given(valid_histories(), st.integers(1_000, 6_000))
    @thorough(150)
    def test_prompt_extends_the_one_before_unless_the_trim_point_moves(
        self, history: list[list[dict[str, Any]]], hard: int
    ) -> None:
        conversation = TrimmedConversation(hard=hard)
        before: list[bytes] = []
        dropped, short = 0, 0
        for end in range(1, len(history) + 1):
            try:
                result = conversation.trim(flatten(history[:end]))
            except ApiError:
                return
            now = [message.raw for message in result.messages]
            if (result.dropped_steps, result.shortened_results) == (dropped, short):
                self.assertEqual(now[: len(before)], before)
            before, dropped, short = now, result.dropped_steps, result.shortened_results


class AnyHistoryTests(SynchronousTestCase):
    """The result for any history is valid, in order, and made of the received messages."""

    @given(valid_histories(), st.integers(600, 6_000))
    @thorough(250)
    def test_valid_histories(self, history: list[list[dict[str, Any]]], hard: int) -> None:
        self.assert_valid_result(flatten(history), hard)

    @given(malformed_histories, st.integers(200, 3_000))
    @thorough(400)
    def test_malformed_histories(self, messages: list[Any], hard: int) -> None:
        self.assert_valid_result(messages, hard)

    def assert_valid_result(self, messages: list[Any], hard: int) -> None:
        conversation = TrimmedConversation(hard=hard)
        try:
            result = conversation.trim(messages)
        except ApiError as error:
            self.assertEqual(error.status, 400)
            self.assertIn(error.code, {"context_length_exceeded", "invalid_messages"})
            self.assertTrue(error.message)
            return
        received = to_json(*messages)
        remaining = [message.raw for message in result.messages]
        self.assertLessEqual(conversation.tokens(result), hard)
        self.assertLessEqual(conversation.tokens(result), max(result.tokens_after, 0))
        if not result.dropped_steps and not result.shortened_results:
            self.assertEqual(remaining, received)
            return
        self.assertEqual(find_errors(decoded(result.messages)), [])
        self.assert_in_order(remaining, received)
        for message in messages:
            if message.get("role") == "system":
                self.assertIn(json.dumps(message).encode(), remaining)
        parsed = conversation.parser.parse(received)
        users = [message.raw for message in parsed if message.info.role == "user"]
        self.assertEqual([raw for raw in remaining if raw in users[:1]][:1], users[:1])

    def assert_in_order(self, remaining: list[bytes], received: list[bytes]) -> None:
        """Each remaining message was received, or is a shortened one, or a marker; in order."""
        rest = iter(received)
        for raw in remaining:
            if b"left out here, to make room" in raw:
                continue
            for candidate in rest:
                if raw in {candidate, shorten_result(candidate)}:
                    break
            else:
                self.fail(f"{raw!r} was not received, or not in this order")
