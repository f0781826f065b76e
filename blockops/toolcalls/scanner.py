"""
Finds what may open a call in text that is cut anywhere, and holds back as little as it can.

The text is Markdown, of which this much is followed:

- A line begins behind a line feed, at the start of the text, behind a call and behind a think
  block.
- A run of backticks opens inline code, which ends at the next run of the same length, or at the end
  of the line.
- A run of three or more backticks (and no other on its line) or tildes at the start of a line,
  where quote and list marks may precede it, opens a fence. It ends at a line of at least as many of
  the same and nothing else; without such a line it does not end.
- `<think>` outside code opens a think block, which ends at the next `</think>`.

Openers count outside code and think blocks; in code too where fenced calls are allowed.

What is held back: a literal that has begun, until it is whole or is none; and white space at the
end of what was read, because it does not belong to the content if a call follows. Where no call can
follow at once (in a fence, in a think block) nothing is held.

A state is a method: it reads from a position as far as its kind of text goes, sets the next state
and returns the position reached. It sets `_stop` where the text must wait for more, or opens a
call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from blockops.toolcalls.events import Delta, Reasoning, Text
from blockops.toolcalls.partial_match import begun_at_the_end
from blockops.toolcalls.reader import ToolCallFormat
from blockops.toolcalls.verbatim import Verbatim, spelling

WHITE = " \t\r\n\f\v"
_THINK = "<think>"
_THOUGHT = "</think>"
_BLANKS = re.compile(r"[ \t]*")
_LINE_MARKS = re.compile(r"[ \t>*+.)0-9-]*")
_QUOTE_MARKS = re.compile(r"[ \t>]*")
_BLANK_TAIL = re.compile(r"[ \t\r]*")
_TICKS_OR_END = re.compile(r"[`\n]")
_RUNS = {"`": re.compile("`*"), "~": re.compile("~*")}
_FENCE = 3

MAX_LITERAL = 64
"""Characters of the longest opener."""

_Literals = dict[str, tuple[ToolCallFormat, ...]]


@dataclass(frozen=True, slots=True)
class Opened:
    """
    A call may begin: `literal` was read, and `rest` stands behind it.

    :param formats: the formats that it opens, in order
    :param in_code: whether it stands in code
    """

    literal: str
    formats: tuple[ToolCallFormat, ...]
    rest: str
    in_code: bool


class Literals:
    """
    What to look for: the openers of some formats, and the think tag.

    :ivar plain: text, in the middle of a line, that holds nothing to look at
    :ivar is_spaced: says the same of what has spaces behind it
    """

    def __init__(self, formats: tuple[ToolCallFormat, ...]) -> None:
        self.anywhere: _Literals = {_THINK: ()}
        self.line_start: _Literals = {}
        for each in formats:
            for opener in each.openers:
                there = self.line_start if opener.line_start else self.anywhere
                there[opener.text] = (*there.get(opener.text, ()), each)
        firsts = "".join(sorted({re.escape(text[0]) for text in self.anywhere}))
        self.plain = Verbatim(
            re.compile(rf"[^{firsts}`\n]*[^{firsts}`\s]"),
            spelling(rf'\\(?![{firsts}])["\\/]', without=f"`{firsts}", end="(?<! )"),
        )
        self.is_spaced = re.compile(rf"[^{firsts}`\n]*[^{firsts}`\s][ \t]*").fullmatch
        self.in_line = re.compile(rf"[{firsts}`\n]")
        self.in_fence = re.compile(rf"[{firsts}\n]")
        # The longest first, so that a literal is not taken for a shorter one it begins with.
        self.anywhere = dict(sorted(self.anywhere.items(), key=lambda item: -len(item[0])))
        self.line_start = dict(sorted(self.line_start.items(), key=lambda item: -len(item[0])))


literals_of = lru_cache(maxsize=16)(Literals)


class TextScanner:
    """
    Read the text around calls: pass it on, follow its Markdown, stop where a call may open.

    :param literals: what to look for
    :param fenced_calls: whether calls may open in code
    :param split: whether think blocks are reasoning, and not text
    :param prefilled: whether the text begins inside a think block
    :param max_hold: characters of white space that may be held back
    :param thoughts: is told what stands in think blocks, and, with None, where one ends
    :ivar ready: whether text that is `literals.plain` would pass unchanged
    :ivar gliding: whether `glide` may be given text that `literals.is_spaced`
    """

    __slots__ = (
        "_bare",
        "_begun",
        "_behind_call",
        "_code_length",
        "_fenced_calls",
        "_literals",
        "_max_hold",
        "_may_be_fence",
        "_opened",
        "_out",
        "_pieces",
        "_run_char",
        "_run_length",
        "_said",
        "_space",
        "_space_length",
        "_split",
        "_start",
        "_state",
        "_stop",
        "_thoughts",
        "_waits",
        "gliding",
        "ready",
    )

    def __init__(
        self,
        literals: Literals,
        *,
        fenced_calls: bool,
        split: bool,
        prefilled: bool,
        max_hold: int,
        thoughts: Callable[[str | None], object] = str,
    ) -> None:
        self._literals = literals
        self._fenced_calls = fenced_calls
        self._split = split
        self._max_hold = max_hold
        self._thoughts = thoughts
        self._state: Callable[[str, int], int] = self._think if prefilled else self._line_start
        self._waits = self._WAITS | self._IN_CODE if fenced_calls else self._WAITS
        # Only white space since the line began: openers that need a line's start may come.
        self._bare = True
        # The run of backticks or tildes being read, and the one that opened the code around.
        self._run_char = "`"
        self._run_length = 0
        self._code_length = 0
        self._may_be_fence = False
        self._stop = -1
        self._opened: Opened | None = None
        # A literal that has begun.
        self._begun = ""
        self._space: list[str] = []
        self._space_length = 0
        self._pieces: list[str] = []
        self._start = 0
        self._out: list[Delta] = []
        # Whether text went out yet, and whether a call came after it.
        self._said = False
        self._behind_call = False
        self.ready = self.gliding = False

    def feed(self, text: str, out: list[Delta]) -> Opened | None:
        """Read `text`; return what opened, or None when all of it was read."""
        self._out = out
        if self._begun:
            text = self._begun + text
            self._begun = ""
        self._stop = -1
        self._opened = None
        self._start = pos = 0
        size = len(text)
        while pos < size and self._stop < 0:
            pos = self._state(text, pos)
        end = size if self._stop < 0 else self._stop
        self._pass(text, end)
        if self._opened is None:
            self._begun = text[end:]
        self.gliding = (
            self._state == self._line
            and not (self._begun or self._behind_call)
            and self._opened is None
        )
        self.ready = self.gliding and not self._space
        return self._opened

    def glide(self, text: str) -> str:
        """Return what passes of `text`, and hold back the spaces at its end, as `feed` would."""
        said = text.rstrip(" \t")
        out = "".join(self._space) + said
        self._space.clear()
        self._space_length = len(text) - len(said)
        self.ready = not self._space_length
        if self._space_length > self._max_hold:
            self._space_length, self.ready = 0, True
            return out + text[len(said) :]
        if self._space_length:
            self._space.append(text[len(said) :])
        self._said = True
        return out

    def take_for_text(self, text: str) -> None:
        """Take for text what opened no call, or has no place in a call's frame."""
        self._add(text)
        if self._state == self._line_start:
            self._state = self._line
        elif self._state == self._fence_start:
            self._state = self._fence

    def call_began(self) -> None:
        """Forget the white space in front of a call."""
        self._space.clear()
        self._space_length = 0
        self._behind_call = True

    def call_passed(self) -> None:
        """Go on behind a call."""
        if self._state == self._fence:
            self._state = self._fence_start
        elif self._state.__name__ not in self._IN_CODE:
            self._state = self._line_start
            self._bare = True

    def finish(self, out: list[Delta]) -> None:
        """Let go what is held back; white space behind a last call is dropped."""
        self._out = out
        begun, self._begun = self._begun, ""
        if begun and self._split and self._state == self._think:
            self._reason(begun)
        elif begun:
            self._add(begun)
        if self._space and not self._behind_call:
            self._pieces.extend(self._space)
        self._space.clear()
        self.flush(out)

    def flush(self, out: list[Delta]) -> None:
        """Append the text read so far to `out`."""
        pieces = self._pieces
        if pieces:
            out.append(Text(pieces[0] if len(pieces) == 1 else "".join(pieces)))
            pieces.clear()

    # Passing text on.

    def _pass(self, text: str, end: int) -> None:
        """Pass `text` on from where it was not passed yet up to `end`."""
        start = self._start
        self._start = end
        if start == end:
            return
        if start or end < len(text):
            text = text[start:end]
        if self._split and self._state == self._think:
            self._reason(text)
        else:
            self._add(text)

    def _add(self, text: str) -> None:
        if self._state.__name__ not in self._waits:
            self._say(text)
            return
        said = text.rstrip(WHITE)
        if said:
            self._say(said)
        if len(said) < len(text):
            self._hold_space(text[len(said) :])

    def _say(self, text: str) -> None:
        if self._behind_call:
            text = self._behind_the_call(text)
        if self._space_length:
            self._pieces.extend(self._space)
            self._space.clear()
            self._space_length = 0
        self._said = True
        self._pieces.append(text)

    def _behind_the_call(self, text: str) -> str:
        """Drop white space between a call and the first text of all, unless it is too much."""
        bare = text.lstrip(WHITE)
        if not self._said and self._space_length + len(text) - len(bare) <= self._max_hold:
            self._space.clear()
            self._space_length = 0
            text = bare
        self._behind_call = False
        return text

    def _hold_space(self, space: str) -> None:
        self._space_length += len(space)
        self._space.append(space)
        if self._space_length > self._max_hold:
            # So much of it is text.
            self._pieces.extend(self._space)
            self._space.clear()
            self._said = True
            self._behind_call = False

    def _reason(self, text: str) -> None:
        self.flush(self._out)
        self._out.append(Reasoning(text))

    # What begins at a position.

    def _literal_at(self, text: str, pos: int, literals: _Literals) -> int:
        """Return how far a literal at `pos` leads, -1 if none stands there or has begun."""
        here = text[pos : pos + MAX_LITERAL]
        in_code = self._state.__name__ in self._IN_CODE
        for literal, formats in literals.items():
            if in_code and literal == _THINK:
                continue
            if here.startswith(literal):
                if literal == _THINK:
                    return self._begin_thinking(text, pos)
                rest = text[pos + len(literal) :]
                self._opened = Opened(literal, formats, rest, in_code)
                self._stop = pos
                return pos
            if literal.startswith(here):
                self._stop = pos
                return pos
        return -1

    def _begin_run(self, char: str, state: Callable[[str, int], int], pos: int) -> int:
        self._run_char = char
        self._run_length = 0
        self._state = state
        return pos

    def _run_goes_on(self, text: str, pos: int) -> int:
        """Count on; the run is over if the position returned is not the text's end."""
        end = _RUNS[self._run_char].match(text, pos).end()  # type: ignore[union-attr]
        self._run_length += end - pos
        return end

    # Text.

    def _line_start(self, text: str, pos: int) -> int:
        """Nothing but white space, or quote and list marks, stands on this line yet."""
        pos = _BLANKS.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if self._bare:
            there = self._literal_at(text, pos, self._literals.line_start)
            if there >= 0:
                return there
        marks = _LINE_MARKS.match(text, pos).end()  # type: ignore[union-attr]
        if marks > pos:
            self._bare = False
            return marks
        if text[pos] in "`~":
            self._may_be_fence = True
            return self._begin_run(text[pos], self._run, pos)
        if text[pos] == "\n":
            self._bare = True
            return pos + 1
        self._state = self._line
        return pos

    def _line(self, text: str, pos: int) -> int:
        """In the middle of a line."""
        found = self._literals.in_line.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        char = text[pos]
        if char == "\n":
            return self._new_line(pos)
        if char == "`":
            self._may_be_fence = False
            return self._begin_run(char, self._run, pos)
        there = self._literal_at(text, pos, self._literals.anywhere)
        return there if there >= 0 else pos + 1

    def _new_line(self, pos: int) -> int:
        self._state = self._line_start
        self._bare = True
        return pos + 1

    def _run(self, text: str, pos: int) -> int:
        """In a run of backticks in text, or of tildes at the start of a line."""
        end = self._run_goes_on(text, pos)
        if end == len(text):
            return end
        self._code_length = self._run_length
        self._may_be_fence = self._may_be_fence and self._run_length >= _FENCE
        if self._run_char == "`":
            self._state = self._code
        else:
            self._state = self._tilde_line if self._may_be_fence else self._line
        return end

    # Code.

    def _code(self, text: str, pos: int) -> int:
        """In inline code, or on the line that opens a fence if no other backtick follows on it."""
        pattern = self._literals.in_line if self._fenced_calls else _TICKS_OR_END
        found = pattern.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        char = text[pos]
        if char == "`":
            self._may_be_fence = False
            return self._begin_run(char, self._code_run, pos)
        if char != "\n":
            there = self._literal_at(text, pos, self._literals.anywhere)
            return there if there >= 0 else pos + 1
        if not self._may_be_fence:
            return self._new_line(pos)
        self._state = self._fence_start
        return pos + 1

    def _code_run(self, text: str, pos: int) -> int:
        """In a run of backticks that may close inline code."""
        end = self._run_goes_on(text, pos)
        if end < len(text):
            closed = self._run_length == self._code_length
            self._run_char = "`"
            self._state = self._line if closed else self._code
        return end

    def _tilde_line(self, text: str, pos: int) -> int:
        """On the line that opens a fence of tildes."""
        end = text.find("\n", pos) + 1
        if end:
            self._state = self._fence_start
        return end or len(text)

    def _fence(self, text: str, pos: int) -> int:
        """In the middle of a line in a fence."""
        if not self._fenced_calls:
            end = text.find("\n", pos) + 1
            if end:
                self._state = self._fence_start
            return end or len(text)
        found = self._literals.in_fence.search(text, pos)
        if not found:
            return len(text)
        pos = found.start()
        if text[pos] == "\n":
            self._state = self._fence_start
            return pos + 1
        there = self._literal_at(text, pos, self._literals.anywhere)
        return there if there >= 0 else pos + 1

    def _fence_start(self, text: str, pos: int) -> int:
        """At the start of a line in a fence."""
        pos = _QUOTE_MARKS.match(text, pos).end()  # type: ignore[union-attr]
        if pos == len(text):
            return pos
        if self._fenced_calls:
            there = self._literal_at(text, pos, self._literals.line_start)
            if there >= 0:
                return there
        if text[pos] == self._run_char:
            return self._begin_run(text[pos], self._fence_run, pos)
        self._state = self._fence
        return pos

    def _fence_run(self, text: str, pos: int) -> int:
        """In a run that may close the fence."""
        end = self._run_goes_on(text, pos)
        if end < len(text):
            long_enough = self._run_length >= self._code_length
            self._state = self._fence_tail if long_enough else self._fence
        return end

    def _fence_tail(self, text: str, pos: int) -> int:
        """Behind a run that closes the fence if nothing else stands on its line."""
        end = _BLANK_TAIL.match(text, pos).end()  # type: ignore[union-attr]
        if end == len(text):
            return end
        if text[end] == "\n":
            return self._new_line(end)
        self._state = self._fence
        return end

    # Think blocks.

    def _begin_thinking(self, text: str, pos: int) -> int:
        end = pos + len(_THINK)
        if self._split:
            self._pass(text, pos)
            self._start = end
        self._state = self._think
        return end

    def _think(self, text: str, pos: int) -> int:
        """In a think block."""
        end = text.find(_THOUGHT, pos)
        if end < 0:
            self._stop = begun_at_the_end(text, _THOUGHT)
            self._thoughts(text[pos : self._stop])
            return self._stop
        self._thoughts(text[pos:end])
        self._thoughts(None)
        if self._split:
            self._pass(text, end)
            self._start = end + len(_THOUGHT)
        return self._new_line(end + len(_THOUGHT) - 1)

    #: The states inside of code, and those in which white space waits for what follows it.
    _IN_CODE = frozenset(
        state.__name__
        for state in (_code, _code_run, _tilde_line, _fence, _fence_start, _fence_run)
    )
    _WAITS = frozenset(
        state.__name__ for state in (_line_start, _line, _run, _code, _code_run, _fence_tail)
    )
