"""
Follows a JSON object that may be a call: `{"name": ..., "arguments": {...}}`.

At the top level of the object, in any order:

- `name`, a string that is not empty, names the function; the first one counts;
- `arguments`, `args`, `parameters` or `input` holds an object, or a string that holds one; null,
  `[]` and an empty string hold no arguments, and a later one of these keys may still bring some;
  anything else is not a call; the first object counts;
- every other key means nothing, and its value is skipped.

The call begins once the name is known and the object of the arguments has begun; where there are no
arguments, at the closing brace. Arguments that come before the name wait for it.

Until it begins, all of it may have to be read again behind every opener in it. Openers stand in
strings, which end at the next quote, and in comments, for which there is little room; and the
opener that could be a key without quotes (`TOOL_CALL:`) is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from blockops.toolcalls.events import CallArguments, CallBegan, CallEnded, Delta
from blockops.toolcalls.grammar.json_in_string import WrappedObject
from blockops.toolcalls.grammar.json_stream import (
    KEY,
    MAX_COMMENTS,
    MAX_WORD,
    SPACE,
    Follower,
    JsonStates,
    JsonValue,
    Room,
    Standing,
)
from blockops.toolcalls.reader import Opening
from blockops.toolcalls.verbatim import Verbatim

MAX_LOOSE_COMMENTS = 1_024
"""Characters of comments outside the arguments, and in arguments in front of the name."""

_ARGUMENTS = frozenset({"arguments", "args", "parameters", "input"})


class CallObject(JsonStates):
    """
    One object, from its opening brace to its closing one.

    Broken before the call began means that it is no call.

    :param opening: where it stands
    :param stop: text that ends comments and breaks the object: the closing tag
    :ivar began: whether `CallBegan` was given
    :ivar settled: where in the text fed last the last member ended that is whole; -1 if none did
    """

    __slots__ = (
        "_arguments",
        "_deltas",
        "_key_is",
        "_name",
        "_not_a_key",
        "_opening",
        "_pieces",
        "_skipped",
        "_value",
        "began",
        "settled",
    )

    def __init__(self, opening: Opening, stop: str = "") -> None:
        super().__init__(self._before, Room(MAX_LOOSE_COMMENTS, stop))
        self._opening = opening
        self._not_a_key = opening.literal.removesuffix(":")
        self.began = False
        self.settled = -1
        self._name = ""
        self._key_is = ""
        self._value: Follower = JsonValue()
        self._arguments: Follower | None = None
        # The arguments' text that is not given out yet.
        self._pieces: list[str] = []
        # What the follower of a key, a name or a value that is skipped has written.
        self._skipped: list[str] = []
        self._deltas: list[Delta] = []

    def feed(self, text: str, start: int, out: list[Delta]) -> int:
        """Read `text` from `start`, append deltas to `out`, return the position reached."""
        self._deltas = out
        self._mark = pos = start
        self.settled = -1
        size = len(text)
        while pos < size and self.standing is Standing.OPEN:
            pos = self._state(text, pos)
        self._give_out()
        return pos

    @property
    def has_arguments(self) -> bool:
        """Whether the call began and its arguments are complete, whatever else may follow."""
        return self.began and self._state != self._in_arguments

    @property
    def verbatim(self) -> Verbatim | None:
        """See `Fluent`."""
        in_arguments = self.began and self._state == self._in_arguments
        return self._value.verbatim if in_arguments else None

    @property
    def flaws(self) -> int:
        """How many things passed in the arguments that JSON does not allow."""
        return self._arguments.flaws if self._arguments else 0

    def complete(self, out: list[Delta]) -> bool:
        """
        Let the call end in front of the object's end, if only brackets are missing.

        Returns False, and gives out nothing, where more is missing.
        """
        missing = self._missing()
        if missing is None or not self._name:
            return False
        self._deltas = out
        self._begin_call()
        self._pieces.append(missing)
        self.end(out)
        return True

    def end(self, out: list[Delta]) -> None:
        """Give out the end of a call whose arguments are complete."""
        self._deltas = out
        if self._state == self._in_arguments or self._arguments is None:
            self._pieces.append("}")
        else:
            self._pieces.append(self._arguments.closing)
        self._give_out()
        out.append(CallEnded())

    @property
    def stopped(self) -> str:
        """What a comment has swallowed of the text that breaks it."""
        return self._room.begun

    def raw(self) -> str:
        """Return what was read of arguments that broke, and not given out."""
        return self._value.held

    def _missing(self) -> str | None:
        """Return what the arguments lack in front of their last brace; None: more than brackets."""
        state = self._back if self._state == self._line_comment else self._state
        if state in (self._first_key, self._next_key, self._after, self._in_list):
            return ""
        if state not in (self._in_arguments, self._in_nothing, self._in_extra):
            return None
        missing = self._value.missing()
        if missing is None or state == self._in_arguments:
            return missing
        if state == self._in_nothing and missing != "null":
            return None
        return ""

    def _begin_call(self) -> None:
        if self.began:
            return
        self.began = True
        self._deltas.append(CallBegan(self._name))
        if self._arguments is None:
            self._pieces.append("{")

    def _give_out(self) -> None:
        if self.began and self._pieces:
            pieces = self._pieces
            if text := pieces[0] if len(pieces) == 1 else "".join(pieces):
                self._deltas.append(CallArguments(text))
            pieces.clear()

    def _refuse(self, pos: int) -> int:
        """Break for good: without a name nothing can be completed."""
        self._name = ""
        return self._break(pos)

    # The object.

    def _before(self, text: str, pos: int) -> int:
        self._state = self._first_key
        return pos + 1

    def _first_key(self, text: str, pos: int) -> int:
        """Read a key or the closing brace, behind the opening brace or a comma."""
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "}":
            return self._close(pos)
        if text[pos] in "\"'":
            self._follow(self._in_key)
            return pos
        if KEY.match(text, pos):
            self._state = self._bare_key
            return pos
        return self._unexpected(text, pos)

    _next_key = _first_key

    def _in_key(self, text: str, pos: int) -> int:
        pos = self._value.feed(text, pos, self._skipped)
        # A key that is too long means nothing, and cut short it is no string.
        self._skipped[:] = ["".join(self._skipped)[: MAX_WORD + 1]]
        if self._value.standing is not Standing.WHOLE:
            return self._still(pos)
        return self._colon_behind(_string("".join(self._skipped)), pos)

    def _bare_key(self, text: str, pos: int) -> int:
        pos = self._word(text, pos)
        if pos == len(text):
            return pos
        if self.held == self._not_a_key:
            return self._break(pos)
        key, self.held = self.held, ""
        return self._colon_behind(key, pos)

    def _colon_behind(self, key: str, pos: int) -> int:
        self._key_is = key
        self._state = self._colon
        return pos

    def _colon(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] != ":":
            return self._unexpected(text, pos)
        self._state = self._member
        return pos + 1

    def _after(self, text: str, pos: int) -> int:
        """Behind a member: a comma or the closing brace."""
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "}":
            return self._close(pos)
        if text[pos] != ",":
            return self._unexpected(text, pos)
        self._state = self._next_key
        return pos + 1

    def _close(self, pos: int) -> int:
        if not self._name:
            return self._refuse(pos)
        self._state = self._after
        self._begin_call()
        self.standing = Standing.WHOLE
        return pos + 1

    # Its members.

    def _member(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "/":
            return self._unexpected(text, pos)
        if self._key_is == "name" and not self._name:
            self._follow(self._in_name)
            return pos if text[pos] in "\"'" else self._refuse(pos)
        if self._key_is in _ARGUMENTS and self._arguments is None:
            return self._begin_arguments(text, pos)
        self._follow(self._in_extra)
        return pos

    def _begin_arguments(self, text: str, pos: int) -> int:
        if text[pos] in "{\"'":
            self._follow(self._in_arguments)
            if text[pos] != "{":
                self._value = WrappedObject()
                return pos
            if self._name:
                self._room.left = MAX_COMMENTS
                self._value = JsonValue(self._room)
            self._arguments = self._value
            if self._name:
                self._begin_call()
        elif text[pos] == "[":
            self._state = self._in_list
            return pos + 1
        else:
            self._follow(self._in_nothing)
        return pos

    def _follow(self, state: Callable[[str, int], int]) -> None:
        self._state = state
        self._value = JsonValue(self._room, self._not_a_key)
        self._skipped.clear()

    def _still(self, pos: int) -> int:
        """Stay in a value that is open, break with one that is broken."""
        return pos if self._value.standing is Standing.OPEN else self._break(pos)

    def _in_name(self, text: str, pos: int) -> int:
        pos = self._value.feed(text, pos, self._skipped)
        if self._value.standing is not Standing.WHOLE:
            return self._still(pos)
        self._name = _string("".join(self._skipped))
        if not self._name or not self._opening.admits(self._name):
            return self._refuse(pos)
        self._state = self._after
        self.settled = pos
        if self._arguments is not None:
            self._begin_call()
        return pos

    def _in_arguments(self, text: str, pos: int) -> int:
        value = self._value
        pos = value.feed(text, pos, self._pieces)
        if self._arguments is None and isinstance(value, WrappedObject) and value.began:
            self._arguments = value
            if self._name:
                self._begin_call()
        if value.standing is Standing.OPEN:
            return pos
        if value.standing is Standing.BROKEN:
            return self._break(pos) if self._arguments else self._refuse(pos)
        self._state = self._after
        self.settled = pos
        return pos

    def _in_list(self, text: str, pos: int) -> int:
        """In arguments that are a list: an empty one holds no arguments."""
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] != "]":
            return self._refuse(pos)
        self._state = self._after
        return pos + 1

    def _in_nothing(self, text: str, pos: int) -> int:
        """In arguments that are a word or a number: null says that there are none."""
        pos = self._value.feed(text, pos, self._skipped)
        if self._value.standing is not Standing.WHOLE:
            return self._still(pos)
        if "".join(self._skipped) != "null":
            return self._refuse(pos)
        self._state = self._after
        return pos

    def _in_extra(self, text: str, pos: int) -> int:
        pos = self._value.feed(text, pos, self._skipped)
        self._skipped.clear()
        if self._value.standing is not Standing.WHOLE:
            return self._still(pos)
        self._state = self._after
        self.settled = pos
        return pos


def _string(written: str) -> str:
    """Return what a JSON string says; an empty string where it says nothing that can be sent."""
    try:
        meant: str = json.loads(written)
        meant.encode()
    except ValueError:
        return ""
    return meant
