"""
Reads a JSON object that may be a call, `{"name": ..., "arguments": {...}}`, as it streams.

The members of the object, in any order:

- `name`, a non-empty string: the function. The first one counts.
- `arguments`, `args`, `parameters` or `input`: an object, or a string that contains one. The first
  object counts. Null, `[]` and an empty string are no arguments: a later one of these keys may
  contain them. With any other value the object is not a call.
- Any other key is ignored, with its value.

The call starts when the name is known and the object of the arguments has begun; without arguments,
at the closing brace. Arguments before the name are held until it is known.

Until the call starts, the parser may reject it and read its text again after every opener in it.
That stays linear because openers stand in strings, which end at the next quote, or in comments,
which have a small budget. The one opener that has the form of a key without quotes (`TOOL_CALL:`)
is not accepted as one.

The states of `JsonCall`, besides those of a comment (see `json_states`):

    state          reads                        next state
    opening_brace  the brace                    key_or_brace
    key_or_brace   "}" or a key                 complete; in_key or bare_key
    in_key         a key in quotes              colon
    bare_key       a key without quotes         colon
    colon          ":"                          member_value
    member_value   white space                  by the key, and by the value's first character:
                                                  in_name; in_arguments, in_empty_list or in_null;
                                                  in_ignored
    in_name        the name                     after_member; broken if it is empty or not allowed
    in_arguments   an object, a string          after_member
    in_empty_list  "]"                          after_member; broken at an item
    in_null        a word or a number           after_member; broken unless it is null
    in_ignored     any value                    after_member
    after_member   "," or "}"                   key_or_brace; complete

Without a name, the object is broken at its closing brace. An object that breaks before the call has
started is not a call.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from blockops.toolcalls.deltas import CallArguments, CallFinished, CallStarted, Delta
from blockops.toolcalls.grammar.json_in_string import JsonInString
from blockops.toolcalls.grammar.json_states import (
    MAX_COMMENTS,
    MAX_WORD,
    SPACE,
    CommentBudget,
    JsonStateMachine,
    Status,
    ValueReader,
)
from blockops.toolcalls.grammar.json_stream import BARE_KEY, StreamingJson
from blockops.toolcalls.reader import OpeningContext
from blockops.toolcalls.verbatim import Verbatim

MAX_COMMENTS_BEFORE_CALL = 1_024
"""Characters of comments outside the arguments, and in arguments before the name."""

_ARGUMENTS_KEYS = frozenset({"arguments", "args", "parameters", "input"})


class JsonCall(JsonStateMachine):
    """
    Reads one object, from its opening brace to its closing one.

    :param context: the opener that was found, and the tools that are offered
    :param closing_tag: the tag that breaks the object also in a comment, or ""
    :ivar has_started: `CallStarted` was appended
    :ivar last_member_end: the position, in the text fed last, after the last complete member; -1 if
        none was completed
    """

    __slots__ = (
        "_argument_pieces",
        "_arguments",
        "_context",
        "_deltas",
        "_forbidden_key",
        "_key",
        "_name",
        "_value",
        "_value_pieces",
        "has_started",
        "last_member_end",
    )

    def __init__(self, context: OpeningContext, closing_tag: str = "") -> None:
        super().__init__(self._opening_brace, CommentBudget(MAX_COMMENTS_BEFORE_CALL, closing_tag))
        self._context = context
        self._forbidden_key = context.literal.removesuffix(":")
        self.has_started = False
        self.last_member_end = -1
        self._name = ""
        self._key = ""
        self._value: ValueReader = StreamingJson()
        self._arguments: ValueReader | None = None
        # JSON of the arguments that was not appended to `_deltas` yet.
        self._argument_pieces: list[str] = []
        # JSON of the current key, name or ignored value.
        self._value_pieces: list[str] = []
        self._deltas: list[Delta] = []

    def feed(self, text: str, start: int, out: list[Delta]) -> int:
        """Read `text` from `start`, append deltas to `out`, return the position reached."""
        self._deltas = out
        self._unwritten_from = pos = start
        self.last_member_end = -1
        size = len(text)
        while pos < size and self.status is Status.OPEN:
            pos = self._state(text, pos)
        self._flush_arguments()
        # The text outside the values is written there by the base class, and not needed.
        self._out.clear()
        return pos

    @property
    def has_all_arguments(self) -> bool:
        """Return True if the call has started and its arguments are complete."""
        return self.has_started and self._state != self._in_arguments

    @property
    def verbatim(self) -> Verbatim | None:
        """
        The pattern of text that would be appended to the arguments unchanged.

        None outside of the arguments.
        """
        is_in_arguments = self.has_started and self._state == self._in_arguments
        return self._value.verbatim if is_in_arguments else None

    @property
    def error_count(self) -> int:
        """The `error_count` of the arguments; see `ValueReader`."""
        return self._arguments.error_count if self._arguments else 0

    @property
    def partial_closing_tag(self) -> str:
        """The beginning of `closing_tag` with which a comment's text ends."""
        return self._comments.partial_closing_tag

    def pending_text(self) -> str:
        """Return the text of broken arguments that was read and not appended."""
        return self._value.pending

    def complete(self, out: list[Delta]) -> bool:
        """
        Append the missing brackets and finish the call, before the object's own end.

        Return False, and append nothing, if more than brackets is missing.
        """
        completion = self._completion()
        if completion is None or not self._name:
            return False
        self._deltas = out
        self._start_call()
        self._argument_pieces.append(completion)
        self.finish(out)
        return True

    def finish(self, out: list[Delta]) -> None:
        """Finish a call whose arguments are complete."""
        self._deltas = out
        if self._state == self._in_arguments or self._arguments is None:
            self._argument_pieces.append("}")
        else:
            self._argument_pieces.append(self._arguments.closing_bracket)
        self._flush_arguments()
        out.append(CallFinished())

    def _completion(self) -> str | None:
        """
        Return the text missing before the arguments' last brace.

        Returns None if more than brackets is missing.
        """
        state = self._interrupted_state if self._state == self._in_line_comment else self._state
        if state in (self._key_or_brace, self._after_member, self._in_empty_list):
            return ""
        if state not in (self._in_arguments, self._in_null, self._in_ignored):
            return None
        completion = self._value.completion()
        if completion is None or state == self._in_arguments:
            return completion
        if state == self._in_null and completion != "null":
            return None
        return ""

    def _start_call(self) -> None:
        if self.has_started:
            return
        self.has_started = True
        self._deltas.append(CallStarted(self._name))
        if self._arguments is None:
            self._argument_pieces.append("{")

    def _flush_arguments(self) -> None:
        if self.has_started and self._argument_pieces:
            pieces = self._argument_pieces
            if text := pieces[0] if len(pieces) == 1 else "".join(pieces):
                self._deltas.append(CallArguments(text))
            pieces.clear()

    def _reject(self, pos: int) -> int:
        """Break for good: without a name, `complete` returns False."""
        self._name = ""
        return self._break(pos)

    # The object.

    def _opening_brace(self, text: str, pos: int) -> int:
        self._state = self._key_or_brace
        return pos + 1

    def _key_or_brace(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "}":
            return self._close(pos)
        if text[pos] in "\"'":
            self._start_value(self._in_key)
            return pos
        if BARE_KEY.match(text, pos):
            self._state = self._bare_key
            return pos
        return self._start_comment_or_break(text, pos)

    def _in_key(self, text: str, pos: int) -> int:
        pos = self._value.feed(text, pos, self._value_pieces)
        # A longer key is ignored: its truncated text does not decode as a JSON string.
        self._value_pieces[:] = ["".join(self._value_pieces)[: MAX_WORD + 1]]
        if self._value.status is not Status.COMPLETE:
            return self._wait_or_break(pos)
        self._key = _decode_string("".join(self._value_pieces))
        self._state = self._colon
        return pos

    def _bare_key(self, text: str, pos: int) -> int:
        pos = self._read_word(text, pos)
        if pos == len(text):
            return pos
        if self.pending == self._forbidden_key:
            return self._break(pos)
        self._key, self.pending = self.pending, ""
        self._state = self._colon
        return pos

    def _colon(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] != ":":
            return self._start_comment_or_break(text, pos)
        self._state = self._member_value
        return pos + 1

    def _after_member(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "}":
            return self._close(pos)
        if text[pos] != ",":
            return self._start_comment_or_break(text, pos)
        self._state = self._key_or_brace
        return pos + 1

    def _close(self, pos: int) -> int:
        if not self._name:
            return self._reject(pos)
        self._state = self._after_member
        self._start_call()
        self.status = Status.COMPLETE
        return pos + 1

    # Its members.

    def _member_value(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] == "/":
            return self._start_comment_or_break(text, pos)
        if self._key == "name" and not self._name:
            self._start_value(self._in_name)
            return pos if text[pos] in "\"'" else self._reject(pos)
        if self._key in _ARGUMENTS_KEYS and self._arguments is None:
            return self._start_arguments(text, pos)
        self._start_value(self._in_ignored)
        return pos

    def _start_arguments(self, text: str, pos: int) -> int:
        if text[pos] in "{\"'":
            self._start_value(self._in_arguments)
            if text[pos] != "{":
                self._value = JsonInString()
                return pos
            if self._name:
                self._comments.remaining = MAX_COMMENTS
                self._value = StreamingJson(self._comments)
            self._arguments = self._value
            if self._name:
                self._start_call()
        elif text[pos] == "[":
            self._state = self._in_empty_list
            return pos + 1
        else:
            self._start_value(self._in_null)
        return pos

    def _start_value(self, state: Callable[[str, int], int]) -> None:
        self._state = state
        self._value = StreamingJson(self._comments, self._forbidden_key)
        self._value_pieces.clear()

    def _wait_or_break(self, pos: int) -> int:
        return pos if self._value.status is Status.OPEN else self._break(pos)

    def _in_name(self, text: str, pos: int) -> int:
        pos = self._value.feed(text, pos, self._value_pieces)
        if self._value.status is not Status.COMPLETE:
            return self._wait_or_break(pos)
        self._name = _decode_string("".join(self._value_pieces))
        if not self._name or not self._context.allows(self._name):
            return self._reject(pos)
        self._state = self._after_member
        self.last_member_end = pos
        if self._arguments is not None:
            self._start_call()
        return pos

    def _in_arguments(self, text: str, pos: int) -> int:
        value = self._value
        pos = value.feed(text, pos, self._argument_pieces)
        if self._arguments is None and isinstance(value, JsonInString) and value.has_started:
            self._arguments = value
            if self._name:
                self._start_call()
        if value.status is Status.OPEN:
            return pos
        if value.status is Status.BROKEN:
            return self._break(pos) if self._arguments else self._reject(pos)
        self._state = self._after_member
        self.last_member_end = pos
        return pos

    def _in_empty_list(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] != "]":
            return self._reject(pos)
        self._state = self._after_member
        return pos + 1

    def _in_null(self, text: str, pos: int) -> int:
        pos = self._value.feed(text, pos, self._value_pieces)
        if self._value.status is not Status.COMPLETE:
            return self._wait_or_break(pos)
        if "".join(self._value_pieces) != "null":
            return self._reject(pos)
        self._state = self._after_member
        return pos

    def _in_ignored(self, text: str, pos: int) -> int:
        pos = self._value.feed(text, pos, self._value_pieces)
        self._value_pieces.clear()
        if self._value.status is not Status.COMPLETE:
            return self._wait_or_break(pos)
        self._state = self._after_member
        self.last_member_end = pos
        return pos


def _decode_string(literal: str) -> str:
    """
    Return the value of a JSON string.

    :returns: "" if it is not valid JSON or cannot be encoded as UTF-8
    """
    try:
        value: str = json.loads(literal)
        value.encode()
    except ValueError:
        return ""
    return value
