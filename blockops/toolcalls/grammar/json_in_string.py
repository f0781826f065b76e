r"""
Reads a JSON object that the model wrote into a JSON string, and unescapes it as it streams.

`"{\"city\": \"Oslo\"}"` is read as `{"city": "Oslo"}`: the string's escapes are undone, and their
text is read as JSON by a `StreamingJson`. A string that contains only white space counts as empty.
A string that contains anything but an object is broken.

Text that breaks the inner object passes, unescaped, up to the end of the string.

    state          reads                        next state
    opening_quote  the quote                    in_string
    in_string      up to a quote or backslash   in_escape; complete at the quote, or broken if the
                                                inner object is still open, or if the text is not
                                                an object
    in_escape      one escape                   in_string
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from blockops.toolcalls.grammar.json_states import Status
from blockops.toolcalls.grammar.json_stream import StreamingJson

_PLAIN = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_ESCAPE = re.compile(r"\\(?:([\"\\/bfnrt'])|u[0-9a-fA-F]{4})")
_PARTIAL_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_MAX_ESCAPE = len(r"\uXXXX")
_CONTROL_CHARACTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WHITE_SPACE = " \t\r\n"


class JsonInString:
    """
    Reads a JSON object in a JSON string, from the opening quote to the closing one.

    :ivar status: the progress of the string
    :ivar pending: empty: text that breaks the inner object is written unchanged
    :ivar has_started: the object's opening brace was read
    """

    __slots__ = (
        "_high_surrogate",
        "_inner",
        "_out",
        "_partial_escape",
        "_quote",
        "_state",
        "has_started",
        "pending",
        "status",
    )

    def __init__(self) -> None:
        self.status = Status.OPEN
        self.has_started = False
        self.pending = ""
        self._inner = StreamingJson()
        self._state: Callable[[str, int], int] = self._opening_quote
        self._quote = '"'
        self._partial_escape = ""
        # The escape of a high surrogate: the next escape may be its low surrogate.
        self._high_surrogate = ""
        self._out: list[str] = []

    @property
    def error_count(self) -> int:
        """The number of constructs that passed although JSON does not allow them."""
        return self._inner.error_count + self._is_inner_broken()

    @property
    def closing_bracket(self) -> str:
        """The brace that ended the object, which is not written."""
        return self._inner.closing_bracket if self._inner.status is Status.COMPLETE else ""

    @property
    def verbatim(self) -> None:
        """None: all text has to be unescaped."""

    def feed(self, text: str, start: int, out: list[str]) -> int:
        """Read the next piece of the text; see `ValueReader.feed`."""
        self._out = out
        pos = start
        size = len(text)
        while pos < size and self.status is Status.OPEN:
            pos = self._state(text, pos)
        return pos

    def completion(self) -> str | None:
        """Return "" if the string has ended, else None: it lacks at least its quote."""
        return "" if self.status is Status.COMPLETE else None

    def _opening_quote(self, text: str, pos: int) -> int:
        self._quote = text[pos]
        self._state = self._in_string
        return pos + 1

    def _in_string(self, text: str, pos: int) -> int:
        end = _PLAIN[self._quote].match(text, pos).end()  # type: ignore[union-attr]
        if end > pos:
            self._feed_inner(text[pos:end])
        if end == len(text) or self.status is Status.BROKEN:
            return end
        if text[end] == self._quote:
            return self._close_string(end)
        self._state = self._in_escape
        return end

    def _in_escape(self, text: str, pos: int) -> int:
        partial_length = len(self._partial_escape)
        escape = self._partial_escape + text[pos : pos + _MAX_ESCAPE - partial_length]
        match = _ESCAPE.match(escape)
        if not match and _PARTIAL_ESCAPE.fullmatch(escape):
            self._partial_escape = escape
            return len(text)
        self._partial_escape = ""
        self._state = self._in_string
        if not match:
            # An unknown escape passes unchanged, with the characters that were held back.
            self._feed_inner(escape[: max(partial_length, 1)])
            return pos + max(partial_length, 1) - partial_length
        if char := match[1]:
            self._feed_inner(_CONTROL_CHARACTERS.get(char, char))
        else:
            self._unescape_code_unit(match[0])
        return pos + match.end() - partial_length

    def _close_string(self, pos: int) -> int:
        self.status = Status.COMPLETE
        self._feed_inner("")
        if self.has_started and self._inner.status is Status.OPEN:
            # The model did not escape the quote: the string is broken at it.
            self.status = Status.BROKEN
            return pos
        return pos + 1

    def _unescape_code_unit(self, escape: str) -> None:
        r"""Unescape a UTF-16 code unit, `\uXXXX`; a surrogate pair becomes one character."""
        high_byte = escape[2:4].lower()
        if self._high_surrogate and "dc" <= high_byte <= "df":
            pair = json.loads(f'"{self._high_surrogate}{escape}"')
            self._high_surrogate = ""
            self._feed_inner(pair)
        elif "d8" <= high_byte <= "db":
            self._feed_inner("")
            self._high_surrogate = escape
        elif "dc" <= high_byte <= "df":
            # A lone surrogate cannot be encoded as UTF-8: it stays an escape.
            self._feed_inner(escape)
        else:
            self._feed_inner(json.loads(f'"{escape}"'))

    def _feed_inner(self, piece: str) -> None:
        """Read a piece of the string's unescaped text."""
        if self._high_surrogate:
            piece = self._high_surrogate + piece
            self._high_surrogate = ""
        if not self.has_started:
            piece = piece.lstrip(_WHITE_SPACE)
            if not piece:
                return
            if piece[0] != "{":
                self.status = Status.BROKEN
                return
            self.has_started = True
        end = 0
        if self._inner.status is Status.OPEN:
            end = self._inner.feed(piece, 0, self._out)
            if self._is_inner_broken():
                self._out.append(self._inner.pending)
        if end < len(piece):
            self._pass_rest(piece[end:])

    def _is_inner_broken(self) -> bool:
        return self._inner.status is Status.BROKEN

    def _pass_rest(self, piece: str) -> None:
        """Write the text after the object or its error, without the white space after it."""
        if self._inner.status is Status.COMPLETE:
            piece = piece.lstrip(_WHITE_SPACE)
            if not piece:
                return
            # Text after the object: it counts as an error, and its bracket was not the last one.
            self._out.append(self._inner.closing_bracket)
            self._inner.status = Status.BROKEN
        self._out.append(piece)
