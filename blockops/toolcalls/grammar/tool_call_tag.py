"""The `<tool_call>` tag, which several dialects put around their calls."""

from __future__ import annotations

OPENING_TAG = "<tool_call>"
CLOSING_TAG = "</tool_call>"

MIN_PARTIAL_TAG = len("</x")
"""Characters of a closing tag, cut off by the end of the text, that no longer count as text."""


def is_partial_closing_tag(text: str) -> bool:
    """Return True if `text`, at the end of the text, counts as a `</tool_call>` cut off there."""
    return len(text) >= MIN_PARTIAL_TAG and CLOSING_TAG.startswith(text)
