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

`JsonCall` is the `StreamingJson` that reads the object. It keeps the text of the current member
only, and differs in how a member's value begins (`_value`) and ends (`_end_value`). It adds a state
and a method that reads an expected token:

    state          reads                                     next state
    in_arguments   an object or a string, with a reader      between_tokens
                     of its own

    expected       token                                     expected next
    empty_list     "]"                                       after_value; broken at an item

Without a name, the object is broken at its closing brace. An object that breaks before the call has
started is not a call.
"""

from __future__ import annotations

import json

from blockops.toolcalls.deltas import CallArguments, CallFinished, CallStarted, Delta
from blockops.toolcalls.grammar.json_in_string import JsonInString
from blockops.toolcalls.grammar.json_stream import MAX_COMMENTS, Comments, StreamingJson
from blockops.toolcalls.reader import OpeningContext

MAX_COMMENTS_BEFORE_CALL = 1_024
"""Characters of comments outside the arguments, and in arguments before the name."""

_ARGUMENTS_KEYS = frozenset({"arguments", "args", "parameters", "input"})
_AROUND_KEY = "{,: \t\r\n"


class JsonCall(StreamingJson):
    """
    Reads one object, from its opening brace to its closing one.

    :param closing_tag: the tag that breaks the object also in a comment, or ""
    :ivar has_all_arguments: the call has started and its arguments are complete
    :ivar last_member_end: the position, in the text read last, after the last complete member; -1
        if none was completed
    """

    def __init__(self, context: OpeningContext, closing_tag: str = "") -> None:
        comments = Comments(MAX_COMMENTS_BEFORE_CALL, closing_tag)
        super().__init__(comments, forbidden_key=context.literal.removesuffix(":"))
        self._context = context
        self.has_started = False
        self.has_all_arguments = False
        self.last_member_end = -1
        self._name = ""
        # What the current member's value must be: "name", "null" or, for other values, "".
        self._value_kind = ""
        # JSON of the object since the last member's end, or of the current member's value.
        self._member_pieces: list[str] = []
        # The reader of the arguments; None while they may be an empty string.
        self._arguments: StreamingJson | JsonInString | None = None
        self._arguments_reader: StreamingJson | JsonInString = StreamingJson()
        # JSON of the arguments that was not appended to `_deltas` yet.
        self._argument_pieces: list[str] = []
        self._deltas: list[Delta] = []

    def read(self, text: str, deltas: list[Delta]) -> int:
        self._deltas = deltas
        self.last_member_end = -1
        pos = self.feed(text, 0, self._member_pieces)
        if self.has_started:
            # All later members are ignored, of whatever length.
            self._member_pieces.clear()
            self._flush_arguments()
        return pos

    @property
    def has_errors(self) -> bool:
        """Return True if anything in the arguments passed although JSON does not allow it."""
        return self._arguments is not None and self._arguments.error_count > 0

    @property
    def partial_closing_tag(self) -> str:
        """The beginning of `closing_tag` with which a comment's text ends."""
        return self._comments.partial_closing_tag

    def pending_text(self) -> str:
        """Return the text of broken arguments that was read and not appended."""
        return self._arguments_reader.pending

    def complete(self, deltas: list[Delta]) -> bool:
        """Finish the call before the object's end; return False if it lacks more than brackets."""
        is_in_arguments = self._state == self._in_arguments
        completion = self._arguments_reader.completion() if is_in_arguments else self.completion()
        if completion is None or not self._name:
            return False
        if self._value_kind == "null" and completion != "null":
            return False
        self._deltas = deltas
        self._start_call()
        if is_in_arguments:
            self._argument_pieces.append(completion)
        self.finish(deltas)
        return True

    def finish(self, deltas: list[Delta]) -> None:
        """Finish a call whose arguments are complete."""
        self._deltas = deltas
        if self._state == self._in_arguments or self._arguments is None:
            self._argument_pieces.append("}")
        else:
            self._argument_pieces.append(self._arguments.closing_bracket)
        self._flush_arguments()
        deltas.append(CallFinished())

    def _start_call(self) -> None:
        if self.has_started:
            return
        self.has_started = True
        self.has_all_arguments = self._state != self._in_arguments
        self._deltas.append(CallStarted(self._name))
        if self._arguments is None:
            self._argument_pieces.append("{")

    def _flush_arguments(self) -> None:
        if text := "".join(self._argument_pieces):
            self._deltas.append(CallArguments(text))
        self._argument_pieces.clear()

    def _reject(self, pos: int) -> int:
        self._name = ""  # `complete` returns False then
        return self._break(pos)

    def _value(self, text: str, pos: int) -> int:
        if len(self._missing_brackets) != 1:
            return super()._value(text, pos)
        self._flush(text, pos)
        key = _decode_string("".join(self._member_pieces).strip(_AROUND_KEY))
        self._member_pieces.clear()
        if key == "name" and not self._name:
            self._value_kind = "name"
            return super()._value(text, pos) if text[pos] in "\"'" else self._reject(pos)
        if key in _ARGUMENTS_KEYS and self._arguments is None:
            return self._start_arguments(text, pos)
        return super()._value(text, pos)

    def _start_arguments(self, text: str, pos: int) -> int:
        if text[pos] == "[":
            self._missing_brackets.append("]")
            self._expected = self._empty_list
            return pos + 1
        if text[pos] not in "{\"'":
            self._value_kind = "null"
            return super()._value(text, pos)
        self._state = self._in_arguments
        if text[pos] != "{":
            self._arguments_reader = JsonInString()
            return pos
        if self._name:
            self._comments.remaining = MAX_COMMENTS
        forbidden_key = "" if self._name else self._forbidden_key
        self._arguments_reader = StreamingJson(self._comments, forbidden_key)
        self._accept_arguments()
        return pos

    def _accept_arguments(self) -> None:
        self._arguments = self._arguments_reader
        if self._name:
            self._start_call()

    def _in_arguments(self, text: str, pos: int) -> int:
        reader = self._arguments_reader
        pos = self._unwritten_from = reader.feed(text, pos, self._argument_pieces)
        if self._arguments is None and isinstance(reader, JsonInString) and reader.has_started:
            self._accept_arguments()
        if reader.status == "open":
            return pos
        if reader.status == "complete":
            self.has_all_arguments = self.has_started
            return self._end_value(text, pos)
        return self._break(pos) if self._arguments else self._reject(pos)

    def _empty_list(self, text: str, pos: int) -> int:
        return self._close_bracket(text, pos) if text[pos] == "]" else self._reject(pos)

    def _end_value(self, text: str, end: int) -> int:
        super()._end_value(text, end)
        depth = len(self._missing_brackets)
        if depth == 1:
            self._end_member(text, end)
        elif depth == 0 and self._name:
            self._start_call()
        elif depth == 0:
            self._reject(end)
        return end

    def _end_member(self, text: str, end: int) -> None:
        self.last_member_end = end
        self._flush(text, end)
        value = "".join(self._member_pieces)
        self._member_pieces.clear()
        kind, self._value_kind = self._value_kind, ""
        if kind == "null" and value != "null":
            self._reject(end)
        elif kind == "name":
            self._name = _decode_string(value)
            if not self._name or not self._context.allows(self._name):
                self._reject(end)
            elif self._arguments is not None:
                self._start_call()


def _decode_string(literal: str) -> str:
    """Return a JSON string's value; "" if it is not valid JSON or cannot be encoded as UTF-8."""
    try:
        value: str = json.loads(literal)
        value.encode()
    except ValueError:
        return ""
    return value
