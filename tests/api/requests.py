"""Short constructors of requests and events, for the tests of the core."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from blockops.api.report import AnswerReport
from blockops.api.request import ChatRequest, GenerationRequest
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
from blockops.translation.stream import StreamTranslator

DONE = b"data: [DONE]\n\n"


def chat(*names: str, **fields: Any) -> ChatRequest:
    """Return a request for a stream that offers these functions."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    if names:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
            for name in names
        ]
    return ChatRequest(json.dumps({**body, **fields}).encode())


def completion(**fields: Any) -> GenerationRequest:
    return GenerationRequest(json.dumps({"prompt": "hi", "stream": True, **fields}).encode())


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def delta(_index: int = 0, _finish: str | None = None, _extra: Any = None, **fields: Any) -> bytes:
    """Return the event of a chunk with one delta."""
    choice = {"index": _index, "delta": fields, "finish_reason": _finish}
    return event({"id": "c", "choices": [choice], **(_extra or {})})


def text(value: str, index: int = 0) -> bytes:
    return delta(index, content=value)


ROLE = delta(role="assistant", content="")
STOP = delta(_finish="stop")
LENGTH = delta(_finish="length")
CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'


def counted_ids() -> Callable[[], str]:
    """Return a function that makes the same ids in every run."""
    numbers = itertools.count()
    return lambda: f"call_{next(numbers):024}"


def translator(
    request: Any = None, options: TranslationOptions | None = None, **more: Any
) -> StreamTranslator:
    more.setdefault("new_id", counted_ids())
    request = request or chat("search", "get_weather")
    return StreamTranslator(request, options or TranslationOptions(), **more)


def translate(stream: bytes, request: Any = None, **more: Any) -> bytes:
    """Return the client's stream for a backend's stream that is received at once."""
    stream_translator = translator(request, **more)
    return stream_translator.receive_data(stream) + stream_translator.end(is_truncated=False)


def translate_response(
    body: bytes, request: Any, options: TranslationOptions, **more: Any
) -> tuple[bytes, AnswerReport]:
    """Return the client's non-streaming response for a backend's one, and the report."""
    response_translator = ResponseTranslator(request, options, **more)
    return response_translator.receive_body(body), response_translator.report


def response_as_stream(
    body: bytes, request: Any, options: TranslationOptions, **more: Any
) -> tuple[bytes, AnswerReport]:
    """Return the client's stream for a backend's non-streaming response, and the report."""
    stream_translator = StreamTranslator(request, options, **more)
    return stream_translator.receive_body(body), stream_translator.report
