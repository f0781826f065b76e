"""The translation of a stream as the daemon does it with default settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.recorded import Stream
from blockops.api.notice import Notice
from blockops.api.request import ChatRequest
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.stream import StreamTranslator
from tests.api.strict import InvalidStream, read_strictly

TOOLS, NO_TOOLS = "tools", "no tools"
#: The tools that the model of the captures calls.
TOOL_NAMES = ("search", "get_weather")


def make_request(variant: str) -> ChatRequest:
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if variant == TOOLS:
        parameters = {"type": "object", "properties": {"query": {"type": "string"}}}
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": parameters}}
            for name in TOOL_NAMES
        ]
    return ChatRequest(json.dumps(body).encode())


def translator_factory(variant: str) -> Callable[[], StreamTranslator]:
    """Return a function that makes translators, with a notice that has no text."""
    request, options = make_request(variant), TranslationOptions()
    return lambda: StreamTranslator(request, options, notice=Notice())


def translate(translator: StreamTranslator, reads: Sequence[bytes]) -> list[bytes]:
    """Return the client's bytes for each read, and those of the end."""
    receive = translator.receive_data
    out = [receive(read) for read in reads]
    out.append(translator.end(is_truncated=False))
    return out


def passed_share(stream: Stream, make_translator: Callable[[], StreamTranslator]) -> float:
    """Return the share of the events that pass byte for byte, each in a read of its own."""
    out = translate(make_translator(), stream.events)
    pairs = zip(stream.events, out[:-1], strict=True)
    return sum(event == passed for event, passed in pairs) / len(stream.events)


def find_error(out: bytes) -> str | None:
    """Return a description of the error in a client's stream, or None if it is correct."""
    try:
        error = read_strictly(out).error
    except (InvalidStream, ValueError, LookupError, TypeError) as problem:
        return str(problem)[:300]
    return None if error is None else f"an error event: {error}"[:300]
