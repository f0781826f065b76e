"""Tests of the parser that finds calls in text."""
