"""Tests that the normal run samples, run at every position or with more data; they take long."""

from __future__ import annotations

from tests.conversation import test_notices, test_prefix
from tests.faults import test_faults
from tests.live.harness import SKIP_UNLESS_LIVE
from tests.translation import test_captures


class TruncationTests(test_faults.TruncationTests):
    skip = SKIP_UNLESS_LIVE
    stride = 1


class CaptureTests(test_captures.StreamTests):
    skip = SKIP_UNLESS_LIVE
    every = 1


class RepetitionTests(test_notices.RepetitionTests):
    skip = SKIP_UNLESS_LIVE
    size = 1_000_000


class PrefixCacheTests(test_prefix.PrefixCacheTests):
    skip = SKIP_UNLESS_LIVE
    seeds = 3
