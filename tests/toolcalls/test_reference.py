"""The parser and the slow, simple reader of `reference` agree wherever that one is sure."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import thorough
from tests.toolcalls.near_misses import CALLS, texts
from tests.toolcalls.reading import SCHEMAS, say
from tests.toolcalls.reference import Unsure, read

MARKS = ("`", "``", "```", "```\n", "\n```\n", "~~~\n", "\n> ", "- ", "1. ", "\n", "\n\n")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "TOOL_CALL:", "<")
AROUND = st.sampled_from((*MARKS, *TAGS, "A", " b ", " ", "\t", "\r\n", "é"))


class ReferenceTests(SynchronousTestCase):
    def compare(self, text: str) -> bool:
        """Whether the reference was sure; if it was, they must agree."""
        try:
            content, calls = read(text, set(SCHEMAS))
        except Unsure:
            return False
        joined, _ = say([text])
        self.assertEqual(content, joined.content)
        self.assertEqual(calls, [(call.name, call.meant) for call in joined.calls])
        return True

    @thorough(300)
    @given(st.lists(AROUND | st.sampled_from(CALLS), max_size=12).map("".join))
    def test_calls_among_markdown(self, text: str) -> None:
        assume(self.compare(text))

    @thorough(300)
    @given(texts())
    def test_near_misses(self, text: str) -> None:
        assume(self.compare(text))

    def test_is_sure_of_what_is_well_formed(self) -> None:
        self.assertGreaterEqual(sum(self.compare(f"A {call}\nB\n{call} `C`") for call in CALLS), 3)
