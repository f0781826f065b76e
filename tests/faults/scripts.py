"""What backends do, well and badly, when they are asked for a chat: the faults by their names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.faults.steps import Close, Flood, HalfClose, Reset, Send, Step, Wait

#: What every good answer says. The call comes as text, as models write it (`WRITTEN`).
TEXT = "Grüße ✓"
CALL = ("get_weather", {"city": "Zürich"})
WRITTEN = f'<tool_call>{{"name": "{CALL[0]}", "arguments": {json.dumps(CALL[1])}}}</tool_call>'

Script = tuple[Step, ...]
NONE: Script = ()


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    """Return one event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + _body("chat.completion.chunk", choice) + b"\n\n"


def _body(kind: str, choice: dict[str, Any]) -> bytes:
    body = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(body, ensure_ascii=False).encode()


def _cut(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


DONE = b"data: [DONE]\n\n"
#: The events of a good stream.
EVENTS = (
    event({"role": "assistant", "content": ""}),
    *(event({"content": piece}) for piece in _cut(TEXT + WRITTEN, 9)),
    event({}, "stop"),
    DONE,
)
STREAM = b"".join(EVENTS)
#: A good whole answer.
WHOLE = _body(
    "chat.completion",
    {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT + WRITTEN},
        "finish_reason": "stop",
    },
)
ERROR = (
    b'{"error": {"message": "Out of memory.", "type": "server_error", "param": null, "code": 7}}'
)

#: Where half of a good answer is: between two events, and in the middle of the JSON.
HALF_STREAM = b"".join(EVENTS[:4])
HALF_WHOLE = WHOLE[: len(WHOLE) // 2]


def head(*lines: str, status: str = "200 OK", streams: bool = True) -> bytes:
    """Return a status line and headers."""
    kind = "text/event-stream" if streams else "application/json"
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *lines, "", ""]).encode()


def chunked(*pieces: bytes) -> bytes:
    """Return pieces of a chunked body, without its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


CHUNKED = "Transfer-Encoding: chunked"
END = b"0\r\n\r\n"


def well(streams: bool) -> Script:  # noqa: FBT001 - as `Asked` says it
    """Return the script of a good answer."""
    if streams:
        return (Send(head(CHUNKED)), *(Send(chunked(each)) for each in EVENTS), Send(END))
    return (Send(answer(WHOLE, streams=False)),)


def answer(body: bytes, *lines: str, streams: bool, length: int | str | None = None) -> bytes:
    """Return an answer with a Content-Length, true or not."""
    declared = len(body) if length is None else length
    return head(f"Content-Length: {declared}", *lines, streams=streams) + body


class Fault(NamedTuple):
    """
    One thing that a backend does wrong, or only oddly.

    :ivar stream: the script, where a stream is asked for
    :ivar whole: where a whole answer is
    """

    stream: Script
    whole: Script


def _both(*script: Step) -> Fault:
    return Fault(script, script)


def _sent(stream: bytes, whole: bytes, *then: Step) -> Fault:
    return Fault((Send(stream), *then), (Send(whole), *then))


def _answered(*lines: str, then: Step | None = None) -> Fault:
    """Return a good answer whose headers say `lines` instead of its length."""
    last = () if then is None else (then,)
    return _sent(head(*lines) + STREAM, head(*lines, streams=False) + WHOLE, *last)


def _halved(*then: Step) -> Fault:
    """Return half an answer, and what comes then."""
    return _sent(
        head(CHUNKED) + chunked(HALF_STREAM),
        answer(HALF_WHOLE, streams=False, length=len(WHOLE)),
        *then,
    )


def _in_chunks(broken: bytes, *then: Step) -> Fault:
    """Return half an answer in chunks, and behind it what is no chunk."""
    return _sent(
        head(CHUNKED) + chunked(HALF_STREAM) + broken,
        head(CHUNKED, streams=False) + chunked(HALF_WHOLE) + broken,
        *then,
    )


def _zipped(stream: bytes, whole: bytes) -> Fault:
    line = "Content-Encoding: gzip"
    return _sent(answer(stream, line, streams=True), answer(whole, line, streams=False), Close())


_GOOD = (head(CHUNKED) + chunked(*EVENTS) + END, answer(WHOLE, streams=False))


def _behind(first: bytes) -> Fault:
    return _sent(first + _GOOD[0], first + _GOOD[1])


_LONG = 10 << 20
_TAIL = event({}, "stop") + DONE
_COMMENT = b": " + 1000 * b"." + b"\n\n"
_HTML = b"<html><head><title>Oops</title></head><body><h1>Bad Gateway</h1></body></html>"


def _refusal(status: str, body: bytes, kind: str = "application/json") -> Fault:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return _both(Send("\r\n".join([*lines, "", ""]).encode() + body))


FAULTS: dict[str, Fault] = {
    # No answer.
    "closed at once": _both(Close()),
    "reset at once": _both(Reset()),
    "half-closed at once": _both(HalfClose()),
    "silent": _both(),
    "status line cut off": _both(Send(b"HTTP/1.1 20"), Close()),
    "silent in the headers": _both(Send(b"HTTP/1.1 200 OK\r\nContent-Ty")),
    "closed in the headers": _both(Send(b"HTTP/1.1 200 OK\r\nContent-Ty"), Close()),
    # Heads that are none.
    "another protocol": _both(Send(b"SSH-2.0-OpenSSH_9.2\r\n")),
    "random bytes": _both(Send(bytes(range(256)) * 8), Close()),
    "status without a number": _both(Send(b"HTTP/1.1 OK\r\n\r\n"), Close()),
    "status beyond all numbers": _both(Send(b"HTTP/1.1 99999 OK\r\n\r\n"), Close()),
    "status 777": _refusal("777 Jackpot", ERROR),
    "a header of 1 MiB": _both(Send(head("X: " + (1 << 20) * "x"))),
    "headers without end": _both(Send(b"HTTP/1.1 200 OK\r\n"), Flood(b"X-Y: z\r\n" * 1000, 0.01)),
    "a header without a colon": _sent(head("nonsense"), head("nonsense", streams=False), Close()),
    # Heads that are odd.
    "100 first": _behind(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 first": _behind(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "101": _both(Send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")),
    "204": _both(Send(b"HTTP/1.1 204 No Content\r\n\r\n")),
    "302": _both(Send(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")),
    "HTTP/1.0": _sent(
        head().replace(b"1.1", b"1.0") + STREAM,
        head(streams=False).replace(b"1.1", b"1.0") + WHOLE,
        Close(),
    ),
    "byte by byte": Fault(*((Send(good, at_once=1),) for good in _GOOD)),
    # Bodies that break off.
    "closed in the middle": _halved(Close()),
    # A reset may overtake what was sent before it.
    "reset in the middle": _halved(Wait(0.05), Reset()),
    "half-closed in the middle": _halved(HalfClose()),
    "silent in the middle": _halved(),
    "closed in the middle, without a length": _sent(
        head() + HALF_STREAM, head(streams=False) + HALF_WHOLE, Close()
    ),
    "no last chunk": _sent(
        head(CHUNKED) + chunked(STREAM), head(CHUNKED, streams=False) + chunked(WHOLE), Close()
    ),
    "an empty body": _sent(answer(b"", streams=True), answer(b"", streams=False)),
    # Lengths that are not true.
    "length too long, then closed": _answered("Content-Length: 99999", then=Close()),
    "length too long, then silent": _answered("Content-Length: 99999"),
    "length too short": _answered("Content-Length: 100", then=Close()),
    "negative length": _answered("Content-Length: -1", then=Close()),
    "length that is no number": _answered("Content-Length: many", then=Close()),
    "two lengths": _answered("Content-Length: 100", "Content-Length: 200", then=Close()),
    "length and chunks": _answered("Content-Length: 100", CHUNKED, then=Close()),
    # Chunks that are none.
    "chunk size that is no number": _in_chunks(b"zz\r\n", Close()),
    "negative chunk size": _in_chunks(b"-5\r\n", Close()),
    "endless chunk size": _in_chunks(b"1" * 100_000, Close()),
    "chunk of 16 EiB": _in_chunks(b"ffffffffffffffff\r\nx", Close()),
    "chunk longer than it says": _in_chunks(b"3\r\nabcdef\r\n", Close()),
    # Bodies without end.
    "an event without end": Fault(
        (Send(head() + HALF_STREAM + b"data: "), Flood(b"x" * (1 << 16))),
        (Send(head(streams=False) + b'{"x": "'), Flood(b"x" * (1 << 16))),
    ),
    "comments without end": Fault(
        (Send(head() + HALF_STREAM), Flood(_COMMENT, 0.5)),
        (Send(head(streams=False)), Flood(b" " * 1000, 0.5)),
    ),
    "something behind the end, without end": Fault(
        (Send(head() + STREAM), Flood(_COMMENT * 100)),
        (Send(_GOOD[1]), Flood(b" " * (1 << 16))),
    ),
    "an event of 10 MiB": Fault(
        (Send(head() + HALF_STREAM + event({"content": "x" * _LONG}) + DONE), Close()), NONE
    ),
    "an event of 7 MiB": Fault(
        (Send(head() + event({"role": "assistant", "content": "x" * (7 << 20)}) + _TAIL), Close()),
        NONE,
    ),
    # Streams that say odd things.
    "no [DONE]": Fault((Send(head() + b"".join(EVENTS[:-1])), Close()), NONE),
    "no finish reason": Fault((Send(head() + b"".join(EVENTS[:-2]) + DONE), Close()), NONE),
    "two [DONE]": Fault((Send(head() + STREAM + DONE), Close()), NONE),
    "events behind [DONE]": Fault((Send(head() + STREAM + EVENTS[1] + DONE), Close()), NONE),
    "an error event": Fault(
        (Send(head() + HALF_STREAM + b"data: " + ERROR + b"\n\n" + DONE), Close()), NONE
    ),
    "an event that is no JSON": Fault(
        (Send(head() + HALF_STREAM + b"data: {oops\n\n" + DONE), Close()), NONE
    ),
    "invalid UTF-8": Fault(
        (Send(head() + STREAM.replace("Grüße".encode(), b"Gr\xff\xdfe")), Close()),
        (Send(answer(WHOLE.replace("Grüße".encode(), b"Gr\xff\xdfe"), streams=False)),),
    ),
    # Other answers than were asked for.
    "HTML": _both(
        Send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s"
            % (len(_HTML), _HTML)
        )
    ),
    "502 in HTML": _refusal("502 Bad Gateway", _HTML, "text/html"),
    "500 in JSON": _refusal("500 Internal Server Error", ERROR),
    "400 in another shape": _refusal("400 Bad Request", b'{"detail": "max_tokens: too large"}'),
    "503 without a body": _refusal("503 Service Unavailable", b""),
    "a refusal cut off": _both(
        Send(
            b"HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
            + ERROR[:30]
        ),
        Close(),
    ),
    "a refusal that stalls": _both(
        Send(b"HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
    ),
    # Compressed, though nobody asked for it.
    "gzip": _zipped(gzip.compress(STREAM), gzip.compress(WHOLE)),
    "gzip that is none": _zipped(STREAM, WHOLE),
    "gzip cut off": _zipped(gzip.compress(STREAM)[:-20], gzip.compress(WHOLE)[:-20]),
}
