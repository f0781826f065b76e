"""The tests of blockops: `python -m twisted.trial tests`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A loaded machine is slow to make examples, and slow to run them. Neither is a defect. In CI the
# same examples are tried each time, so that a change is judged by what it changes; elsewhere new
# ones are.
settings.register_profile(
    "blockops",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("blockops")
