"""
Follows JSON as it streams: where strings, values and objects end, and what of JSON5 is mended.

The grammar is JSON's. Six things more are read, because each of them means one thing only, and
are written as JSON:

- a raw control character in a string becomes its escape;
- a string in single quotes gets double ones (and backslash-quote becomes the quote);
- a comma before a closing bracket is left out;
- `True`, `False`, `None` become `true`, `false`, `null`;
- a key without quotes gets them;
- comments (`//` to the end of the line, `/* */`) are left out.

Everything else passes as it was written: white space, key order, the spelling of numbers and of
escapes. An escape that JSON does not know passes too, and is remembered as a flaw: the string
around it can still be followed, so a quote or a tag in it is still data. So does a raw control
character behind a backslash: its own escape there would say something else. At anything else that
JSON does not allow the follower stops, broken, in front of it.

A state is a method: it reads from a position as far as its kind of text goes, sets the next state
and returns the position reached. Nothing but the current token is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from json.encoder import encode_basestring
from typing import Protocol

from blockops.toolcalls.partial_match import begun_at_the_end
from blockops.toolcalls.verbatim import Verbatim, spelling

MAX_DEPTH = 512
"""Brackets within brackets: json.loads of a client gives up at about twice that."""

MAX_WORD = 4_096
"""Characters of one number, one word, or one key without quotes."""

MAX_COMMENTS = 16_384
"""Characters of all comments in one value, where nothing says less."""

MAX_GAP = 1_024
"""Characters of white space behind a comma that are kept while the comma may be one too many."""

SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[\w$+.-]*")
_TOKEN = re.compile(r"[\w\"'{\[$+.-]")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
KEY = re.compile(r"[^\W\d][\w$]*|\$[\w$]*")
_WORDS = {
    "true": "true",
    "false": "false",
    "null": "null",
    "True": "true",
    "False": "false",
    "None": "null",
}
_STRINGS = {
    # Text and the plain escapes of a string, as far as nothing needs a closer look.
    '"': re.compile(r'[^"\\\x00-\x1f]*+(?:\\["\\/bfnrt][^"\\\x00-\x1f]*+)*+'),
    "'": re.compile(r"[^'\"\\\x00-\x1f]*+(?:\\[\"\\/bfnrt][^'\"\\\x00-\x1f]*+)*+"),
}
# An escape's backslash is a character of the text: JSON spells it with another one in front.
_SPELLED = r'\\\\(?:\\["\\]|[/bfnrt])'
_VERBATIM = {
    '"': Verbatim(_STRINGS['"'], spelling(_SPELLED)),
    "'": Verbatim(_STRINGS["'"], spelling(_SPELLED, without="'")),
}
_ESCAPE = re.compile(r"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})")
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")


class Standing(Enum):
    """How far a value has come."""

    OPEN = "it goes on"
    WHOLE = "it has ended"
    BROKEN = "what follows cannot belong to it"


class Room:
    """
    Room for comments: values that share it may have so many characters of them together.

    Text that is read again behind each of its openers needs this bound: a comment hides openers.

    :param stop: text that is no part of any comment: where it stands in one, the value is broken
    :ivar left: characters that may still come
    :ivar begun: as much of `stop` as the comments' last characters are
    """

    __slots__ = ("begun", "left", "stop")

    def __init__(self, left: int = MAX_COMMENTS, stop: str = "") -> None:
        self.left = left
        self.stop = stop
        self.begun = ""

    def find_stop(self, text: str, pos: int, end: int) -> int:
        """Return where in `text` the comment from `pos` to `end` stops; -1 if it does not."""
        end = min(end, pos + self.left)
        before = len(self.begun)
        seen = self.begun + text[pos:end]
        at = seen.find(self.stop)
        if at >= 0:
            self.begun = seen[at:before]
            return pos + max(at - before, 0)
        goes_on = end == len(text)
        self.begun = seen[begun_at_the_end(seen, self.stop) :] if goes_on else ""
        return -1


class Follower(Protocol):
    """Anything that follows a value in text that comes in pieces."""

    standing: Standing

    @property
    def held(self) -> str:
        """What was read and not written when it broke."""
        ...

    @property
    def flaws(self) -> int:
        """How many things passed that JSON does not allow."""
        ...

    @property
    def closing(self) -> str:
        """The value's own closing bracket, which `feed` does not write: its end must be certain."""
        ...

    def feed(self, text: str, start: int, out: list[str]) -> int:
        """
        Read `text` from `start`, append the value's JSON to `out`, return the position reached.

        That is the end of `text` while the value is open, else the first character behind it.
        """
        ...

    @property
    def verbatim(self) -> Verbatim | None:
        """Text that would be written just as it stands, and change nothing."""
        ...

    def missing(self) -> str | None:
        """Return what is missing before `closing`; None where more than brackets is missing."""
        ...


class JsonStates:
    """
    What the state machines over JSON share: the loop, white space, comments, words.

    :ivar standing: whether what is followed goes on
    :ivar held: what was read but may have to be written otherwise: a comma with the white space
        behind it, the beginning of a word or of an escape; once broken, it was never written
    """

    __slots__ = ("_back", "_mark", "_out", "_room", "_state", "held", "standing")

    def __init__(self, first: Callable[[str, int], int], room: Room | None = None) -> None:
        self.standing = Standing.OPEN
        self._state = self._back = first
        self.held = ""
        # Where in the current text the part begins that is not yet in `_out`.
        self._mark = 0
        self._room = room or Room()
        self._out: list[str] = []

    def _flush(self, text: str, pos: int) -> None:
        if pos > self._mark:
            self._out.append(text[self._mark : pos])
        self._mark = pos

    def _write(self, text: str, pos: int, instead: str, end: int) -> int:
        """Write `instead` in place of what stands from `pos` to `end`."""
        self._flush(text, pos)
        self._out.append(instead)
        self._mark = end
        return end

    def _break(self, pos: int) -> int:
        self.standing = Standing.BROKEN
        return pos

    def _unexpected(self, text: str, pos: int) -> int:
        """Decide on a character that no token begins with: a comment may, nothing else."""
        self._flush(text, pos)
        if text[pos] != "/":
            return self._break(pos)
        self._back = self._state
        self._state = self._slash
        self._mark = pos + 1
        return pos + 1

    def _word(self, text: str, pos: int) -> int:
        """Take what belongs to a word into `_held`; at most `MAX_WORD` characters of it."""
        self._flush(text, pos)
        room = MAX_WORD - len(self.held)
        end = self._mark = min(_WORD.match(text, pos).end(), pos + room)  # type: ignore[union-attr]
        self.held += text[pos:end]
        return end

    # Comments: entered from the state that they interrupt, which goes on behind them.

    def _slash(self, text: str, pos: int) -> int:
        if text[pos] == "/":
            self._state = self._line_comment
        elif text[pos] == "*":
            self._state = self._block_comment
        else:
            self.held += "/"
            return self._break(pos)
        self._mark = pos + 1
        return pos + 1

    def _line_comment(self, text: str, pos: int) -> int:
        end = text.find("\n", pos)
        if self._stops(text, pos, end):
            return self._mark
        if end >= 0:
            self._state = self._back
        return self._skip(pos, end if end >= 0 else len(text))

    def _block_comment(self, text: str, pos: int) -> int:
        end = text.find("*/", pos)
        if self._stops(text, pos, end):
            return self._mark
        if end >= 0:
            self._state = self._back
            return self._skip(pos, end + 2)
        if text.endswith("*"):
            self._state = self._star
        return self._skip(pos, len(text))

    def _star(self, text: str, pos: int) -> int:
        """Behind a star at which the text was cut."""
        if text[pos] != "/":
            self._state = self._block_comment
            return pos
        self._state = self._back
        return self._skip(pos, pos + 1)

    def _stops(self, text: str, pos: int, end: int) -> bool:
        """Break where the room's `stop` stands in the comment that leads to `end`."""
        if not self._room.stop:
            return False
        stop = self._room.find_stop(text, pos, end if end >= 0 else len(text))
        if stop < 0:
            return False
        self._state = self._back
        self._mark = self._break(stop)
        return True

    def _skip(self, pos: int, end: int) -> int:
        """Leave out a part of a comment; break where there is no more room for it."""
        self._mark = min(end, pos + self._room.left)
        self._room.left -= self._mark - pos
        if self._mark < end:
            return self._break(self._mark)
        return end


class JsonValue(JsonStates):
    """
    One JSON value, from its first character (white space before it is dropped) to its last.

    :param room: for its comments
    :param not_a_key: a word that is no key without quotes: where it stands, the value is broken
    :ivar flaws: how many things passed that JSON does not allow
    :ivar closing: the bracket that ended the value, which is not written
    """

    __slots__ = ("_after_string", "_closers", "_not_a_key", "_quote", "closing", "flaws")

    def __init__(self, room: Room | None = None, not_a_key: str = "") -> None:
        super().__init__(self._before, room)
        self._not_a_key = not_a_key
        self.flaws = 0
        self.closing = ""
        self._after_string = self._state
        self._closers: list[str] = []
        self._quote = '"'

    def feed(self, text: str, start: int, out: list[str]) -> int:
        """Read on; see `Follower`."""
        self._mark = pos = start
        self._out = out
        size = len(text)
        while pos < size and self.standing is Standing.OPEN:
            pos = self._state(text, pos)
        if pos > self._mark:
            out.append(text[self._mark : pos] if self._mark or pos < size else text)
        return pos

    @property
    def verbatim(self) -> Verbatim | None:
        """In a string, what needs no closer look."""
        return _VERBATIM[self._quote] if self._state == self._in_string else None

    def missing(self) -> str | None:
        """Return what is missing before `closing`; None where more than brackets is missing."""
        state = self._back if self._state == self._line_comment else self._state
        if state == self._in_scalar:
            written = _written_scalar(self.held)
        elif state in (self._first_key, self._first_item, self._after):
            written = ""
        elif state in (self._next_key, self._next_item):
            written = self.held[1:]
        else:
            written = None
        return None if written is None else written + "".join(self._closers[:0:-1])

    # Values.

    def _before(self, text: str, pos: int) -> int:
        pos = self._mark = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        return self._begin(text, pos) if pos < len(text) else pos

    def _value(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        return self._begin(text, pos) if pos < len(text) else pos

    def _begin(self, text: str, pos: int) -> int:
        """Begin the value whose first character stands at `pos`."""
        char = text[pos]
        if char in "\"'":
            return self._string(text, pos, self._after)
        if char in "{[" and len(self._closers) < MAX_DEPTH:
            self._closers.append("}" if char == "{" else "]")
            self._state = self._first_key if char == "{" else self._first_item
            return pos + 1
        if _WORD.match(text, pos).end() > pos:  # type: ignore[union-attr]
            self._state = self._in_scalar
            return pos
        return self._unexpected(text, pos)

    def _after(self, text: str, pos: int) -> int:
        """Behind a value: a comma or a closing bracket."""
        if not self._closers:
            self.standing = Standing.WHOLE
            return pos
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        char = text[pos]
        if char == ",":
            self._flush(text, pos)
            self.held = ","
            self._mark = pos + 1
            self._state = self._next_key if self._closers[-1] == "}" else self._next_item
            return pos + 1
        if char == self._closers[-1]:
            return self._close(text, pos)
        return self._unexpected(text, pos)

    def _close(self, text: str, pos: int) -> int:
        closer = self._closers.pop()
        self._state = self._after
        if not self._closers:
            self._flush(text, pos)
            self._mark = pos + 1
            self.closing = closer
            self.standing = Standing.WHOLE
        return pos + 1

    # Arrays and objects.

    def _first_item(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "]":
            return self._close(text, pos)
        return self._begin(text, pos)

    def _first_key(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "}":
            return self._close(text, pos)
        return self._key(text, pos)

    def _next_item(self, text: str, pos: int) -> int:
        pos = self._behind_comma(text, pos)
        if pos == len(text) or self._state == self._after:
            return pos
        return self._begin(text, pos)

    def _next_key(self, text: str, pos: int) -> int:
        pos = self._behind_comma(text, pos)
        if pos == len(text) or self._state == self._after:
            return pos
        return self._key(text, pos)

    def _behind_comma(self, text: str, pos: int) -> int:
        """Keep the comma until it is clear that it is not one too many."""
        end = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        self.held += text[pos : min(end, pos + MAX_GAP + 1 - len(self.held))]
        self._mark = end
        if end == len(text) or text[end] == "/":
            return end
        if text[end] == self._closers[-1]:
            self._out.append(self.held[1:])
            self.held = ""
            return self._close(text, end)
        if _TOKEN.match(text, end):
            self._out.append(self.held)
            self.held = ""
        return end

    def _key(self, text: str, pos: int) -> int:
        if text[pos] in "\"'":
            return self._string(text, pos, self._colon)
        if KEY.match(text, pos):
            self._state = self._bare_key
            return pos
        return self._unexpected(text, pos)

    def _bare_key(self, text: str, pos: int) -> int:
        end = self._word(text, pos)
        if end == len(text):
            return end
        if not KEY.fullmatch(self.held) or self.held == self._not_a_key:
            return self._break(end)
        self._out.append(f'"{self.held}"')
        self.held = ""
        self._state = self._colon
        return end

    def _colon(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] != ":":
            return self._unexpected(text, pos)
        self._state = self._value
        return pos + 1

    # Numbers, words, keys without quotes.

    def _in_scalar(self, text: str, pos: int) -> int:
        end = self._word(text, pos)
        if end == len(text):
            return end
        written = _written_scalar(self.held)
        if written is None:
            return self._break(end)
        self._out.append(written)
        self.held = ""
        self._state = self._after
        return end

    # Strings.

    def _string(self, text: str, pos: int, then: Callable[[str, int], int]) -> int:
        self._after_string = then
        self._state = self._in_string
        self._quote = text[pos]
        return pos + 1 if self._quote == '"' else self._write(text, pos, '"', pos + 1)

    def _in_string(self, text: str, pos: int) -> int:
        pos = _STRINGS[self._quote].match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        char = text[pos]
        if char == self._quote:
            self._state = self._after_string
            if not self._closers:
                self.standing = Standing.WHOLE
            return pos + 1 if char == '"' else self._write(text, pos, '"', pos + 1)
        if char == "\\":
            self._flush(text, pos)
            self._state = self._in_escape
            return pos
        return self._write(text, pos, encode_basestring(char)[1:-1], pos + 1)

    def _in_escape(self, text: str, pos: int) -> int:
        begun = len(self.held)
        escape = self.held + text[pos : pos + 6 - begun]
        if whole := _ESCAPE.match(escape):
            written = whole.group()
            end = pos + whole.end() - begun
        elif _ESCAPE_BEGUN.fullmatch(escape):
            self.held = escape
            self._mark = len(text)
            return self._mark
        elif escape[1] == "'":
            written = "'"
            end = pos + 2 - begun
        else:
            self.flaws += 1
            written = escape[: 2 if escape[1] < " " else max(begun, 1)]
            end = pos + len(written) - begun
        self.held = ""
        self._state = self._in_string
        return self._write(text, pos, written, end)


def _written_scalar(scalar: str) -> str | None:
    """Return a number or a word as JSON writes it, None if it is neither."""
    return scalar if _NUMBER.fullmatch(scalar) else _WORDS.get(scalar)
