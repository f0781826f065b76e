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
    LINE_START   blanks, quote or list marks of a line           yes    LINE, RUN
    LINE         inside a line                                   yes    LINE_START, RUN, THINK
    RUN          run of ` in text, or of ~ at line start         yes    CODE, TILDE_LINE, LINE
    CODE         inline code, or the line that opens a     yes   yes    CODE_RUN, LINE_START,
                 backtick fence                                         FENCE_START
    CODE_RUN     run of ` that may close inline code       yes          LINE, CODE
    TILDE_LINE   the line that opens a tilde fence         yes          FENCE_START
    FENCE_START  start of a line in a fence                yes          FENCE, FENCE_RUN
    FENCE        inside a line of a fence                  yes          FENCE_START
    FENCE_RUN    run that may close the fence              yes          FENCE_TAIL, FENCE
    FENCE_TAIL   after such a run: only blanks may follow        yes    LINE_START, FENCE
    THINK        think block                                            LINE_START

Openers count outside code and think blocks. With `fenced_calls` they also count in code, except on
the line that opens a tilde fence; white space is then held back in every state of code.

Two things are held back. A literal that has started is held until it is complete or turns out to be
text. White space at the end of the text is held because it is not part of the content if a call
follows. Nothing is held back where no call can follow.

Each state has a method that reads from a position to the end of its state, sets the next state and
returns the position reached. It sets `_stop_position` at an opener, or where a literal begins that
is not complete yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from blockops.toolcalls.deltas import Delta, ReasoningDelta, TextDelta
from blockops.toolcalls.dialect import MAX_OPENER_LENGTH, Dialect
from blockops.toolcalls.opener_table import THINK_OPEN, Openers, OpenerTable
from blockops.toolcalls.partial_match import partial_suffix_start

WHITESPACE = " \t\r\n\f\v"
_THINK_CLOSE = "</think>"
_BLANKS = re.compile(r"[ \t]*")
_LINE_MARKS = re.compile(r"[ \t>*+.)0-9-]*")
_QUOTE_MARKS = re.compile(r"[ \t>]*")
_BLANKS_AND_CR = re.compile(r"[ \t\r]*")
_BACKTICK_OR_LINE_FEED = re.compile(r"[`\n]")
_RUNS = {"`": re.compile("`*"), "~": re.compile("~*")}
_MIN_FENCE = 3


@dataclass(frozen=True, eq=False, slots=True)
class _State:
    """A row of the table above."""

    is_code: bool = False
    holds_space: bool = False


_LINE_START = _State(holds_space=True)
_LINE = _State(holds_space=True)
_RUN = _State(holds_space=True)
_CODE = _State(is_code=True, holds_space=True)
_CODE_RUN = _State(is_code=True, holds_space=True)
_TILDE_LINE = _State(is_code=True)
_FENCE_START = _State(is_code=True)
_FENCE = _State(is_code=True)
_FENCE_RUN = _State(is_code=True)
_FENCE_TAIL = _State(holds_space=True)
_THINK = _State()


@dataclass(frozen=True, slots=True)
class OpenerMatch:
    """
    An opener that was found.

    :param literal: the opener's text
    :param dialects: the dialects that declare it, in order
    :param rest: the text after it
    :param is_in_code: True if it stands in Markdown code
    """

    literal: str
    dialects: tuple[Dialect, ...]
    rest: str
    is_in_code: bool


class TextScanner:
    """
    Reads the text around calls: emits it and stops at each opener.

    :param openers: the literals to look for
    :param fenced_calls: True if calls may open in code
    :param split_reasoning: True if think blocks are reasoning, not text
    :param think_prefilled: True if the text begins inside a think block
    :param max_hold: upper bound of the characters of white space that may be held back
    :param on_think_text: called with the text of think blocks, and with None at the end of one
    :ivar is_mid_line: True if `feed_plain` may be called with text that `openers.is_plain` matches
    :ivar is_idle: True if also no white space is held, so that `openers.verbatim` text would pass
        unchanged
    """

    __slots__ = (
        "_code_run_length",
        "_emitted_to",
        "_fenced_calls",
        "_has_emitted",
        "_is_after_call",
        "_is_line_blank",
        "_match",
        "_max_hold",
        "_may_be_fence",
        "_on_think_text",
        "_openers",
        "_out",
        "_partial",
        "_pieces",
        "_run_char",
        "_run_length",
        "_space",
        "_space_length",
        "_split_reasoning",
        "_state",
        "_stop_position",
        "is_idle",
        "is_mid_line",
    )

    def __init__(
        self,
        openers: OpenerTable,
        *,
        fenced_calls: bool,
        split_reasoning: bool,
        think_prefilled: bool,
        max_hold: int,
        on_think_text: Callable[[str | None], object] | None = None,
    ) -> None:
        self._openers = openers
        self._fenced_calls = fenced_calls
        self._split_reasoning = split_reasoning
        self._max_hold = max_hold
        self._on_think_text = on_think_text
        self._state = _THINK if think_prefilled else _LINE_START
        # True if the line holds only blanks so far, so that openers that need its start count.
        self._is_line_blank = True
        # The current run of backticks or tildes, and the length of the run that opened the code.
        self._run_char = "`"
        self._run_length = 0
        self._code_run_length = 0
        self._may_be_fence = False
        # The position of an opener, or of its beginning, in the current text; -1 if all was read.
        self._stop_position = -1
        self._match: OpenerMatch | None = None
        # The beginning of a literal at the end of the text.
        self._partial = ""
        # White space that is held back.
        self._space: list[str] = []
        self._space_length = 0
        # Text to emit at the next flush.
        self._pieces: list[str] = []
        # The position up to which the current text was emitted or dropped.
        self._emitted_to = 0
        self._out: list[Delta] = []
        self._has_emitted = False
        self._is_after_call = False
        self.is_mid_line = False
        self.is_idle = False

    def feed(self, text: str, out: list[Delta]) -> OpenerMatch | None:
        """Read `text`; return the first opener in it, or None if all of it was read."""
        self._out = out
        if self._partial:
            text = self._partial + text
            self._partial = ""
        self._stop_position = -1
        self._match = None
        self._emitted_to = pos = 0
        size = len(text)
        while pos < size and self._stop_position < 0:
            pos = self._METHODS[self._state](self, text, pos)
        end = size if self._stop_position < 0 else self._stop_position
        self._emit_up_to(text, end)
        if self._match is None:
            self._partial = text[end:]
        self.is_mid_line = (
            self._state is _LINE
            and not (self._partial or self._is_after_call)
            and self._match is None
        )
        self.is_idle = self.is_mid_line and not self._space
        return self._match

    def feed_plain(self, text: str) -> str:
        """Read text that `openers.is_plain` matches, as `feed` would; return the text to emit."""
        stripped = text.rstrip(" \t")
        emitted = "".join(self._space) + stripped
        self._space.clear()
        self._space_length = len(text) - len(stripped)
        self.is_idle = not self._space_length
        if self._space_length > self._max_hold:
            self._space_length, self.is_idle = 0, True
            return emitted + text[len(stripped) :]
        if self._space_length:
            self._space.append(text[len(stripped) :])
        self._has_emitted = True
        return emitted

    def emit_as_text(self, text: str) -> None:
        """Emit an opener that opens no call, or ordinary text that a call's reader has read."""
        self._add_text(text)
        if self._state is _LINE_START:
            self._state = _LINE
        elif self._state is _FENCE_START:
            self._state = _FENCE

    def drop_space_before_call(self) -> None:
        """Drop the white space that is held back: a call has started after it."""
        self._space.clear()
        self._space_length = 0
        self._is_after_call = True

    def resume_after_call(self) -> None:
        """Set the state for the text after a call: the start of a line, except in inline code."""
        if self._state is _FENCE:
            self._state = _FENCE_START
        elif not self._state.is_code:
            self._state = _LINE_START
            self._is_line_blank = True

    def finish(self, out: list[Delta]) -> None:
        """Emit the text that is held back, except white space after a last call."""
        self._out = out
        partial, self._partial = self._partial, ""
        if partial and self._split_reasoning and self._state is _THINK:
            self._emit_reasoning(partial)
        elif partial:
            self._add_text(partial)
        if self._space and not self._is_after_call:
            self._pieces.extend(self._space)
        self._space.clear()
        self.flush(out)

    def flush(self, out: list[Delta]) -> None:
        """Append the text emitted so far to `out`, as one delta."""
        pieces = self._pieces
        if pieces:
            out.append(TextDelta(pieces[0] if len(pieces) == 1 else "".join(pieces)))
            pieces.clear()

    # Emitting text.

    def _emit_up_to(self, text: str, end: int) -> None:
        """Emit the part of `text` before `end` that was not emitted yet."""
        start = self._emitted_to
        self._emitted_to = end
        if start == end:
            return
        if start or end < len(text):
            text = text[start:end]
        if self._split_reasoning and self._state is _THINK:
            self._emit_reasoning(text)
        else:
            self._add_text(text)

    def _add_text(self, text: str) -> None:
        """Emit `text`; hold back the white space at its end in a state that holds space."""
        state = self._state
        if not (state.holds_space or (self._fenced_calls and state.is_code)):
            self._emit(text)
            return
        stripped = text.rstrip(WHITESPACE)
        if stripped:
            self._emit(stripped)
        if len(stripped) < len(text):
            self._hold_space(text[len(stripped) :])

    def _emit(self, text: str) -> None:
        if self._is_after_call:
            self._is_after_call = False
            stripped = text.lstrip(WHITESPACE)
            space_length = self._space_length + len(text) - len(stripped)
            if not self._has_emitted and space_length <= self._max_hold:
                # White space between a call and the first text of the answer is dropped.
                self._space.clear()
                self._space_length = 0
                text = stripped
        if self._space_length:
            self._pieces.extend(self._space)
            self._space.clear()
            self._space_length = 0
        self._has_emitted = True
        self._pieces.append(text)

    def _hold_space(self, space: str) -> None:
        self._space_length += len(space)
        self._space.append(space)
        if self._space_length > self._max_hold:
            # More white space than the upper bound counts as text.
            self._pieces.extend(self._space)
            self._space.clear()
            self._has_emitted = True
            self._is_after_call = False

    def _emit_reasoning(self, text: str) -> None:
        self.flush(self._out)
        self._out.append(ReasoningDelta(text))

    # Literals and runs at a position.

    def _read_literal(self, text: str, pos: int, openers: Openers) -> int:
        """
        Read the literal at `pos`, which may be cut off by the end of the text.

        Returns the position to continue at; -1 if no literal begins at `pos`.
        """
        ahead = text[pos : pos + MAX_OPENER_LENGTH]
        is_in_code = self._state.is_code
        for literal, dialects in openers.items():
            if is_in_code and literal == THINK_OPEN:
                continue
            if ahead.startswith(literal):
                if literal == THINK_OPEN:
                    return self._start_thinking(text, pos)
                rest = text[pos + len(literal) :]
                self._match = OpenerMatch(literal, dialects, rest, is_in_code)
                self._stop_position = pos
                return pos
            if literal.startswith(ahead):
                self._stop_position = pos
                return pos
        return -1

    def _start_run(self, char: str, state: _State, pos: int) -> int:
        self._run_char = char
        self._run_length = 0
        self._state = state
        return pos

    def _continue_run(self, text: str, pos: int) -> int:
        """Count the run's characters from `pos`; return their end."""
        end = _RUNS[self._run_char].match(text, pos).end()  # type: ignore[union-attr]
        self._run_length += end - pos
        return end

    # Text.

    def _read_line_start(self, text: str, pos: int) -> int:
        pos = _BLANKS.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if self._is_line_blank:
            after = self._read_literal(text, pos, self._openers.line_start)
            if after >= 0:
                return after
        marks_end = _LINE_MARKS.match(text, pos).end()  # type: ignore[union-attr]
        if marks_end > pos:
            self._is_line_blank = False
            return marks_end
        if text[pos] in "`~":
            self._may_be_fence = True
            return self._start_run(text[pos], _RUN, pos)
        if text[pos] == "\n":
            self._is_line_blank = True
            return pos + 1
        self._state = _LINE
        return pos

    def _read_line(self, text: str, pos: int) -> int:
        found = self._openers.in_line.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        char = text[pos]
        if char == "\n":
            return self._start_line(pos)
        if char == "`":
            self._may_be_fence = False
            return self._start_run(char, _RUN, pos)
        after = self._read_literal(text, pos, self._openers.anywhere)
        return after if after >= 0 else pos + 1

    def _start_line(self, pos: int) -> int:
        """Start a line of text after the character at `pos`."""
        self._state = _LINE_START
        self._is_line_blank = True
        return pos + 1

    def _read_run(self, text: str, pos: int) -> int:
        end = self._continue_run(text, pos)
        if end == len(text):
            return end
        self._code_run_length = self._run_length
        self._may_be_fence = self._may_be_fence and self._run_length >= _MIN_FENCE
        if self._run_char == "`":
            self._state = _CODE
        else:
            self._state = _TILDE_LINE if self._may_be_fence else _LINE
        return end

    # Code.

    def _read_code(self, text: str, pos: int) -> int:
        pattern = self._openers.in_line if self._fenced_calls else _BACKTICK_OR_LINE_FEED
        found = pattern.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        char = text[pos]
        if char == "`":
            # A line with a second run of backticks opens no fence.
            self._may_be_fence = False
            return self._start_run(char, _CODE_RUN, pos)
        if char != "\n":
            after = self._read_literal(text, pos, self._openers.anywhere)
            return after if after >= 0 else pos + 1
        if not self._may_be_fence:
            return self._start_line(pos)
        self._state = _FENCE_START
        return pos + 1

    def _read_code_run(self, text: str, pos: int) -> int:
        end = self._continue_run(text, pos)
        if end < len(text):
            self._state = _LINE if self._run_length == self._code_run_length else _CODE
        return end

    def _read_to_fence_line(self, text: str, pos: int) -> int:
        """Read up to the next line of the fence."""
        end = text.find("\n", pos)
        if end < 0:
            return len(text)
        self._state = _FENCE_START
        return end + 1

    def _read_fence_start(self, text: str, pos: int) -> int:
        pos = _QUOTE_MARKS.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if self._fenced_calls:
            after = self._read_literal(text, pos, self._openers.line_start)
            if after >= 0:
                return after
        if text[pos] == self._run_char:
            return self._start_run(text[pos], _FENCE_RUN, pos)
        self._state = _FENCE
        return pos

    def _read_fence(self, text: str, pos: int) -> int:
        if not self._fenced_calls:
            return self._read_to_fence_line(text, pos)
        found = self._openers.in_fence.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        if text[pos] == "\n":
            self._state = _FENCE_START
            return pos + 1
        after = self._read_literal(text, pos, self._openers.anywhere)
        return after if after >= 0 else pos + 1

    def _read_fence_run(self, text: str, pos: int) -> int:
        end = self._continue_run(text, pos)
        if end < len(text):
            is_long_enough = self._run_length >= self._code_run_length
            self._state = _FENCE_TAIL if is_long_enough else _FENCE
        return end

    def _read_fence_tail(self, text: str, pos: int) -> int:
        end = _BLANKS_AND_CR.match(text, pos).end()  # type: ignore[union-attr]
        if end == len(text):
            return end
        if text[end] == "\n":
            return self._start_line(end)
        self._state = _FENCE
        return end

    # Think blocks.

    def _start_thinking(self, text: str, pos: int) -> int:
        end = pos + len(THINK_OPEN)
        if self._split_reasoning:
            self._emit_up_to(text, pos)
            self._emitted_to = end
        self._state = _THINK
        return end

    def _read_think(self, text: str, pos: int) -> int:
        close = text.find(_THINK_CLOSE, pos)
        if close < 0:
            self._stop_position = end = partial_suffix_start(text, _THINK_CLOSE)
        else:
            end = close
        if self._on_think_text:
            self._on_think_text(text[pos:end])
            if close >= 0:
                self._on_think_text(None)
        if close < 0:
            return end
        if self._split_reasoning:
            self._emit_up_to(text, close)
            self._emitted_to = close + len(_THINK_CLOSE)
        return self._start_line(close + len(_THINK_CLOSE) - 1)

    _METHODS: ClassVar[dict[_State, Callable[[TextScanner, str, int], int]]] = {
        _LINE_START: _read_line_start,
        _LINE: _read_line,
        _RUN: _read_run,
        _CODE: _read_code,
        _CODE_RUN: _read_code_run,
        _TILDE_LINE: _read_to_fence_line,
        _FENCE_START: _read_fence_start,
        _FENCE: _read_fence,
        _FENCE_RUN: _read_fence_run,
        _FENCE_TAIL: _read_fence_tail,
        _THINK: _read_think,
    }
