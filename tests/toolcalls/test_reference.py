"""The parser agrees with the slow, simple parser of `reference` wherever that one decides."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import thorough
from tests.toolcalls.near_misses import CALLS, texts
from tests.toolcalls.reading import SCHEMAS, parse_pieces
from tests.toolcalls.reference import Undecided, parse

MARKS = ("`", "``", "```", "```\n", "\n```\n", "~~~\n", "\n> ", "- ", "1. ", "\n", "\n\n")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "TOOL_CALL:", "<")
AROUND = st.sampled_from((*MARKS, *TAGS, "A", " b ", " ", "\t", "\r\n", "é"))


class ReferenceTests(SynchronousTestCase):
    def compare(self, text: str) -> bool:
        """Return True if the reference decides; both must agree then."""
        try:
            content, calls = parse(text, set(SCHEMAS))
        except Undecided:
            return False
        output, _ = parse_pieces([text])
        self.assertEqual(content, output.content)
        self.assertEqual(calls, [(call.name, call.parsed_arguments) for call in output.calls])
        return True

    @thorough(300)
    @given(st.lists(AROUND | st.sampled_from(CALLS), max_size=12).map("".join))
    def test_calls_among_markdown(self, text: str) -> None:
        assume(self.compare(text))

    @thorough(300)
    @given(texts())
    def test_near_misses(self, text: str) -> None:
        assume(self.compare(text))

    def test_the_reference_decides_well_formed_calls(self) -> None:
        self.assertGreaterEqual(sum(self.compare(f"A {call}\nB\n{call} `C`") for call in CALLS), 3)
