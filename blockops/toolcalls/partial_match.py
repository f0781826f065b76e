"""Finds a literal that is only partly present at the end of a text."""

from __future__ import annotations


def partial_suffix_start(text: str, literal: str) -> int:
    """
    Return the index of the longest proper prefix of `literal` that ends `text`.

    Returns `len(text)` if no prefix of `literal` ends it.
    """
    start = text.find(literal[0], max(0, len(text) - len(literal) + 1))
    while start >= 0:
        if literal.startswith(text[start:]):
            return start
        start = text.find(literal[0], start + 1)
    return len(text)
