"""Where calls may open, what is held back, and what white space belongs to the content."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockops.toolcalls.dialects.registry import BUILT_IN
from blockops.toolcalls.events import Reasoning, Text
from blockops.toolcalls.options import Rules
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.scanner import Literals, literals_of
from blockops.toolcalls.tools import Offer
from tests.toolcalls.reading import OFFER, ReadCase

CALL = '<tool_call>\n{"name": "now"}\n</tool_call>'
LINE = 'TOOL_CALL: {"name": "now"}'
BARE = "<function=now></function>"


class WhiteSpaceTests(ReadCase):
    """White space around calls never reaches the content."""

    def assert_content(
        self, text: str, content: str, calls: int = 1, rules: Rules | None = None
    ) -> None:
        joined = self.read(text, rules=rules)
        self.assertEqual((content, calls), (joined.content, len(joined.calls)))

    def test_before_between_behind(self) -> None:
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

    def test_no_call(self) -> None:
        for text in ("", " ", "\n\n", " A \n", "A\n\nB", "\t<tool_call> \n"):
            self.assert_text(text)
            self.assert_text(text, reason="length")

    def test_never_a_delta_of_white_space_alone(self) -> None:
        parser = ToolCallParser(OFFER)
        deltas = []
        for char in f"A \n {CALL} \n B \n C \n{CALL} \n\n":
            deltas += parser.feed(char)
        deltas += parser.finish("stop")
        texts = [delta.text for delta in deltas if isinstance(delta, Text)]
        self.assertEqual(["A", " \n B", " \n C"], texts)

    def test_too_much_of_it_is_text(self) -> None:
        rules = Rules(max_hold=50)
        for size in (49, 50, 51, 80):
            space = " " * size
            kept = space if size > 50 else ""
            for text, content in (
                (f"A{space}{CALL}", "A" + kept),
                (f"{CALL}{space}B", kept + "B"),
                (f"A{CALL}{space}B", f"A{space}B"),
                (f"{CALL}{space}{CALL}", kept),
                (f"{CALL}{space}", kept),
            ):
                self.assert_content(text, content, text.count(CALL), rules=rules)

    def test_text_given_back_keeps_its_white_space(self) -> None:
        self.assert_text("A \n <tool_call> \n x \n")


class CodeTests(ReadCase):
    """Inside Markdown code a call is text."""

    def assert_shown(self, *texts: str) -> None:
        for text in texts:
            self.assert_text(text)

    def assert_called(self, *texts: str) -> None:
        for text in texts:
            self.assertEqual(1, len(self.read(text).calls), text)

    def test_fences(self) -> None:
        for call in (CALL, LINE, BARE):
            self.assert_shown(
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

    def test_behind_fences(self) -> None:
        for call in (CALL, LINE, BARE):
            self.assert_called(
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

    def test_closing_line_must_be_nothing_else(self) -> None:
        self.assert_shown(f"```\n```x\n{CALL}", f"```\n```{CALL}", f"```\n`` `\n{CALL}")

    def test_inline_code(self) -> None:
        self.assert_shown(
            f"Use `{CALL.replace(chr(10), '')}` so.",
            "``<tool_call>{} ` </tool_call>``",
            '`x <tool_call>{"name": "now"}</tool_call>',
            '```<tool_call>{"name": "now"}</tool_call>``` x',
        )
        self.assert_called(
            f"`x` {CALL}",
            f"``x`` {CALL}",
            f"``x` y`` {CALL}",
            f"`x\n{CALL}",
            f"`x\n  {LINE}",
            f"it is a ` tick \n \n{CALL}",
        )

    def test_white_space_behind_inline_code(self) -> None:
        self.assertEqual("`x", self.read(f"`x \n \n{CALL}").content)
        self.assertEqual("```\n```", self.read(f"```\n``` \n\n{CALL}").content)

    def test_fenced_calls(self) -> None:
        rules = Rules(fenced_calls=True)
        for text, content in (
            (f"```json\n{CALL}\n```", "```json\n```"),
            (f"```\n{LINE}\n```\nB", "```\n```\nB"),
            (f"```\nx\n {BARE}\n```", "```\nx\n```"),
            (f"`{CALL}`", "``"),
            (f"~~~\nx {CALL} y\n~~~", "~~~\nx y\n~~~"),
            (f"```\n```x {CALL}", "```\n```x"),
            (f"```\n{CALL[:-12]}}}</tool_call>\n```\n`", "```\n}\n```\n`"),
        ):
            joined = self.read(text, rules=rules)
            self.assertEqual((content, 1), (joined.content, len(joined.calls)), text)

    def test_fenced_calls_must_be_offered(self) -> None:
        rules = Rules(fenced_calls=True)
        for call in (CALL, LINE, BARE):
            nope = call.replace("now", "nope")
            self.assert_text(f"```\n{nope}\n```", rules=rules)
            self.assert_text(f"```\nx <b> {nope}\n\n```", rules=rules)
        self.assert_text("`<tool_call>x <b>`", rules=rules)

    def test_fenced_calls_and_the_text_behind(self) -> None:
        rules = Rules(fenced_calls=True)
        self.assertEqual(2, len(self.read(f"```\n{CALL}```\n{CALL}", rules=rules).calls))
        self.assert_text("```\nx\n```\n<think>`", rules=rules)
        self.assert_text("```\n<think> x", rules=rules)

    def test_think_tags_in_code_are_text(self) -> None:
        split = Rules(reasoning="split")
        for text in ("`<think>`", "```\n<think>\n```", "`<thi", "~~~\n</think>"):
            joined = self.read(text, rules=split)
            self.assertEqual((text, ""), (joined.content, joined.reasoning))


class ThinkTests(ReadCase):
    """Inside a think block text is reasoning: never a call."""

    def test_kept(self) -> None:
        for text in (
            f"<think>\n{CALL}\n</think>\nA",
            f"A <think>{LINE}",
            "<think></think>",
            "</think>",
        ):
            self.assert_text(text)

    def test_behind_it(self) -> None:
        joined = self.read(f"<think>\nx `\n</think>\n\n{CALL}")
        self.assertEqual(("<think>\nx `\n</think>", 1), (joined.content, len(joined.calls)))
        self.assertEqual(1, len(self.read(f"<think>x</think>{LINE}").calls))

    def test_split(self) -> None:
        split = Rules(reasoning="split")
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
            joined = self.read(text, rules=split)
            self.assertEqual((content, reasoning), (joined.content, joined.reasoning), text)
            self.assertEqual(order, joined.order, text)

    def test_prefilled(self) -> None:
        joined = self.read(
            f"x {CALL}\n</think>\n{CALL}", rules=Rules(think_prefilled=True, reasoning="split")
        )
        self.assertEqual(("", f"x {CALL}\n"), (joined.content, joined.reasoning))
        self.assertEqual(1, len(joined.calls))
        self.assert_text(f"x {CALL}", rules=Rules(think_prefilled=True))

    def test_reasoning_is_not_held_back(self) -> None:
        parser = ToolCallParser(OFFER, Rules(reasoning="split"))
        self.assertEqual([Reasoning("x ")], parser.feed("<think>x "))
        self.assertEqual([Reasoning("<tool_call> ")], parser.feed("<tool_call> "))


class HoldTests(ReadCase):
    """As little is held back as can be."""

    def test_ordinary_text_is_the_same_object(self) -> None:
        parser = ToolCallParser(OFFER)
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
            assert isinstance(delta, Text)
            self.assertIs(text, delta.text)

    def assert_held(self, text: str, held: str, rules: Rules | None = None) -> None:
        parser = ToolCallParser(OFFER, rules or Rules())
        deltas = parser.feed(text)
        given = "".join(delta.text for delta in deltas if isinstance(delta, Text))
        self.assertEqual(text.removesuffix(held) if held else text, given)

    def test_what_may_begin_a_call(self) -> None:
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

    def test_where_no_call_can_follow_nothing_is_held(self) -> None:
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

    def test_in_a_fence_where_calls_count(self) -> None:
        self.assert_held("```\nx \n<tool", " \n<tool", Rules(fenced_calls=True))

    @given(st.text("a <`\n~T", max_size=20))
    def test_only_white_space_and_what_may_begin_is_held(self, text: str) -> None:
        parser = ToolCallParser(OFFER)
        given_out = "".join(delta.text for delta in parser.feed(text) if isinstance(delta, Text))
        self.assertIn(text.removeprefix(given_out).strip(), ("", "<", "T"))


class LiteralTests(ReadCase):
    def test_made_once(self) -> None:
        self.assertIs(literals_of(BUILT_IN), literals_of(BUILT_IN))

    def test_plain_text_holds_nothing_to_look_at(self) -> None:
        is_plain = Literals(BUILT_IN).plain.text.fullmatch
        for text in ("a", " a b", "T", "it's > ~ so"):
            self.assertTrue(is_plain(text), text)
        for text in ("", "a ", "a\n", "a\nb", "a<b", "`a"):
            self.assertFalse(is_plain(text), text)


class UntranslatedTests(ReadCase):
    """Nothing becomes a call, nothing is held; openers are counted."""

    OFF = Offer(translate=False)

    def test_text_passes_at_once(self) -> None:
        parser = ToolCallParser(self.OFF)
        for text in ("A \n", "<tool", "_call>", "TOOL_CALL: {", "", "\n<think>"):
            deltas = parser.feed(text)
            self.assertEqual([Text(text)] if text else [], deltas)
            for delta in deltas:
                assert isinstance(delta, Text)
                self.assertIs(text, delta.text)
        self.assertEqual([], parser.finish("stop"))

    def test_openers_are_counted(self) -> None:
        joined, tally = self.read_counting(
            f"{LINE}\nA {CALL}{CALL}\n  {LINE} TOOL_CALL: \n{BARE} {BARE}", offer=self.OFF
        )
        self.assertEqual([], joined.calls)
        self.assertEqual({"untranslated": 5}, tally)

    def test_always(self) -> None:
        joined = self.read(CALL, offer=self.OFF, rules=Rules(translate="always"))
        self.assertEqual(1, len(joined.calls))

    def test_split(self) -> None:
        split = Rules(reasoning="split")
        text = f"<think>\nx</think> \n{CALL} \n"
        joined = self.read(text, offer=self.OFF, rules=split)
        self.assertEqual((f" \n{CALL} \n", "\nx"), (joined.content, joined.reasoning))
        parser = ToolCallParser(self.OFF, split)
        self.assertEqual([Text("A \n")], parser.feed("A \n"))
        self.assertEqual([Text("B")], parser.feed("B"))

    def test_no_formats(self) -> None:
        joined, tally = self.read_counting(CALL, offer=self.OFF, rules=Rules(formats=()))
        self.assertEqual((CALL, {}), (joined.content, tally))
