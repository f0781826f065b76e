"""Tests of token counts: they stay fixed, and estimates are calibrated."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.conversation import token_counts as token_counts_module
from blockops.conversation.messages import MessageInfo, MessageParser
from blockops.conversation.sessions import MAX_ESTIMATES, HistoryState
from blockops.conversation.token_counts import (
    IMAGE_TOKENS,
    MAX_MODELS,
    MIN_CALIBRATION_TOKENS,
    RATIO_RANGE,
    ModelCounts,
    TokenCounts,
    raw_estimate,
)
from blockops.conversation.turn import upper_bound
from tests.conversation.histories import assistant, to_json, user, valid_histories

PROSE = user("The quick brown fox jumps over the lazy dog. " * 100)


def infos(*messages: Any) -> list[MessageInfo]:
    return [message.info for message in MessageParser().parse(to_json(*messages))]


class CountTests(SynchronousTestCase):
    def test_first_count_is_fixed(self) -> None:
        counts = ModelCounts()
        (message,) = infos(PROSE)
        first = counts.count(message)
        counts.update_ratio(2.0)
        self.assertEqual(counts.count(message), first)
        (other,) = infos(user(PROSE["content"] + "!"))
        self.assertGreater(counts.count(other), 1.8 * first)

    def test_estimate_is_not_stored(self) -> None:
        counts = ModelCounts()
        (message,) = infos(PROSE)
        first = counts.estimate(message)
        counts.update_ratio(2.0)
        self.assertGreater(counts.estimate(message), 1.8 * first)
        self.assertEqual(counts.uncounted([message]), [message])

    def test_count_by_the_tokenizer(self) -> None:
        counts = ModelCounts()
        one, other = infos(PROSE, user("other"))
        self.assertEqual(counts.uncounted([one, other, one]), [one, other])
        counts.set_count(one, 950)
        self.assertEqual(counts.uncounted([one, other]), [other])
        self.assertEqual(counts.count(one), 955)
        counts.set_count(one, 1)
        self.assertEqual(counts.count(one), 955)

    def test_images_tools_and_calls_are_counted(self) -> None:
        counts = ModelCounts()
        image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
        plain, with_calls, with_image = infos(assistant("a"), assistant("a", "c1", "c2"), image)
        self.assertGreater(counts.count(with_calls), counts.count(plain))
        self.assertGreaterEqual(counts.count(with_image), IMAGE_TOKENS)
        tools_info = MessageParser().tools_info
        self.assertGreater(counts.count(tools_info(b'[{"type": "function", "function": {}}]')), 8)
        self.assertLess(counts.count(tools_info(b"")), 8)

    def test_number_of_counts_is_bounded(self) -> None:
        self.patch(token_counts_module, "MAX_COUNTS", 10)
        counts = ModelCounts()
        messages = infos(*(user(f"{number}") for number in range(100)))
        for message in messages:
            counts.set_count(message, 7)
            self.assertIsNotNone(counts.known_count(messages[0]))
        self.assertEqual(counts.uncounted(messages), messages[1:-9])

    @given(valid_histories())
    def test_upper_bound(self, history: list[list[Any]]) -> None:
        messages = infos(*(message for step in history for message in step))
        self.assertLessEqual(sum(map(ModelCounts().count, messages)), upper_bound(messages))


class CalibrationTests(SynchronousTestCase):
    def test_each_model_has_its_own_ratio(self) -> None:
        token_counts = TokenCounts()
        token_counts.learn("a", 1_000, 1_500)
        self.assertEqual(token_counts.for_model("a").ratio, 1.5)
        self.assertEqual(token_counts.for_model("b").ratio, 1.0)
        self.assertEqual(token_counts.for_model(None).ratio, 1.0)

    def test_ratio_converges(self) -> None:
        token_counts = TokenCounts()
        for _ in range(20):
            token_counts.learn("a", 1_000, 800)
        self.assertAlmostEqual(token_counts.for_model("a").ratio, 0.8)

    def test_ratio_moves_slowly_and_within_its_range(self) -> None:
        token_counts = TokenCounts()
        token_counts.learn("a", 1_000, 1_000)
        token_counts.learn("a", 1_000, 2_000)
        self.assertAlmostEqual(token_counts.for_model("a").ratio, 1.3)
        for _ in range(50):
            token_counts.learn("a", 1_000, 1_000_000)
        self.assertAlmostEqual(token_counts.for_model("a").ratio, RATIO_RANGE[1], places=3)

    def test_short_prompts_do_not_calibrate(self) -> None:
        token_counts = TokenCounts()
        token_counts.learn("a", 10, MIN_CALIBRATION_TOKENS - 1)
        token_counts.learn("a", 0, 10_000)
        self.assertEqual(token_counts.for_model("a").ratio, 1.0)
        self.assertIsNone(token_counts.estimate_error)

    def test_estimate_error(self) -> None:
        token_counts = TokenCounts()
        token_counts.learn("a", 1_100, 1_000)
        self.assertAlmostEqual(token_counts.estimate_error or 0, 0.1)
        token_counts.learn("a", 1_100, 1_000)
        self.assertAlmostEqual(token_counts.estimate_error or 0, 0.0)

    def test_number_of_models_is_bounded(self) -> None:
        token_counts = TokenCounts()
        token_counts.learn("real", 1_000, 1_500)
        for number in range(100):
            token_counts.for_model(f"invented {number}")
            if number % (MAX_MODELS - 1) == 0:
                token_counts.for_model("real")
        self.assertEqual(token_counts.for_model("real").ratio, 1.5)

    @given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 40_000)), min_size=2))
    def test_history_is_never_counted_below_its_reported_tokens(
        self, turns: list[tuple[int, int]]
    ) -> None:
        """
        Each turn adds a message, and the backend reports any usage, also for other sessions.

        It makes no difference whether a message was counted or only estimated before the report.
        """
        token_counts, state = TokenCounts(), HistoryState()
        counts = token_counts.for_model("m")
        messages: list[MessageInfo] = []
        reported_before = 0
        for number, (length, reported) in enumerate(turns):
            messages += infos(user(f"{number}: " + "word " * length))
            undercount = state.undercount(messages, counts)
            count_of = counts.count if number % 3 == 2 else counts.estimate
            self.assertGreaterEqual(sum(map(count_of, messages)) + undercount, reported_before)
            state.learn(messages, counts, reported)
            reported_before = reported
            token_counts.learn("m", 1_000, 500 + 37 * length % 3_000)

    def test_later_counts_lower_the_undercount(self) -> None:
        counts, state = ModelCounts(), HistoryState()
        messages = infos(user("word " * 400), user("word " * 400), user("more"))
        state.learn(messages, counts, 2_000)
        self.assertEqual(
            state.undercount(messages, counts), 2_000 - sum(map(counts.estimate, messages))
        )
        # The history has the same text twice, so its count is subtracted twice.
        counts.set_count(messages[0], 700)
        self.assertEqual(
            state.undercount(messages, counts), 2_000 - sum(map(counts.estimate, messages))
        )

    def test_removed_messages_keep_their_estimates(self) -> None:
        """A shortened history is not charged for the messages that the client removed."""
        token_counts, state = TokenCounts(), HistoryState()
        counts = token_counts.for_model("m")
        messages = infos(user("task"), user("word " * 4_000), user("more " * 400))
        counted = sum(map(counts.estimate, messages))
        state.learn(messages, counts, counted + 30)
        self.assertEqual(state.undercount(messages[:1], counts), 30)

    def test_number_of_estimates_is_bounded(self) -> None:
        token_counts, state = TokenCounts(), HistoryState()
        counts = token_counts.for_model("m")
        messages = infos(*(user(f"{number} " * 9) for number in range(MAX_ESTIMATES + 50)))
        state.learn(messages, counts, 100_000)
        self.assertEqual(len(counts.uncounted(messages)), MAX_ESTIMATES)
        token_counts.learn("m", 1_000, 500)
        counted = sum(map(counts.count, messages))
        self.assertEqual(counted + state.undercount(messages, counts), 100_000)

    def test_raw_estimate_is_the_sum(self) -> None:
        messages = infos(PROSE, user("x"))
        counts = ModelCounts()
        self.assertAlmostEqual(raw_estimate(messages), sum(map(counts.count, messages)), delta=2)
