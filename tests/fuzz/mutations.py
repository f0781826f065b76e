"""Valid requests and responses, and mutations of their bytes, at random from a seed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from tests.faults.client import encode_request, encode_request_head
from tests.faults.scripts import (
    CHUNKED,
    ERROR,
    JSON_BODY,
    LAST_CHUNK,
    STREAM,
    encode_chunks,
    encode_response,
    encode_response_head,
)

#: Bytes. Larger captures show nothing more than the smaller ones, and take longer.
_MAX_CAPTURE = 4000

_CAPTURES = Path(__file__).parent.parent / "captures"

#: Streams and non-streaming responses of real backends.
ANSWERS = [
    path.read_bytes()
    for path in sorted(_CAPTURES.glob("*.sse"))
    if path.stat().st_size < _MAX_CAPTURE
] + [STREAM, JSON_BODY, ERROR]

_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
_HISTORY = [
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
    json.dumps(body).encode()
    for body in (
        _CHAT,
        {**_CHAT, "stream": False, "n": 2, "max_tokens": 5, "temperature": 0.5},
        {**_CHAT, "tools": [_TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {
            **_CHAT,
            "tools": [_TOOL],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        },
        {**_CHAT, "messages": _HISTORY, "tools": [_TOOL], "metadata": {"session_id": "s"}},
        {**_CHAT, "stream_options": {"include_usage": True}, "response_format": {"type": "text"}},
        {**_CHAT, "functions": [_TOOL["function"]], "user": "u", "prompt_cache_key": "k"},
        {**_CHAT, "messages": [{"role": "user", "content": "/new hello"}]},
    )
]

_CHUNKED_BODY = (
    encode_request_head(b"").replace(b"Content-Length: 0", CHUNKED.encode())
    + encode_chunks(BODIES[0])
    + LAST_CHUNK
)

#: Requests, with head and body.
REQUESTS = [
    *map(encode_request, BODIES[:4]),
    _CHUNKED_BODY,
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models/a%2Fb?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\n" * 2,
    b"HEAD /ready HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
    b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: http://a.example\r\n\r\n",
    encode_request(BODIES[0], "/v1/embeddings") + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    encode_request(b'{"model": "m", "prompt": "x"}', "/v1/completions", X_Session_Id="s"),
]

#: Responses of backends, with head and body.
RESPONSES = [
    encode_response_head(CHUNKED) + encode_chunks(STREAM) + LAST_CHUNK,
    encode_response_head() + STREAM,
    encode_response(STREAM, stream=True),
    encode_response(JSON_BODY, stream=False),
    encode_response_head(CHUNKED, stream=False)
    + encode_chunks(JSON_BODY[:50], JSON_BODY[50:])
    + LAST_CHUNK,
    b"HTTP/1.1 100 Continue\r\n\r\n" + encode_response(JSON_BODY, stream=False),
    encode_response_head("Content-Length: 100", status="500 Oops", stream=False) + ERROR,
    encode_response(ERROR, stream=False),
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

#: Approximately a JSON value.
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null')


def mutated(corpus: list[bytes], dice: random.Random) -> bytes:
    """Return an element of `corpus` with up to eight mutations."""
    data = dice.choice(corpus)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3, 8))):
        data = dice.choice(_MUTATIONS)(data, dice, corpus)
    return data


def _span(data: bytes, dice: random.Random) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.choice((1, 2, 5, 20, 200)))


def _flip_bit(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
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


def _truncate(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _splice(data: bytes, dice: random.Random, corpus: list[bytes]) -> bytes:
    other = dice.choice(corpus)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def _replace_value(data: bytes, dice: random.Random, _: list[bytes]) -> bytes:
    """Replace a JSON value by another."""
    values = list(_VALUE.finditer(data))
    if not values:
        return data
    value = dice.choice(values)
    other = dice.choice(values)[0] if dice.random() < 0.5 else dice.choice(_TOKENS)
    return data[: value.start()] + other + data[value.end() :]


_MUTATIONS = (
    _flip_bit,
    _insert,
    _remove,
    _repeat,
    _truncate,
    _splice,
    _replace_value,
    _replace_value,
)


def pieces(data: bytes, dice: random.Random) -> list[bytes]:
    """Return `data` in pieces, as a network may deliver it."""
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 1, 3, 10))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
