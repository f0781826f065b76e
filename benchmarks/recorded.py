"""
The recorded streams of real servers (`tests/captures`).

No recorded stream of vLLM has reasoning, so such streams are made from one without it. Their names
end with `synthetic`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

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
