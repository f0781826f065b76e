"""Scripts of a backend's responses to a chat request: a good one, and the faults by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.faults.steps import Close, Flood, HalfClose, Reset, Send, Step, Wait

#: The contents of every good response. Models write the call as text (`CALL_TEXT`).
TEXT = "Grüße ✓"
CALL = ("get_weather", {"city": "Zürich"})
CALL_TEXT = f'<tool_call>{{"name": "{CALL[0]}", "arguments": {json.dumps(CALL[1])}}}</tool_call>'

Script = tuple[Step, ...]
NO_STEPS: Script = ()


def event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    """Return one event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + _body("chat.completion.chunk", choice) + b"\n\n"


def _body(kind: str, choice: dict[str, Any]) -> bytes:
    body = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(body, ensure_ascii=False).encode()


def _split(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


DONE = b"data: [DONE]\n\n"
#: The events of a good stream.
EVENTS = (
    event({"role": "assistant", "content": ""}),
    *(event({"content": piece}) for piece in _split(TEXT + CALL_TEXT, 9)),
    event({}, "stop"),
    DONE,
)
STREAM = b"".join(EVENTS)
#: The body of a good non-streaming response.
JSON_BODY = _body(
    "chat.completion",
    {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT + CALL_TEXT},
        "finish_reason": "stop",
    },
)
ERROR = (
    b'{"error": {"message": "Out of memory.", "type": "server_error", "param": null, "code": 7}}'
)

#: The first half of a good response: a stream up to the end of an event, JSON up to its middle.
HALF_STREAM = b"".join(EVENTS[:4])
HALF_JSON = JSON_BODY[: len(JSON_BODY) // 2]


def encode_response_head(*lines: str, status: str = "200 OK", stream: bool = True) -> bytes:
    """Return a status line and headers."""
    kind = "text/event-stream" if stream else "application/json"
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *lines, "", ""]).encode()


def encode_chunks(*pieces: bytes) -> bytes:
    """Return one chunk for each piece, without the last chunk."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


CHUNKED = "Transfer-Encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"


def good_response(stream: bool) -> Script:  # noqa: FBT001 - `ReceivedRequest.is_streaming`
    """Return the script of a good response."""
    if stream:
        return (
            Send(encode_response_head(CHUNKED)),
            *(Send(encode_chunks(each)) for each in EVENTS),
            Send(LAST_CHUNK),
        )
    return (Send(encode_response(JSON_BODY, stream=False)),)


def encode_response(
    body: bytes, *lines: str, stream: bool, length: int | str | None = None
) -> bytes:
    """Return a response with a Content-Length: that of `body`, or the false one in `length`."""
    declared = len(body) if length is None else length
    return encode_response_head(f"Content-Length: {declared}", *lines, stream=stream) + body


class Fault(NamedTuple):
    """
    A backend's fault, or a valid but rare response.

    :ivar stream: the script if the request asks for a stream
    :ivar non_streaming: the script if it does not; empty if the fault exists in streams only
    """

    stream: Script
    non_streaming: Script


def _both_modes(*script: Step) -> Fault:
    return Fault(script, script)


def _send_either(stream: bytes, json_body: bytes, *next_steps: Step) -> Fault:
    return Fault((Send(stream), *next_steps), (Send(json_body), *next_steps))


def _good_with_headers(*lines: str, next_steps: Step | None = None) -> Fault:
    """Return a good response that has the headers `lines` instead of its length."""
    last = () if next_steps is None else (next_steps,)
    return _send_either(
        encode_response_head(*lines) + STREAM,
        encode_response_head(*lines, stream=False) + JSON_BODY,
        *last,
    )


def _half_response(*next_steps: Step) -> Fault:
    """Return half a response, followed by `next_steps`."""
    return _send_either(
        encode_response_head(CHUNKED) + encode_chunks(HALF_STREAM),
        encode_response(HALF_JSON, stream=False, length=len(JSON_BODY)),
        *next_steps,
    )


def _bad_chunk(broken: bytes, *next_steps: Step) -> Fault:
    """Return half a chunked response, followed by an invalid chunk."""
    return _send_either(
        encode_response_head(CHUNKED) + encode_chunks(HALF_STREAM) + broken,
        encode_response_head(CHUNKED, stream=False) + encode_chunks(HALF_JSON) + broken,
        *next_steps,
    )


def _gzip_response(stream: bytes, json_body: bytes) -> Fault:
    line = "Content-Encoding: gzip"
    return _send_either(
        encode_response(stream, line, stream=True),
        encode_response(json_body, line, stream=False),
        Close(),
    )


_GOOD = (
    encode_response_head(CHUNKED) + encode_chunks(*EVENTS) + LAST_CHUNK,
    encode_response(JSON_BODY, stream=False),
)


def _good_after(first: bytes) -> Fault:
    return _send_either(first + _GOOD[0], first + _GOOD[1])


_LONG = 10 << 20
_TAIL = event({}, "stop") + DONE
_COMMENT = b": " + 1000 * b"." + b"\n\n"
_HTML = b"<html><head><title>Oops</title></head><body><h1>Bad Gateway</h1></body></html>"


def _error_response(status: str, body: bytes, kind: str = "application/json") -> Fault:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return _both_modes(Send("\r\n".join([*lines, "", ""]).encode() + body))


FAULTS: dict[str, Fault] = {
    # No response.
    "closed at once": _both_modes(Close()),
    "reset at once": _both_modes(Reset()),
    "half-closed at once": _both_modes(HalfClose()),
    "silent": _both_modes(),
    "status line truncated": _both_modes(Send(b"HTTP/1.1 20"), Close()),
    "silent in the headers": _both_modes(Send(b"HTTP/1.1 200 OK\r\nContent-Ty")),
    "closed in the headers": _both_modes(Send(b"HTTP/1.1 200 OK\r\nContent-Ty"), Close()),
    # Invalid heads.
    "another protocol": _both_modes(Send(b"SSH-2.0-OpenSSH_9.2\r\n")),
    "random bytes": _both_modes(Send(bytes(range(256)) * 8), Close()),
    "status without a number": _both_modes(Send(b"HTTP/1.1 OK\r\n\r\n"), Close()),
    "status of five digits": _both_modes(Send(b"HTTP/1.1 99999 OK\r\n\r\n"), Close()),
    "status 777": _error_response("777 Jackpot", ERROR),
    "a header of 1 MiB": _both_modes(Send(encode_response_head("X: " + (1 << 20) * "x"))),
    "endless headers": _both_modes(Send(b"HTTP/1.1 200 OK\r\n"), Flood(b"X-Y: z\r\n" * 1000, 0.01)),
    "a header without a colon": _send_either(
        encode_response_head("nonsense"), encode_response_head("nonsense", stream=False), Close()
    ),
    # Valid but rare heads.
    "100 first": _good_after(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 first": _good_after(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "101": _both_modes(Send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")),
    "204": _both_modes(Send(b"HTTP/1.1 204 No Content\r\n\r\n")),
    "302": _both_modes(Send(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")),
    "HTTP/1.0": _send_either(
        encode_response_head().replace(b"1.1", b"1.0") + STREAM,
        encode_response_head(stream=False).replace(b"1.1", b"1.0") + JSON_BODY,
        Close(),
    ),
    "byte by byte": Fault(*((Send(good, piece_size=1),) for good in _GOOD)),
    # Truncated bodies.
    "closed in the middle": _half_response(Close()),
    # A reset may overtake data that was sent before it.
    "reset in the middle": _half_response(Wait(0.05), Reset()),
    "half-closed in the middle": _half_response(HalfClose()),
    "silent in the middle": _half_response(),
    "closed in the middle, without a length": _send_either(
        encode_response_head() + HALF_STREAM,
        encode_response_head(stream=False) + HALF_JSON,
        Close(),
    ),
    "no last chunk": _send_either(
        encode_response_head(CHUNKED) + encode_chunks(STREAM),
        encode_response_head(CHUNKED, stream=False) + encode_chunks(JSON_BODY),
        Close(),
    ),
    "an empty body": _send_either(
        encode_response(b"", stream=True), encode_response(b"", stream=False)
    ),
    # Wrong lengths.
    "length too long, then closed": _good_with_headers("Content-Length: 99999", next_steps=Close()),
    "length too long, then silent": _good_with_headers("Content-Length: 99999"),
    "length too short": _good_with_headers("Content-Length: 100", next_steps=Close()),
    "negative length": _good_with_headers("Content-Length: -1", next_steps=Close()),
    "length not a number": _good_with_headers("Content-Length: many", next_steps=Close()),
    "two lengths": _good_with_headers(
        "Content-Length: 100", "Content-Length: 200", next_steps=Close()
    ),
    "length and chunks": _good_with_headers("Content-Length: 100", CHUNKED, next_steps=Close()),
    # Invalid chunks.
    "chunk size not a number": _bad_chunk(b"zz\r\n", Close()),
    "negative chunk size": _bad_chunk(b"-5\r\n", Close()),
    "endless chunk size": _bad_chunk(b"1" * 100_000, Close()),
    "chunk of 16 EiB": _bad_chunk(b"ffffffffffffffff\r\nx", Close()),
    "chunk longer than its size": _bad_chunk(b"3\r\nabcdef\r\n", Close()),
    # Endless bodies.
    "endless event": Fault(
        (Send(encode_response_head() + HALF_STREAM + b"data: "), Flood(b"x" * (1 << 16))),
        (Send(encode_response_head(stream=False) + b'{"x": "'), Flood(b"x" * (1 << 16))),
    ),
    "endless comments": Fault(
        (Send(encode_response_head() + HALF_STREAM), Flood(_COMMENT, 0.5)),
        (Send(encode_response_head(stream=False)), Flood(b" " * 1000, 0.5)),
    ),
    "endless data after the end": Fault(
        (Send(encode_response_head() + STREAM), Flood(_COMMENT * 100)),
        (Send(_GOOD[1]), Flood(b" " * (1 << 16))),
    ),
    "an event of 10 MiB": Fault(
        (
            Send(encode_response_head() + HALF_STREAM + event({"content": "x" * _LONG}) + DONE),
            Close(),
        ),
        NO_STEPS,
    ),
    "an event of 7 MiB": Fault(
        (
            Send(
                encode_response_head()
                + event({"role": "assistant", "content": "x" * (7 << 20)})
                + _TAIL
            ),
            Close(),
        ),
        NO_STEPS,
    ),
    # Streams with unusual contents.
    "no [DONE]": Fault((Send(encode_response_head() + b"".join(EVENTS[:-1])), Close()), NO_STEPS),
    "no finish reason": Fault(
        (Send(encode_response_head() + b"".join(EVENTS[:-2]) + DONE), Close()), NO_STEPS
    ),
    "two [DONE]": Fault((Send(encode_response_head() + STREAM + DONE), Close()), NO_STEPS),
    "events after [DONE]": Fault(
        (Send(encode_response_head() + STREAM + EVENTS[1] + DONE), Close()), NO_STEPS
    ),
    "an error event": Fault(
        (Send(encode_response_head() + HALF_STREAM + b"data: " + ERROR + b"\n\n" + DONE), Close()),
        NO_STEPS,
    ),
    "an event of invalid JSON": Fault(
        (Send(encode_response_head() + HALF_STREAM + b"data: {oops\n\n" + DONE), Close()), NO_STEPS
    ),
    "invalid UTF-8": Fault(
        (Send(encode_response_head() + STREAM.replace("Grüße".encode(), b"Gr\xff\xdfe")), Close()),
        (Send(encode_response(JSON_BODY.replace("Grüße".encode(), b"Gr\xff\xdfe"), stream=False)),),
    ),
    # Responses that are not a completion.
    "HTML": _both_modes(
        Send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s"
            % (len(_HTML), _HTML)
        )
    ),
    "502 in HTML": _error_response("502 Bad Gateway", _HTML, "text/html"),
    "500 in JSON": _error_response("500 Internal Server Error", ERROR),
    "400 in another format": _error_response(
        "400 Bad Request", b'{"detail": "max_tokens: too large"}'
    ),
    "503 without a body": _error_response("503 Service Unavailable", b""),
    "a truncated error response": _both_modes(
        Send(
            b"HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
            + ERROR[:30]
        ),
        Close(),
    ),
    "a stalled error response": _both_modes(
        Send(b"HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
    ),
    # Compressed, although the request does not accept an encoding.
    "gzip": _gzip_response(gzip.compress(STREAM), gzip.compress(JSON_BODY)),
    "gzip header without gzip": _gzip_response(STREAM, JSON_BODY),
    "gzip truncated": _gzip_response(gzip.compress(STREAM)[:-20], gzip.compress(JSON_BODY)[:-20]),
}
