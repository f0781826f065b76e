"""
The shapes of real servers' streams: recorded envelopes (`tests/captures`) with other text.

The recorded answers of the tiny model are short. A `Shape` therefore keeps the recorded events byte
for byte, and replaces only the text of the delta: everything before the first text, the event of a
delta, and everything after the last text. Some fields change from chunk to chunk, as they do when
the server is asked for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.recorded import CAPTURES

DONE_EVENT = b"data: [DONE]\n\n"

#: The field of reasoning in vLLM's deltas.
REASONING_FIELD = "reasoning"

_EVENT = re.compile(rb".+?\n\n", re.DOTALL)
_TEXT_DELTA = re.compile(rb'"delta": ?\{[^{}]*?"content": ?"((?:[^"\\]|\\.)+)"')
_CREATED = re.compile(rb'"created": ?(\d+)')
_ID = re.compile(rb'"id": ?"([^"]*)"')
#: Frames per second of a paced stream: `created` is the time in some servers' chunks.
_RATE = 100


@dataclass(frozen=True)
class Shape:
    """
    A server's stream.

    :param title: its name in the tables
    :param capture: the recorded stream, with usage
    :param change: returns an event as the server sends it at this position of the stream
    :param is_ascii: True if the server escapes all other characters
    :param has_reasoning: True if the first half of the text is in `REASONING_FIELD`
    """

    title: str
    capture: str
    change: Callable[[bytes, int], bytes] | None = None
    is_ascii: bool = False
    has_reasoning: bool = False


def _with_time(event: bytes, position: int) -> bytes:
    return _replaced(_CREATED, event, lambda old: b"%d" % (int(old) + position // _RATE))


def _with_own_id(event: bytes, position: int) -> bytes:
    return _with_time(_replaced(_ID, event, lambda old: b"%b-%d" % (old, position)), position)


def _with_usage(event: bytes, position: int) -> bytes:
    """Add usage as vLLM's `continuous_usage_stats` does."""
    if b'"usage"' in event:
        return event
    usage = {"prompt_tokens": 14, "total_tokens": 14 + position, "completion_tokens": position}
    return _with_field(event, "usage", usage)


def _with_timings(event: bytes, position: int) -> bytes:
    """Add timings as llama.cpp's `timings_per_token` does."""
    if b'"timings"' in event or not position:
        return event
    milliseconds = position * 9.8714 + position % 7 * 0.1379
    timings = {
        "cache_n": 13,
        "prompt_n": 1,
        "prompt_ms": 0.184,
        "prompt_per_token_ms": 0.184,
        "prompt_per_second": 5434.782608695652,
        "predicted_n": position,
        "predicted_ms": round(milliseconds, 3),
        "predicted_per_token_ms": milliseconds / position,
        "predicted_per_second": 1000 * position / milliseconds,
    }
    return _with_field(event, "timings", timings)


def _replaced(pattern: re.Pattern[bytes], event: bytes, change: Callable[[bytes], bytes]) -> bytes:
    match = pattern.search(event)
    if match is None:
        return event
    return event[: match.start(1)] + change(match[1]) + event[match.end(1) :]


def _with_field(event: bytes, name: str, value: object) -> bytes:
    """Add a last field to the event's object; `[DONE]` and comments stay as they are."""
    if not event.endswith(b"}\n\n"):
        return event
    field = f',"{name}":{json.dumps(value, separators=(",", ":"))}'
    return event[:-3] + field.encode() + b"}\n\n"


SHAPES = {
    "llamacpp": Shape("llama.cpp", "llamacpp-json-usage"),
    "vllm": Shape("vLLM", "vllm-json-usage"),
    "vllm-reasoning": Shape("vLLM, half of it reasoning", "vllm-json-usage", has_reasoning=True),
    "vllm-mlx": Shape("vllm-mlx", "vllm-mlx-json-usage"),
    "transformers": Shape("transformers", "transformers-plain", _with_time),
    "mlx": Shape("mlx-lm", "mlx-json-usage", is_ascii=True),
    "usage": Shape("vLLM, usage in each chunk", "vllm-json-usage", _with_usage),
    "timings": Shape("llama.cpp, timings in each chunk", "llamacpp-json-usage", _with_timings),
    "ids": Shape("vLLM, another id in each chunk", "vllm-json-usage", _with_own_id),
}


@dataclass(frozen=True)
class _Recorded:
    """The events before the first text, one with text in two parts, and those after the text."""

    opening: tuple[bytes, ...]
    before_text: bytes
    after_text: bytes
    closing: tuple[bytes, ...]


@lru_cache(16)
def _recorded(capture: str) -> _Recorded:
    events = _EVENT.findall((CAPTURES / f"{capture}.sse").read_bytes())
    positions = [at for at, event in enumerate(events) if _TEXT_DELTA.search(event)]
    event = events[positions[0]]
    match = _TEXT_DELTA.search(event)
    assert match is not None
    return _Recorded(
        opening=tuple(events[: positions[0]]),
        before_text=event[: match.start(1)],
        after_text=event[match.end(1) :],
        closing=tuple(events[positions[-1] + 1 :]),
    )


def opening_length(shape: Shape) -> int:
    """Return the number of events before the first text."""
    return len(_recorded(shape.capture).opening)


def ends_with_done(shape: Shape) -> bool:
    return _recorded(shape.capture).closing[-1] == DONE_EVENT


def reasoning_length(shape: Shape, tokens: Sequence[str]) -> int:
    """Return the number of tokens that are reasoning."""
    return len(tokens) // 2 if shape.has_reasoning else 0


def shape_events(shape: Shape, tokens: Sequence[str], *, usage: bool) -> Iterator[bytes]:
    """
    Yield the events of a stream with one token in each delta.

    :param usage: False to leave out the last chunk with nothing but the usage
    """
    recorded = _recorded(shape.capture)
    before_reasoning = recorded.before_text.replace(b'"content"', f'"{REASONING_FIELD}"'.encode())
    reasoning = reasoning_length(shape, tokens)
    events = list(recorded.opening)
    for number, token in enumerate(tokens):
        before = before_reasoning if number < reasoning else recorded.before_text
        text = json.dumps(token, ensure_ascii=shape.is_ascii)[1:-1]
        events.append(before + text.encode() + recorded.after_text)
    events += [event for event in recorded.closing if usage or not _is_usage_only(event)]
    change = shape.change or _unchanged
    return (change(event, position) for position, event in enumerate(events))


def _unchanged(event: bytes, _: int) -> bytes:
    return event


def _is_usage_only(event: bytes) -> bool:
    return re.search(rb'"choices": ?\[\]', event) is not None
