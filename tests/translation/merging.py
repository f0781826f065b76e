"""
Comparison of translated streams, independent of the packets in which they were received.

Arguments of a call that arrive together are sent in one event. Everything else of two such streams
is equal. Without the start of a call all events are equal.
"""

from __future__ import annotations

import json
import re

_CALL_START = re.compile(rb"<|\\u003c|TOOL_CALL|tool_calls", re.IGNORECASE)


def join_texts(stream: bytes) -> list[tuple[str, str]]:
    """Return the events of a stream, those joined that differ only in their text."""
    events: list[tuple[str, str]] = []
    if _CALL_START.search(stream) is None:
        return [(event.decode(errors="surrogateescape"), "") for event in stream.split(b"\n\n")]
    for event in stream.split(b"\n\n"):
        around, text = _split_text(event.decode(errors="surrogateescape"))
        if text and events and events[-1][0] == around:
            events[-1] = around, events[-1][1] + text
        else:
            events.append((around, text))
    return events


def _split_text(event: str) -> tuple[str, str]:
    """Return an event without its text, and the text; unchanged, and "", if it has none."""
    data = event.removeprefix("data: ")
    try:
        chunk = json.loads(data)
        delta = chunk["choices"][0]["delta"]
        content = delta if delta.get("content") else delta["tool_calls"][0]["function"]
        text = content.pop("content", None) or content.pop("arguments", None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return event, ""  # no text, or a chunk of an unknown shape
    return (json.dumps(chunk), text) if isinstance(text, str) else (event, "")
