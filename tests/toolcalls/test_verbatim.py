"""Tests of verbatim patterns: JSON that matches is the JSON of a text that matches."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.deltas import CallArguments, CallStarted, TextDelta
from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.dialects import BUILT_IN
from blockops.toolcalls.dialects.hermes import HermesDialect
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools
from blockops.toolcalls.verbatim import Verbatim, json_text_pattern

#: Position in an answer -> text that leads to it.
BEGINNINGS = {
    "text": "So ",
    "a string": '<tool_call>{"name": "f", "arguments": {"a": "',
    "a string in single quotes": "TOOL_CALL: {'name': 'f', 'arguments': {'a': '",
    "a parameter": "<tool_call><function=f><parameter=a>x",
    "a parameter after a line end": "<tool_call><function=f><parameter=a>\nx",
}
TEXTS = st.text(max_size=12) | st.text("ab <`\\\"'/~\x7f{}\n\t\r\x1fépn", max_size=12)


def parser_after(beginning: str) -> tuple[ToolCallParser, Verbatim]:
    """Return a parser that has read `beginning`, and its verbatim pattern."""
    parser = ToolCallParser(OfferedTools({"f": {}}), TranslationOptions(dialects=BUILT_IN))
    parser.feed(beginning + "x")
    assert parser.verbatim is not None, beginning
    return parser, parser.verbatim


class VerbatimTests(SynchronousTestCase):
    @given(TEXTS, st.sampled_from(sorted(BEGINNINGS)))
    def test_matching_json_is_the_json_of_matching_text(self, text: str, where: str) -> None:
        """The text matches too, and both are passed on in the same way."""
        parser, verbatim = parser_after(BEGINNINGS[where])
        for quoted in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
            spelled = quoted[1:-1].encode()
            # The pattern must look at nothing around the text: its quotes, in a chunk.
            if verbatim.json_pattern.fullmatch(b'"' + spelled + b'"', 1, len(spelled) + 1) is None:
                continue
            self.assertIsNotNone(verbatim.pattern.fullmatch(text), text)
            self.assertEqual(
                json.loads(b'"' + verbatim.output_json(spelled) + b'"'), verbatim.output_text(text)
            )
            delta_type = CallArguments if parser.is_in_call else TextDelta
            self.assertEqual(parser.feed(text), [delta_type(verbatim.output_text(text))])

    @given(TEXTS, TEXTS, st.sampled_from(sorted(BEGINNINGS)))
    def test_matching_text_changes_no_state(self, text: str, more: str, where: str) -> None:
        """The output for later text is the same if matching text is not fed."""
        fed, verbatim = parser_after(BEGINNINGS[where])
        if not text or verbatim.pattern.fullmatch(text) is None:
            return
        plain = ToolCallParser(OfferedTools({"f": {}}), TranslationOptions(dialects=BUILT_IN))
        plain.feed(BEGINNINGS[where] + "x")
        by_character = [delta for char in text for delta in plain.feed(char)]
        skipped, _ = parser_after(BEGINNINGS[where])
        expected = [*skipped.feed(more), *skipped.finish("stop")]
        for parser, before in ((fed, fed.feed(text)), (plain, by_character)):
            # Spaces at the end of a text wait for the next one.
            after = [*parser.feed(more), *parser.finish("stop")]
            self.assertEqual(
                self.merged([*before, *after]),
                self.merged([type(before[0])(verbatim.output_text(text)), *expected]),
            )

    def merged(self, deltas: list[object]) -> list[object]:
        """Return `deltas` with adjacent deltas of one type merged."""
        merged: list[object] = []
        for delta in deltas:
            last = merged[-1] if merged else None
            if isinstance(delta, TextDelta | CallArguments) and type(last) is type(delta):
                merged[-1] = type(delta)(last.text + delta.text)
            else:
                merged.append(delta)
        return merged

    def test_most_text_matches(self) -> None:
        for where, texts in {
            "text": ("word", " two words", 'a "quoted" word', "C:\\x", "/", "{}"),
            "a string": ("word ", " and", "a\\nb", 'say \\"x\\"', "<b>", "`", "it's"),
            "a string in single quotes": ("word ", "a\\nb", "<b>"),
            "a parameter": ("word ", 'x = "y"', "a\nb", "\tx\n ", "a < b", "a\\b", "<b>", "{'x'}"),
        }.items():
            _, verbatim = parser_after(BEGINNINGS[where])
            for text in texts:
                spelled = json.dumps(text)[1:-1].encode()
                self.assertIsNotNone(verbatim.json_pattern.fullmatch(spelled), (where, text))
                self.assertIsNotNone(verbatim.pattern.fullmatch(text), (where, text))
                emitted = json.loads(b'"' + verbatim.output_json(spelled) + b'"')
                self.assertEqual(emitted, verbatim.output_text(text))
                self.assertEqual(
                    json.loads(f'"{emitted}"') if verbatim.is_json_string else emitted, text
                )

    def test_text_that_must_be_fed(self) -> None:
        for where, texts in {
            "text": ("", "word ", "a\nb", "<", "a<b", "`a`", "é", "\t"),
            "a string": ("", '"', "a\\", "\\u00e9", "\n", "é"),
            "a string in single quotes": ("'", '"', "\\'"),
            "a parameter": ("", "a\n", "<", "a <", "</", "<p", "\r", "é", "\x1f", "<<b"),
        }.items():
            _, verbatim = parser_after(BEGINNINGS[where])
            for text in texts:
                for ascii_ in (True, False):
                    spelled = json.dumps(text, ensure_ascii=ascii_)[1:-1].encode()
                    self.assertIsNone(verbatim.json_pattern.fullmatch(spelled), (where, text))
                if text not in {"", "é"}:
                    self.assertIsNone(verbatim.pattern.fullmatch(text), (where, text))

    def test_longer_spellings_do_not_match(self) -> None:
        """Where the text goes into another event, needless escapes would be lost."""
        for where, beginning in BEGINNINGS.items():
            _, verbatim = parser_after(beginning)
            for spelled in (
                rb"\u0041",
                rb"\u003c",
                rb"\b",
                rb"\x",
                b"a\\",
                b'a"b',
                b"\x00",
                b"a\xff",
            ):
                self.assertIsNone(verbatim.json_pattern.fullmatch(spelled), (where, spelled))
            if where != "text":
                self.assertIsNone(verbatim.json_pattern.fullmatch(rb"\/"), where)

    def test_an_opener_that_begins_like_the_end_of_an_escape(self) -> None:
        class EscapeDialect(HermesDialect):
            openers = (Opener('"call"'), Opener("/call"), Opener("\\call"))  # type: ignore[assignment]

        parser = ToolCallParser(
            OfferedTools({"f": {}}), TranslationOptions(dialects=(EscapeDialect(),))
        )
        parser.feed("So")
        assert parser.verbatim is not None
        for text in ('a"b', "a/b", "a\\b"):
            self.assertIsNone(
                parser.verbatim.json_pattern.fullmatch(json.dumps(text)[1:-1].encode())
            )
        self.assertIsInstance(parser.feed(' "call"{"name": "f", "arguments": {')[0], CallStarted)

    def test_json_text_pattern(self) -> None:
        spelled = json_text_pattern("-", excluded="x", end="!")
        for data, matches in ((b"a-!", 1), (b"!", 1), (b"ax!", 0), (b"a-", 0), (b"", 0)):
            self.assertEqual(spelled.fullmatch(data) is not None, matches, data)
