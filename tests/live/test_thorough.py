"""What the plain tests try here and there, tried everywhere: it takes its time."""

from __future__ import annotations

from tests.conversation import test_notices, test_prefix
from tests.faults import test_faults
from tests.live.harness import LONG
from tests.translation import test_captures


class Cuts(test_faults.Cuts):
    skip = LONG
    every = 1


class Captures(test_captures.StreamTests):
    skip = LONG
    every = 1


class Repetition(test_notices.Repetition):
    skip = LONG
    size = 1_000_000


class Sessions(test_prefix.Sessions):
    skip = LONG
    seeds = 3
