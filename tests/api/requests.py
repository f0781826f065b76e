"""Requests and events for the tests of the core, in as few words as each test needs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from blockops.api.chat.request import ChatRequest, CompletionRequest
from blockops.toolcalls.options import Rules
from blockops.translation.stream import StreamTranscoder

DONE = b"data: [DONE]\n\n"


def chat(*names: str, **fields: Any) -> ChatRequest:
    """Return a request for a stream that offers these functions."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    if names:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
            for name in names
        ]
    return ChatRequest.parse(json.dumps({**body, **fields}).encode())


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.parse(json.dumps({"prompt": "hi", "stream": True, **fields}).encode())


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def delta(_index: int = 0, _finish: str | None = None, _beside: Any = None, **fields: Any) -> bytes:
    """Return the event of a chunk with one delta."""
    choice = {"index": _index, "delta": fields, "finish_reason": _finish}
    return event({"id": "c", "choices": [choice], **(_beside or {})})


def text(value: str, index: int = 0) -> bytes:
    return delta(index, content=value)


ROLE = delta(role="assistant", content="")
STOP = delta(_finish="stop")
LENGTH = delta(_finish="length")
CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'


def counted_ids() -> Callable[[], str]:
    """Return what makes ids that are the same in every run."""
    numbers = itertools.count()
    return lambda: f"call_{next(numbers):024}"


def transcoder(asked: Any = None, rules: Rules | None = None, **options: Any) -> StreamTranscoder:
    options.setdefault("new_id", counted_ids())
    return StreamTranscoder(asked or chat("search", "get_weather"), rules or Rules(), **options)


def transcode(stream: bytes, asked: Any = None, **options: Any) -> bytes:
    """Return what the client gets of a stream that comes in one packet."""
    through = transcoder(asked, **options)
    return through.receive_data(stream) + through.end(cut=False)
