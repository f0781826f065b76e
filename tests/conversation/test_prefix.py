"""Runs the simulated agent of `benchmarks/prefix.py`, and checks the shared prefix."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.prefix import HARD_LIMIT, blockops_trimmer, simulate, sliding_window
from blockops.conversation.messages import MessageParser
from blockops.conversation.token_counts import ModelCounts


class PrefixCacheTests(SynchronousTestCase):
    """
    A few long sessions.

    :cvar seeds: the number of sessions; more in tests/live/test_thorough.py
    """

    seeds = 1

    def test_prompts_share_most_of_their_prefix(self) -> None:
        """`simulate` itself rejects orphaned results, unanswered calls and a lost beginning."""
        for seed in range(self.seeds):
            parser, counts = MessageParser(), ModelCounts()
            ours = simulate(150, seed, blockops_trimmer(counts, parser), counts, parser)
            window = simulate(150, seed, sliding_window(counts, parser), counts, parser)
            self.assertLessEqual(ours.largest_prompt, HARD_LIMIT)
            self.assertGreater(ours.trims, 3)
            self.assertGreater(ours.shared_fraction, 0.9)
            self.assertLess(window.shared_fraction, 0.8)
