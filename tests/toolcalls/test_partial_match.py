"""Tests of `partial_suffix_start`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.partial_match import partial_suffix_start


class PartialSuffixStartTests(SynchronousTestCase):
    def test_examples(self) -> None:
        for text, start in (
            ("", 0),
            ("abc", 3),
            ("abc<", 3),
            ("a</", 1),
            ("a<</tool_call", 2),
            ("</tool_call>", 12),
            ("</x</t", 3),
        ):
            self.assertEqual(start, partial_suffix_start(text, "</tool_call>"), text)

    @given(st.text("<a>", max_size=12), st.text("<a>", min_size=1, max_size=5))
    def test_the_suffix_is_the_longest_possible(self, text: str, literal: str) -> None:
        start = partial_suffix_start(text, literal)
        suffixes = [text[i:] for i in range(len(text) + 1) if literal.startswith(text[i:])]
        longest = max((suffix for suffix in suffixes if len(suffix) < len(literal)), key=len)
        self.assertEqual(longest, text[start:])
