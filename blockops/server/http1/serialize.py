"""The bytes of response headers and of complete error responses."""

from __future__ import annotations

from http import HTTPStatus

from twisted.web.http_headers import Headers

from blockops import __version__
from blockops.errors import ApiError

#: The value of the `Server` header.
SERVER = f"blockops/{__version__}".encode()


def header_lines(headers: Headers) -> bytes:
    """Return `headers` as bytes, each with its line end."""
    return b"".join(
        [
            b"%s: %s\r\n" % (name, value)
            for name, values in headers.getAllRawHeaders()
            for value in values
        ]
    )


def error_response(error: ApiError, common: bytes, headers: Headers) -> bytes:
    """
    Return the complete response for `error`, the last one of its connection.

    :param common: the lines of the headers that every response has
    :param headers: further headers of the response
    """
    body = error.body()
    lines = header_lines(headers) + b"".join(b"%s: %s\r\n" % header for header in error.headers())
    return (
        b"HTTP/1.1 %d %s\r\n%sContent-Type: application/json\r\n"
        b"%sContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    ) % (error.status, HTTPStatus(error.status).phrase.encode(), common, lines, len(body), body)
