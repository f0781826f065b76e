"""Format 2: an object behind `TOOL_CALL:`; each text is read whole and at every cut."""

from __future__ import annotations

from tests.toolcalls.reading import Call, ReadCase

CALL = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1}}'


class LineJsonTests(ReadCase):
    def test_call(self) -> None:
        for text in (CALL, CALL + "\n", "\n  " + CALL, CALL.replace(": {", ":{", 1)):
            self.assert_call(text, "now", '{"a": 1}')

    def test_over_several_lines(self) -> None:
        self.assert_call(
            'TOOL_CALL:\n{\n  "arguments": {\n    "a": "b\\nTOOL_CALL: {}"\n  },\n'
            '  "name": "now"\n}',
            "now",
            '{\n    "a": "b\\nTOOL_CALL: {}"\n  }',
        )

    def test_ends_with_its_brace(self) -> None:
        joined = self.read(f"A\n{CALL} B }} C")
        self.assertEqual("A B } C", joined.content)
        self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)
        self.assertTrue(self.read(CALL, reason="length").calls[0].ended)

    def test_several(self) -> None:
        for between in ("\n", "\n\n", " ", ""):
            self.assert_calls(CALL + between + CALL, ("now", '{"a": 1}'), ("now", '{"a": 1}'))

    def test_in_the_middle_of_a_line_it_is_text(self) -> None:
        self.assert_text("Write " + CALL)
        self.assert_text("- " + CALL)
        self.assert_text("> " + CALL)
        self.assert_text("X" + CALL)

    def test_no_call(self) -> None:
        for text in (
            "TOOL_CALL",
            "TOOL_CALL:",
            "TOOL_CALL: now",
            "TOOL_CALL: [{}]",
            "TOOL_CALL: {}",
            'TOOL_CALL: {"name": "now", "arguments": 1}\nmore',
            "TOOL_CALLS: {}",
            "tool_call: {}",
            "TOOL_CALL : {}",
            'TOOL_CALL: {"name": "now", oops}',
        ):
            self.assert_text(text)

    def test_broken_arguments_pass_to_the_end_of_the_line(self) -> None:
        joined, tally = self.read_counting(
            'TOOL_CALL: {"name": "now", "arguments": {"a": oops}} x\n\nB'
        )
        self.assertEqual([Call("now", '{"a": oops}} x', ended=True)], joined.calls)
        self.assertEqual("B", joined.content)
        self.assertEqual(1, tally["malformed"])

    def test_broken_behind_the_arguments(self) -> None:
        joined, tally = self.read_counting(
            'TOOL_CALL: {"name": "now", "arguments": {"a": 1}\nNow B'
        )
        self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)
        self.assertEqual("Now B", joined.content)
        self.assertEqual(1, tally["malformed"])

    def test_flaw(self) -> None:
        _, tally = self.read_counting('TOOL_CALL: {"name": "now", "arguments": {"a": "\\d"}}')
        self.assertEqual({"calls": 1, "malformed": 1}, tally)

    def test_the_end(self) -> None:
        text = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1'
        self.assert_call(text, "now", '{"a": 1}')
        self.assertEqual([Call("now", '{"a": 1')], self.read(text, reason="length").calls)
        text = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1} oops'
        self.assertEqual(" oops", self.read("A\n" + text).content[1:])
