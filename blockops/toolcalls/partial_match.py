"""Finds a literal that is only partly present at the end of a text."""

from __future__ import annotations

import re
from collections.abc import Iterable


def partial_suffix_start(text: str, literal: str) -> int:
    """Return where the longest proper prefix of `literal` at the end of `text` starts."""
    start = text.find(literal[0], max(0, len(text) - len(literal) + 1))
    while start >= 0:
        if literal.startswith(text[start:]):
            return start
        start = text.find(literal[0], start + 1)
    return len(text)


def partial_pattern(*parts: str) -> str:
    """Return a pattern for a sequence of patterns that the end of the text may cut anywhere."""
    pattern = ""
    for part in reversed(parts):
        pattern = rf"(?:\Z|{part}{pattern})"
    return pattern


def literal_pattern(literals: Iterable[str]) -> str:
    """
    Return a pattern for any of `literals`, the longest if several match.

    A group participates in the match if it is only the beginning of a literal, at the end of the
    text. Each alternative begins with a plain character, for which `re` searches fast.
    """
    alternatives = []
    for literal in sorted(literals, key=len, reverse=True):
        first, rest = re.escape(literal[0]), literal[1:]
        if rest:
            alternatives.append(rf"{first}{partial_pattern(*map(re.escape, rest[:-1]))}\Z()")
        alternatives.append(re.escape(literal))
    return "|".join(alternatives) or r"(?!)"
