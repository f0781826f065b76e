"""What is handed on unread: the JSON that is matched is that of a text that is matched."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.dialects.hermes import TaggedJson
from blockops.toolcalls.dialects.registry import BUILT_IN
from blockops.toolcalls.events import CallArguments, CallBegan, Text
from blockops.toolcalls.options import Rules
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.reader import Opener
from blockops.toolcalls.tools import Offer
from blockops.toolcalls.verbatim import Verbatim, spelling

#: What a text begins with -> where it goes on.
BEGINNINGS = {
    "text": "So ",
    "a string": '<tool_call>{"name": "f", "arguments": {"a": "',
    "a string in single quotes": "TOOL_CALL: {'name': 'f', 'arguments': {'a': '",
    "a parameter": "<tool_call><function=f><parameter=a>x",
    "a parameter behind a line end": "<tool_call><function=f><parameter=a>\nx",
}
TEXTS = st.text(max_size=12) | st.text("ab <`\\\"'/~\x7f{}\n\t\r\x1fépn", max_size=12)


def opened(beginning: str) -> tuple[ToolCallParser, Verbatim]:
    """Return a parser that has read this, and what it would hand on now."""
    parser = ToolCallParser(Offer({"f": {}}), Rules(formats=BUILT_IN))
    parser.feed(beginning + "x")
    assert parser.verbatim is not None, beginning
    return parser, parser.verbatim


class Spellings(SynchronousTestCase):
    @given(TEXTS, st.sampled_from(sorted(BEGINNINGS)))
    def test_what_is_matched(self, text: str, where: str) -> None:
        """Its text is matched too, and what is made of its JSON is what is made of its text."""
        parser, verbatim = opened(BEGINNINGS[where])
        for written in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
            spelled = written[1:-1].encode()
            # It stands between quotes, among much else.
            if verbatim.spelled.fullmatch(b'"' + spelled + b'"', 1, len(spelled) + 1) is None:
                continue
            self.assertIsNotNone(verbatim.text.fullmatch(text), text)
            self.assertEqual(
                json.loads(b'"' + verbatim.respelled(spelled) + b'"'), verbatim.handed_on(text)
            )
            kind = CallArguments if parser.in_call else Text
            self.assertEqual(parser.feed(text), [kind(verbatim.handed_on(text))])

    @given(TEXTS, TEXTS, st.sampled_from(sorted(BEGINNINGS)))
    def test_it_changes_nothing(self, text: str, more: str, where: str) -> None:
        """What is not read leaves no trace: what comes behind it is the same as without it."""
        fed, verbatim = opened(BEGINNINGS[where])
        if not text or verbatim.text.fullmatch(text) is None:
            return
        plain = ToolCallParser(Offer({"f": {}}), Rules(formats=BUILT_IN))
        plain.feed(BEGINNINGS[where] + "x")
        one_by_one = [delta for char in text for delta in plain.feed(char)]
        passed, _ = opened(BEGINNINGS[where])
        said = [*passed.feed(more), *passed.finish("stop")]
        for parser, before in ((fed, fed.feed(text)), (plain, one_by_one)):
            # Spaces at the end of a piece wait for the next one.
            behind = [*parser.feed(more), *parser.finish("stop")]
            self.assertEqual(
                self.joined([*before, *behind]),
                self.joined([type(before[0])(verbatim.handed_on(text)), *said]),
            )

    def joined(self, deltas: list[object]) -> list[object]:
        """Return deltas with neighbours of one kind merged."""
        merged: list[object] = []
        for delta in deltas:
            last = merged[-1] if merged else None
            if isinstance(delta, Text | CallArguments) and type(last) is type(delta):
                merged[-1] = type(delta)(last.text + delta.text)
            else:
                merged.append(delta)
        return merged

    def test_most_of_what_is_said_is_matched(self) -> None:
        for where, texts in {
            "text": ("word", " two words", 'a "quoted" word', "C:\\x", "/", "{}"),
            "a string": ("word ", " and", "a\\nb", 'say \\"x\\"', "<b>", "`", "it's"),
            "a string in single quotes": ("word ", "a\\nb", "<b>"),
            "a parameter": ("word ", 'x = "y"', "a\nb", "\tx\n ", "a < b", "a\\b", "<b>", "{'x'}"),
        }.items():
            _, verbatim = opened(BEGINNINGS[where])
            for text in texts:
                spelled = json.dumps(text)[1:-1].encode()
                self.assertIsNotNone(verbatim.spelled.fullmatch(spelled), (where, text))
                self.assertIsNotNone(verbatim.text.fullmatch(text), (where, text))
                told = json.loads(b'"' + verbatim.respelled(spelled) + b'"')
                self.assertEqual(told, verbatim.handed_on(text))
                self.assertEqual(json.loads(f'"{told}"') if verbatim.quoted else told, text)

    def test_what_has_to_be_looked_at(self) -> None:
        for where, texts in {
            "text": ("", "word ", "a\nb", "<", "a<b", "`a`", "é", "\t"),
            "a string": ("", '"', "a\\", "\\u00e9", "\n", "é"),
            "a string in single quotes": ("'", '"', "\\'"),
            "a parameter": ("", "a\n", "<", "a <", "</", "<p", "\r", "é", "\x1f", "<<b"),
        }.items():
            _, verbatim = opened(BEGINNINGS[where])
            for text in texts:
                for ascii_ in (True, False):
                    spelled = json.dumps(text, ensure_ascii=ascii_)[1:-1].encode()
                    self.assertIsNone(verbatim.spelled.fullmatch(spelled), (where, text))
                if text not in {"", "é"}:
                    self.assertIsNone(verbatim.text.fullmatch(text), (where, text))

    def test_other_spellings(self) -> None:
        """Where the text goes into another event, escapes that need not be would be lost."""
        for where, beginning in BEGINNINGS.items():
            _, verbatim = opened(beginning)
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
                self.assertIsNone(verbatim.spelled.fullmatch(spelled), (where, spelled))
            if where != "text":
                self.assertIsNone(verbatim.spelled.fullmatch(rb"\/"), where)

    def test_an_opener_that_begins_as_an_escape_ends(self) -> None:
        class Odd(TaggedJson):
            openers = (Opener('"call"'), Opener("/call"), Opener("\\call"))  # type: ignore[assignment]

        parser = ToolCallParser(Offer({"f": {}}), Rules(formats=(Odd(),)))
        parser.feed("So")
        assert parser.verbatim is not None
        for text in ('a"b', "a/b", "a\\b"):
            self.assertIsNone(parser.verbatim.spelled.fullmatch(json.dumps(text)[1:-1].encode()))
        self.assertIsInstance(parser.feed(' "call"{"name": "f", "arguments": {')[0], CallBegan)

    def test_a_spelling_of_ones_own(self) -> None:
        spelled = spelling("-", without="x", end="!")
        for data, matched in ((b"a-!", 1), (b"!", 1), (b"ax!", 0), (b"a-", 0), (b"", 0)):
            self.assertEqual(spelled.fullmatch(data) is not None, matched, data)
