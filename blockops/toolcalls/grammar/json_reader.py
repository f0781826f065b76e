"""
The base class of the readers of dialects whose calls are JSON objects.

It reads one object with `JsonCall`, and decides about the call if the object breaks.

    state          reads                              next state or result
    before_object  the text before the object         in_object; not a call
    in_object      the object                         after_object; at_error
    after_object   the text after a complete object   the call has ended
    at_error       the text that breaks the object    in_raw; not a call; the call has ended
    in_raw         text up to `raw_terminator`        the call has ended

Subclasses define before_object and after_object. At an error three cases differ. Before the call
has started, the text is not a call. After complete arguments, the call ends there, and what follows
them is ordinary text. Within the arguments, they pass unchanged from there on (in_raw).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from blockops.toolcalls.deltas import CallArguments, CallFinished, Delta
from blockops.toolcalls.grammar.json_call import JsonCall
from blockops.toolcalls.partial_match import partial_suffix_start
from blockops.toolcalls.reader import (
    CallEnded,
    CallReader,
    CallTruncated,
    FeedResult,
    FinishResult,
    NotACall,
    OpeningContext,
)

MAX_TRAILING = 1_024
"""Characters after complete arguments that are buffered, to become text if they are not JSON."""

_MAX_BUFFERED = MAX_TRAILING + 16
"""One character more, to see that there are too many, and the start of `closing_tag`."""


class JsonCallReader(ABC):
    """
    Reads one JSON object and, if its arguments break, raw text up to `raw_terminator`.

    :cvar closing_tag: the tag that ends a call, also in a comment; "" if the dialect has none
    """

    raw_terminator = ""
    closing_tag = ""

    def __init__(self, context: OpeningContext) -> None:
        self._context = context
        self._call = JsonCall(context, self.closing_tag)
        self._state: Callable[[str, list[Delta]], FeedResult] = self._before_object
        # Text that was read but belongs to nothing yet.
        self._pending = ""
        # The text after the last complete member, once the arguments are complete.
        self._trailing = ""

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        return self._state(text, out)

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        if is_complete and self._state == self._in_raw:
            return self._finish_raw(self._pending, "", out)
        if is_complete and self._call.complete(out):
            return self._end_call("")
        if not self._call.has_started:
            return NotACall()
        is_in_object = self._state in {self._in_object, self._at_error}
        is_in_arguments = is_in_object and not self._call.has_all_arguments
        if is_in_arguments and (pending := self._call.pending_text()):
            # The beginning of a word or an escape: the client gets all that the model wrote.
            out.append(CallArguments(pending))
        return CallTruncated()

    @abstractmethod
    def _before_object(self, text: str, out: list[Delta]) -> FeedResult:
        """Read the text before the object, then call `_start_object`."""

    @abstractmethod
    def _after_object(self, text: str, out: list[Delta]) -> FeedResult:
        """Read the text after a complete object, and finish the call."""

    def _at_error(self, text: str, out: list[Delta]) -> FeedResult:
        call = self._call
        if not call.has_started:
            return NotACall()
        self._context.counters["malformed"] += 1
        if call.has_all_arguments:
            call.finish(out)
            trailing = self._trailing if len(self._trailing) <= MAX_TRAILING else ""
            return self._end_at_error(trailing + text)
        self._state = self._in_raw
        self._pending = ""
        return self._in_raw(call.pending_text() + text, out)

    def _end_at_error(self, rest: str) -> CallEnded:
        return CallEnded(rest)

    def _end_call(self, rest: str, next_reader: CallReader | None = None) -> CallEnded:
        if self._call.has_errors:
            self._context.counters["malformed"] += 1
        return CallEnded(rest, next_reader)

    def _start_object(self, text: str, pos: int, out: list[Delta]) -> FeedResult:
        self._state = self._in_object
        return self._in_object(text[pos:], out)

    def _in_object(self, text: str, out: list[Delta]) -> FeedResult:
        call = self._call
        pos = call.read(text, out)
        if call.status == "complete":
            return self._after_object(text[pos:], out)
        if call.has_all_arguments:
            start = call.last_member_end
            if start >= 0:
                self._trailing = text[start:pos][:_MAX_BUFFERED]
            else:
                self._trailing += text[: min(pos, _MAX_BUFFERED - len(self._trailing))]
        if call.status == "open":
            return None
        # The closing tag that broke the object may have begun in a comment, in an earlier piece.
        self._trailing = self._trailing.removesuffix(call.partial_closing_tag)
        return self._at_error(call.partial_closing_tag + text[pos:], out)

    def _in_raw(self, text: str, out: list[Delta]) -> FeedResult:
        text = self._pending + text
        end = text.find(self.raw_terminator)
        if end >= 0:
            return self._finish_raw(text[:end], text[end:], out)
        end = partial_suffix_start(text, self.raw_terminator)
        self._pending = text[end:]
        if end:
            out.append(CallArguments(text[:end]))
        return None

    def _finish_raw(self, raw: str, rest: str, out: list[Delta]) -> CallEnded:
        if raw:
            out.append(CallArguments(raw))
        out.append(CallFinished())
        return CallEnded(rest)
