"""Counts openers in answers that are not translated, because their request offers no tools."""

from __future__ import annotations

import re
from functools import lru_cache

from blockops.toolcalls.dialect import MAX_OPENER_LENGTH, Dialect

_MAX_INDENT = 8
"""An opener that needs the start of a line counts after at most this many blanks."""

_TAIL_LENGTH = MAX_OPENER_LENGTH + _MAX_INDENT + 1
"""Characters kept for openers that are split: a line feed, its blanks and an opener."""


@lru_cache(maxsize=16)
def _opener_pattern(dialects: tuple[Dialect, ...]) -> re.Pattern[str]:
    alternatives = {
        rf"\n[ \t]{{0,{_MAX_INDENT}}}{re.escape(opener.text)}"
        if opener.line_start
        else re.escape(opener.text)
        for dialect in dialects
        for opener in dialect.openers
    }
    return re.compile("|".join(sorted(alternatives)) or r"(?!)")


class OpenerCounter:
    """
    Counts the openers of `dialects` in text that arrives in pieces.

    :param dialects: the dialects whose openers are counted
    """

    def __init__(self, dialects: tuple[Dialect, ...]) -> None:
        self._pattern = _opener_pattern(dialects)
        self._tail = "\n"

    def feed(self, text: str) -> int:
        """Return the number of openers that `text` completes."""
        tail_length = len(self._tail)
        window = self._tail + text
        self._tail = window[-_TAIL_LENGTH:]
        return sum(match.end() > tail_length for match in self._pattern.finditer(window))
