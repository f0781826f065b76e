"""Where a literal may have begun at the end of a text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.partial_match import begun_at_the_end


class OverlapTests(SynchronousTestCase):
    def test_examples(self) -> None:
        for text, at in (
            ("", 0),
            ("abc", 3),
            ("abc<", 3),
            ("a</", 1),
            ("a<</tool_call", 2),
            ("</tool_call>", 12),
            ("</x</t", 3),
        ):
            self.assertEqual(at, begun_at_the_end(text, "</tool_call>"), text)

    @given(st.text("<a>", max_size=12), st.text("<a>", min_size=1, max_size=5))
    def test_is_the_longest_end_that_begins_it(self, text: str, literal: str) -> None:
        at = begun_at_the_end(text, literal)
        begun = [text[i:] for i in range(len(text) + 1) if literal.startswith(text[i:])]
        longest = max((each for each in begun if len(each) < len(literal)), key=len)
        self.assertEqual(longest, text[at:])
