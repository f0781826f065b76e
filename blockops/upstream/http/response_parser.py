"""
`ResponseParser`: parses one HTTP/1 response from its bytes, without a socket.

llhttp does the parsing. This module adds bounds, and the framing of a connection that carries a
single response: interim responses (100, 103) are skipped, data after the end is ignored, and a body
without a length ends with the connection.

| state    | event                                    | next state                          |
| -------- | ---------------------------------------- | ----------------------------------- |
| headers  | headers of an interim response complete  | headers                             |
|          | headers complete                         | body (`headers_complete`)           |
|          | headers complete: HEAD, 204, 304         | complete                            |
|          | 101, invalid or too many headers         | error                               |
| body     | end of the length, or last chunk         | complete                            |
|          | too much framing without content         | error                               |
|          | invalid chunk                            | error; content before it is kept    |
| complete | data                                     | complete; the data is ignored       |
| error    | data                                     | error; the data is ignored          |
"""

from __future__ import annotations

from http import HTTPStatus

import httptools

#: Bound of the status line and the headers in bytes, interim responses included. The cookies and
#: policies of a proxy take a few thousand bytes.
MAX_HEAD = 64 * 1024
#: Bound of the number of headers: ten times as many as servers send.
MAX_HEADERS = 500
#: Bound of consecutive bytes of a body without content: chunk sizes, chunk extensions, trailers.
MAX_FRAMING = 16 * 1024

_INTERIM = range(HTTPStatus.CONTINUE, HTTPStatus.OK)
_STATUSES_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class BadResponse(Exception):
    """The data is not a valid HTTP response, or exceeds a bound."""


class _EndOfResponse(Exception):
    """Makes llhttp stop: more data is not part of this response."""


class ResponseParser:
    """
    Parses one response; the result does not depend on how its bytes are split into reads.

    :param method: the request's method: a response to HEAD has no body
    :ivar complete: the body has reached its announced end
    :ivar error: the reason why nothing more can be parsed, or None
    :ivar length: the announced bytes of the body, or None if there is no Content-Length
    :ivar ends_at_close: only the end of the connection ends the body (RFC 9112, section 6.3): its
        content alone can show whether it is complete
    """

    def __init__(self, method: bytes) -> None:
        self.headers_complete = False
        self.complete = False
        self.error: BadResponse | None = None
        self.version = (b"HTTP", 1, 1)
        self.code = 0
        self.phrase = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.ends_at_close = True
        self._method = method
        self._content: list[bytes] = []
        self._framing_bytes = 0  # consecutive bytes without content
        self._head_size = 0
        # llhttp calls this for each piece of content, without a Python frame in between.
        self.on_body = self._content.append
        self._parser = httptools.HttpResponseParser(self)
        # Servers send such responses, and with one response per connection they are harmless.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
            lenient_data_after_close=True,
        )

    def pop_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers and release them: a stream may stay open for hours."""
        headers, self.headers = self.headers, []
        return headers

    def receive_data(self, data: bytes) -> bytes:
        """Return the content of the body in `data`; then check `error` and `complete`."""
        if self.complete or self.error is not None:
            return b""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                self.error = _to_bad_response(error)
        content = b"".join(self._content)
        if content:
            self._content.clear()
            self._framing_bytes = 0
        elif not self.complete:
            self._check_framing(len(data))
        return content

    def _check_framing(self, size: int) -> None:
        self._framing_bytes += size
        limit = MAX_FRAMING if self.headers_complete else MAX_HEAD
        if self._framing_bytes > limit and self.error is None:
            missing = "content of the body" if self.headers_complete else "end of the headers"
            self.error = BadResponse(f"no {missing} in {limit} bytes")

    # Callbacks of llhttp.

    def on_status(self, phrase: bytes) -> None:
        self.phrase += phrase  # it may arrive in parts

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.headers_complete:
            return  # a trailer
        self.headers.append((name, value.rstrip()))
        self._head_size += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._head_size > MAX_HEAD:
            raise BadResponse(f"more than {MAX_HEADERS} headers, or {MAX_HEAD} bytes of headers")

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        if code in _INTERIM:
            if code == HTTPStatus.SWITCHING_PROTOCOLS:
                raise BadResponse("it switches to another protocol")
            self.phrase = b""
            self.headers.clear()
            return
        major, _, minor = self._parser.get_http_version().partition(".")
        self.version = (b"HTTP", int(major), int(minor))
        self.code = code
        self._set_framing()
        self.headers_complete = True
        if self._method == b"HEAD" or code in _STATUSES_WITHOUT_BODY:
            self.on_message_complete()

    def on_message_complete(self) -> None:
        if self.headers_complete:  # otherwise an interim response ends
            self.complete = True
            raise _EndOfResponse

    def _set_framing(self) -> None:
        codings = [value.lower() for value in self._values(b"transfer-encoding")]
        lengths = self._values(b"content-length")
        if codings and (codings != [b"chunked"] or lengths):
            raise BadResponse(
                "its Transfer-Encoding is not supported, or contradicts its Content-Length"
            )
        if lengths:
            self.length = int(lengths[0])
        self.ends_at_close = not codings and not lengths

    def _values(self, header: bytes) -> list[bytes]:
        return [value for name, value in self.headers if name.lower() == header]


def _to_bad_response(error: Exception) -> BadResponse:
    if isinstance(error.__context__, BadResponse):
        return error.__context__
    if isinstance(error, httptools.HttpParserUpgrade):
        return BadResponse("it switches to another protocol")
    return BadResponse(str(error) or type(error).__name__)
