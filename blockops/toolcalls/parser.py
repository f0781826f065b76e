"""
The parser of one choice: its text, split in any way, goes in; text, reasoning and calls come out.

The parser is always in one of four states; each is a method that reads text:

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
- stream sends the reader's deltas as they come.
- skip drops them: the call is a later one, and the request has `parallel_tool_calls: false`.
- A reader for the text after a call is tried like any other, but without an opener that could
  become text. It returns CallEnded without a call if it has read only markup.

At the end of the text, `CallReader.finish` decides; text that is not a call is read again until the
parser is back in search.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from blockops.toolcalls.deltas import (
    CallArguments,
    CallFinished,
    CallStarted,
    Delta,
    TextDelta,
)
from blockops.toolcalls.dialect import Dialect
from blockops.toolcalls.opener_counter import OpenerCounter
from blockops.toolcalls.opener_table import opener_table
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.reader import (
    CallEnded,
    CallReader,
    CallTruncated,
    NotACall,
    OpeningContext,
    SupportsVerbatim,
)
from blockops.toolcalls.scanner import TextScanner
from blockops.toolcalls.tools import OfferedTools
from blockops.toolcalls.verbatim import Verbatim

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

    :param tools: the tools that the request offers
    :param options: the operator's options
    :ivar counters: numbers of "calls", "unknown_name", "malformed", "unclosed" (calls that were cut
        off), "dropped_parallel", "gave_up" (more than `max_hold` characters were held back),
        "untranslated" (openers in an answer that is not translated) and "think_calls"
    :ivar verbatim: text that need not be fed because it would pass through unchanged; None if all
        text must be fed
    :ivar is_in_call: True if such text would be a part of a call's arguments
    """

    __slots__ = (
        "_context",
        "_dialect_name",
        "_held_pieces",
        "_is_plain",
        "_is_scanned",
        "_opener_counter",
        "_openers",
        "_options",
        "_reader",
        "_remaining_hold",
        "_scanner",
        "_state",
        "_think_block_calls",
        "_tools",
        "_tried_opener",
        "_untried_dialects",
        "_verbatim_source",
        "counters",
        "is_in_call",
        "verbatim",
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
        split_reasoning = options.reasoning == "split"
        self._think_block_calls = (
            ThinkBlockCalls(tools, options) if may_translate and options.think_calls else None
        )
        self._opener_counter = None if may_translate else OpenerCounter(options.dialects)
        self._openers = opener_table(options.dialects if may_translate else ())
        self._scanner = TextScanner(
            self._openers,
            fenced_calls=options.fenced_calls,
            split_reasoning=split_reasoning,
            think_prefilled=options.think_prefilled,
            # Without translation, no text has to wait for a call.
            max_hold=options.max_hold if may_translate else 0,
            on_think_text=self._think_block_calls.feed if self._think_block_calls else None,
        )
        self._is_scanned = may_translate or split_reasoning
        self._state: Callable[[str, list[Delta]], str] = self._search
        self._reader: CallReader
        self._verbatim_source: SupportsVerbatim | None = None
        self._context: OpeningContext
        self._dialect_name = ""
        self._untried_dialects: Sequence[Dialect] = ()
        # In the state try: the opener, the text read after it, and how many more characters may be
        # held back. The opener is "" for the text after a call.
        self._tried_opener = ""
        self._held_pieces: list[str] = []
        self._remaining_hold = 0
        self.is_in_call = False
        self.verbatim: Verbatim | None = None
        # Matches text that passes through unchanged except for blanks at its end.
        self._is_plain: Callable[[str], object] = _never_plain
        self._update_fast_path()

    def feed(self, text: str) -> list[Delta]:
        """
        Read `text`; return the deltas that are certain, without two adjacent `TextDelta`.

        Text that needs no decision is returned as exactly `[TextDelta(text)]`.
        """
        if self._opener_counter and (count := self._opener_counter.feed(text)):
            self.counters["untranslated"] += count
        if not text:
            return []
        if not self._is_scanned:
            return [TextDelta(text)]
        verbatim = self.verbatim
        if verbatim is not None and verbatim.pattern.fullmatch(text):
            if self.is_in_call:
                return [CallArguments(verbatim.output_text(text))]
            return [TextDelta(text)]
        if self._is_plain(text):
            emitted = self._scanner.feed_plain(text)
            self._update_text_verbatim()
            return [TextDelta(emitted)]
        out: list[Delta] = []
        self._read_all(text, out)
        self._scanner.flush(out)
        self._update_fast_path()
        return out

    def finish(self, reason: str | None) -> list[Delta]:
        """
        Return the deltas of the text that is still held back.

        :param reason: the backend's finish reason, or None if the answer ended without one
        """
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
        return out

    def _update_fast_path(self) -> None:
        """Set the patterns for text that the next `feed` may pass through."""
        self._is_plain = _never_plain
        self.verbatim = None
        self.is_in_call = self._state == self._stream
        if self.is_in_call:
            if self._verbatim_source is not None:
                self.verbatim = self._verbatim_source.verbatim
        elif self._state == self._search and self._scanner.is_mid_line:
            self._is_plain = self._openers.is_plain
            self._update_text_verbatim()

    def _update_text_verbatim(self) -> None:
        # All text must be fed while openers are counted.
        may_pass = self._scanner.is_idle and self._opener_counter is None
        self.verbatim = self._openers.verbatim if may_pass else None

    def _read_all(self, text: str, out: list[Delta]) -> None:
        """Read `text`, and the text that the states return to be read again, in pieces."""
        if 0 < len(text) <= READ_SIZE:
            text = self._state(text, out)
        pending = _reversed_pieces(text)
        while pending:
            if rest := self._state(pending.pop(), out):
                pending += _reversed_pieces(rest)

    # The states. Each returns the text that is to be read again, in the state that it has set.

    def _search(self, text: str, out: list[Delta]) -> str:
        opener = self._scanner.feed(text, out)
        if opener is None:
            return ""
        self._context = OpeningContext(
            literal=opener.literal,
            tools=self._tools,
            is_in_code=opener.is_in_code,
            max_hold=self._options.max_hold,
            counters=self.counters,
        )
        self._untried_dialects = opener.dialects
        self._start_trying(self._reader_of_next_dialect(), opener.literal)
        return opener.rest

    def _try_reader(self, text: str, out: list[Delta]) -> str:
        if self._remaining_hold <= 0:
            self.counters["gave_up"] += 1
            return self._reject_opener() + text
        piece = text if len(text) <= self._remaining_hold else text[: self._remaining_hold]
        rest = text[len(piece) :]
        self._held_pieces.append(piece)
        self._remaining_hold -= len(piece)
        deltas: list[Delta] = []
        result = self._reader.feed(piece, deltas)
        while isinstance(result, NotACall) and self._untried_dialects:
            self._reader = self._reader_of_next_dialect()
            result = self._reader.feed("".join(self._held_pieces), deltas)
        if isinstance(result, NotACall):
            return self._reject_opener() + rest
        if deltas:
            self._start_call(deltas, out)
        return rest if result is None else self._end_call(result) + rest

    def _stream(self, text: str, out: list[Delta]) -> str:
        result = self._reader.feed(text, out)
        return "" if result is None else self._end_call(result)

    def _skip(self, text: str, _: list[Delta]) -> str:
        result = self._reader.feed(text, [])
        return "" if result is None else self._end_call(result)

    # Transitions.

    def _reader_of_next_dialect(self) -> CallReader:
        dialect, *self._untried_dialects = self._untried_dialects
        self._dialect_name = dialect.name
        return dialect.reader(self._context)

    def _start_trying(self, reader: CallReader, literal: str) -> None:
        """Try `reader`; `literal` is its opener, or "" if it reads the text after a call."""
        self._reader = reader
        self._tried_opener = literal
        self._held_pieces = []
        self._remaining_hold = self._options.max_hold - len(literal)
        self._state = self._try_reader

    def _start_searching(self) -> None:
        self._untried_dialects = ()
        self._held_pieces = []
        self._state = self._search

    def _reject_opener(self) -> str:
        """Emit the opener as text and search again; return the text that was held after it."""
        text = "".join(self._held_pieces)
        self._start_searching()
        if self._tried_opener:
            self._scanner.emit_as_text(self._tried_opener)
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
            reader = self._reader
            self._verbatim_source = reader if isinstance(reader, SupportsVerbatim) else None
            self._scanner.flush(out)
            out.append(CallStarted(started.name, self._dialect_name))
            out.extend(deltas[1:])

    def _end_call(self, result: NotACall | CallEnded) -> str:
        """Continue after a call, or after the markup after one; return the rest of the text."""
        assert isinstance(result, CallEnded)
        self._start_searching()
        self._scanner.resume_after_call()
        if result.text:
            self._scanner.emit_as_text(result.text)
        if result.next_reader:
            self._start_trying(result.next_reader, "")
        return result.rest

    def _finish_reader(self, out: list[Delta], *, is_complete: bool) -> str:
        """Send the reader's last deltas at the end of the text; return the text to read again."""
        deltas: list[Delta] = []
        result = self._reader.finish(is_complete=is_complete, out=deltas)
        if isinstance(result, NotACall):
            if not self._untried_dialects:
                return self._reject_opener()
            text = "".join(self._held_pieces)
            self._start_trying(self._reader_of_next_dialect(), self._tried_opener)
            return text
        if self._state == self._try_reader and deltas:
            self._start_call(deltas, out)
        elif self._state == self._stream:
            out.extend(deltas)
        if isinstance(result, CallTruncated):
            self.counters["unclosed"] += 1
            self._start_searching()
            return ""
        return self._end_call(result)


class ThinkBlockCalls:
    """
    Finds calls in think blocks; keeps the last one that is complete and offered.

    :param tools: the tools that the request offers
    :param options: the operator's options
    :ivar last_call: the deltas of that call; empty while no such call was found
    """

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
            if self._length <= self._options.max_hold and _is_json(arguments):
                self.last_call = [self._started, CallArguments(arguments), CallFinished()]


def _never_plain(_: str) -> None: ...


def _reversed_pieces(text: str) -> list[str]:
    """Split `text` into pieces of at most `READ_SIZE` characters; the last one comes first."""
    if len(text) <= READ_SIZE:
        return [text] if text else []
    starts = range(0, len(text), READ_SIZE)
    return [text[start : start + READ_SIZE] for start in reversed(starts)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
