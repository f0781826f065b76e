"""Tests of where calls may open, which text is held, and which white space is content."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockops.toolcalls.deltas import ReasoningDelta, TextDelta
from blockops.toolcalls.dialects import BUILT_IN
from blockops.toolcalls.opener_table import opener_table
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools
from tests.toolcalls.reading import TOOLS, ParserTestCase

CALL = '<tool_call>\n{"name": "now"}\n</tool_call>'
LINE = 'TOOL_CALL: {"name": "now"}'
BARE = "<function=now></function>"


class WhiteSpaceTests(ParserTestCase):
    """White space around calls never reaches the content."""

    def assert_content(
        self, text: str, content: str, calls: int = 1, options: TranslationOptions | None = None
    ) -> None:
        output = self.parse(text, options=options)
        self.assertEqual((content, calls), (output.content, len(output.calls)))

    def test_before_between_and_after_calls(self) -> None:
        for text, content, calls in (
            (f"A{CALL}", "A", 1),
            (f"A \n\n{CALL}\n\n", "A", 1),
            (f" \n{CALL}\t\n{CALL}\r\n", "", 2),
            (f"{CALL}\n\nB", "B", 1),
            (f" {CALL} \n\n B ", "B ", 1),
            (f"A\n{CALL}\n\nB", "A\n\nB", 1),
            (f"A\n{CALL} {CALL}\nB \n", "A\nB \n", 2),
            (f"A\n{CALL}\nB\n{CALL}\nC", "A\nB\nC", 2),
            (f"{CALL}\nB\n{CALL}\nC", "B\nC", 2),
            (f"A\v\f{CALL}", "A", 1),
        ):
            self.assert_content(text, content, calls)

    def test_without_calls_it_is_content(self) -> None:
        for text in ("", " ", "\n\n", " A \n", "A\n\nB", "\t<tool_call> \n"):
            self.assert_text(text)
            self.assert_text(text, reason="length")

    def test_no_delta_is_only_white_space(self) -> None:
        parser = ToolCallParser(TOOLS)
        deltas = []
        for char in f"A \n {CALL} \n B \n C \n{CALL} \n\n":
            deltas += parser.feed(char)
        deltas += parser.finish("stop")
        texts = [delta.text for delta in deltas if isinstance(delta, TextDelta)]
        self.assertEqual(["A", " \n B", " \n C"], texts)

    def test_more_than_the_bound_is_text(self) -> None:
        options = TranslationOptions(max_hold=50)
        for size in (49, 50, 51, 80):
            space = " " * size
            emitted = space if size > 50 else ""
            for text, content in (
                (f"A{space}{CALL}", "A" + emitted),
                (f"{CALL}{space}B", emitted + "B"),
                (f"A{CALL}{space}B", f"A{space}B"),
                (f"{CALL}{space}{CALL}", emitted),
                (f"{CALL}{space}", emitted),
            ):
                self.assert_content(text, content, text.count(CALL), options=options)

    def test_rejected_text_keeps_its_white_space(self) -> None:
        self.assert_text("A \n <tool_call> \n x \n")


class CodeTests(ParserTestCase):
    """Inside Markdown code a call is text."""

    def assert_all_text(self, *texts: str) -> None:
        for text in texts:
            self.assert_text(text)

    def assert_all_calls(self, *texts: str) -> None:
        for text in texts:
            self.assertEqual(1, len(self.parse(text).calls), text)

    def test_fences(self) -> None:
        for call in (CALL, LINE, BARE):
            self.assert_all_text(
                f"```\n{call}\n```",
                f"Look:\n```json\n{call}\n```\nDone.",
                f"~~~ x`y\n{call}\n~~~",
                f"  ````\n```\n{call}\n````",
                f"> ```\n> x\n{call}\n> ```",
                f"- ```\n{call}\n  ```",
                f"1. ```py\n{call}\n```",
                f"```\n{call}",
                f"```\n``` x\n{call}\n```",
                f"```\n~~~\n{call}\n```",
                f"~~~\n```\n{call}\n~~~",
                f"```\r\n{call}\r\n```\r\n",
            )

    def test_after_fences(self) -> None:
        for call in (CALL, LINE, BARE):
            self.assert_all_calls(
                f"```\nx\n```\n{call}",
                f"~~~\nx\n~~~~ \t\n{call}",
                f"````\n```\n````\r\n{call}",
                f"```\nx\n   ```\n{call}",
                f"``\n{call}",
                f"~~\n{call}",
                f"x ```\n{call}",
                f"```x```\n{call}",
                f"```a``b\n{call}",
            )

    def test_a_closing_line_holds_nothing_else(self) -> None:
        self.assert_all_text(f"```\n```x\n{CALL}", f"```\n```{CALL}", f"```\n`` `\n{CALL}")

    def test_inline_code(self) -> None:
        self.assert_all_text(
            f"Use `{CALL.replace(chr(10), '')}` so.",
            "``<tool_call>{} ` </tool_call>``",
            '`x <tool_call>{"name": "now"}</tool_call>',
            '```<tool_call>{"name": "now"}</tool_call>``` x',
        )
        self.assert_all_calls(
            f"`x` {CALL}",
            f"``x`` {CALL}",
            f"``x` y`` {CALL}",
            f"`x\n{CALL}",
            f"`x\n  {LINE}",
            f"it is a ` tick \n \n{CALL}",
        )

    def test_white_space_after_inline_code(self) -> None:
        self.assertEqual("`x", self.parse(f"`x \n \n{CALL}").content)
        self.assertEqual("```\n```", self.parse(f"```\n``` \n\n{CALL}").content)

    def test_fenced_calls(self) -> None:
        options = TranslationOptions(fenced_calls=True)
        for text, content in (
            (f"```json\n{CALL}\n```", "```json\n```"),
            (f"```\n{LINE}\n```\nB", "```\n```\nB"),
            (f"```\nx\n {BARE}\n```", "```\nx\n```"),
            (f"`{CALL}`", "``"),
            (f"~~~\nx {CALL} y\n~~~", "~~~\nx y\n~~~"),
            (f"~~~ {CALL}\nx\n~~~", "~~~\nx\n~~~"),
            (f"```\n```x {CALL}", "```\n```x"),
            (f"```\n{CALL[:-12]}}}</tool_call>\n```\n`", "```\n}\n```\n`"),
        ):
            output = self.parse(text, options=options)
            self.assertEqual((content, 1), (output.content, len(output.calls)), text)

    def test_fenced_calls_must_be_offered(self) -> None:
        options = TranslationOptions(fenced_calls=True)
        for call in (CALL, LINE, BARE):
            nope = call.replace("now", "nope")
            self.assert_text(f"```\n{nope}\n```", options=options)
            self.assert_text(f"```\nx <b> {nope}\n\n```", options=options)
        self.assert_text("`<tool_call>x <b>`", options=options)

    def test_text_after_fenced_calls(self) -> None:
        options = TranslationOptions(fenced_calls=True)
        self.assertEqual(2, len(self.parse(f"```\n{CALL}```\n{CALL}", options=options).calls))
        self.assert_text("```\nx\n```\n<think>`", options=options)
        self.assert_text("```\n<think> x", options=options)

    def test_think_tags_in_code_are_text(self) -> None:
        split = TranslationOptions(reasoning="split")
        for text in ("`<think>`", "```\n<think>\n```", "`<thi", "~~~\n</think>"):
            output = self.parse(text, options=split)
            self.assertEqual((text, ""), (output.content, output.reasoning))


class ThinkTests(ParserTestCase):
    """Text in a think block is reasoning, never a call."""

    def test_reasoning_kept_in_the_text(self) -> None:
        for text in (
            f"<think>\n{CALL}\n</think>\nA",
            f"A <think>{LINE}",
            "<think></think>",
            "</think>",
        ):
            self.assert_text(text)

    def test_after_a_think_block(self) -> None:
        output = self.parse(f"<think>\nx `\n</think>\n\n{CALL}")
        self.assertEqual(("<think>\nx `\n</think>", 1), (output.content, len(output.calls)))
        self.assertEqual(1, len(self.parse(f"<think>x</think>{LINE}").calls))

    def test_split(self) -> None:
        split = TranslationOptions(reasoning="split")
        for text, content, reasoning, order in (
            ("<think>\nx\n</think>\n\nA", "\n\nA", "\nx\n", "RT"),
            ("A <think>x</think> B", "A  B", "x", "TRT"),
            ("<think>x", "", "x", "R"),
            ("<think>x</thin", "", "x</thin", "R"),
            ("<think></think>A", "A", "", "T"),
            ("<thin", "<thin", "", "T"),
            (f"<think>{CALL}</think>\n{CALL}", "", CALL, "RC"),
            (f"A \n<think>x</think>\n {CALL}", "A", "x", "TRC"),
            (f"{CALL}\n<think>x</think>\nB", "B", "x", "CRT"),
            ("a</think>b", "a</think>b", "", "T"),
            ("<think>a<think>b</think>c</think>", "c</think>", "a<think>b", "RT"),
        ):
            output = self.parse(text, options=split)
            self.assertEqual((content, reasoning), (output.content, output.reasoning), text)
            self.assertEqual(order, output.order, text)

    def test_think_prefilled(self) -> None:
        output = self.parse(
            f"x {CALL}\n</think>\n{CALL}",
            options=TranslationOptions(think_prefilled=True, reasoning="split"),
        )
        self.assertEqual(("", f"x {CALL}\n"), (output.content, output.reasoning))
        self.assertEqual(1, len(output.calls))
        self.assert_text(f"x {CALL}", options=TranslationOptions(think_prefilled=True))

    def test_reasoning_is_not_held_back(self) -> None:
        parser = ToolCallParser(TOOLS, TranslationOptions(reasoning="split"))
        self.assertEqual([ReasoningDelta("x ")], parser.feed("<think>x "))
        self.assertEqual([ReasoningDelta("<tool_call> ")], parser.feed("<tool_call> "))


class HoldTests(ParserTestCase):
    """As little text as possible is held back."""

    def test_ordinary_text_passes_as_the_same_object(self) -> None:
        parser = ToolCallParser(TOOLS)
        for text in (
            "Hello",
            ", world",
            " it's",
            "\nand",
            " so",
            "\n\n`x",
            "` é",
            "\n- a\n- b > c",
        ):
            (delta,) = parser.feed(text)
            assert isinstance(delta, TextDelta)
            self.assertIs(text, delta.text)

    def assert_held(self, text: str, held: str, options: TranslationOptions | None = None) -> None:
        parser = ToolCallParser(TOOLS, options or TranslationOptions())
        deltas = parser.feed(text)
        emitted = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        self.assertEqual(text.removesuffix(held) if held else text, emitted)

    def test_possible_starts_of_a_call(self) -> None:
        for text, held in (
            ("A ", " "),
            ("A <", " <"),
            ("A <tool_call", " <tool_call"),
            ("A <b", ""),
            ("A <tool_callx", ""),
            ("T", "T"),
            ("A\n  TOOL", "\n  TOOL"),
            ("A TOOL_CALL:", ""),
            ("<func", "<func"),
            ("A <func", ""),
            ("A\n<func", "\n<func"),
            ("A\n- ", " "),
            ("A\n- TOOL", ""),
            ("<tool_call> \n", "<tool_call> \n"),
            ("<tool_call>x", ""),
        ):
            self.assert_held(text, held)

    def test_nothing_is_held_where_no_call_can_follow(self) -> None:
        for text in (
            "```\n",
            "```\nx <tool_call> \n",
            "```\n  ",
            "~~~ \n",
            "<think> \n",
            "`",
            "``` x",
        ):
            self.assert_held(text, "")

    def test_held_in_a_fence_where_calls_count(self) -> None:
        self.assert_held("```\nx \n<tool", " \n<tool", TranslationOptions(fenced_calls=True))

    @given(st.text("a <`\n~T", max_size=20))
    def test_only_white_space_and_partial_openers_are_held(self, text: str) -> None:
        parser = ToolCallParser(TOOLS)
        emitted = "".join(delta.text for delta in parser.feed(text) if isinstance(delta, TextDelta))
        self.assertIn(text.removeprefix(emitted).strip(), ("", "<", "T"))


class OpenerTableTests(ParserTestCase):
    def test_tables_are_cached(self) -> None:
        self.assertIs(
            opener_table(BUILT_IN, fenced_calls=False), opener_table(BUILT_IN, fenced_calls=False)
        )


class UntranslatedTests(ParserTestCase):
    """Without translation, no text becomes a call or is held; openers are counted."""

    OFF = OfferedTools(may_translate=False)

    def test_text_passes_at_once(self) -> None:
        parser = ToolCallParser(self.OFF)
        for text in ("A \n", "<tool", "_call>", "TOOL_CALL: {", "", "\n<think>"):
            deltas = parser.feed(text)
            self.assertEqual([TextDelta(text)] if text else [], deltas)
            for delta in deltas:
                assert isinstance(delta, TextDelta)
                self.assertIs(text, delta.text)
        self.assertEqual([], parser.finish("stop"))

    def test_openers_are_counted(self) -> None:
        output, counters = self.parse_and_count(
            f"{LINE}\nA {CALL}{CALL}\n  {LINE} TOOL_CALL: \n{BARE} {BARE}", tools=self.OFF
        )
        self.assertEqual([], output.calls)
        self.assertEqual({"untranslated": 5}, counters)

    def test_translate_always(self) -> None:
        output = self.parse(CALL, tools=self.OFF, options=TranslationOptions(translate="always"))
        self.assertEqual(1, len(output.calls))

    def test_split(self) -> None:
        split = TranslationOptions(reasoning="split")
        text = f"<think>\nx</think> \n{CALL} \n"
        output = self.parse(text, tools=self.OFF, options=split)
        self.assertEqual((f" \n{CALL} \n", "\nx"), (output.content, output.reasoning))
        parser = ToolCallParser(self.OFF, split)
        self.assertEqual([TextDelta("A \n")], parser.feed("A \n"))
        self.assertEqual([TextDelta("B")], parser.feed("B"))

    def test_no_dialects(self) -> None:
        output, counters = self.parse_and_count(
            CALL, tools=self.OFF, options=TranslationOptions(dialects=())
        )
        self.assertEqual((CALL, {}), (output.content, counters))
