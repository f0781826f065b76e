"""What is valid, and what becomes of it: bytes turned over at random, from a seed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from tests.faults.client import head_of, request
from tests.faults.scripts import CHUNKED, END, ERROR, STREAM, WHOLE, answer, chunked, head

#: Larger captures say nothing that the smaller ones do not, and take longer.
_LARGEST = 4000

_CAPTURES = Path(__file__).parent.parent / "captures"

#: Streams and answers that real backends gave.
ANSWERS = [
    path.read_bytes() for path in sorted(_CAPTURES.glob("*.sse")) if path.stat().st_size < _LARGEST
] + [STREAM, WHOLE, ERROR]

_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
_ANSWERED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "17 und 4 ✓"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "21"},
]

#: Bodies of chat requests.
BODIES = [
    json.dumps(each).encode()
    for each in (
        _CHAT,
        {**_CHAT, "stream": False, "n": 2, "max_tokens": 5, "temperature": 0.5},
        {**_CHAT, "tools": [_TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {
            **_CHAT,
            "tools": [_TOOL],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        },
        {**_CHAT, "messages": _ANSWERED, "tools": [_TOOL], "metadata": {"session_id": "s"}},
        {**_CHAT, "stream_options": {"include_usage": True}, "response_format": {"type": "text"}},
        {**_CHAT, "functions": [_TOOL["function"]], "user": "u", "prompt_cache_key": "k"},
        {**_CHAT, "messages": [{"role": "user", "content": "/new hello"}]},
    )
]

_CHUNKED_BODY = (
    head_of(b"").replace(b"Content-Length: 0", CHUNKED.encode()) + chunked(BODIES[0]) + END
)

#: Requests, head and body.
REQUESTS = [
    *map(request, BODIES[:4]),
    _CHUNKED_BODY,
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models/a%2Fb?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\n" * 2,
    b"HEAD /ready HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
    b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: http://a.example\r\n\r\n",
    request(BODIES[0], "/v1/embeddings") + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    request(b'{"model": "m", "prompt": "x"}', "/v1/completions", X_Session_Id="s"),
]

#: Answers of backends, head and body.
RESPONSES = [
    head(CHUNKED) + chunked(STREAM) + END,
    head() + STREAM,
    answer(STREAM, streams=True),
    answer(WHOLE, streams=False),
    head(CHUNKED, streams=False) + chunked(WHOLE[:50], WHOLE[50:]) + END,
    b"HTTP/1.1 100 Continue\r\n\r\n" + answer(WHOLE, streams=False),
    head("Content-Length: 100", status="500 Oops", streams=False) + ERROR,
    answer(ERROR, streams=False),
]

_TOKENS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
        b" ",
        b"\t",
        b"\xff",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
    ),
    *(
        b"data: ",
        b"data: [DONE]\n\n",
        b"data:\n\n",
        b"\n\n",
        b": x\n",
        b"event: error\n",
        b"id: 1\n",
    ),
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"\\ud800"', b"9" * 400),
    *(b"[" * 600, b'{"a":' * 300, b'"', b"\\", b"{", b"}", b"[", b"]", b","),
    *(b"<tool_call>", b"</tool_call>", b"<function=add>", b"TOOL_CALL: {", b"<think>", b"```"),
    *(b'"tool_calls":[{"index":0}],', b'"finish_reason":"stop",', b'"error":{"message":"x"},'),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(
        b"Content-Length: 99999999999999999999\r\n",
        b"0\r\n\r\n",
        b"-1\r\n",
        b"ffffffffffffffff\r\n",
    ),
    *(b"HTTP/1.1 200 OK\r\n", b"GET / HTTP/1.1\r\n\r\n", b"/../", b"%2e%2e/", b"%00", b"x" * 9000),
]

#: A value of JSON, more or less.
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null')


def mutated(corpus: list[bytes], dice: random.Random) -> bytes:
    """Return one of `corpus` with some changes, or none."""
    data = dice.choice(corpus)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3, 8))):
        data = dice.choice(_CHANGES)(data, dice, corpus)
    return data


def _span(data: bytes, dice: random.Random) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.choice((1, 2, 5, 20, 200)))


def _flip(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    if not data:
        return data
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def _insert(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice(_TOKENS) + data[at:]


def _remove(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    start, end = _span(data, dice)
    return data[:start] + data[end:]


def _repeat(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    start, end = _span(data, dice)
    return data[:end] + data[start:end] * dice.choice((1, 2, 9)) + data[end:]


def _cut(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _cross(data: bytes, dice: random.Random, corpus: list[bytes]) -> bytes:
    other = dice.choice(corpus)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def _revalue(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    """Put another value in the place of one in JSON."""
    found = list(_VALUE.finditer(data))
    if not found:
        return data
    one = dice.choice(found)
    other = dice.choice(found)[0] if dice.random() < 0.5 else dice.choice(_TOKENS)
    return data[: one.start()] + other + data[one.end() :]


_CHANGES = (_flip, _insert, _remove, _repeat, _cut, _cross, _revalue, _revalue)


def pieces(data: bytes, dice: random.Random) -> list[bytes]:
    """Return `data` as a network may cut it."""
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 1, 3, 10))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
