"""Fuzzing by coverage: what no example and no property has thought of."""
