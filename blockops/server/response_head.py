"""The heads of responses, and complete error responses."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import time
from functools import lru_cache
from http import HTTPStatus

from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers

from blockops import __version__
from blockops.errors import ApiError

#: The standard's phrase for each status; backends make up others.
REASON_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def response_head(version: bytes, status: int, headers: Headers, framing: bytes) -> bytes:
    """
    Return the head of a response.

    :param version: `b"HTTP/1.0"` or `b"HTTP/1.1"`
    :param framing: the lines of further headers, each with its line end
    """
    lines = b"".join(
        [
            b"%s: %s\r\n" % (name, value)
            for name, values in headers.getAllRawHeaders()
            for value in values
        ]
    )
    return b"%s %d %s\r\n%s%s%s\r\n" % (
        version,
        status,
        REASON_PHRASES.get(status, b""),
        _common_lines(int(time.time())),
        lines,
        framing,
    )


def error_response(error: ApiError, headers: Headers) -> bytes:
    """Return the complete response for `error`, the last one of its connection."""
    body = error.body()
    lines = b"".join([b"%s: %s\r\n" % header for header in error.headers()])
    framing = b"Content-Type: application/json\r\n%sContent-Length: %d\r\nConnection: close\r\n" % (
        lines,
        len(body),
    )
    return response_head(b"HTTP/1.1", error.status, headers, framing) + body


@lru_cache(maxsize=1)
def _common_lines(second: int) -> bytes:
    """Return the headers that every response has, with the date `second`."""
    return b"Server: blockops/%s\r\nDate: %s\r\n" % (__version__.encode(), datetimeToString(second))
