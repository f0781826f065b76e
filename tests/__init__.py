"""The tests of blockops: `python -m twisted.trial tests`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A loaded machine is slow to make examples, and slow to run them. Neither is a defect.
settings.register_profile(
    "blockops", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("blockops")
