"""
Scans the text around calls: reads its Markdown, finds openers, holds back as little as possible.

The scanner is a state machine over this part of Markdown:

- A line starts after a line feed, at the start of the text, after a call and after a think block.
- A run of backticks opens inline code. The code ends at the next run of the same length, or at the
  end of the line.
- A run of three or more backticks (without another one on its line) or tildes opens a fence if it
  stands at the start of a line; quote and list marks may precede it. The fence ends at a line with
  at least as many of the same character and nothing else; without such a line it does not end.
- `<think>` outside code opens a think block, which ends at the next `</think>`.

The states; "space" means that white space at the end of the text read so far is held back:

    state        position                                  code  space  next states
    line_start   blanks at the start of a line                   yes    marks
    marks        quote or list marks of a line                   yes    line, run
    line         inside a line                                   yes    line_start, run, think
    run          run of ` or ~                                          code, fence, line,
                                                                        fence_tail
    code         inline code, or the line that opens a     yes   yes    run, line_start,
                 backtick fence                                         fence_start
    fence_start  start of a line in a fence                yes          fence, run
    fence        inside a line of a fence                  yes          fence_start
    fence_tail   after a run that may close the fence:           yes    line, fence
                 only blanks may follow
    think        think block                                            line_start

Openers count outside code and think blocks. With `fenced_calls` they also count in code, and white
space is then held back in every state of code.

A literal that has started is held back until it is complete or turns out to be text. White space at
the end of the text is held back because it is not part of the content if a call follows. Nothing is
held back where no call can follow.

Each state has a method that reads from a position to the end of its state, sets the next state and
returns the position reached. Where it stops, at an opener or at a literal that is not complete yet,
it sets `_end` and returns the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from blockops.toolcalls.deltas import Delta, ReasoningDelta, TextDelta
from blockops.toolcalls.dialect import Dialect
from blockops.toolcalls.opener_table import THINK_OPEN, Openers, opener_table
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.partial_match import partial_suffix_start

WHITESPACE = " \t\r\n\f\v"
_THINK_CLOSE = "</think>"
_BLANKS = re.compile(r"[ \t]*")
_LINE_MARKS = re.compile(r"[ \t>*+.)0-9-]*")
_QUOTE_MARKS = re.compile(r"[ \t>]*")
_BLANKS_AND_CR = re.compile(r"[ \t\r]*")
_RUNS = {"`": re.compile("`*"), "~": re.compile("~*")}
_MIN_FENCE = 3

_State = Callable[["TextScanner", str, int], int]


@dataclass(frozen=True)
class OpenerMatch:
    """An opener that was found, in Markdown code or not, and the `rest` of the text after it."""

    literal: str
    dialects: tuple[Dialect, ...]
    rest: str
    is_in_code: bool


class TextScanner:
    """
    Reads the text around calls: emits it and stops at each opener.

    :param on_think_text: called with the text of think blocks, and with None at the end of one
    """

    __slots__ = (
        "_code_run_length",
        "_emitted_to",
        "_end",
        "_end_run",
        "_has_emitted",
        "_is_after_call",
        "_match",
        "_max_hold",
        "_may_be_fence",
        "_on_think_text",
        "_openers",
        "_out",
        "_partial",
        "_run_char",
        "_run_length",
        "_space",
        "_space_length",
        "_space_states",
        "_split_reasoning",
        "_state",
    )

    def __init__(
        self,
        options: TranslationOptions,
        *,
        may_translate: bool,
        on_think_text: Callable[[str | None], object] | None = None,
    ) -> None:
        dialects = options.dialects if may_translate else ()
        self._openers = opener_table(dialects, fenced_calls=options.fenced_calls)
        self._split_reasoning = options.reasoning == "split"
        # Upper bound of the characters of white space that may be held back.
        self._max_hold = options.max_hold if may_translate else 0
        self._on_think_text = on_think_text
        in_think = options.think_prefilled
        self._state: _State = TextScanner._read_think if in_think else TextScanner._read_line_start
        self._space_states = self._SPACE | self._CODE if options.fenced_calls else self._SPACE
        # The current run of backticks or tildes, and the length of the run that opened the code.
        self._run_char = "`"
        self._run_length = 0
        self._end_run: Callable[[TextScanner], _State] = TextScanner._end_opening_run
        self._code_run_length = 0
        self._may_be_fence = False
        # The position of an opener, or of its beginning, in the current text; or the text's length.
        self._end = 0
        self._match: OpenerMatch | None = None
        # The beginning of a literal at the end of the text.
        self._partial = ""
        # White space that is held back, and the length of all white space after the last text.
        self._space: list[str] = []
        self._space_length = 0
        # The position up to which the current text was emitted or dropped.
        self._emitted_to = 0
        self._out: list[Delta] = []
        self._has_emitted = False
        self._is_after_call = False

    def feed(self, text: str, out: list[Delta]) -> OpenerMatch | None:
        """Read `text`; return the first opener in it, or None if all of it was read."""
        if (
            self._state is TextScanner._read_line
            and not (self._partial or self._space_length or self._is_after_call)
            and self._openers.plain.fullmatch(text)
        ):
            # Most text is inside a line, and neither begins a literal nor ends with white space.
            out.append(TextDelta(text))
            self._has_emitted = True
            return None
        self._out = out
        text = self._partial + text
        self._match = None
        self._emitted_to = pos = 0
        self._end = size = len(text)
        while pos < size:
            pos = self._state(self, text, pos)
        self._emit(text[self._emitted_to : self._end])
        self._partial = text[self._end :] if self._end < size and not self._match else ""
        return self._match

    def emit_as_text(self, text: str, out: list[Delta]) -> None:
        """Emit an opener that opens no call, or ordinary text that a call's reader has read."""
        if not text:
            return
        self._out = out
        self._emit(text)
        if self._state is TextScanner._read_line_start:
            self._state = TextScanner._read_line
        elif self._state is TextScanner._read_fence_start:
            self._state = TextScanner._read_fence

    def drop_space_before_call(self) -> None:
        """Drop the white space that is held back: a call has started after it."""
        self._space.clear()
        self._space_length = 0
        self._is_after_call = True

    def resume_after_call(self) -> None:
        """Set the state for the text after a call: the start of a line, except in inline code."""
        if self._state is TextScanner._read_fence:
            self._state = TextScanner._read_fence_start
        elif self._state not in self._CODE:
            self._state = TextScanner._read_line_start

    def finish(self, out: list[Delta]) -> None:
        """Emit the text that is held back, except white space after a last call."""
        self._out = out
        self._emit(self._partial)
        if self._space and not self._is_after_call:
            out.append(TextDelta("".join(self._space)))

    def _emit(self, text: str) -> None:
        emitted = text
        if self._state in self._space_states:
            emitted = text.rstrip(WHITESPACE)
        elif text and self._split_reasoning and self._state is TextScanner._read_think:
            self._out.append(ReasoningDelta(text))
            return
        end = len(emitted)
        if emitted:
            if self._space_length or self._is_after_call:
                emitted = self._join_space(emitted)
            self._has_emitted = True
            self._out.append(TextDelta(emitted))
        if end < len(text):
            self._hold_space(text[end:])

    def _join_space(self, text: str) -> str:
        """Return `text` with the white space before it, unless that follows an initial call."""
        joined = "".join([*self._space, text])
        if self._is_after_call and not self._has_emitted:
            stripped = joined.lstrip(WHITESPACE)
            if len(joined) - len(stripped) <= self._max_hold:
                joined = stripped
        self._is_after_call = False
        self._space.clear()
        self._space_length = 0
        return joined

    def _hold_space(self, space: str) -> None:
        self._space.append(space)
        self._space_length += len(space)
        if self._space_length > self._max_hold:
            # More white space than the upper bound counts as text.
            self._out.append(TextDelta("".join(self._space)))
            self._space.clear()
            self._has_emitted = True
            self._is_after_call = False

    def _stop_at(self, text: str, found: re.Match[str], openers: Openers) -> int:
        self._end = found.start()
        if not found.lastindex:
            literal = found[0]
            rest = text[found.end() :]
            is_in_code = self._state in self._CODE
            self._match = OpenerMatch(literal, openers[literal], rest, is_in_code)
        return len(text)

    def _start_run(self, char: str, end_run: Callable[[TextScanner], _State], pos: int) -> int:
        self._run_char = char
        self._run_length = 0
        self._end_run = end_run
        self._state = TextScanner._read_run
        return pos

    def _read_run(self, text: str, pos: int) -> int:
        end = _RUNS[self._run_char].match(text, pos).end()  # type: ignore[union-attr]
        self._run_length += end - pos
        if end < len(text):
            self._state = self._end_run(self)
        return end

    def _read_line_start(self, text: str, pos: int) -> int:
        pos = _BLANKS.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if found := self._openers.line_start.match(text, pos):
            return self._stop_at(text, found, self._openers.at_line_start)
        self._state = TextScanner._read_marks
        return pos

    def _read_marks(self, text: str, pos: int) -> int:
        pos = _LINE_MARKS.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if text[pos] in "`~":
            self._may_be_fence = True
            return self._start_run(text[pos], TextScanner._end_opening_run, pos)
        self._state = TextScanner._read_line
        return pos

    def _read_line(self, text: str, pos: int) -> int:
        found = self._openers.line.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        char = text[pos]
        if char == "\n":
            self._state = TextScanner._read_line_start
            return pos + 1
        if char == "`":
            self._may_be_fence = False
            return self._start_run(char, TextScanner._end_opening_run, pos)
        if found[0] == THINK_OPEN:
            return self._start_thinking(text, found)
        return self._stop_at(text, found, self._openers.anywhere)

    def _end_opening_run(self) -> _State:
        self._code_run_length = self._run_length
        self._may_be_fence = self._may_be_fence and self._run_length >= _MIN_FENCE
        if self._run_char == "`":
            return TextScanner._read_code
        return TextScanner._read_fence if self._may_be_fence else TextScanner._read_line

    def _read_code(self, text: str, pos: int) -> int:
        found = self._openers.code.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        char = text[pos]
        if char == "`":
            # A line with a second run of backticks opens no fence.
            self._may_be_fence = False
            return self._start_run(char, TextScanner._end_code_run, pos)
        if char == "\n":
            is_fence = self._may_be_fence
            start = TextScanner._read_fence_start if is_fence else TextScanner._read_line_start
            self._state = start
            return pos + 1
        return self._stop_at(text, found, self._openers.anywhere)

    def _end_code_run(self) -> _State:
        is_end = self._run_length == self._code_run_length
        return TextScanner._read_line if is_end else TextScanner._read_code

    def _read_fence_start(self, text: str, pos: int) -> int:
        pos = _QUOTE_MARKS.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if found := self._openers.fence_start.match(text, pos):
            return self._stop_at(text, found, self._openers.at_line_start)
        if text[pos] == self._run_char:
            return self._start_run(text[pos], TextScanner._end_fence_run, pos)
        self._state = TextScanner._read_fence
        return pos

    def _read_fence(self, text: str, pos: int) -> int:
        found = self._openers.fence.search(text, pos)
        if not found:
            return len(text)
        if found[0] == "\n":
            self._state = TextScanner._read_fence_start
            return found.end()
        return self._stop_at(text, found, self._openers.anywhere)

    def _end_fence_run(self) -> _State:
        is_end = self._run_length >= self._code_run_length
        return TextScanner._read_fence_tail if is_end else TextScanner._read_fence

    def _read_fence_tail(self, text: str, pos: int) -> int:
        end = _BLANKS_AND_CR.match(text, pos).end()  # type: ignore[union-attr]
        if end < len(text):
            is_end = text[end] == "\n"
            self._state = TextScanner._read_line if is_end else TextScanner._read_fence
        return end

    def _start_thinking(self, text: str, tag: re.Match[str]) -> int:
        if self._split_reasoning:
            self._emit(text[self._emitted_to : tag.start()])
            self._emitted_to = tag.end()
        self._state = TextScanner._read_think
        return tag.end()

    def _read_think(self, text: str, pos: int) -> int:
        close = text.find(_THINK_CLOSE, pos)
        end = close if close >= 0 else partial_suffix_start(text, _THINK_CLOSE)
        if self._on_think_text:
            self._on_think_text(text[pos:end])
        if close < 0:
            self._end = end
            return len(text)
        if self._on_think_text:
            self._on_think_text(None)
        if self._split_reasoning:
            self._emit(text[self._emitted_to : end])
            self._emitted_to = end + len(_THINK_CLOSE)
        self._state = TextScanner._read_line_start
        return end + len(_THINK_CLOSE)

    # The columns "code" and "space" of the table.
    _CODE: ClassVar = frozenset({_read_code, _read_fence_start, _read_fence})
    _SPACE: ClassVar = frozenset(
        {_read_line_start, _read_marks, _read_line, _read_code, _read_fence_tail}
    )
