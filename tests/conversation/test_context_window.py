"""The guard: what it cuts, what it never cuts, and that the cut stays where it is."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.context_window import (
    KEPT_OF_RESULT,
    LONG_RESULT,
    MARKER_TOKENS,
    Cut,
    Fitted,
    Guard,
    Limits,
    marker,
    shortened,
    steps_of,
)
from blockops.conversation.messages import Reader
from blockops.conversation.token_counts import Tally
from blockops.errors import ApiError
from tests import thorough
from tests.conversation.histories import (
    assistant,
    malformed,
    raw,
    result,
    said,
    sound,
    system,
    user,
)


class Talk:
    """A guard, what it needs, and the cut that it made last."""

    def __init__(self, hard: int = 2_000, target: int | None = None) -> None:
        self.reader = Reader()
        self.tally = Tally()
        self.limits = Limits(hard, hard, hard // 2 if target is None else target)
        self.guard = Guard(self.limits, self.reader.read)
        self.cut = Cut()

    def fit(self, messages: list[Any], beside: int = 0) -> Fitted:
        lines = self.reader.read(raw(*messages))
        fitted = self.guard.fit(lines, self.cut, self.tally.count, beside=beside)
        self.cut = fitted.cut
        return fitted

    def tokens(self, fitted: Fitted) -> int:
        return sum(self.tally.count(line.facts) for line in fitted.lines)


def words(tokens: int) -> str:
    return "abcdefg" * (tokens // 2)


def step(number: int, tokens: int = 100) -> list[dict[str, Any]]:
    return [assistant(None, f"c{number}"), result(f"c{number}", words(tokens))]


def agent(steps: int, tokens: int = 100) -> list[dict[str, Any]]:
    head = [system("You are an agent."), user("Find the bug.")]
    return head + [message for number in range(steps) for message in step(number, tokens)]


def flat(history: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [message for step in history for message in step]


def troubles(messages: list[Any]) -> list[str]:
    """Return what OpenAI's API would refuse in a history; written apart from the guard's own."""
    found = []
    waiting: list[str] = []
    for at, message in enumerate(messages):
        role = message.get("role")
        if role in {"tool", "function"}:
            said_id = message.get("tool_call_id") or ""
            match = next((each for each in waiting if said_id in {each, ""} or not each), None)
            if match is None:
                found.append(f"{at}: an orphan")
            else:
                waiting.remove(match)
            continue
        if role in {"system", "developer"}:
            continue
        found += [f"{at}: {each} has no result" for each in waiting]
        waiting = [call.get("id") or "" for call in message.get("tool_calls") or ()]
        if not waiting and message.get("function_call"):
            waiting = [""]
        if role not in {"user", "assistant"}:
            found.append(f"{at}: the role {role!r}")
    return found + [f"the end: {each} has no result" for each in waiting]


class Cutting(SynchronousTestCase):
    def test_what_fits_stays_as_it_is(self) -> None:
        talk = Talk()
        messages = agent(10)
        fitted = talk.fit(messages)
        self.assertEqual([line.raw for line in fitted.lines], raw(*messages))
        self.assertEqual((fitted.dropped, fitted.before), (0, fitted.after))

    def test_the_middle_goes_in_whole_steps_down_to_the_target(self) -> None:
        talk = Talk()
        messages = agent(30)
        fitted = talk.fit(messages)
        left = said(fitted.lines)
        self.assertEqual(left[:2], messages[:2])
        self.assertEqual(left[2], json.loads(marker(fitted.dropped)))
        self.assertEqual(left[3:], messages[2 + 2 * fitted.dropped :])
        self.assertLessEqual(talk.tokens(fitted), talk.limits.hard)
        self.assertGreater(fitted.before, talk.limits.hard)

    def test_the_marker_says_how_many(self) -> None:
        self.assertEqual(json.loads(marker(1))["role"], "user")
        self.assertIn("1 step of this conversation is left out", json.loads(marker(1))["content"])
        self.assertIn("12 steps of this conversation are", json.loads(marker(12))["content"])

    def test_the_marker_is_as_small_as_it_is_counted(self) -> None:
        talk = Talk()
        self.assertLess(
            talk.tally.count(talk.reader.read([marker(99_999)])[0].facts), MARKER_TOKENS
        )

    def test_system_messages_in_the_middle_stay_where_they_were(self) -> None:
        talk = Talk()
        messages = agent(30)
        messages.insert(6, system("From now on, in French."))
        left = said(talk.fit(messages).lines)
        self.assertEqual(
            [message["role"] for message in left[:4]], ["system", "user", "user", "system"]
        )
        self.assertEqual(left[3], messages[6])

    def test_a_later_user_message_is_a_step_of_its_own(self) -> None:
        facts = [
            line.facts
            for line in Reader().read(
                raw(
                    system(),
                    user(),
                    user("more"),
                    assistant("a"),
                    assistant(None, "c"),
                    result("c"),
                    user("and"),
                )
            )
        ]
        self.assertEqual([step.places for step in steps_of(facts)], [(2,), (3,), (4, 5), (6,)])

    def test_tools_count(self) -> None:
        talk = Talk()
        messages = agent(12)
        self.assertEqual(talk.fit(messages).dropped, 0)
        self.assertGreater(talk.fit(messages, beside=1_200).dropped, 0)

    def test_a_long_result_is_shortened_when_nothing_else_is_left_to_drop(self) -> None:
        talk = Talk(hard=6_000)
        messages = [
            *agent(3),
            assistant(None, "x", "y"),
            result("x", "A" * 30_000),
            result("y", "B" * 9_000),
        ]
        fitted = talk.fit(messages)
        left = said(fitted.lines)
        self.assertEqual((fitted.dropped, fitted.shortened), (3, 1))
        head, tail = KEPT_OF_RESULT
        short = left[-2]["content"]
        self.assertTrue(short.startswith("A" * head + "\n["))
        self.assertTrue(short.endswith("]\n" + "A" * tail))
        self.assertIn(str(30_000 - head - tail), short)
        self.assertEqual(left[-2]["tool_call_id"], "x")
        self.assertEqual(left[-1], messages[-1])
        # ... and it stays so, to the byte.
        again = talk.fit([*messages, assistant("I see")])
        self.assertEqual(
            [line.raw for line in again.lines[:-1]], [line.raw for line in fitted.lines]
        )

    def test_what_cannot_be_made_to_fit_is_refused(self) -> None:
        for messages in (
            [user(words(3_000))],
            [system(words(3_000)), user()],
            [*agent(20), user(words(3_000))],
            [*agent(2), assistant(None, *"abcdef"), *(result(c, "x" * 9_000) for c in "abcdef")],
        ):
            error = self.assertRaises(ApiError, Talk().fit, messages)
            self.assertEqual((error.status, error.code), (400, "context_length_exceeded"))
            self.assertIn("TOKEN_HARD_THRESHOLD", error.message)

    def test_a_torn_end_is_refused_and_says_what_is_torn(self) -> None:
        for end, why in (
            ([assistant(None, "x")], "not all answered"),
            ([assistant(None, "x", "y"), result("x")], "not all answered"),
            ([result("x")], "no message before it makes"),
            ([{"role": "critic", "content": "no"}], "no message that the API knows"),
        ):
            error = self.assertRaises(ApiError, Talk().fit, [*agent(40), *end])
            self.assertEqual((error.status, error.code), (400, "invalid_messages"))
            self.assertIn(why, error.message)
            self.assertEqual(Talk().fit([*agent(2), *end]).dropped, 0)

    def test_torn_steps_in_the_kept_part_give_way_to_markers(self) -> None:
        talk = Talk()
        messages = [*agent(40), result("nobody"), *step(90), assistant(None, "x"), user("go on")]
        left = said(talk.fit(messages).lines)
        one = json.loads(marker(1))
        self.assertEqual(left[-5:], [one, *step(90), one, user("go on")])

    def test_markers_are_counted_where_they_are_larger_than_what_they_stand_for(self) -> None:
        talk = Talk(hard=600)
        torn = [each for number in range(20) for each in (result(f"{number}", ""), user(""))]
        fitted = talk.fit([user("task"), user(words(500)), user(words(200)), *torn])
        self.assertLessEqual(talk.tokens(fitted), 600)

    def test_parts_of_a_result_are_shortened_too(self) -> None:
        picture = {"type": "image_url", "image_url": {"url": "data:"}}
        long = {"type": "text", "text": "C" * (LONG_RESULT + 1), "cache_control": {"x": 1}}
        message = {"role": "tool", "tool_call_id": "c", "content": [picture, long]}
        short = json.loads(shortened(json.dumps(message).encode()) or b"")
        self.assertEqual(short["content"][0], picture)
        self.assertEqual(short["content"][1]["cache_control"], {"x": 1})
        self.assertLess(len(short["content"][1]["text"]), LONG_RESULT)

    def test_short_and_odd_results_are_not(self) -> None:
        for message in (result("c"), {"role": "tool"}, {"role": "tool", "content": ["x" * 9_000]}):
            self.assertIsNone(shortened(json.dumps(message).encode()))
        self.assertIsNone(shortened(b"nonsense"))


class Staying(SynchronousTestCase):
    """Between two cuts, each prompt begins with the one before it."""

    def test_the_cut_stays_until_the_threshold_is_reached_again(self) -> None:
        talk = Talk(hard=4_000)
        before: list[bytes] = []
        moved = []
        for steps in range(1, 120):
            now = [line.raw for line in talk.fit(agent(steps)).lines]
            if now[: len(before)] != before:
                moved.append(steps)
            before = now
        distances = [later - sooner for sooner, later in pairwise(moved)]
        self.assertTrue(moved)
        self.assertTrue(all(distance > 12 for distance in distances), distances)

    def test_the_same_request_again_gives_the_same_bytes(self) -> None:
        talk = Talk()
        messages = agent(40)
        first = talk.fit(messages)
        self.assertEqual(
            [line.raw for line in talk.fit(messages).lines], [line.raw for line in first.lines]
        )

    def test_a_history_that_was_edited_is_walked_anew(self) -> None:
        talk = Talk()
        talk.fit(agent(40))
        messages = agent(40)
        messages[5] = result("c1", "something else")
        fitted = talk.fit(messages)
        self.assertEqual(
            [line.raw for line in fitted.lines], [line.raw for line in Talk().fit(messages).lines]
        )

    def test_a_side_request_does_not_move_the_cut(self) -> None:
        """A client asks something else at the end of the same history; what is missed differs."""
        talk = Talk()
        before = [line.raw for line in talk.fit(agent(40), beside=500).lines]
        side = talk.fit([*agent(40), user("Who speaks next?")])
        self.assertEqual([line.raw for line in side.lines[:-1]], before)
        again = talk.fit([*agent(40), *step(40)])
        self.assertEqual([line.raw for line in again.lines[:-2]], before)

    def test_an_edited_end_does_not_move_the_cut(self) -> None:
        talk = Talk()
        before = [line.raw for line in talk.fit([*agent(40), user("one")], beside=500).lines]
        for end in (
            [user("two")],
            [user("two"), assistant("well"), user("three")],
            [user("a fourth, which is longer")],
        ):
            fitted = talk.fit([*agent(40), *end])
            self.assertEqual([line.raw for line in fitted.lines[: -len(end)]], before[:-1])

    def test_marks_that_move_along_with_the_end_do_not_move_the_cut(self) -> None:
        """Clients put cache_control on the two newest messages of the user, and only on these."""
        talk = Talk(hard=4_000)
        prompts = []
        for turns in range(1, 90):
            messages = [user("task")]
            for number in range(turns):
                messages += [assistant(f"a{number} " * 10), user(f"b{number} " * 40)]
            for message in messages[-3::2]:
                message["cache_control"] = {"type": "ephemeral"}
            # What is missed goes up and down from turn to turn.
            fitted = talk.fit(messages, beside=150 * (turns % 3))
            prompts.append(
                [(each["role"], each["content"]) for each in said(fitted.lines)],
            )
        moved = sum(now[: len(before)] != before for before, now in pairwise(prompts))
        self.assertGreater(moved, 0)
        self.assertLess(moved, 6)

    def test_a_short_side_track_does_not_move_the_cut(self) -> None:
        talk = Talk()
        before = [line.raw for line in talk.fit(agent(40), beside=500).lines]
        self.assertEqual([line.raw for line in talk.fit(agent(3)).lines], raw(*agent(3)))
        again = talk.fit([*agent(40), *step(40)])
        self.assertEqual([line.raw for line in again.lines[:-2]], before)

    def test_an_end_that_is_taken_back_a_little_does_not_move_the_cut(self) -> None:
        talk = Talk()
        before = [line.raw for line in talk.fit(agent(17), beside=500).lines]
        again = [line.raw for line in talk.fit(agent(15)).lines]
        self.assertEqual(again, before[: len(again)])
        self.assertIn(b"left out here", again[2])

    def test_a_history_that_is_taken_back_to_where_it_fits_is_whole(self) -> None:
        talk = Talk()
        dropped = talk.fit(agent(20)).dropped
        self.assertGreater(dropped, 5)
        fitting = agent(dropped + 1)
        self.assertEqual([line.raw for line in talk.fit(fitting).lines], raw(*fitting))

    def test_a_short_history_after_a_long_one_is_whole(self) -> None:
        talk = Talk()
        talk.fit(agent(40))
        messages = agent(3)
        self.assertEqual([line.raw for line in talk.fit(messages).lines], raw(*messages))

    def test_a_cut_is_found_again_where_a_system_message_came_late(self) -> None:
        """It counts from where it stands on, not from the beginning."""
        for tokens in range(100, 900, 50):
            seen = Talk()
            messages = agent(2)
            for number in range(2, 30):
                messages += step(number)
                if number == 24:
                    messages.append(system(words(tokens)))
                fitted = seen.fit(messages)
            self.assertEqual(Talk().fit(messages).dropped, fitted.dropped)

    @given(sound())
    @thorough(150)
    def test_a_lost_cut_is_found_again(self, history: list[list[dict[str, Any]]]) -> None:
        """However many of its requests were seen, a history is cut at the same place."""
        seen, late = Talk(hard=1_500), Talk(hard=1_500)
        refused = None
        for upto in range(1, len(history) + 1):
            try:
                fitted = seen.fit(flat(history[:upto]))
                refused = None
            except ApiError as error:
                refused = error.code
        try:
            once = late.fit(flat(history))
        except ApiError as error:
            self.assertEqual(error.code, refused)
        else:
            self.assertIsNone(refused)
            self.assertEqual([line.raw for line in once.lines], [line.raw for line in fitted.lines])

    @given(sound(), st.integers(1_000, 6_000))
    @thorough(150)
    def test_a_prompt_begins_with_the_one_before_unless_the_cut_moved(
        self, history: list[list[dict[str, Any]]], hard: int
    ) -> None:
        talk = Talk(hard=hard)
        before: list[bytes] = []
        dropped, short = 0, 0
        for upto in range(1, len(history) + 1):
            try:
                fitted = talk.fit(flat(history[:upto]))
            except ApiError:
                return
            now = [line.raw for line in fitted.lines]
            if (fitted.dropped, fitted.shortened) == (dropped, short):
                self.assertEqual(now[: len(before)], before)
            before, dropped, short = now, fitted.dropped, fitted.shortened


class AnyHistory(SynchronousTestCase):
    """Whatever comes, what leaves is valid, in order, and made of what came."""

    @given(sound(), st.integers(600, 6_000))
    @thorough(250)
    def test_sound_ones(self, history: list[list[dict[str, Any]]], hard: int) -> None:
        self.check(flat(history), hard)

    @given(malformed, st.integers(200, 3_000))
    @thorough(400)
    def test_malformed_ones(self, messages: list[Any], hard: int) -> None:
        self.check(messages, hard)

    def check(self, messages: list[Any], hard: int) -> None:
        talk = Talk(hard=hard)
        try:
            fitted = talk.fit(messages)
        except ApiError as error:
            self.assertEqual(error.status, 400)
            self.assertIn(error.code, {"context_length_exceeded", "invalid_messages"})
            self.assertTrue(error.message)
            return
        came = raw(*messages)
        left = [line.raw for line in fitted.lines]
        self.assertLessEqual(talk.tokens(fitted), hard)
        self.assertLessEqual(talk.tokens(fitted), max(fitted.after, 0))
        if not fitted.dropped and not fitted.shortened:
            self.assertEqual(left, came)
            return
        self.assertEqual(troubles(said(fitted.lines)), [])
        self.assert_in_order(left, came)
        for message in messages:
            if message.get("role") == "system":
                self.assertIn(json.dumps(message).encode(), left)
        lines = talk.reader.read(came)
        users = [line.raw for line in lines if line.facts.role == "user"]
        self.assertEqual([each for each in left if each in users[:1]][:1], users[:1])

    def assert_in_order(self, left: list[bytes], came: list[bytes]) -> None:
        """Each message that leaves is one that came, or made from it, or a marker; in order."""
        rest = iter(came)
        for each in left:
            if b"left out here, to make room" in each:
                continue
            for one in rest:
                if each in {one, shortened(one)}:
                    break
            else:
                self.fail(f"{each!r} did not come, or came earlier")
