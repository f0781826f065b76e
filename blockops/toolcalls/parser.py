"""
The parser of one choice: its text, split in any way, goes in; text, reasoning and calls come out.

The states of the parser:

    state   reads text with     until                            next state
    search  the scanner         an opener                        try
    try     a dialect's reader  NotACall, from every dialect     search, after the opener
                                more than `max_hold` characters  search, after the opener
                                CallStarted                      stream, or skip
                                CallEnded, without CallStarted   search; try if it names a reader
    stream  the same reader     CallEnded                        search; try if it names a reader
    skip    the same reader     CallEnded                        search; try if it names a reader

- try holds back all that it reads. If a reader returns `NotACall`, the next dialect with this
  opener reads the same text. If none is left, the opener is text, and the text after it is searched
  again.
- skip drops the call: it is a later one, and the request has `parallel_tool_calls: false`.
- A reader for the text after a call is tried without an opener that could become text. It returns
  CallEnded without a call if it has read only markup.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import cast

from blockops.toolcalls.deltas import (
    CallArguments,
    CallFinished,
    CallStarted,
    Delta,
    ReasoningDelta,
    TextDelta,
)
from blockops.toolcalls.dialect import Dialect
from blockops.toolcalls.opener_table import OpenerCounter
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.reader import CallEnded, CallReader, CallTruncated, NotACall, OpeningContext
from blockops.toolcalls.scanner import OpenerMatch, TextScanner
from blockops.toolcalls.tools import OfferedTools

COMPLETE_REASONS = frozenset(
    {"stop", "tool_calls", "function_call", "eos", "eos_token", "end_turn"}
)
"""The finish reasons with which backends report that the model stopped by itself."""

READ_SIZE = 8_192
"""Upper bound of the characters read at once: after a rejected opener, the text is copied."""


class ToolCallParser:
    """
    Parses the text of one choice as it arrives.

    The joined output is a function of the joined input: it does not matter how the text is split.

    :ivar counters: numbers of "calls", "unknown_name", "malformed", "unclosed" (calls that were cut
        off), "dropped_parallel", "gave_up" (more than `max_hold` characters were held back),
        "untranslated" (openers in an answer that is not translated) and "think_calls"
    """

    __slots__ = (
        "_context",
        "_dialect_name",
        "_held_pieces",
        "_is_scanned",
        "_opener_counter",
        "_options",
        "_reader",
        "_remaining_hold",
        "_scanner",
        "_state",
        "_think_block_calls",
        "_tools",
        "_tried_opener",
        "_untried_dialects",
        "counters",
    )

    def __init__(
        self,
        tools: OfferedTools,
        options: TranslationOptions = TranslationOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._tools = tools
        self._options = options
        self.counters: Counter[str] = Counter()
        may_translate = tools.may_translate or options.translate == "always"
        self._think_block_calls = (
            ThinkBlockCalls(tools, options) if may_translate and options.think_calls else None
        )
        self._opener_counter = None if may_translate else OpenerCounter(options.dialects)
        self._scanner = TextScanner(
            options,
            may_translate=may_translate,
            on_think_text=self._think_block_calls.feed if self._think_block_calls else None,
        )
        self._is_scanned = may_translate or options.reasoning == "split"
        self._state: Callable[[str, list[Delta]], str] = self._search
        self._reader: CallReader
        self._context: OpeningContext
        self._dialect_name = ""
        self._untried_dialects: Sequence[Dialect] = ()
        # In the state try: the opener, the text read after it, and how many more characters may be
        # held back. The opener is "" for the text after a call.
        self._tried_opener = ""
        self._held_pieces: list[str] = []
        self._remaining_hold = 0

    def feed(self, text: str) -> list[Delta]:
        """Return the deltas that are certain. Plain text becomes exactly `[TextDelta(text)]`."""
        if self._opener_counter and (count := self._opener_counter.feed(text)):
            self.counters["untranslated"] += count
        if not text:
            return []
        if not self._is_scanned:
            return [TextDelta(text)]
        out: list[Delta] = []
        if self._state == self._search:
            opener = self._scanner.feed(text, out)
            rest = "" if opener is None else self._try_opener(opener)
        else:
            rest = self._state(text, out)
        if rest:
            self._read_all(rest, out)
        return join_adjacent(out) if len(out) > 1 else out

    def finish(self, reason: str | None) -> list[Delta]:
        """Return the deltas that were held back; `reason` is the backend's finish reason."""
        is_complete = reason in COMPLETE_REASONS
        out: list[Delta] = []
        while self._state != self._search:
            self._read_all(self._finish_reader(out, is_complete=is_complete), out)
        self._scanner.finish(out)
        if self._think_block_calls and is_complete and not self.counters["calls"]:
            self._think_block_calls.feed(None)
            if deltas := self._think_block_calls.last_call:
                self.counters["calls"] += 1
                self.counters["think_calls"] += 1
                out.extend(deltas)
        return join_adjacent(out)

    def _read_all(self, text: str, out: list[Delta]) -> None:
        pending = _reversed_pieces(text)
        while pending:
            pending += _reversed_pieces(self._state(pending.pop(), out))

    # The states. Each returns the text that is to be read again, in the state that it has set.

    def _search(self, text: str, out: list[Delta]) -> str:
        opener = self._scanner.feed(text, out)
        return "" if opener is None else self._try_opener(opener)

    def _try_opener(self, opener: OpenerMatch) -> str:
        self._context = OpeningContext(
            opener.literal, self._tools, opener.is_in_code, self._options.max_hold, self.counters
        )
        self._untried_dialects = opener.dialects
        self._try_next_dialect()
        return opener.rest

    def _try_reader(self, text: str, out: list[Delta]) -> str:
        if self._remaining_hold <= 0:
            self.counters["gave_up"] += 1
            self._untried_dialects = ()
            return self._reject(out) + text
        piece, rest = text[: self._remaining_hold], text[self._remaining_hold :]
        self._held_pieces.append(piece)
        self._remaining_hold -= len(piece)
        deltas: list[Delta] = []
        result = self._reader.feed(piece, deltas)
        if isinstance(result, NotACall):
            return self._reject(out) + rest
        if deltas:
            self._start_call(deltas, out)
        return rest if result is None else self._end_call(result, out) + rest

    def _stream(self, text: str, out: list[Delta]) -> str:
        result = self._reader.feed(text, out)
        return "" if result is None else self._end_call(result, out)

    def _skip(self, text: str, out: list[Delta]) -> str:
        result = self._reader.feed(text, [])
        return "" if result is None else self._end_call(result, out)

    def _try_next_dialect(self) -> None:
        dialect, *self._untried_dialects = self._untried_dialects
        self._dialect_name = dialect.name
        self._start_trying(dialect.reader(self._context), self._context.literal)

    def _start_trying(self, reader: CallReader, literal: str) -> None:
        self._reader = reader
        self._tried_opener = literal
        self._held_pieces = []
        self._remaining_hold = self._options.max_hold - len(literal)
        self._state = self._try_reader

    def _start_searching(self) -> None:
        self._untried_dialects = ()
        self._held_pieces = []
        self._state = self._search

    def _reject(self, out: list[Delta]) -> str:
        """Try the next dialect, or emit the opener as text; return the text that was held."""
        text = "".join(self._held_pieces)
        if self._untried_dialects:
            self._try_next_dialect()
        else:
            self._start_searching()
            self._scanner.emit_as_text(self._tried_opener, out)
        return text

    def _start_call(self, deltas: list[Delta], out: list[Delta]) -> None:
        started = deltas[0]
        assert isinstance(started, CallStarted)
        self._held_pieces = []
        self._scanner.drop_space_before_call()
        if started.name not in self._tools.schemas:
            self.counters["unknown_name"] += 1
        if self.counters["calls"] and not self._tools.parallel:
            self.counters["dropped_parallel"] += 1
            self._state = self._skip
        else:
            self.counters["calls"] += 1
            self._state = self._stream
            out += [CallStarted(started.name, self._dialect_name), *deltas[1:]]

    def _end_call(self, result: NotACall | CallEnded, out: list[Delta]) -> str:
        assert isinstance(result, CallEnded)
        self._start_searching()
        self._scanner.resume_after_call()
        self._scanner.emit_as_text(result.text, out)
        if result.next_reader:
            self._start_trying(result.next_reader, "")
        return result.rest

    def _finish_reader(self, out: list[Delta], *, is_complete: bool) -> str:
        """Send the reader's last deltas at the end of the text; return the text to read again."""
        deltas: list[Delta] = []
        result = self._reader.finish(is_complete=is_complete, out=deltas)
        if isinstance(result, NotACall):
            return self._reject(out)
        if self._state == self._try_reader and deltas:
            self._start_call(deltas, out)
        elif self._state == self._stream:
            out += deltas
        if isinstance(result, CallTruncated):
            self.counters["unclosed"] += 1
            self._start_searching()
            return ""
        return self._end_call(result, out)


class ThinkBlockCalls:
    """Finds calls in think blocks; keeps the last one that is complete and offered."""

    def __init__(self, tools: OfferedTools, options: TranslationOptions) -> None:
        self._tools = tools
        self._options = replace(options, think_calls=False, think_prefilled=False, reasoning="keep")
        self._parser: ToolCallParser | None = None
        self._started = CallStarted("")
        self._arguments: list[str] = []
        self._length = 0
        self.last_call: list[Delta] = []

    def feed(self, text: str | None) -> None:
        """Read the text of a think block; None ends the block."""
        if self._parser is None:
            self._parser = ToolCallParser(self._tools, self._options)
        if text is None:
            deltas = self._parser.finish("stop")
            self._parser = None
        else:
            deltas = self._parser.feed(text)
        for delta in deltas:
            self._add(delta)

    def _add(self, delta: Delta) -> None:
        if isinstance(delta, CallStarted):
            self._started = delta
            self._arguments = []
            self._length = 0
        elif isinstance(delta, CallArguments):
            self._length += len(delta.text)
            if self._length <= self._options.max_hold:
                self._arguments.append(delta.text)
        elif isinstance(delta, CallFinished) and self._started.name in self._tools.schemas:
            arguments = "".join(self._arguments)
            if _is_json(arguments):
                self.last_call = [self._started, CallArguments(arguments), CallFinished()]


def join_adjacent(deltas: Sequence[Delta]) -> list[Delta]:
    """Join adjacent texts, and adjacent parts of reasoning and of a call's arguments."""
    merged: list[Delta] = []
    for kind, group in groupby(deltas, type):
        if kind is TextDelta or kind is ReasoningDelta or kind is CallArguments:
            texts = cast("Iterable[TextDelta | ReasoningDelta | CallArguments]", group)
            merged.append(kind("".join([delta.text for delta in texts])))
        else:
            merged.extend(group)
    return merged


def _reversed_pieces(text: str) -> list[str]:
    starts = range(0, len(text), READ_SIZE)
    return [text[start : start + READ_SIZE] for start in reversed(starts)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
