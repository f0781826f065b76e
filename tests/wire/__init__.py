"""Tests of the core: values in, values out, no reactor."""

import hypothesis

# A busy machine is no bug, so no example has a deadline.
hypothesis.settings.register_profile("wire", deadline=None)
hypothesis.settings.load_profile("wire")
