"""
JSON objects in `<tool_call>` tags, as Hermes, Qwen-Agent, Qwen 2.5 and Qwen 3 write them.

    call    = "<tool_call>" space ( objects | "[" objects "]" ) space "</tool_call>"
    objects = object { space [","] space object }

`JsonCall` reads an object. Each object is a call; all of them share the tag.

- After the tag and white space, the text must continue with a brace or a bracket: anything else is
  not a call.
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
    before_object       white space, one "["            in_object; not a call
    after_object        white space                     the call has ended; `AfterJsonCall` is next
    at_error            what may be `</tool_call>`      the call has ended; as in `JsonCallReader`

The states of `AfterJsonCall`; after an error it begins with before_closing_tag:

    between_objects     white space and commas          ended at "{", where the next object starts,
                                                          and at the list's "]";
                                                          before_closing_tag
    before_closing_tag  extra text, `</tool_call>`      ended; not a call if the text differs
"""

from __future__ import annotations

import re
from collections.abc import Callable

from blockops.toolcalls.deltas import Delta
from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.dialects.prompts import HermesPrompt
from blockops.toolcalls.grammar.json_reader import JsonCallReader
from blockops.toolcalls.grammar.json_stream import MAX_HELD_SPACE, SPACE
from blockops.toolcalls.grammar.tool_call_tag import (
    CLOSING_TAG,
    OPENING_TAG,
    is_partial_closing_tag,
)
from blockops.toolcalls.reader import (
    CallEnded,
    CallReader,
    FeedResult,
    FinishResult,
    NotACall,
    OpeningContext,
)

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
        """Return a reader for the text after the tag."""
        return HermesCallReader(context)


class HermesCallReader(JsonCallReader):
    """
    Reads one call in a tag.

    :param is_in_list: True if the opening bracket of a list was read before
    :param is_first: False if another object precedes it: commas may then stand before it
    """

    raw_terminator = CLOSING_TAG
    closing_tag = CLOSING_TAG

    def __init__(
        self, context: OpeningContext, *, is_in_list: bool = False, is_first: bool = True
    ) -> None:
        super().__init__(context)
        self._is_in_list = is_in_list
        self._space = SPACE if is_first else _SPACE_AND_COMMAS

    def _before_object(self, text: str, out: list[Delta]) -> FeedResult:
        pos = self._space.match(text).end()  # type: ignore[union-attr]
        if pos == len(text):
            return None
        if text[pos] == "{":
            return self._start_object(text, pos, out)
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
        next_reader = AfterJsonCall(self._context, is_in_list=self._is_in_list)
        return self._end_call(self._pending + text[pos:], next_reader)

    def _at_error(self, text: str, out: list[Delta]) -> FeedResult:
        """Return the result for a broken object; complete it if only brackets are missing."""
        self._pending += text
        if 0 < len(self._pending) < len(CLOSING_TAG) and CLOSING_TAG.startswith(self._pending):
            self._state = self._at_error
            return None
        if self._pending.startswith(CLOSING_TAG) and self._call.complete(out):
            return self._end_call(self._pending[len(CLOSING_TAG) :])
        return super()._at_error(self._pending, out)

    def _end_at_error(self, rest: str) -> CallEnded:
        return CallEnded(rest, AfterJsonCall(self._context, is_after_error=True))

    def _finish_raw(self, raw: str, rest: str, out: list[Delta]) -> CallEnded:
        return super()._finish_raw(raw, rest[len(CLOSING_TAG) :], out)


class AfterJsonCall:
    """
    Reads the text after an object in its tag: another one, the end of the list, the closing tag.

    :param is_in_list: True if the object is in a list
    :param is_after_error: True if the object broke after its arguments: no other object may follow
    """

    def __init__(
        self,
        context: OpeningContext,
        *,
        is_in_list: bool = False,
        is_after_error: bool = False,
    ) -> None:
        self._context = context
        self._is_in_list = is_in_list
        self._extra = _EXTRA_TEXT if is_after_error else _EXTRA_MARKS
        self._state: Callable[[str, list[Delta]], FeedResult] = (
            self._before_closing_tag if is_after_error else self._between_objects
        )
        # White space and commas after the object, and the text from there on.
        self._gap = ""
        self._pending = ""

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        """Read the next piece of the text; see `CallReader.feed`."""
        return self._state(text, out)

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        """Return the result at the end of the text; see `CallReader.finish`."""
        return CallEnded("") if is_partial_closing_tag(self._pending) else NotACall()

    def _between_objects(self, text: str, out: list[Delta]) -> FeedResult:
        pos = _SPACE_AND_COMMAS.match(text).end()  # type: ignore[union-attr]
        self._gap += text[:pos]
        if pos == len(text):
            return None
        if text[pos] == "{":
            reader = HermesCallReader(self._context, is_in_list=self._is_in_list, is_first=False)
            return CallEnded(self._gap + text[pos:], reader)
        if text[pos] == "]" and self._is_in_list:
            return CallEnded(text[pos + 1 :], AfterJsonCall(self._context))
        self._state = self._before_closing_tag
        return self._before_closing_tag(text[pos:], out)

    def _before_closing_tag(self, text: str, out: list[Delta]) -> FeedResult:
        self._pending += text
        match = self._extra.match(self._pending)
        end = match.end() if match else 0
        if self._pending.startswith(CLOSING_TAG, end):
            extra = self._pending[:end].rstrip()
            rest = self._pending[end + len(CLOSING_TAG) :]
            return CallEnded(rest, text=self._gap + extra if extra else "")
        return None if CLOSING_TAG.startswith(self._pending[end:]) else NotACall()
