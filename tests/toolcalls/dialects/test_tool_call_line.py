"""Format 2, an object after `TOOL_CALL:`; each text is parsed at once and at every split."""

from __future__ import annotations

from tests.toolcalls.reading import Call, ParserTestCase

CALL = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1}}'


class ToolCallLineTests(ParserTestCase):
    def test_call(self) -> None:
        for text in (CALL, CALL + "\n", "\n  " + CALL, CALL.replace(": {", ":{", 1)):
            self.assert_call(text, "now", '{"a": 1}')

    def test_a_call_over_several_lines(self) -> None:
        self.assert_call(
            'TOOL_CALL:\n{\n  "arguments": {\n    "a": "b\\nTOOL_CALL: {}"\n  },\n'
            '  "name": "now"\n}',
            "now",
            '{\n    "a": "b\\nTOOL_CALL: {}"\n  }',
        )

    def test_a_call_ends_with_its_brace(self) -> None:
        output = self.parse(f"A\n{CALL} B }} C")
        self.assertEqual("A B } C", output.content)
        self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], output.calls)
        self.assertTrue(self.parse(CALL, reason="length").calls[0].is_finished)

    def test_several_calls(self) -> None:
        for between in ("\n", "\n\n", " ", ""):
            self.assert_calls(CALL + between + CALL, ("now", '{"a": 1}'), ("now", '{"a": 1}'))

    def test_it_is_text_inside_a_line(self) -> None:
        self.assert_text("Write " + CALL)
        self.assert_text("- " + CALL)
        self.assert_text("> " + CALL)
        self.assert_text("X" + CALL)

    def test_not_a_call(self) -> None:
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
        output, counters = self.parse_and_count(
            'TOOL_CALL: {"name": "now", "arguments": {"a": oops}} x\n\nB'
        )
        self.assertEqual([Call("now", '{"a": oops}} x', is_finished=True)], output.calls)
        self.assertEqual("B", output.content)
        self.assertEqual(1, counters["malformed"])

    def test_broken_after_the_arguments(self) -> None:
        output, counters = self.parse_and_count(
            'TOOL_CALL: {"name": "now", "arguments": {"a": 1}\nNow B'
        )
        self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], output.calls)
        self.assertEqual("Now B", output.content)
        self.assertEqual(1, counters["malformed"])

    def test_an_invalid_escape_is_counted(self) -> None:
        _, counters = self.parse_and_count('TOOL_CALL: {"name": "now", "arguments": {"a": "\\d"}}')
        self.assertEqual({"calls": 1, "malformed": 1}, counters)

    def test_missing_brackets_at_the_end(self) -> None:
        text = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1'
        self.assert_call(text, "now", '{"a": 1}')
        self.assertEqual([Call("now", '{"a": 1')], self.parse(text, reason="length").calls)
        text = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1} oops'
        self.assertEqual(" oops", self.parse("A\n" + text).content[1:])
