"""The tests of blockops: `python -m twisted.trial tests`."""

from __future__ import annotations

import os

import hypothesis

_CI = "CI" in os.environ

# No deadlines and no check of slow examples: on a loaded machine both would fail without a defect.
# CI runs the same examples each time, so that a failure is due to the change under test; other runs
# use fewer, random ones. This is the only profile: packages of tests are imported one after the
# other in one process, so a profile loaded by one of them would apply to the later ones too.
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
    """Return the settings for `examples` examples of a test, or half as many outside CI."""
    return hypothesis.settings(max_examples=examples if _CI else examples // 2)
