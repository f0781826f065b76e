"""
Reads one function whose name and parameters stand in tags, as it streams.

    function  = "<function=" NAME ">" space { parameter space } "</function>"
    parameter = "<parameter=" KEY ">" VALUE "</parameter>"

`<function name="NAME">` and `<parameter name="KEY">` mean the same, and white space may stand
around `=`. White space between tags is at most `MAX_SPACE` characters.

The states of `XmlCallReader`:

    state           reads                            next state or result
    before_head     white space after <tool_call>    function_head
    function_head   <function=NAME>                  first_element; not a call if the text differs
                                                       or a call of NAME is not allowed
    first_element   <parameter=KEY> or the end       the call starts: value_start; after_empty at
                                                       </function> in a <tool_call>; finished at
                                                       other ends. Not a call if the text differs
    after_empty     white space after </function>    finished: the next character, or `MAX_SPACE`,
                                                       shows that the call was not cut off
    value_start     the framing line end             value
    value           up to an end of the value        value_start at the next parameter; finished

The ends of a VALUE:

- `</parameter>`, if a parameter's head or `</function>` follows. In a `<tool_call>`, `</tool_call>`
  or `<function` must follow that `</function>` (or `<tool_call>` and `<function`, where the model
  forgot `</tool_call>`), or the end of the text. So these tags may stand in a value, as long as the
  text there does not look like its end.
- If the model forgot `</parameter>`: a parameter's head at the start of a line, if its name is
  declared and did not occur yet; or `</function>` with `</tool_call>` after it.
- The end of the text, if the model stopped by itself, in a value or after it: the call is then
  complete. A closing tag that has begun there does not belong to the value: that is `</p` or `</f`
  and any continuation of it, and after the framing line end a `<` is enough.

A VALUE is taken verbatim. If it starts with a line end, LF or CRLF, that one is framing, and so is
another of its kind before the closing tag.

A value that can only be a string is sent as it arrives. Any other is held until it is complete, or
certain to be a string. If it grows beyond `max_hold`, it becomes a string. If it is cut off, the
held text is sent as a string without an end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json.encoder import encode_basestring

from blockops.toolcalls.deltas import CallArguments, CallFinished, CallStarted, Delta
from blockops.toolcalls.grammar import xml_patterns
from blockops.toolcalls.grammar.json_stream import SPACE
from blockops.toolcalls.grammar.parameter_types import Parameters, StreamingValue
from blockops.toolcalls.grammar.tool_call_tag import MIN_PARTIAL_TAG, AfterCall
from blockops.toolcalls.reader import (
    CallEnded,
    CallReader,
    CallTruncated,
    FeedResult,
    FinishResult,
    NotACall,
    OpeningContext,
)

_FRAMING = re.compile(r"(?:\r?\n)?")


class XmlCallReader:
    """Reads one function, in a `<tool_call>` or with a name that is offered."""

    def __init__(self, context: OpeningContext, *, is_in_tag: bool) -> None:
        self._context = context
        self._is_in_tag = is_in_tag
        self._value_end = xml_patterns.VALUE_END_IN_TAG if is_in_tag else xml_patterns.VALUE_END
        self._partial_value_end = (
            xml_patterns.PARTIAL_VALUE_END_IN_TAG if is_in_tag else xml_patterns.PARTIAL_VALUE_END
        )
        state = self._before_head if is_in_tag else self._function_head
        self._state: Callable[[str, int], int] = state
        # Text that was read and has to be read again when more arrives.
        self._pending = "" if is_in_tag else xml_patterns.FUNCTION
        self._result: FeedResult = None
        self._out: list[Delta] = []
        self._name = ""
        self._parameters = Parameters(None)
        self._keys: set[str] = set()
        # The line end that frames the value, or "".
        self._framing = ""
        self._is_at_line_start = False
        # The value, while it is not certain to be a string.
        self._held_value: StreamingValue | None = None

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        text = self._pending + text
        self._pending = ""
        self._out = out
        pos = 0
        size = len(text)
        while pos < size:
            pos = self._state(text, pos)
        return self._result

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        self._out = out
        if is_complete and self._state == self._first_element:
            return self._finish_before_parameters()
        if is_complete and self._state == self._after_empty:
            return self._end_call("")
        if is_complete and self._state in (self._value_start, self._value):
            return self._finish_in_value()
        return self._truncate()

    def _truncate(self) -> NotACall | CallTruncated:
        if self._held_value is not None and self._held_value.length:
            self._send_held_value(self._held_value, "")
        has_started = self._keys or self._state == self._after_empty
        return CallTruncated() if has_started else NotACall()

    def _send(self, json: str) -> None:
        self._out.append(CallArguments(json))

    def _wait_for_more(self, text: str, pos: int) -> int:
        self._pending = text[pos:]
        return len(text)

    def _reject(self, text: str) -> int:
        self._result = NotACall()
        return len(text)

    def _start_call(self) -> None:
        self._out.append(CallStarted(self._name))
        self._send("{")

    def _end_call(self, rest: str, next_reader: CallReader | None = None) -> CallEnded:
        self._send("}")
        self._out.append(CallFinished())
        return CallEnded(rest, next_reader)

    def _finish_call(self, text: str, pos: int, *, is_tag_closed: bool) -> int:
        next_reader = None
        if not is_tag_closed and self._is_in_tag:
            next_call = XmlCallReader(self._context, is_in_tag=True)
            next_reader = AfterCall(next_call, (xml_patterns.FUNCTION,))
        elif not is_tag_closed:
            next_reader = AfterCall()
        self._result = self._end_call(text[pos:], next_reader)
        return len(text)

    def _before_head(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if pos < len(text):
            self._state = self._function_head
        return pos

    def _function_head(self, text: str, pos: int) -> int:
        head = xml_patterns.FUNCTION_HEAD.match(text, pos)
        if not head:
            is_partial = xml_patterns.PARTIAL_FUNCTION_HEAD.match(text, pos)
            return self._wait_for_more(text, pos) if is_partial else self._reject(text)
        self._name = xml_patterns.name_in(head)
        schemas = self._context.tools.schemas
        is_allowed = self._is_in_tag and self._context.allows(self._name)
        if self._name not in schemas and not is_allowed:
            return self._reject(text)
        self._parameters = Parameters(schemas.get(self._name))
        self._state = self._first_element
        return head.end()

    def _first_element(self, text: str, pos: int) -> int:
        match = xml_patterns.FIRST_ELEMENT.match(text, pos)
        if not match:
            is_partial = xml_patterns.PARTIAL_FIRST_ELEMENT.match(text, pos)
            return self._wait_for_more(text, pos) if is_partial else self._reject(text)
        function_end, closing_tag = match[4], match[5]
        self._start_call()
        if closing_tag or (function_end and not self._is_in_tag):
            return self._finish_call(text, match.end(), is_tag_closed=bool(closing_tag))
        if function_end:
            self._state = self._after_empty
        else:
            self._start_value(xml_patterns.name_in(match))
        return match.end()

    def _after_empty(self, text: str, pos: int) -> int:
        end = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if end == len(text) and end - pos <= xml_patterns.MAX_SPACE:
            return self._wait_for_more(text, pos)
        return self._finish_call(text, pos, is_tag_closed=False)

    def _finish_before_parameters(self) -> NotACall | CallEnded:
        tail = self._pending.lstrip()
        if tail and not tail.startswith("</"):
            return NotACall()
        self._start_call()
        return self._end_call("")

    def _start_value(self, key: str) -> None:
        separator = ", " if self._keys else ""
        self._keys.add(key)
        self._send(f"{separator}{encode_basestring(key)}: ")
        parameter_type = self._parameters.type_of(key)
        self._held_value = None if parameter_type.is_string else StreamingValue(parameter_type)
        if self._held_value is None:
            self._send('"')
        self._state = self._value_start

    def _value_start(self, text: str, pos: int) -> int:
        if text.startswith("\r", pos) and pos + 1 == len(text):
            return self._wait_for_more(text, pos)
        self._framing = _FRAMING.match(text, pos)[0]  # type: ignore[index]
        self._is_at_line_start = bool(self._framing)
        self._state = self._value
        return pos + len(self._framing)

    def _value(self, text: str, pos: int) -> int:
        end = tag_pos = len(text)
        search_from = pos
        while candidate := xml_patterns.POSSIBLE_VALUE_END.search(text, search_from):
            tag_pos = candidate.start()
            is_line_start = text[tag_pos - 1] == "\n" if tag_pos > pos else self._is_at_line_start
            if match := self._match_value_end(text, tag_pos, is_line_start=is_line_start):
                return self._end_value(text, pos, match)
            if self._partial_value_end.match(text, tag_pos) or (
                is_line_start and xml_patterns.PARTIAL_PARAMETER_HEAD.match(text, tag_pos)
            ):
                end = tag_pos
                break
            search_from = tag_pos + 1
        end = self._without_framing(text, pos, end)
        self._take_text(text[pos:end])
        return self._wait_for_more(text, end)

    def _match_value_end(
        self, text: str, tag_pos: int, *, is_line_start: bool
    ) -> re.Match[str] | None:
        if match := self._value_end.match(text, tag_pos):
            return match
        # The head of the next parameter, after a value whose `</parameter>` is missing.
        head = xml_patterns.PARAMETER_HEAD.match(text, tag_pos) if is_line_start else None
        key = xml_patterns.name_in(head) if head else ""
        return head if key in self._parameters.properties and key not in self._keys else None

    def _without_framing(self, text: str, pos: int, end: int) -> int:
        """Return `end`, or the position of the framing line end (or half of it) before it."""
        framing = self._framing
        if framing and text.endswith(framing, pos, end):
            return end - len(framing)
        is_partial = framing == "\r\n" and end == len(text) and text.endswith("\r", pos)
        return end - 1 if is_partial else end

    def _take_text(self, text: str) -> None:
        if not text:
            return
        self._is_at_line_start = text[-1] == "\n"
        value = self._held_value
        if value is None:
            self._send(encode_basestring(text)[1:-1])
            return
        max_hold = self._context.max_hold
        limit = max_hold + 1 - value.length
        value.feed(text[:limit])
        if not value.is_string:
            if value.length <= max_hold:
                return
            self._context.counters["gave_up"] += 1
        self._send_held_value(value, text[limit:])

    def _send_held_value(self, value: StreamingValue, rest: str) -> None:
        self._held_value = None
        self._send(encode_basestring(value.text() + rest)[:-1])

    def _close_value(self) -> None:
        self._send('"' if self._held_value is None else self._held_value.to_json())

    def _end_value(self, text: str, pos: int, end: re.Match[str]) -> int:
        """End the value, whose last part begins at `pos`; `end` is the match of its end."""
        self._take_text(text[pos : self._without_framing(text, pos, end.start())])
        self._close_value()
        if key := xml_patterns.name_in(end):
            self._start_value(key)
            return end.end()
        return self._finish_call(text, end.end(), is_tag_closed=end.lastindex is not None)

    def _finish_in_value(self) -> CallEnded | CallTruncated | NotACall:
        """Return the result at the end of the text for a call whose last value has begun."""
        tail = self._pending.removeprefix(self._framing)
        rest = ""
        if tags := xml_patterns.LAST_TAGS.match(tail):
            function_end, rest = tags[1], tags[2] or ""
            if rest.startswith("<p") and not function_end:
                # Another parameter has begun: the client gets its text, and the call is truncated.
                self._take_text(self._pending)
                return self._truncate()
            rest = "" if rest.startswith("</") else rest
        elif not self._is_partial_end(tail):
            self._take_text(self._pending)
        self._close_value()
        return self._end_call(rest)

    def _is_partial_end(self, tail: str) -> bool:
        """`tail` is the pending text without the framing; return True if it is only markup."""
        if not tail:
            return len(self._pending) == len(self._framing)
        is_framed = len(tail) < len(self._pending)
        return (is_framed or len(tail) >= MIN_PARTIAL_TAG) and any(
            tag.startswith(tail) for tag in ("</parameter>", "</function>")
        )
