"""
Format 2: a JSON object behind `TOOL_CALL:` at the start of a line.

    call = "TOOL_CALL:" space object

The object is read by `CallObject`, may run over several lines, and the call ends with its last
brace. Where its arguments are broken, the text passes raw up to the end of the line; where they
were complete, the call ends there, and the rest is text.
"""

from __future__ import annotations

from blockops.toolcalls.dialects.prompts import LineWording
from blockops.toolcalls.events import Delta
from blockops.toolcalls.grammar.json_reader import ObjectReader, Verdict
from blockops.toolcalls.grammar.json_stream import SPACE
from blockops.toolcalls.reader import CallReader, Opener, Opening, Refused


class LineJson:
    """The format: `TOOL_CALL: {"name": ..., "arguments": {...}}`."""

    name = "line"
    openers = (Opener("TOOL_CALL:", line_start=True),)
    wording = LineWording()

    def reader(self, opening: Opening) -> CallReader:
        """Return a reader for the text behind the colon."""
        return LineJsonReader(opening)


class LineJsonReader(ObjectReader):
    """Reads the one object behind the opener."""

    end_of_raw = "\n"

    def _first(self, text: str, out: list[Delta]) -> Verdict:
        pos = SPACE.match(text).end()  # type: ignore[union-attr]
        if pos == len(text):
            return None
        return self._object_at(text, pos, out) if text[pos] == "{" else Refused()

    def _whole_at(self, text: str, out: list[Delta]) -> Verdict:
        self._object.end(out)
        return self._ended(text)
