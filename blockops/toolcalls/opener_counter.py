"""Counts what would have been looked at, had the request offered tools."""

from __future__ import annotations

import re
from functools import lru_cache

from blockops.toolcalls.reader import ToolCallFormat

_INDENT = 8
_LONGEST = 64 + _INDENT + 1


@lru_cache(maxsize=16)
def _openers(formats: tuple[ToolCallFormat, ...]) -> re.Pattern[str]:
    texts = {
        rf"\n[ \t]{{0,{_INDENT}}}{re.escape(opener.text)}"
        if opener.line_start
        else re.escape(opener.text)
        for each in formats
        for opener in each.openers
    }
    return re.compile("|".join(sorted(texts)) or r"(?!)")


class OpenerCount:
    """
    Count the openers of some formats in text that is cut anywhere.

    :param formats: whose openers to count
    """

    def __init__(self, formats: tuple[ToolCallFormat, ...]) -> None:
        self._pattern = _openers(formats)
        self._tail = "\n"

    def feed(self, text: str) -> int:
        """Return how many openers `text` completes."""
        seen = len(self._tail)
        window = self._tail + text
        self._tail = window[-_LONGEST:]
        return sum(found.end() > seen for found in self._pattern.finditer(window))
