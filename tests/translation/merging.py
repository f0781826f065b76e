"""
Streams that say the same, however much of it came at once.

What begins like a call, and came in one read, leaves in one event; all else of two such streams is
equal, and where nothing begins so, each event is.
"""

from __future__ import annotations

import json
import re

_LIKE_A_CALL = re.compile(rb"<|\\u003c|TOOL_CALL|tool_calls", re.IGNORECASE)


def merged(stream: bytes) -> list[tuple[str, str]]:
    """Return the events of a stream; those in a row are one that differ in nothing but a text."""
    events: list[tuple[str, str]] = []
    if _LIKE_A_CALL.search(stream) is None:
        return [(event.decode(errors="surrogateescape"), "") for event in stream.split(b"\n\n")]
    for event in stream.split(b"\n\n"):
        around, text = _apart(event.decode(errors="surrogateescape"))
        if text and events and events[-1][0] == around:
            events[-1] = around, events[-1][1] + text
        else:
            events.append((around, text))
    return events


def _apart(event: str) -> tuple[str, str]:
    """Return an event without the text that it says, and that text."""
    data = event.removeprefix("data: ")
    try:
        chunk = json.loads(data)
        delta = chunk["choices"][0]["delta"]
        says = delta if delta.get("content") else delta["tool_calls"][0]["function"]
        text = says.pop("content", None) or says.pop("arguments", None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return event, ""  # it says nothing, or something odd of the backend's own
    return (json.dumps(chunk), text) if isinstance(text, str) else (event, "")
