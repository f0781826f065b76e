"""Tests of literals that are only partly present at the end of a text."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.partial_match import literal_pattern, partial_suffix_start


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


class LiteralPatternTests(SynchronousTestCase):
    @given(
        st.text("<a.>", max_size=12),
        st.sets(st.text("<a.>", min_size=1, max_size=4), max_size=4),
    )
    def test_the_longest_literal_or_the_beginning_of_one_is_found(
        self, text: str, literals: set[str]
    ) -> None:
        found = re.search(literal_pattern(literals), text)
        for start in range(len(text)):
            ahead = text[start:]
            for literal in sorted(literals, key=len, reverse=True):
                is_partial = len(ahead) < len(literal) and literal.startswith(ahead)
                if is_partial or ahead.startswith(literal):
                    assert found is not None
                    self.assertEqual(start, found.start())
                    self.assertEqual(is_partial, found.lastindex is not None)
                    self.assertEqual(ahead if is_partial else literal, found[0])
                    return
        self.assertIsNone(found)
