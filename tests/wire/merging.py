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
        return [(event.decode(), "") for event in stream.split(b"\n\n")]
    for event in stream.split(b"\n\n"):
        around, text = _apart(event.decode())
        if text and events and events[-1][0] == around:
            events[-1] = around, events[-1][1] + text
        else:
            events.append((around, text))
    return events


def _apart(event: str) -> tuple[str, str]:
    """Return an event without the text that it says, and that text."""
    data = event.removeprefix("data: ")
    if not data.startswith("{"):
        return event, ""
    chunk = json.loads(data)
    if not chunk.get("choices"):
        return event, ""
    delta = chunk["choices"][0].get("delta", {})
    call = (delta.get("tool_calls") or [{}])[0]
    says = delta if delta.get("content") else call.get("function", {})
    text = says.pop("content", None) or says.pop("arguments", None) or ""
    return json.dumps(chunk), text
