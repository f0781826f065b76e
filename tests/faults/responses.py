"""
Strict check of the bytes that a client received: HTTP framing first, then OpenAI's formats.

A client may receive a complete response, an error, or a response that is visibly truncated (the
connection closes before the end that its framing announces). It must never receive a truncated
response that looks complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.api.strict import read_strictly


class MisleadingResponse(AssertionError):
    """The response could mislead a client, for example look complete when it is not."""


@dataclass
class Response:
    """
    One HTTP/1.1 response.

    :ivar complete: True if it was received to the end that its framing announces
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def is_streaming(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


def parse_response(received: bytes, *, closed: bool = False) -> Response:
    """
    Return the final response in the bytes that a client received; provisional ones are skipped.

    :param closed: True if the connection is closed, so that no more bytes follow
    :raises MisleadingResponse: the bytes are not a valid HTTP/1.1 response
    """
    head, end, rest = bytes(received).partition(b"\r\n\r\n")
    if not end:
        return Response()
    line, *lines = head.decode("latin-1").split("\r\n")
    version, status, *_ = line.split(" ")
    if version != "HTTP/1.1" or not status.isdigit():
        raise MisleadingResponse(f"no status line: {line!r}")
    if status.startswith("1"):
        return parse_response(rest, closed=closed)
    names = [header_line.partition(":")[0].lower() for header_line in lines]
    for name in ("content-length", "transfer-encoding", "content-type", "connection"):
        if names.count(name) > 1:
            raise MisleadingResponse(f"{name} twice")
    headers = {
        name: header_line.partition(":")[2].strip()
        for name, header_line in zip(names, lines, strict=True)
    }
    response = Response(int(status), headers)
    if headers.get("transfer-encoding") == "chunked":
        response.body, response.complete = _decode_chunked(rest)
    elif "content-length" in headers:
        length = int(headers["content-length"])
        if len(rest) > length:
            raise MisleadingResponse(f"{len(rest) - length} bytes after the response")
        response.body, response.complete = rest, len(rest) == length
    else:
        response.body, response.complete = rest, closed
    return response


def _decode_chunked(data: bytes) -> tuple[bytes, bool]:
    body = b""
    while True:
        size, end, data = data.partition(b"\r\n")
        if not end:
            return body, False
        length = int(size, 16)
        if length == 0:
            if not b"\r\n".startswith(data):
                raise MisleadingResponse(f"data after the last chunk: {data!r}")
            return body, data == b"\r\n"
        body += data[:length]
        if len(data) < length + 2:
            return body, False
        data = data[length + 2 :]


@dataclass(frozen=True)
class Verdict:
    """
    A client's view of a response.

    :ivar outcome: `complete`; `503 code`, an error response with that status and error code;
        `event code`, a stream ended by an error event; `late code`, an error in the body of a
        response that began with 200; `truncated`, closed before its announced end; `no response`
    :ivar text: the model's text received so far
    :ivar calls: the complete tool calls, as (name, arguments)
    """

    outcome: str
    message: str = ""
    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.outcome


def judge(received: bytes, *, closed: bool = False) -> Verdict:
    """
    Return a client's view of the response to a chat request, streaming or not.

    :raises AssertionError: the response could mislead a client
    """
    response = parse_response(received, closed=closed)
    if not response.status:
        if received:
            raise MisleadingResponse(f"incomplete headers: {received!r}")
        return Verdict("no response")
    if not response.complete:
        return Verdict("truncated")
    if response.status >= 400:
        error = parse_error(response.body)
        return Verdict(f"{response.status} {error['code']}", error["message"])
    if response.is_streaming:
        return _judge_stream(response)
    value = json.loads(response.body)
    if "error" in value:
        error = parse_error(response.body)
        return Verdict(f"late {error['code']}", error["message"])
    message = value["choices"][0]["message"]
    if value["choices"][0]["finish_reason"] not in {"stop", "tool_calls", "length"}:
        raise MisleadingResponse(f"no finish reason: {value!r}")
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    pairs = tuple((call["name"], json.loads(call["arguments"])) for call in calls)
    return Verdict("complete", text=message.get("content") or "", calls=pairs)


def _judge_stream(response: Response) -> Verdict:
    answer = read_strictly(response.body)
    choice = answer.choices.get(0)
    text = choice.content if choice is not None else ""
    if answer.error is not None:
        return Verdict(f"event {answer.error.get('code')}", answer.error["message"], text)
    assert choice is not None
    return Verdict("complete", text=text, calls=tuple(choice.pairs()))


def parse_error(body: bytes) -> dict[str, Any]:
    """
    Return the `error` object of an error response.

    :raises MisleadingResponse: `body` is not in OpenAI's error format
    """
    value = json.loads(body)
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict) or set(error) < {"message", "type", "param", "code"}:
        raise MisleadingResponse(f"not in OpenAI's error format: {body!r}")
    if not error["message"] or not isinstance(error["message"], str):
        raise MisleadingResponse(f"an error without a message: {body!r}")
    return error
