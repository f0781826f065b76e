"""
A JSON object after `TOOL_CALL:` at the start of a line, as blockops' own prompt asks for.

    call = "TOOL_CALL:" space object

`JsonCall` reads the object, which may span several lines. The call ends with the object's last
brace. Broken arguments pass unchanged up to the end of the line. If the object breaks after
complete arguments, the call ends there, and the rest is ordinary text.
"""

from __future__ import annotations

from blockops.toolcalls.deltas import Delta
from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.dialects.prompts import ToolCallLinePrompt
from blockops.toolcalls.grammar.json_reader import JsonCallReader
from blockops.toolcalls.grammar.json_stream import SPACE
from blockops.toolcalls.reader import CallReader, FeedResult, NotACall, OpeningContext


class ToolCallLineDialect:
    """`TOOL_CALL: {"name": ..., "arguments": {...}}`."""

    name = "line"
    openers = (Opener("TOOL_CALL:", line_start=True),)
    tool_prompt = ToolCallLinePrompt()

    def reader(self, context: OpeningContext) -> CallReader:
        return ToolCallLineReader(context)


class ToolCallLineReader(JsonCallReader):
    """Reads the one object after the opener."""

    raw_terminator = "\n"

    def _before_object(self, text: str, out: list[Delta]) -> FeedResult:
        pos = SPACE.match(text).end()  # type: ignore[union-attr]
        if pos == len(text):
            return None
        return self._start_object(text, pos, out) if text[pos] == "{" else NotACall()

    def _after_object(self, text: str, out: list[Delta]) -> FeedResult:
        self._call.finish(out)
        return self._end_call(text)
