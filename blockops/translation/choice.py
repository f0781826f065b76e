"""
Translates one choice of an answer: text becomes deltas, and calls get ids and indexes.

A choice is a state machine. Each state is a method that receives the next part of the choice (a
`ChunkChoice`) and returns its rewrite, or None if the part may pass unchanged:

    state          receives                           result                      next state
    -------------  ---------------------------------  --------------------------  -------------
    _await_role    the first part                     as `_translate`, with the   as _translate
                                                      role added if it is missing
    _translate     text                               the parser's deltas         _translate
                   a call that the backend has        the parser is flushed, the  _relay_calls
                   structured itself                  call passes
                   a finish reason                    the parser's rest, then     _ignore_rest
                                                      the reason for the client
    _relay_calls   anything                           passes; its calls' indexes  _relay_calls
                                                      follow the parser's calls
                   a finish reason                    the reason for the client   _ignore_rest
    _ignore_rest   anything                           dropped; content is         _ignore_rest
                                                      counted as "after_finish"

`start` leads from `_await_role` to `_translate`. `flush` (the answer is truncated) and `finish`
(the backend sent no finish reason) lead from every state to `_ignore_rest`.

The role is sent once, because openai for Python joins roles as it joins text
("assistantassistant").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from blockops.api.chat.chunks import ChoiceRewrite, ChunkChoice, Delta, OutgoingDelta, make_delta
from blockops.api.report import STRUCTURED, AnswerReport
from blockops.toolcalls import deltas as parser_deltas
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import COMPLETE_REASONS, ToolCallParser
from blockops.toolcalls.tools import OfferedTools
from blockops.translation.structured_calls import StructuredCalls

# Finish reasons that are passed to the parser. It gets None in place of any other.
_KNOWN_REASONS = COMPLETE_REASONS | {"length", "content_filter"}
# A backend that parses calls itself may send the start of a call's tag as content.
_LEAKED_TAG = "<tool_call>"
_MIN_LEAKED_TAG = "<tool"

_NO_DELTA = Delta()


class ChoiceTranslator:
    """
    Translates one choice.

    :param index: the choice's index
    :param tools: the tools that the request offers
    :param new_id: returns a new id for a call
    :param report: receives calls, finish reasons and the parser's counters
    """

    __slots__ = (
        "_call_count",
        "_index",
        "_index_offset",
        "_is_forced",
        "_new_id",
        "_open_calls",
        "_parser",
        "_report",
        "_state",
        "_structured_calls",
    )

    def __init__(
        self,
        index: int,
        tools: OfferedTools,
        options: TranslationOptions,
        new_id: Callable[[], str],
        report: AnswerReport,
    ) -> None:
        self._index = index
        self._parser = ToolCallParser(tools, options)
        self._is_forced = tools.forced_tool is not None
        self._new_id = new_id
        self._report = report
        self._call_count = 0
        self._open_calls = 0
        self._structured_calls = StructuredCalls()
        self._index_offset = 0
        self._state = ChoiceTranslator._await_role

    @property
    def is_finished(self) -> bool:
        """True once the choice has had its finish reason, or was truncated."""
        return self._state is ChoiceTranslator._ignore_rest

    def start(self) -> list[OutgoingDelta]:
        """Return the delta with the role; an empty list if the role has been sent."""
        if self._state is not ChoiceTranslator._await_role:
            return []
        self._state = ChoiceTranslator._translate
        return [OutgoingDelta({"role": "assistant"})]

    def receive(self, choice: ChunkChoice) -> ChoiceRewrite | None:
        """Return the rewrite of this part of the choice, or None if it passes unchanged."""
        delta = choice.delta
        repeats_role = (
            self._state is not ChoiceTranslator._await_role
            and delta is not None
            and delta.role is not None
        )
        rewrite = self._state(self, choice)
        if rewrite is None and (repeats_role or delta is None or choice.index is None):
            return ChoiceRewrite(to_deltas(choice))
        return rewrite

    def feed(self, text: str) -> list[OutgoingDelta] | None:
        """Return the rewrite of a delta that is only `text`, or None if it passes unchanged."""
        deltas = self._parser.feed(text)
        return None if _is_unchanged(deltas, text) else self._encode(deltas)

    def flush(self) -> list[OutgoingDelta]:
        """End a truncated answer: return the text held back, without a finish reason."""
        if self.is_finished:
            return []
        deltas = self._flush_parser()
        if deltas:
            deltas = [*self.start(), *deltas]
        self._close()
        return deltas

    def finish(self) -> list[OutgoingDelta]:
        """End a choice for which the backend sent no finish reason; return its last deltas."""
        if self.is_finished:
            return []
        deltas = [*self.start(), *self._flush_parser()]
        if self._open_calls or not self._structured_calls.is_complete:
            reason = "length"
        elif self._call_count or self._structured_calls.has_started:
            reason = self._finish_reason("tool_calls")
        else:
            reason = "stop"
        return [*deltas, self._last_delta(reason)]

    def make_choice(self, delta: OutgoingDelta) -> dict[str, Any]:
        """Return the `choices` entry of a chunk for `delta`."""
        return {"index": self._index, "delta": delta.fields, "finish_reason": delta.finish_reason}

    def _await_role(self, choice: ChunkChoice) -> ChoiceRewrite | None:
        self._state = ChoiceTranslator._translate
        rewrite = self._translate(choice)
        role = choice.delta.role if choice.delta is not None else None
        if rewrite is None:
            if role and choice.index is not None:
                return None
            rewrite = ChoiceRewrite(to_deltas(choice))
        first = rewrite.deltas[0] if rewrite.deltas else OutgoingDelta({})
        first.fields = {"role": role or "assistant", **first.fields}
        rewrite.deltas[:1] = [first]
        return rewrite

    def _translate(self, choice: ChunkChoice) -> ChoiceRewrite | None:
        delta = choice.delta or _NO_DELTA
        if delta.tool_calls or delta.function_call is not None:
            return self._start_structured_calls(choice, delta)
        if choice.finish_reason:
            return self._translate_last(delta.content, choice.finish_reason)
        result = self.feed(delta.content) if delta.content else None
        if result is None:
            return None
        return ChoiceRewrite(result)

    def _translate_last(self, text: str | None, backend_reason: str) -> ChoiceRewrite | None:
        """Return the rewrite of the part with the finish reason, or None if it passes unchanged."""
        deltas = self._parser.feed(text) if text else []
        is_unchanged = _is_unchanged(deltas, text)
        rest = self._parser.finish(backend_reason if backend_reason in _KNOWN_REASONS else None)
        encoded = self._encode([*deltas, *rest])
        reason = self._finish_reason(backend_reason)
        last = self._last_delta(reason)
        if is_unchanged and not rest and reason == backend_reason:
            return None
        return ChoiceRewrite([*encoded, last])

    def _start_structured_calls(self, choice: ChunkChoice, delta: Delta) -> ChoiceRewrite | None:
        deltas = self._parser.feed(delta.content) if delta.content else []
        is_unchanged = _is_unchanged(deltas, delta.content)
        rest = self._parser.finish(None)
        if _is_leaked_tag(rest):
            rest = []
        content = self._encode([*deltas, *rest])
        self._index_offset = self._call_count
        self._state = ChoiceTranslator._relay_calls
        return self._rewrite_calls(choice, content, is_unchanged=is_unchanged and not rest)

    def _relay_calls(self, choice: ChunkChoice) -> ChoiceRewrite | None:
        content = choice.delta.content if choice.delta is not None else None
        deltas = [OutgoingDelta({"content": content})] if content else []
        return self._rewrite_calls(choice, deltas, is_unchanged=True)

    def _rewrite_calls(
        self, choice: ChunkChoice, content: list[OutgoingDelta], *, is_unchanged: bool
    ) -> ChoiceRewrite | None:
        """
        Record the backend's own calls; return the rewrite, or None if the part passes unchanged.

        :param content: the deltas for its content
        :param is_unchanged: True if they are the content that was received
        """
        for name in self._structured_calls.record(choice.delta or _NO_DELTA):
            self._report.add_call(name, STRUCTURED)
        reason = self._finish_reason(choice.finish_reason) if choice.finish_reason else None
        last = [self._last_delta(reason)] if reason else []
        if is_unchanged and not self._index_offset and reason == (choice.finish_reason or None):
            return None
        return ChoiceRewrite([*content, *last], index_offset=self._index_offset)

    def _ignore_rest(self, choice: ChunkChoice) -> ChoiceRewrite:
        if choice.delta is not None and choice.delta.content:
            self._report.counters["after_finish"] += 1
        return ChoiceRewrite([], is_kept=False)

    def _flush_parser(self) -> list[OutgoingDelta]:
        if self._state is ChoiceTranslator._relay_calls:
            return []  # flushed before the first of these calls
        return self._encode(self._parser.finish(None))

    def _finish_reason(self, backend_reason: str) -> str:
        """Return the finish reason for the client."""
        if backend_reason not in COMPLETE_REASONS:
            return backend_reason
        if self._open_calls:
            return "length"  # truncated, whatever the backend reports
        if not self._call_count:
            # mlx-lm reports "tool_calls" for calls that it could not parse and did not send.
            is_lost = backend_reason == "tool_calls" and not self._structured_calls.has_started
            return "stop" if is_lost else backend_reason
        return "stop" if self._is_forced else "tool_calls"

    def _last_delta(self, reason: str) -> OutgoingDelta:
        self._report.finish_reasons[self._index] = reason
        self._close()
        return OutgoingDelta({}, reason)

    def _close(self) -> None:
        self._report.counters.update(self._parser.counters)
        self._state = ChoiceTranslator._ignore_rest

    def _encode(self, deltas: Sequence[parser_deltas.Delta]) -> list[OutgoingDelta]:
        """Return the parser's deltas as deltas of the API; adjacent texts are joined."""
        encoded: list[OutgoingDelta] = []
        for delta in deltas:
            if isinstance(delta, parser_deltas.CallArguments):
                encoded.append(OutgoingDelta(make_delta(self._call_count - 1, delta.text)))
            elif isinstance(delta, parser_deltas.TextDelta):
                _append_text(encoded, "content", delta.text)
            elif isinstance(delta, parser_deltas.CallStarted):
                encoded.append(self._start_call(delta))
            elif isinstance(delta, parser_deltas.CallFinished):
                self._open_calls -= 1
            else:
                _append_text(encoded, "reasoning_content", delta.text)
        return encoded

    def _start_call(self, call: parser_deltas.CallStarted) -> OutgoingDelta:
        index = self._call_count
        self._call_count += 1
        self._open_calls += 1
        self._report.add_call(call.name, call.dialect)
        fields = {
            "index": index,
            "id": self._new_id(),
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
        return OutgoingDelta({"tool_calls": [fields]})


def to_deltas(choice: ChunkChoice) -> list[OutgoingDelta]:
    """Return one delta, with the content and the finish reason of this part of a choice."""
    content = choice.delta.content if choice.delta is not None else None
    fields = {} if content is None else {"content": content}
    return [OutgoingDelta(fields, choice.finish_reason or None)]


def _is_unchanged(deltas: Sequence[parser_deltas.Delta], text: str | None) -> bool:
    """Return True if the parser passed `text` through as one delta."""
    if not text:
        return True
    return (
        len(deltas) == 1
        and isinstance(deltas[0], parser_deltas.TextDelta)
        and deltas[0].text is text
    )


def _is_leaked_tag(rest: Sequence[parser_deltas.Delta]) -> bool:
    """Return True if `rest`, sent before a backend's call, is white space or part of its tag."""
    if len(rest) != 1 or not isinstance(rest[0], parser_deltas.TextDelta):
        return False
    text = rest[0].text.strip()
    return not text or (text.startswith(_MIN_LEAKED_TAG) and _LEAKED_TAG.startswith(text))


def _append_text(deltas: list[OutgoingDelta], field: str, text: str) -> None:
    if deltas and field in deltas[-1].fields:
        deltas[-1].fields[field] += text
    else:
        deltas.append(OutgoingDelta({field: text}))
