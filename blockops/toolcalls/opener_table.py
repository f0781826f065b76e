"""The literals that the scanner looks for, and the patterns that find them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from blockops.toolcalls.dialect import Dialect
from blockops.toolcalls.partial_match import literal_pattern

THINK_OPEN = "<think>"

_MAX_INDENT = 8
"""An opener that needs the start of a line is counted after at most this many blanks."""

Openers = dict[str, tuple[Dialect, ...]]
"""The text of each opener -> the dialects that declare it, in the order in which they are tried."""


class OpenerTable:
    """
    The openers of `dialects`, and patterns for what the scanner looks for, by `literal_pattern`.

    :ivar line: what may end a line's ordinary text: its end, code, an opener, a think block
    :ivar plain: text inside a line that holds nothing of that, and ends without white space
    """

    def __init__(self, dialects: tuple[Dialect, ...], *, fenced_calls: bool) -> None:
        self.anywhere: Openers = {}
        self.at_line_start: Openers = {}
        for dialect in dialects:
            for opener in dialect.openers:
                openers = self.at_line_start if opener.line_start else self.anywhere
                openers[opener.text] = (*openers.get(opener.text, ()), dialect)
        in_code = self.anywhere if fenced_calls else ()
        self.line_start = _compile(self.at_line_start)
        self.line = _compile(["\n", "`", THINK_OPEN, *self.anywhere])
        first = "".join(sorted({re.escape(text[0]) for text in (THINK_OPEN, *self.anywhere)}))
        self.plain = re.compile(rf"[^{first}`\n]*[^{first}`\s]")
        self.code = _compile(["\n", "`", *in_code])
        self.fence_start = _compile(self.at_line_start if fenced_calls else ())
        self.fence = _compile(["\n", *in_code])
        line_start = rf"\n[ \t]{{0,{_MAX_INDENT}}}(?:{self.line_start.pattern}|\Z())"
        self.counted = re.compile(f"{literal_pattern(self.anywhere)}|{line_start}")


def _compile(literals: Iterable[str]) -> re.Pattern[str]:
    return re.compile(literal_pattern(literals))


opener_table = lru_cache(maxsize=16)(OpenerTable)
"""Returns the table for a tuple of dialects. All requests have the same one or two tuples."""


class OpenerCounter:
    """Counts the openers of `dialects` in an answer that is not translated."""

    def __init__(self, dialects: tuple[Dialect, ...]) -> None:
        self._pattern = opener_table(dialects, fenced_calls=False).counted
        # The beginning of an opener at the end of the text, with the line feed that it needs.
        self._partial = "\n"

    def feed(self, text: str) -> int:
        """Return the number of openers that `text` completes."""
        text = self._partial + text
        self._partial = ""
        count = pos = 0
        while found := self._pattern.search(text, pos):
            if found.lastindex:
                self._partial = found[0]
                break
            count += 1
            pos = found.end()
        return count
