"""
Functions and parameters in tags, as Qwen3-Coder and Qwen 3.5 write them.

    call = "<tool_call>" space function { space function } space "</tool_call>"
         | function [ space "</tool_call>" ]

The second form is a call only at the start of a line, and only if the request offers its name.

`grammar.xml_parameters` describes and reads a function.
"""

from __future__ import annotations

from blockops.toolcalls.deltas import Delta
from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.dialects.prompts import QwenXmlPrompt
from blockops.toolcalls.grammar.json_states import SPACE
from blockops.toolcalls.grammar.tool_call_tag import (
    CLOSING_TAG,
    OPENING_TAG,
    is_partial_closing_tag,
)
from blockops.toolcalls.grammar.xml_parameters import XmlCallReader
from blockops.toolcalls.grammar.xml_patterns import FUNCTION
from blockops.toolcalls.reader import (
    CallEnded,
    CallReader,
    FeedResult,
    FinishResult,
    NotACall,
    OpeningContext,
)


class QwenXmlDialect:
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`."""

    name = "xml"
    openers = (Opener(OPENING_TAG), Opener(FUNCTION, line_start=True))
    tool_prompt = QwenXmlPrompt()

    def reader(self, context: OpeningContext) -> CallReader:
        """Return a reader for the text after `<tool_call>`, or after a bare `<function`."""
        return QwenXmlReader(context, is_in_tag=context.literal == OPENING_TAG)


class QwenXmlReader(XmlCallReader):
    """Reads one function; another one or `</tool_call>` may follow."""

    def _reader_after(self) -> CallReader:
        return AfterXmlCall(self._context if self._is_in_tag else None)


class AfterXmlCall:
    """
    Reads the text after a function: `</tool_call>`, which is dropped, or another function.

    :param context: the context of the `<tool_call>` that the function is in; None for a bare one
    """

    def __init__(self, context: OpeningContext | None = None) -> None:
        self._next = QwenXmlReader(context, is_in_tag=True) if context else None
        # White space before the next tag, and the text from there on.
        self._space = ""
        self._pending = ""

    @property
    def verbatim(self) -> None:
        """None: no arguments stand here."""

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        """Read the next piece of the text; see `CallReader.feed`."""
        if not self._pending:
            end = SPACE.match(text).end()  # type: ignore[union-attr]
            self._space += text[:end]
            text = text[end:]
        self._pending = pending = self._pending + text
        if pending.startswith(CLOSING_TAG):
            return CallEnded(pending[len(CLOSING_TAG) :])
        if CLOSING_TAG.startswith(pending):
            return None
        if self._next and pending.startswith(FUNCTION):
            return CallEnded(self._space + pending, self._next)
        if self._next and FUNCTION.startswith(pending):
            return None
        return NotACall()

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        """Return the result at the end of the text; see `CallReader.finish`."""
        return CallEnded("") if is_partial_closing_tag(self._pending) else NotACall()
