"""Counts: what they hold, how they learn, that they do not move."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation.messages import Facts, Reader
from blockops.conversation.sessions import MAX_GUESSED, Thread
from blockops.conversation.token_counts import (
    IMAGE_TOKENS,
    MAX_MODELS,
    RATIOS,
    TEACHING_TOKENS,
    Tally,
    Tokens,
    most_of,
    of_tools,
    weight_of,
)
from tests.conversation.histories import assistant, raw, sound, user

PROSE = user("The quick brown fox jumps over the lazy dog. " * 100)


def facts(*messages: Any) -> list[Facts]:
    return [line.facts for line in Reader().read(raw(*messages))]


class Counting(SynchronousTestCase):
    def test_a_first_count_stays(self) -> None:
        tally = Tally()
        (message,) = facts(PROSE)
        first = tally.count(message)
        tally.learn(2.0)
        self.assertEqual(tally.count(message), first)
        (other,) = facts(user(PROSE["content"] + "!"))
        self.assertGreater(tally.count(other), 1.8 * first)

    def test_a_guess_does_not_stay(self) -> None:
        tally = Tally()
        (message,) = facts(PROSE)
        first = tally.guess(message)
        tally.learn(2.0)
        self.assertGreater(tally.guess(message), 1.8 * first)
        self.assertEqual(tally.unknown([message]), [message])

    def test_the_backends_count(self) -> None:
        tally = Tally()
        one, other = facts(PROSE, user("other"))
        self.assertEqual(tally.unknown([one, other, one]), [one, other])
        tally.note(one, 950)
        self.assertEqual(tally.unknown([one, other]), [other])
        self.assertEqual(tally.count(one), 955)
        tally.note(one, 1)
        self.assertEqual(tally.count(one), 955)

    def test_pictures_tools_and_calls_count(self) -> None:
        tally = Tally()
        picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
        plain, called, pictured = facts(assistant("a"), assistant("a", "c1", "c2"), picture)
        self.assertGreater(tally.count(called), tally.count(plain))
        self.assertGreaterEqual(tally.count(pictured), IMAGE_TOKENS)
        self.assertGreater(tally.count(of_tools(b'[{"type": "function", "function": {}}]')), 8)
        self.assertLess(tally.count(of_tools(b"")), 8)

    @given(sound())
    def test_never_more_than_the_most(self, history: list[list[Any]]) -> None:
        messages = facts(*(message for step in history for message in step))
        self.assertLessEqual(sum(map(Tally().count, messages)), most_of(messages))


class Learning(SynchronousTestCase):
    def test_each_model_has_its_ratio(self) -> None:
        tokens = Tokens()
        tokens.learn("a", 1_000, 1_500)
        self.assertEqual(tokens.of("a").ratio, 1.5)
        self.assertEqual(tokens.of("b").ratio, 1.0)
        self.assertEqual(tokens.of(None).ratio, 1.0)

    def test_it_settles(self) -> None:
        tokens = Tokens()
        for _ in range(20):
            tokens.learn("a", 1_000, 800)
        self.assertAlmostEqual(tokens.of("a").ratio, 0.8)

    def test_it_follows_slowly_and_within_bounds(self) -> None:
        tokens = Tokens()
        tokens.learn("a", 1_000, 1_000)
        tokens.learn("a", 1_000, 2_000)
        self.assertAlmostEqual(tokens.of("a").ratio, 1.3)
        for _ in range(50):
            tokens.learn("a", 1_000, 1_000_000)
        self.assertAlmostEqual(tokens.of("a").ratio, RATIOS[1], places=3)

    def test_short_prompts_teach_nothing(self) -> None:
        tokens = Tokens()
        tokens.learn("a", 10, TEACHING_TOKENS - 1)
        tokens.learn("a", 0, 10_000)
        self.assertEqual(tokens.of("a").ratio, 1.0)
        self.assertIsNone(tokens.error)

    def test_the_error_of_the_last_estimate(self) -> None:
        tokens = Tokens()
        tokens.learn("a", 1_100, 1_000)
        self.assertAlmostEqual(tokens.error or 0, 0.1)
        tokens.learn("a", 1_100, 1_000)
        self.assertAlmostEqual(tokens.error or 0, 0.0)

    def test_models_are_bounded(self) -> None:
        tokens = Tokens()
        tokens.learn("kept", 1_000, 1_500)
        for number in range(100):
            tokens.of(f"made up {number}")
            if number % (MAX_MODELS - 1) == 0:
                tokens.of("kept")
        self.assertEqual(tokens.of("kept").ratio, 1.5)

    @given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 40_000)), min_size=2))
    def test_a_session_is_never_counted_below_what_is_known_of_it(
        self, turns: list[tuple[int, int]]
    ) -> None:
        """
        Each turn adds a message; the backend reports what it likes, of other sessions too.

        Whether a message was counted, or only guessed, when the report came makes no difference.
        """
        tokens, thread = Tokens(), Thread()
        tally = tokens.of("m")
        messages: list[Facts] = []
        known = 0
        for number, (length, reported) in enumerate(turns):
            messages += facts(user(f"{number}: " + "word " * length))
            missed = thread.missed(messages, tally)
            look = tally.count if number % 3 == 2 else tally.guess
            self.assertGreaterEqual(sum(map(look, messages)) + missed, known)
            thread.learn(messages, tally, reported)
            known = reported
            tokens.learn("m", 1_000, 500 + 37 * length % 3_000)

    def test_what_the_backend_counts_later_is_taken_off(self) -> None:
        tally, thread = Tally(), Thread()
        messages = facts(user("word " * 400), user("word " * 400), user("more"))
        thread.learn(messages, tally, 2_000)
        self.assertEqual(thread.missed(messages, tally), 2_000 - sum(map(tally.guess, messages)))
        # The same text twice: its count is taken off for both.
        tally.note(messages[0], 700)
        self.assertEqual(thread.missed(messages, tally), 2_000 - sum(map(tally.guess, messages)))

    def test_messages_that_are_gone_were_what_they_were(self) -> None:
        """A client that made its history shorter is not charged for what it took out."""
        tokens, thread = Tokens(), Thread()
        tally = tokens.of("m")
        messages = facts(user("task"), user("word " * 4_000), user("more " * 400))
        counted = sum(map(tally.guess, messages))
        thread.learn(messages, tally, counted + 30)
        self.assertEqual(thread.missed(messages[:1], tally), 30)

    def test_how_many_guesses_are_remembered_is_bounded(self) -> None:
        tokens, thread = Tokens(), Thread()
        tally = tokens.of("m")
        messages = facts(*(user(f"{number} " * 9) for number in range(MAX_GUESSED + 50)))
        thread.learn(messages, tally, 100_000)
        self.assertEqual(len(tally.unknown(messages)), MAX_GUESSED)
        tokens.learn("m", 1_000, 500)
        counted = sum(map(tally.count, messages))
        self.assertEqual(counted + thread.missed(messages, tally), 100_000)

    def test_weights_add_up(self) -> None:
        messages = facts(PROSE, user("x"))
        tally = Tally()
        self.assertAlmostEqual(weight_of(messages), sum(map(tally.count, messages)), delta=2)
