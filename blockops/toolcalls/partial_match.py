"""How the end of a text overlaps with what may come next."""

from __future__ import annotations


def begun_at_the_end(text: str, literal: str) -> int:
    """Return where at the end of `text` the `literal` may have begun; the text's length if not."""
    start = text.find(literal[0], max(0, len(text) - len(literal) + 1))
    while start >= 0:
        if literal.startswith(text[start:]):
            return start
        start = text.find(literal[0], start + 1)
    return len(text)
