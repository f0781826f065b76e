r"""
Reads a JSON object that the model wrote into a JSON string, and unescapes it as it streams.

`"{\"city\": \"Oslo\"}"` is read as `{"city": "Oslo"}`: one `StreamingJson` reads the string, its
escapes are undone, and another one reads their text. A string of white space counts as empty. One
that contains anything but an object is broken, and so is one that ends within the object. Text that
breaks the inner object passes, unescaped, up to the end of the string.
"""

from __future__ import annotations

import json
import re

from blockops.toolcalls.grammar.json_stream import Status, StreamingJson

_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
_QUOTE_OR_ESCAPE = re.compile(
    # A lone surrogate cannot be encoded as UTF-8: it stays an escape.
    r"\"|\\(?:[\"\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})"
    rf"|{_HIGH_SURROGATE.pattern}\\u[dD][c-fC-F][0-9a-fA-F]{{2}}"
)
_UNESCAPED: dict[str, str] = {
    '"': "",
    **{rf"\{char}": json.loads(rf'"\{char}"') for char in '"\\/bfnrt'},
}
"""The text for each match of two characters; the quotes around the string are dropped."""

_WHITE_SPACE = " \t\r\n"


class JsonInString:
    """
    Reads a JSON object in a JSON string, from the opening quote to the closing one.

    :ivar pending: empty: text that breaks the inner object is written unchanged
    :ivar has_started: the object's opening brace was read
    """

    def __init__(self) -> None:
        self.status: Status = "open"
        self.pending = ""
        self.has_started = False
        self._string = StreamingJson()
        self._object = StreamingJson()
        # The JSON of the string that was not unescaped yet.
        self._pieces: list[str] = []

    @property
    def error_count(self) -> int:
        return self._object.error_count + (self._object.status == "broken")

    @property
    def closing_bracket(self) -> str:
        return self._object.closing_bracket if self._object.status == "complete" else ""

    def feed(self, text: str, start: int, out: list[str]) -> int:
        end = self._string.feed(text, start, self._pieces)
        self._read_object(self._unescaped_text(), out)
        if self.status == "open" and self._string.status == "complete":
            if self.has_started and self._object.status == "open":
                # The model did not escape the quote: the string is broken at it.
                self.status = "broken"
                return end - 1
            self.status = "complete"
        return end

    def completion(self) -> str | None:
        """Return None: an open string lacks at least its quote."""
        return None

    def _unescaped_text(self) -> str:
        pieces = self._pieces
        # The next escape may be the low surrogate.
        is_high = pieces and _HIGH_SURROGATE.fullmatch(pieces[-1])
        self._pieces = [pieces.pop()] if is_high else []
        return _QUOTE_OR_ESCAPE.sub(_unescape, "".join(pieces))

    def _read_object(self, text: str, out: list[str]) -> None:
        if not self.has_started:
            text = text.lstrip(_WHITE_SPACE)
            if not text:
                return
            if text[0] != "{":
                self.status = "broken"
                return
            self.has_started = True
        end = 0
        if self._object.status == "open":
            end = self._object.feed(text, 0, out)
        if self._object.status == "broken":
            out.append(self._object.pending)
            self._object.pending = ""
        rest = text[end:]
        if self._object.status == "complete":
            rest = rest.lstrip(_WHITE_SPACE)
            if rest:
                # Text after the object: it counts as an error, and its bracket was not the last.
                out.append(self._object.closing_bracket)
                self._object.status = "broken"
        out.append(rest)


def _unescape(match: re.Match[str]) -> str:
    text = match[0]
    if text in _UNESCAPED:
        return _UNESCAPED[text]
    character: str = json.loads(f'"{text}"')
    return character
