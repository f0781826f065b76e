"""The tests of blockops: `python -m twisted.trial tests`."""

from __future__ import annotations

import os

import hypothesis

_CI = "CI" in os.environ

# A loaded machine is slow to make examples, and slow to run them. Neither is a defect. In CI the
# same examples are tried each time, so that a change is judged by what it changes; elsewhere new
# ones are, and fewer of them. This is the only profile: packages of tests are imported one after
# the other, and one that loaded its own would load it for those that follow.
hypothesis.settings.register_profile(
    "blockops",
    deadline=None,
    max_examples=100 if _CI else 60,
    derandomize=_CI,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("blockops")


def thorough(examples: int) -> hypothesis.settings:
    """Return the settings of a test that takes so many examples: all of them in CI."""
    return hypothesis.settings(max_examples=examples if _CI else examples // 2)
