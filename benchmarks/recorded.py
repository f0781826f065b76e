"""
The recorded streams of real servers (`tests/captures`), and their translation as in the daemon.

No recorded stream of vLLM has reasoning, so such streams are made from one without it. Their names
end with `synthetic`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from blockops.api.chat.request import ChatRequest
from blockops.conversation.sessions import ClientIdentity
from blockops.conversation.turn import Conversations
from blockops.daemon.wiring import conversation_options, translation_options
from blockops.operations.memory import MemoryGate
from blockops.operations.traffic_log.log import NoTrafficLog
from blockops.proxy.generation import Generation
from blockops.settings.table import Settings
from blockops.translation.stream import StreamTranslator
from blockops.upstream.backend import Backend
from blockops.upstream.compatibility import BackendCompatibility
from tests.api.strict import InvalidStream, read_strictly

CAPTURES = Path(__file__).parent.parent / "tests" / "captures"
#: The servers in the names of captures; a name that begins another one follows it.
SERVERS = (
    "llamacpp-tooltmpl",
    "llamacpp",
    "vllm-hermes",
    "vllm-mlx",
    "vllm",
    "transformers",
    "mlx",
)
TOOLS, NO_TOOLS = "tools", "no tools"
#: The tools that the model of the captures calls.
TOOL_NAMES = ("search", "get_weather")
#: The marker in the names of streams that no server has sent.
SYNTHETIC = "synthetic"
#: The capture that the synthetic streams are made from, and the names of their field: vLLM has
#: renamed `reasoning_content` to `reasoning`.
SYNTHETIC_SOURCE = "vllm-plain"
REASONING_FIELDS = ("reasoning_content", "reasoning")

_EVENT = re.compile(rb".+?(?:\n\n|\Z)", re.DOTALL)
_DATA = b"data: "
_CONTENT_DELTA = re.compile(rb'"delta": ?\{"content": ?"[^"]')


@dataclass(frozen=True)
class Stream:
    """
    A stream of a backend.

    :param events: the bytes of each event, with its blank line; comments are left out
    """

    name: str
    events: tuple[bytes, ...]

    @property
    def server(self) -> str:
        return next(server for server in SERVERS if self.name.startswith(server + "-"))


def is_stream(body: bytes) -> bool:
    """Return True if a response is a stream that does not end with an error."""
    return body.lstrip().startswith((_DATA, b":")) and b'data: {"error"' not in body


def read_streams(folder: Path = CAPTURES) -> list[Stream]:
    """Return the recorded streams, and the synthetic ones, sorted by server and name."""
    bodies = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.sse"))}
    streams = {
        name: Stream(name, tuple(e for e in _EVENT.findall(body) if e.startswith(_DATA)))
        for name, body in bodies.items()
        if is_stream(body)
    }
    recorded = b"".join(bodies[name] for name in streams if name.startswith("vllm-"))
    for name in REASONING_FIELDS:
        if f'"{name}":"'.encode() not in recorded:
            stream = with_reasoning(streams[SYNTHETIC_SOURCE], name)
            streams[stream.name] = stream
    return sorted(streams.values(), key=lambda each: (SERVERS.index(each.server), each.name))


def with_reasoning(stream: Stream, name: str) -> Stream:
    """
    Return a synthetic stream: the first half of the content becomes reasoning.

    :param name: the field of the reasoning
    """
    events = list(stream.events)
    positions = [at for at, event in enumerate(events) if _CONTENT_DELTA.search(event)]
    for position in positions[: len(positions) // 2]:
        events[position] = events[position].replace(b'"content"', f'"{name}"'.encode(), 1)
    return Stream(f"{stream.server}-{name}-{SYNTHETIC}", tuple(events))


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
    return ChatRequest.parse(json.dumps(body).encode())


def translator_factory(variant: str) -> Callable[[], StreamTranslator]:
    """Return a function that makes translators as `ChatEndpoint` does with default settings."""
    settings = Settings()
    # The translator needs none of the objects that send the request.
    generation = Generation(
        settings,
        translation_options(settings),
        backend=cast("Backend", None),
        memory_gate=cast("MemoryGate", None),
        traffic_log=NoTrafficLog(),
    )
    conversations = Conversations(conversation_options(settings), BackendCompatibility())
    request = make_request(variant)
    turn = conversations.begin(request, ClientIdentity("", "127.0.0.1", "", False), 0.0)  # noqa: FBT003
    turn.prepare_body(memory_notice_kind=None, memory_percent=100.0, may_add_header=True)
    return partial(generation.make_translator, request, turn.notice)


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
