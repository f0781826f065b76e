"""
JSON objects in `<tool_call>` tags, as Hermes, Qwen-Agent, Qwen 2.5 and Qwen 3 write them.

    call    = "<tool_call>" space ( objects | "[" objects "]" ) space "</tool_call>"
    objects = object { space [","] space object }

`JsonCall` reads an object. Each object is a call; all of them share the tag.

- An object's last brace is sent when the text after it shows that the model continued, or when the
  model has stopped by itself: a call that was cut off never looks complete.
- `</tool_call>` completes a call that lacks only its last brackets, also in a comment.
- At any other error in the arguments, they pass unchanged up to `</tool_call>`. At an error after
  complete arguments the call ends, and what follows up to `</tool_call>` is ordinary text. Extra
  brackets and other marks between an object and `</tool_call>` are ordinary text, too. The tag
  itself is dropped.
- Without `</tool_call>`, everything after the object is ordinary text.

The states of `HermesCallReader` that differ from those of `JsonCallReader`:

    state               reads                           next state or result
    before_object       white space, one "["            in_object; not a call; the call has ended
                                                          at the "]" of a list
    after_object        white space                     the call has ended
    at_error            what may be `</tool_call>`      the call has ended; as in `JsonCallReader`
"""

from __future__ import annotations

import re

from blockops.toolcalls.deltas import Delta
from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.dialects.prompts import HermesPrompt
from blockops.toolcalls.grammar.json_reader import JsonCallReader
from blockops.toolcalls.grammar.json_stream import MAX_HELD_SPACE, SPACE
from blockops.toolcalls.grammar.tool_call_tag import CLOSING_TAG, OPENING_TAG, AfterCall
from blockops.toolcalls.reader import CallEnded, CallReader, FeedResult, NotACall, OpeningContext

_NOTHING = re.compile("")
_SPACE_AND_COMMAS = re.compile(r"[ \t\r\n,]*")
_EXTRA_MARKS = re.compile(r"[\]})>,;.\"'` \t\r\n]{1,64}")
"""Marks that models add after an object: a bracket, quote or backtick too many, a full stop."""

_EXTRA_TEXT = re.compile(r"[^<]{1,1024}")
"""The rest of an object that is broken after its arguments."""


class HermesDialect:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

    name = "json"
    openers = (Opener(OPENING_TAG),)
    tool_prompt = HermesPrompt()

    def reader(self, context: OpeningContext) -> CallReader:
        return HermesCallReader(context)


class HermesCallReader(JsonCallReader):
    """Reads one call in a tag; commas may stand before it if it is not the first."""

    raw_terminator = CLOSING_TAG
    closing_tag = CLOSING_TAG

    def __init__(
        self, context: OpeningContext, *, is_in_list: bool = False, is_first: bool = True
    ) -> None:
        super().__init__(context)
        self._is_in_list = is_in_list
        self._is_first = is_first

    def _before_object(self, text: str, out: list[Delta]) -> FeedResult:
        space = SPACE if self._is_first else _SPACE_AND_COMMAS
        pos = space.match(text).end()  # type: ignore[union-attr]
        if pos == len(text):
            return None
        if text[pos] == "{":
            return self._start_object(text, pos, out)
        if text[pos] == "]" and self._is_in_list and not self._is_first:
            return CallEnded(text[pos + 1 :], self._reader_after(is_in_list=False))
        if text[pos] != "[" or self._is_in_list:
            return NotACall()
        self._is_in_list = True
        return self._before_object(text[pos + 1 :], out)

    def _after_object(self, text: str, out: list[Delta]) -> FeedResult:
        """End the call at the first character that is not white space: the model continued."""
        self._state = self._after_object
        pos = SPACE.match(text).end()  # type: ignore[union-attr]
        self._pending += text[:pos]
        if pos == len(text) and len(self._pending) <= MAX_HELD_SPACE:
            return None
        self._call.finish(out)
        next_reader = self._reader_after(is_in_list=self._is_in_list)
        return self._end_call(self._pending + text[pos:], next_reader)

    def _reader_after(self, *, is_in_list: bool) -> AfterCall:
        next_reader = HermesCallReader(self._context, is_in_list=is_in_list, is_first=False)
        starts = ("{", "]") if is_in_list else ("{",)
        return AfterCall(next_reader, starts, gap=_SPACE_AND_COMMAS, extra=_EXTRA_MARKS)

    def _at_error(self, text: str, out: list[Delta]) -> FeedResult:
        self._pending += text
        if 0 < len(self._pending) < len(CLOSING_TAG) and CLOSING_TAG.startswith(self._pending):
            self._state = self._at_error
            return None
        if self._pending.startswith(CLOSING_TAG) and self._call.complete(out):
            return self._end_call(self._pending[len(CLOSING_TAG) :])
        return super()._at_error(self._pending, out)

    def _end_at_error(self, rest: str) -> CallEnded:
        return CallEnded(rest, AfterCall(gap=_NOTHING, extra=_EXTRA_TEXT))

    def _finish_raw(self, raw: str, rest: str, out: list[Delta]) -> CallEnded:
        return super()._finish_raw(raw, rest[len(CLOSING_TAG) :], out)
