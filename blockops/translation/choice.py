"""
Translates one choice of an answer: text becomes events, and calls get ids and indexes.

    state     begins with                    the next part of the choice
    --------  -----------------------------  -------------------------------------------------------
    new       the start                      as below, with the role added if it is missing
    started   the role                       text: the parser's events
                                             a finish reason: the parser's rest, and the reason for
                                             the client
    relaying  a call that the backend has    passes; its calls' indexes follow the parser's calls
              structured itself; the parser
              is flushed before it
    finished  a finish reason, or `flush`    dropped; content is counted as "after_finish"

The role is sent once, because openai for Python joins roles as it joins text
("assistantassistant").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from blockops.api.answer import (
    AnswerEvent,
    BackendCalls,
    CallArguments,
    CallFinished,
    CallStarted,
    ContentDelta,
    Finished,
    PartDropped,
    ReasoningDelta,
    RoleStarted,
)
from blockops.api.chat.chunks import ChunkChoice, Delta
from blockops.api.report import STRUCTURED, AnswerReport
from blockops.toolcalls import deltas as parsed
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import COMPLETE_REASONS, ToolCallParser, join_adjacent
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

    :param report: receives calls, finish reasons and the parser's counters
    :ivar is_finished: True once the choice has had its finish reason, or was truncated
    """

    __slots__ = (
        "_call_count",
        "_has_started",
        "_index",
        "_is_forced",
        "_is_relaying",
        "_new_id",
        "_open_calls",
        "_parser",
        "_report",
        "_structured_calls",
        "is_finished",
    )

    def __init__(
        self,
        index: int,
        tools: OfferedTools,
        options: TranslationOptions,
        new_id: Callable[[], str],
        report: AnswerReport,
    ) -> None:
        self.is_finished = False
        self._index = index
        self._parser = ToolCallParser(tools, options)
        self._is_forced = tools.forced_tool is not None
        self._new_id = new_id
        self._report = report
        self._has_started = False
        self._is_relaying = False
        self._call_count = 0
        self._open_calls = 0
        self._structured_calls = StructuredCalls()

    def start(self) -> list[AnswerEvent]:
        """Return the role; an empty list if it has been sent."""
        if self._has_started:
            return []
        self._has_started = True
        return [RoleStarted(self._index, "assistant")]

    def receive(self, part: ChunkChoice) -> list[AnswerEvent] | None:
        """Return the events for this part of the choice, or None if it passes unchanged."""
        delta = part.delta or _NO_DELTA
        text = delta.content
        if self.is_finished:
            if text:
                self._report.counters["after_finish"] += 1
            return [PartDropped(self._index)]
        deltas: list[parsed.Delta] = []
        is_unchanged = True
        if text and not self._is_relaying:
            deltas = self._parser.feed(text)
            first = deltas[0] if len(deltas) == 1 else None
            is_unchanged = isinstance(first, parsed.TextDelta) and first.text is text
        has_calls = bool(delta.tool_calls or delta.function_call)
        if (has_calls or part.finish_reason) and (
            rest := self._finish_parser(part.finish_reason or None, has_calls=has_calls)
        ):
            deltas = join_adjacent([*deltas, *rest])
            is_unchanged = False
        events = None if is_unchanged else self._to_events(deltas)
        if has_calls:
            self._record_calls(delta)
        reason = self._finish(part.finish_reason) if part.finish_reason else None
        is_first, self._has_started = not self._has_started, True
        if (
            events is None
            and reason == (part.finish_reason or None)
            and (bool(delta.role) if is_first else not isinstance(delta.role, str))
            and not (has_calls and self._call_count)
            and isinstance(part.index, int)
            and part.delta
        ):
            return None
        if events is None:
            events = [ContentDelta(self._index, text)] if isinstance(text, str) else []
        role = [RoleStarted(self._index, delta.role or "assistant")] if is_first else []
        calls = [BackendCalls(self._index, self._call_count)] if has_calls else []
        end = [] if reason is None else [Finished(self._index, reason)]
        return [*role, *events, *calls, *end]

    def flush(self) -> list[AnswerEvent]:
        """End a truncated answer: return the text held back, without a finish reason."""
        if self.is_finished:
            return []
        events = self._flush_parser()
        if events:
            events = [*self.start(), *events]
        self._report.counters.update(self._parser.counters)
        self.is_finished = True
        return events

    def finish(self) -> list[AnswerEvent]:
        """End a choice for which the backend sent no finish reason; return its last events."""
        if self.is_finished:
            return []
        events = [*self.start(), *self._flush_parser()]
        if self._open_calls or not self._structured_calls.is_complete:
            reason = "length"
        elif self._call_count or self._structured_calls.has_started:
            reason = self._finish_reason("tool_calls")
        else:
            reason = "stop"
        self._close(reason)
        return [*events, Finished(self._index, reason)]

    def _record_calls(self, delta: Delta) -> None:
        for name in self._structured_calls.record(delta):
            self._report.add_call(name, STRUCTURED)

    def _finish_parser(self, finish_reason: str | None, *, has_calls: bool) -> list[parsed.Delta]:
        """Return the parser's rest, before the first of the backend's own calls or at the end."""
        if self._is_relaying:
            return []
        self._is_relaying = has_calls
        is_known = not has_calls and finish_reason in _KNOWN_REASONS
        rest = self._parser.finish(finish_reason if is_known else None)
        return [] if has_calls and _is_leaked_tag(rest) else rest

    def _flush_parser(self) -> list[AnswerEvent]:
        # The parser is flushed before the first of the backend's own calls.
        return [] if self._is_relaying else self._to_events(self._parser.finish(None))

    def _finish(self, backend_reason: str) -> str:
        reason = self._finish_reason(backend_reason)
        self._close(reason)
        return reason

    def _finish_reason(self, backend_reason: str) -> str:
        if backend_reason not in COMPLETE_REASONS:
            return backend_reason
        if self._open_calls:
            return "length"  # truncated, whatever the backend reports
        if not self._call_count:
            # mlx-lm reports "tool_calls" for calls that it could not parse and did not send.
            is_lost = backend_reason == "tool_calls" and not self._structured_calls.has_started
            return "stop" if is_lost else backend_reason
        return "stop" if self._is_forced else "tool_calls"

    def _close(self, reason: str) -> None:
        self._report.finish_reasons[self._index] = reason
        self._report.counters += self._parser.counters
        self.is_finished = True

    def _to_events(self, deltas: Iterable[parsed.Delta]) -> list[AnswerEvent]:
        index = self._index
        events: list[AnswerEvent] = []
        for delta in deltas:
            if isinstance(delta, parsed.CallArguments):
                events.append(CallArguments(index, self._call_count - 1, delta.text))
            elif isinstance(delta, parsed.TextDelta):
                events.append(ContentDelta(index, delta.text))
            elif isinstance(delta, parsed.CallStarted):
                self._report.add_call(delta.name, delta.dialect)
                events.append(CallStarted(index, self._call_count, self._new_id(), delta.name))
                self._call_count += 1
                self._open_calls += 1
            elif isinstance(delta, parsed.CallFinished):
                self._open_calls -= 1
                events.append(CallFinished(index, self._call_count - 1))
            else:
                events.append(ReasoningDelta(index, delta.text))
        return events


def _is_leaked_tag(rest: Sequence[parsed.Delta]) -> bool:
    """Return True if `rest`, sent before a backend's call, is white space or part of its tag."""
    if len(rest) != 1 or not isinstance(rest[0], parsed.TextDelta):
        return False
    text = rest[0].text.strip()
    return not text or (text.startswith(_MIN_LEAKED_TAG) and _LEAKED_TAG.startswith(text))
