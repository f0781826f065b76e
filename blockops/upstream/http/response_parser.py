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

The fast path: servers send each event of a stream as one chunk, and each chunk arrives as one read.
If llhttp is between two chunks, such a read is recognised by its first line and its last two bytes,
and llhttp need not see it, since it would be between two chunks again. For a process that was idle
before, that saves a tenth of the whole cost of a chunk. A body without framing takes the same path.
"""

from __future__ import annotations

from enum import Enum, auto
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


class Framing(Enum):
    """How the end of a body is marked (RFC 9112, section 6.3)."""

    LENGTH = auto()
    CHUNKED = auto()
    #: By the end of the connection: only the content can show whether the body is complete.
    CLOSE = auto()


class _FastPath(Enum):
    """The reads that llhttp need not see."""

    NONE = auto()
    #: A read that is exactly one chunk: llhttp is between two chunks.
    CHUNKS = auto()
    #: All reads: everything is content.
    ALL = auto()


# Globals, which are cheaper to load than attributes: `receive_data` runs for each chunk.
_NONE, _CHUNKS = _FastPath.NONE, _FastPath.CHUNKS


class ResponseParser:
    """
    Parses one response; the result does not depend on how its bytes are split into reads.

    :param method: the request's method: a response to HEAD has no body
    :ivar headers_complete: the status and the headers are known
    :ivar complete: the body has reached its announced end
    :ivar error: the reason why nothing more can be parsed, or None
    :ivar version: such as `(b"HTTP", 1, 1)`
    :ivar code: the status
    :ivar phrase: the reason phrase
    :ivar headers: names and values, unchanged
    :ivar framing: valid when the headers are complete
    :ivar length: the announced bytes of the body, or None if there is no Content-Length
    """

    __slots__ = (
        "_complete_pieces",
        "_fast_path",
        "_feed",
        "_framing_bytes",
        "_head_size",
        "_method",
        "_parser",
        "_pieces",
        "code",
        "complete",
        "error",
        "framing",
        "headers",
        "headers_complete",
        "length",
        "on_body",
        "phrase",
        "version",
    )

    def __init__(self, method: bytes) -> None:
        self.headers_complete = False
        self.complete = False
        self.error: BadResponse | None = None
        self.version = (b"HTTP", 1, 1)
        self.code = 0
        self.phrase = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.framing = Framing.CLOSE
        self.length: int | None = None
        self._method = method
        self._pieces: list[bytes] = []
        self._complete_pieces = 0  # the number of pieces when the body was complete
        self._framing_bytes = 0  # consecutive bytes without content
        self._fast_path = _NONE
        self._head_size = 0
        # llhttp calls this for each piece of content, without a Python frame in between.
        self.on_body = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        # Servers send such responses, and with one response per connection they are harmless.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
            lenient_data_after_close=True,
        )
        self._feed = self._parser.feed_data

    def pop_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers and release them: a stream may stay open for hours."""
        headers, self.headers = self.headers, []
        return headers

    def receive_data(self, data: bytes) -> bytes:
        """Return the content of the body in `data`; then check `error` and `complete`."""
        fast_path = self._fast_path
        if fast_path is not _NONE:
            if fast_path is not _CHUNKS:
                return data
            # Only a chunk begins and ends like this.
            begin = data.find(b"\r\n") + 2
            size = len(data) - begin - 2
            if size > 0 and data.startswith(b"%x\r\n" % size) and data.endswith(b"\r\n"):
                return data[begin:-2]
            self._fast_path = _NONE
        return self._parse(data)

    def _parse(self, data: bytes) -> bytes:
        """Parse `data` with llhttp, and return its content."""
        if self.complete or self.error is not None:
            return b""
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                self.error = _to_bad_response(error)
        pieces = self._pieces
        if len(pieces) == 1 and not self.complete:
            self._framing_bytes = 0
            content = pieces.pop()
        else:
            content = self._join_pieces(len(data))
        if self.headers_complete and not self.complete and self.error is None:
            self._fast_path = self._next_fast_path(data, content)
        return content

    def _next_fast_path(self, data: bytes, content: bytes) -> _FastPath:
        """
        Return the fast path for the reads after `data`, whose content is `content`.

        llhttp is between two chunks if `data` was one chunk and llhttp was between two chunks
        before it. Otherwise it was within a chunk, and the content begins like `data`.
        """
        if self.framing is Framing.CLOSE:
            return _FastPath.ALL
        if self.framing is not Framing.CHUNKED or data[:1] == content[:1]:
            return _NONE
        return _CHUNKS if data == b"%x\r\n%s\r\n" % (len(content), content) else _NONE

    def _join_pieces(self, size: int) -> bytes:
        """Remove all pieces and return them joined; `size` is that of the read that had them."""
        if self.complete:
            del self._pieces[self._complete_pieces :]
        elif self._pieces:
            self._framing_bytes = 0
        else:
            self._framing_bytes += size
            limit = MAX_FRAMING if self.headers_complete else MAX_HEAD
            if self._framing_bytes > limit and self.error is None:
                missing = "content of the body" if self.headers_complete else "end of the headers"
                self.error = BadResponse(f"no {missing} in {limit} bytes")
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content

    # Callbacks of llhttp.

    def on_status(self, phrase: bytes) -> None:
        """Append to the reason phrase, which may arrive in parts."""
        if not self.headers_complete:
            self.phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; trailers are ignored."""
        if self.headers_complete:
            return
        self.headers.append((name, value.rstrip()))
        self._head_size += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._head_size > MAX_HEAD:
            raise BadResponse(f"more than {MAX_HEADERS} headers, or {MAX_HEAD} bytes of headers")

    def on_headers_complete(self) -> None:
        """Set the status and the framing, or skip an interim response."""
        if self.complete:
            return
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
            self._body_complete()

    def on_message_complete(self) -> None:
        if self.headers_complete and not self.complete:
            self._body_complete()

    def _body_complete(self) -> None:
        self.complete = True
        self._complete_pieces = len(self._pieces)

    def _set_framing(self) -> None:
        codings = [value.lower() for value in self._values(b"transfer-encoding")]
        lengths = self._values(b"content-length")
        if codings:
            if codings != [b"chunked"] or lengths:
                raise BadResponse(
                    "its Transfer-Encoding is not supported, or contradicts its Content-Length"
                )
            self.framing = Framing.CHUNKED
        elif lengths:
            self.framing = Framing.LENGTH
            self.length = int(lengths[0])

    def _values(self, header: bytes) -> list[bytes]:
        return [value for name, value in self.headers if name.lower() == header]


def _to_bad_response(error: Exception) -> BadResponse:
    """Return the error for an exception of llhttp, or the one that a callback raised."""
    if isinstance(error.__context__, BadResponse):
        return error.__context__
    if isinstance(error, httptools.HttpParserUpgrade):
        return BadResponse("it switches to another protocol")
    return BadResponse(str(error) or type(error).__name__)
