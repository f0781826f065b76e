"""
The common part of the state machines that read JSON: comments, words, the progress of a value.

Each state is a method `(text, pos) -> pos`: it reads as much of `text` from `pos` as belongs to it,
sets the next state and returns the position that it reached.

A comment may stand wherever white space may. It interrupts a state, which resumes after it:

    state             reads                                    next state
    after_slash       the comment's second character           in_line_comment, in_block_comment;
                                                                 broken at any other
    in_line_comment   up to the line feed                      the interrupted state
    in_block_comment  up to "*/"                               the interrupted state
    after_star        a character, after a piece that ended    the interrupted state if it is "/",
                        with "*"                                 else in_block_comment

A comment that contains the budget's closing tag breaks the value there, and so does a comment that
exceeds the budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from blockops.toolcalls.partial_match import partial_suffix_start
from blockops.toolcalls.verbatim import Verbatim

MAX_WORD = 4_096
"""Characters of one number, one word, or one key without quotes."""

MAX_COMMENTS = 16_384
"""Characters of all comments of one value, unless a budget sets less."""

SPACE = re.compile(r"[ \t\r\n]*")
"""JSON's white space (RFC 8259, section 2), and the white space between tags."""

WORD = re.compile(r"[\w$+.-]*")
"""The characters of numbers, literals and keys without quotes; more than any of them allows."""


class Status(Enum):
    """The progress of a value."""

    OPEN = "more text may belong to it"
    COMPLETE = "it has ended"
    BROKEN = "the next character cannot belong to it"


class CommentBudget:
    """
    The upper bound of the comments in the values that share it.

    Text may be read again after each opener in it, and a comment may hide many openers: without the
    bound, that would cost quadratic time.

    :param limit: characters of all comments together
    :param closing_tag: the tag that ends the call: a value with this tag in a comment is broken
        there; "" if comments may contain any text
    :ivar remaining: characters that are left
    :ivar partial_closing_tag: the beginning of the tag with which the comments' text ends so far
    """

    __slots__ = ("closing_tag", "partial_closing_tag", "remaining")

    def __init__(self, limit: int = MAX_COMMENTS, closing_tag: str = "") -> None:
        self.remaining = limit
        self.closing_tag = closing_tag
        self.partial_closing_tag = ""

    def find_closing_tag(self, text: str, pos: int, end: int) -> int:
        """
        Return the position of the closing tag in the comment from `pos` to `end`, or -1.

        If the tag began in an earlier piece, return `pos`.
        """
        end = min(end, pos + self.remaining)
        partial_length = len(self.partial_closing_tag)
        comment = self.partial_closing_tag + text[pos:end]
        start = comment.find(self.closing_tag)
        if start >= 0:
            self.partial_closing_tag = comment[start:partial_length]
            return pos + max(start - partial_length, 0)
        partial_start = partial_suffix_start(comment, self.closing_tag)
        self.partial_closing_tag = comment[partial_start:] if end == len(text) else ""
        return -1


class ValueReader(Protocol):
    """Reads one value from text that arrives in pieces."""

    status: Status

    @property
    def pending(self) -> str:
        """The text that was read but not written when the value broke."""
        ...

    @property
    def error_count(self) -> int:
        """The number of constructs that passed although JSON does not allow them."""
        ...

    @property
    def closing_bracket(self) -> str:
        """
        The last bracket of an object or array; "" for other values and while the value is open.

        `feed` does not append it: the caller does, once it is certain that the call is complete.
        """
        ...

    def feed(self, text: str, start: int, out: list[str]) -> int:
        """
        Read `text` from `start`, append the value's JSON to `out`, return the position reached.

        That is the end of `text` while the value is open, else the first character after it.
        """
        ...

    @property
    def verbatim(self) -> Verbatim | None:
        """The text that would be written unchanged, without a change of state."""
        ...

    def completion(self) -> str | None:
        """Return the text missing before `closing_bracket`, or None if more than brackets is."""
        ...


class JsonStateMachine:
    """
    The base class of `StreamingJson` and `JsonCall`, which define `feed` and the other states.

    :param first_state: the state that reads the first character
    :param comments: the budget for its comments
    :ivar status: the progress of the value
    :ivar pending: text that was read but may have to be written differently: a comma with the white
        space after it, the beginning of a word or of an escape. After `BROKEN`, it was not written
    """

    __slots__ = (
        "_comments",
        "_interrupted_state",
        "_out",
        "_state",
        "_unwritten_from",
        "pending",
        "status",
    )

    def __init__(
        self, first_state: Callable[[str, int], int], comments: CommentBudget | None = None
    ) -> None:
        self.status = Status.OPEN
        self._state = self._interrupted_state = first_state
        self.pending = ""
        # The position in the current text up to which it was written to `_out` or dropped.
        self._unwritten_from = 0
        self._comments = comments or CommentBudget()
        self._out: list[str] = []

    def _flush(self, text: str, pos: int) -> None:
        if pos > self._unwritten_from:
            self._out.append(text[self._unwritten_from : pos])
        self._unwritten_from = pos

    def _replace(self, text: str, pos: int, end: int, replacement: str) -> int:
        """Write `replacement` instead of the text from `pos` to `end`."""
        self._flush(text, pos)
        self._out.append(replacement)
        self._unwritten_from = end
        return end

    def _break(self, pos: int) -> int:
        self.status = Status.BROKEN
        return pos

    def _start_comment_or_break(self, text: str, pos: int) -> int:
        """Start a comment if one begins at `pos`; else break: no expected token begins there."""
        self._flush(text, pos)
        if text[pos] != "/":
            return self._break(pos)
        self._interrupted_state = self._state
        self._state = self._after_slash
        self._unwritten_from = pos + 1
        return pos + 1

    def _read_word(self, text: str, pos: int) -> int:
        """Move the characters of a word to `pending`, at most `MAX_WORD` in all."""
        self._flush(text, pos)
        limit = pos + MAX_WORD - len(self.pending)
        end = min(WORD.match(text, pos).end(), limit)  # type: ignore[union-attr]
        self._unwritten_from = end
        self.pending += text[pos:end]
        return end

    # Comments.

    def _after_slash(self, text: str, pos: int) -> int:
        if text[pos] == "/":
            self._state = self._in_line_comment
        elif text[pos] == "*":
            self._state = self._in_block_comment
        else:
            self.pending += "/"
            return self._break(pos)
        self._unwritten_from = pos + 1
        return pos + 1

    def _in_line_comment(self, text: str, pos: int) -> int:
        end = text.find("\n", pos)
        if self._break_at_closing_tag(text, pos, end):
            return self._unwritten_from
        if end >= 0:
            self._state = self._interrupted_state
        return self._drop_comment(pos, end if end >= 0 else len(text))

    def _in_block_comment(self, text: str, pos: int) -> int:
        end = text.find("*/", pos)
        if self._break_at_closing_tag(text, pos, end):
            return self._unwritten_from
        if end >= 0:
            self._state = self._interrupted_state
            return self._drop_comment(pos, end + 2)
        if text.endswith("*"):
            self._state = self._after_star
        return self._drop_comment(pos, len(text))

    def _after_star(self, text: str, pos: int) -> int:
        if text[pos] != "/":
            self._state = self._in_block_comment
            return pos
        self._state = self._interrupted_state
        return self._drop_comment(pos, pos + 1)

    def _break_at_closing_tag(self, text: str, pos: int, end: int) -> bool:
        """Break, and return True, if the comment from `pos` to `end` contains the closing tag."""
        if not self._comments.closing_tag:
            return False
        start = self._comments.find_closing_tag(text, pos, end if end >= 0 else len(text))
        if start < 0:
            return False
        self._state = self._interrupted_state
        self._unwritten_from = self._break(start)
        return True

    def _drop_comment(self, pos: int, end: int) -> int:
        """Drop the part of a comment from `pos` to `end`; break where the budget is spent."""
        self._unwritten_from = min(end, pos + self._comments.remaining)
        self._comments.remaining -= self._unwritten_from - pos
        if self._unwritten_from < end:
            return self._break(self._unwritten_from)
        return end
