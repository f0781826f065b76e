"""
What a client got, read strictly: HTTP's framing first, then OpenAI's shapes.

A client may get a whole answer, an error, or an answer that is plainly cut off (the connection
breaks before the announced end). It never gets one that looks whole and is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.api.strict import read_strictly


class Untrue(AssertionError):
    """A client could be led to believe what is not so."""


@dataclass
class Reply:
    """
    One answer over HTTP/1.1.

    :ivar complete: it came to its announced end
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def streams(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


def read(received: bytes, *, closed: bool = False) -> Reply:
    """
    Return the (last, so far) answer in what a client received.

    :param closed: the connection is closed, so nothing more comes
    :raises Untrue: this is no HTTP
    """
    head, end, rest = bytes(received).partition(b"\r\n\r\n")
    if not end:
        return Reply()
    line, *lines = head.decode("latin-1").split("\r\n")
    version, status, *_ = line.split(" ")
    if version != "HTTP/1.1" or not status.isdigit():
        raise Untrue(f"no status line: {line!r}")
    if status.startswith("1"):
        return read(rest, closed=closed)
    names = [each.partition(":")[0].lower() for each in lines]
    for once in ("content-length", "transfer-encoding", "content-type", "connection"):
        if names.count(once) > 1:
            raise Untrue(f"{once} twice")
    headers = {
        name: each.partition(":")[2].strip() for name, each in zip(names, lines, strict=True)
    }
    reply = Reply(int(status), headers)
    if headers.get("transfer-encoding") == "chunked":
        reply.body, reply.complete = _dechunked(rest)
    elif "content-length" in headers:
        length = int(headers["content-length"])
        if len(rest) > length:
            raise Untrue(f"{len(rest) - length} bytes behind the answer")
        reply.body, reply.complete = rest, len(rest) == length
    else:
        reply.body, reply.complete = rest, closed
    return reply


def _dechunked(data: bytes) -> tuple[bytes, bool]:
    body = b""
    while True:
        size, end, data = data.partition(b"\r\n")
        if not end:
            return body, False
        length = int(size, 16)
        if length == 0:
            if not b"\r\n".startswith(data):
                raise Untrue(f"behind the last chunk: {data!r}")
            return body, data == b"\r\n"
        body += data[:length]
        if len(data) < length + 2:
            return body, False
        data = data[length + 2 :]


@dataclass(frozen=True)
class Judged:
    """
    What a client makes of an answer.

    :ivar outcome: `whole`; `503 code`, refused with that status and OpenAI's code; `event code`,
        begun and ended by an error event; `cut`, broken off before its announced end; `nothing`
    :ivar text: what the model said, as far as it came
    :ivar calls: its whole calls, as (name, arguments)
    """

    outcome: str
    message: str = ""
    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.outcome


def judge(received: bytes, *, closed: bool = False) -> Judged:
    """
    Return what a client makes of an answer to a chat request, be it a stream or whole.

    :raises AssertionError: it could be led to believe what is not so
    """
    reply = read(received, closed=closed)
    if not reply.status:
        if received:
            raise Untrue(f"half an answer: {received!r}")
        return Judged("nothing")
    if not reply.complete:
        return Judged("cut")
    if reply.status >= 400:
        error = error_in(reply.body)
        return Judged(f"{reply.status} {error['code']}", error["message"])
    if reply.streams:
        return _judge_stream(reply)
    value = json.loads(reply.body)
    if "error" in value:
        error = error_in(reply.body)
        return Judged(f"late {error['code']}", error["message"])
    message = value["choices"][0]["message"]
    if value["choices"][0]["finish_reason"] not in {"stop", "tool_calls", "length"}:
        raise Untrue(f"no finish reason: {value!r}")
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    pairs = tuple((call["name"], json.loads(call["arguments"])) for call in calls)
    return Judged("whole", text=message.get("content") or "", calls=pairs)


def _judge_stream(reply: Reply) -> Judged:
    answer = read_strictly(reply.body)
    said = answer.choices.get(0)
    text = said.content if said is not None else ""
    if answer.error is not None:
        return Judged(f"event {answer.error.get('code')}", answer.error["message"], text)
    assert said is not None
    return Judged("whole", text=text, calls=tuple(said.pairs()))


def error_in(body: bytes) -> dict[str, Any]:
    """
    Return an error in OpenAI's shape.

    :raises Untrue: it is none
    """
    value = json.loads(body)
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict) or set(error) < {"message", "type", "param", "code"}:
        raise Untrue(f"no error in OpenAI's shape: {body!r}")
    if not error["message"] or not isinstance(error["message"], str):
        raise Untrue(f"an error without words: {body!r}")
    return error
