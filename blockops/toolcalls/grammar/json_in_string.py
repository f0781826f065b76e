r"""
Follows a JSON object that the model wrote into a JSON string, and unwraps it as it streams.

`"{\"city\": \"Oslo\"}"` is read as `{"city": "Oslo"}`: the string's escapes are undone, and what
they give is followed as JSON. A string of nothing but white space holds nothing, which is allowed;
a string that holds anything else than an object is broken at the character that shows it.

What breaks the object inside passes unwrapped to the end of the string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from blockops.toolcalls.grammar.json_stream import JsonValue, Standing

_PLAIN = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_ESCAPE = re.compile(r"\\(?:([\"\\/bfnrt'])|u[0-9a-fA-F]{4})")
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_MEANING = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class WrappedObject:
    """
    A JSON object inside a JSON string, from the string's opening quote to its closing one.

    :ivar standing: whether the string is still open
    :ivar held: nothing: what breaks the object inside is written as it is
    :ivar began: whether the object's opening brace was seen
    """

    __slots__ = (
        "_begun",
        "_high",
        "_inner",
        "_out",
        "_quote",
        "_state",
        "began",
        "held",
        "standing",
    )

    def __init__(self) -> None:
        self.standing = Standing.OPEN
        self.began = False
        self._inner = JsonValue()
        self._state: Callable[[str, int], int] = self._before
        self._quote = '"'
        self.held = ""
        # The beginning of an escape.
        self._begun = ""
        # The escape of a high surrogate, whose other half may come next.
        self._high = ""
        self._out: list[str] = []

    @property
    def flaws(self) -> int:
        """How many things passed that JSON does not allow."""
        return self._inner.flaws + self._broken()

    @property
    def closing(self) -> str:
        """The brace that ended the object, which is not written."""
        return self._inner.closing if self._inner.standing is Standing.WHOLE else ""

    @property
    def verbatim(self) -> None:
        """Nothing: all of it is unwrapped."""

    def feed(self, text: str, start: int, out: list[str]) -> int:
        """Read on; see `Follower`."""
        self._out = out
        pos = start
        size = len(text)
        while pos < size and self.standing is Standing.OPEN:
            pos = self._state(text, pos)
        return pos

    def missing(self) -> str | None:
        """Return what has to be appended to make the object whole: the string itself is not."""
        return "" if self.standing is Standing.WHOLE else None

    def _before(self, text: str, pos: int) -> int:
        self._quote = text[pos]
        self._state = self._in_string
        return pos + 1

    def _in_string(self, text: str, pos: int) -> int:
        end = _PLAIN[self._quote].match(text, pos).end()  # type: ignore[union-attr]
        if end > pos:
            self._unwrap(text[pos:end])
        if end == len(text) or self.standing is Standing.BROKEN:
            return end
        if text[end] == self._quote:
            return self._end(end)
        self._state = self._in_escape
        return end

    def _in_escape(self, text: str, pos: int) -> int:
        begun = len(self._begun)
        escape = self._begun + text[pos : pos + 6 - begun]
        whole = _ESCAPE.match(escape)
        if not whole and _ESCAPE_BEGUN.fullmatch(escape):
            self._begun = escape
            return len(text)
        self._begun = ""
        self._state = self._in_string
        if not whole:
            # No escape: the backslash stands for itself, and what was held behind it too.
            self._unwrap(escape[: max(begun, 1)])
            return pos + max(begun, 1) - begun
        if plain := whole[1]:
            self._unwrap(_MEANING.get(plain, plain))
        else:
            self._unwrap_code(whole[0])
        return pos + whole.end() - begun

    def _end(self, pos: int) -> int:
        self.standing = Standing.WHOLE
        self._unwrap("")
        if self.began and self._inner.standing is Standing.OPEN:
            # The quote came too early: it belongs to what is broken.
            self.standing = Standing.BROKEN
            return pos
        return pos + 1

    def _unwrap_code(self, escape: str) -> None:
        """Unwrap an escape by number; the two halves of a surrogate pair become one character."""
        half = escape[2:4].lower()
        if self._high and "dc" <= half <= "df":
            pair = json.loads(f'"{self._high}{escape}"')
            self._high = ""
            self._unwrap(pair)
        elif "d8" <= half <= "db":
            self._unwrap("")
            self._high = escape
        elif "dc" <= half <= "df":
            # Half a character cannot be sent: it stays an escape, which strings may hold.
            self._unwrap(escape)
        else:
            self._unwrap(json.loads(f'"{escape}"'))

    def _unwrap(self, piece: str) -> None:
        """Follow a piece of what the string holds."""
        if self._high:
            piece = self._high + piece
            self._high = ""
        if not self.began:
            piece = piece.lstrip(" \t\r\n")
            if not piece:
                return
            if piece[0] != "{":
                self.standing = Standing.BROKEN
                return
            self.began = True
        end = 0
        if self._inner.standing is Standing.OPEN:
            end = self._inner.feed(piece, 0, self._out)
            if self._broken():
                self._out.append(self._inner.held)
        if end < len(piece):
            self._behind(piece[end:])

    def _broken(self) -> bool:
        return self._inner.standing is Standing.BROKEN

    def _behind(self, piece: str) -> None:
        """Pass what stands behind the object or where it broke; not the white space behind it."""
        if self._inner.standing is Standing.WHOLE:
            piece = piece.lstrip(" \t\r\n")
            if not piece:
                return
            self._out.append(self._inner.closing)
            self._inner.standing = Standing.BROKEN
        self._out.append(piece)
