"""Tests of the parser that finds calls in text."""

from __future__ import annotations

from hypothesis import settings

# Other programs may be running: how long an example takes says nothing.
settings.register_profile("blockops", deadline=None, max_examples=60)
settings.load_profile("blockops")
