"""Tests of the parser that finds tool calls in a model's text."""
