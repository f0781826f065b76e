"""The simulated agent of `benchmarks/prefix.py`: what is promised of its session, for several."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.prefix import HARD, blockops_cut, measure, sliding_window
from blockops.conversation.messages import Reader
from blockops.conversation.token_counts import Tally


class Sessions(SynchronousTestCase):
    """
    A few long sessions.

    :cvar seeds: how many sessions; more in tests/live/test_thorough.py
    """

    seeds = 1

    def test_most_of_each_prompt_was_in_the_one_before(self) -> None:
        """`measure` itself refuses orphans, unanswered calls, and a lost beginning."""
        for seed in range(self.seeds):
            reader, count = Reader(), Tally()
            ours = measure(150, seed, blockops_cut(count, reader), count, reader)
            window = measure(150, seed, sliding_window(count, reader), count, reader)
            self.assertLessEqual(ours.largest, HARD)
            self.assertGreater(ours.cuts, 3)
            self.assertGreater(ours.share, 0.9)
            self.assertLess(window.share, 0.8)
