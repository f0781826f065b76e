"""
One response of a backend, read from its bytes: what HTTP/1 says of it, and nothing of sockets.

llhttp does the reading. Beyond what it checks, here are the bounds, and the framing of a connection
that carries one response: interim responses (100, 103) are passed over, what stands behind the
end is nobody's, and a body without a length ends where the connection does.

Servers send each event of a stream as one chunk, and each chunk arrives as one read. Where llhttp
stands between two chunks, such a read is told by its first line and its last two bytes, and llhttp
goes on standing there: it does not have to see it. For a process that slept until then, that
is a tenth of a chunk's whole cost. The same goes for a body that has no framing at all.
"""

from __future__ import annotations

from enum import Enum, auto
from http import HTTPStatus

import httptools

#: Bytes of the status line and the headers, interim responses included: a proxy's cookies and
#: policies take a few thousand.
MAX_HEAD = 64 * 1024
#: Headers of one response: ten times what a chatty one has.
MAX_HEADERS = 500
#: Bytes in a row of a body that are none of its content: sizes of chunks, their extensions,
#: trailers.
MAX_FRAMING = 16 * 1024

_INTERIM = range(HTTPStatus.CONTINUE, HTTPStatus.OK)
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class BadResponse(Exception):
    """What came is no HTTP response, or is out of bounds."""


class Framing(Enum):
    """What ends a response's body."""

    LENGTH = auto()
    CHUNKS = auto()
    #: The connection's end: whether the body is whole, only its content can tell.
    CLOSE = auto()


class _Straight(Enum):
    """What llhttp need not see."""

    NOTHING = auto()
    #: A read that is exactly one chunk: it stands in front of one.
    CHUNKS = auto()
    #: Whatever comes: all of it is content.
    ALL = auto()


_NOTHING, _CHUNKS = _Straight.NOTHING, _Straight.CHUNKS


class ResponseReader:
    """
    Reads one response, wherever the network happened to cut its bytes.

    :param method: of the request
    :ivar headed: status and headers are known
    :ivar ended: the body has come to its announced end
    :ivar fault: why nothing more can be read; None while it can
    :ivar version: of HTTP, such as `(b"HTTP", 1, 1)`
    :ivar code: its status
    :ivar phrase: what the backend says its status means
    :ivar headers: names and values, as they came
    :ivar framing: what ends its body
    :ivar length: bytes that its body is going to have; None if unsaid
    """

    __slots__ = (
        "_barren",
        "_behind",
        "_feed",
        "_head_size",
        "_method",
        "_parser",
        "_pieces",
        "_straight",
        "code",
        "ended",
        "fault",
        "framing",
        "headed",
        "headers",
        "length",
        "on_body",
        "phrase",
        "version",
    )

    def __init__(self, method: bytes) -> None:
        self.headed = False
        self.ended = False
        self.fault: BadResponse | None = None
        self.version = (b"HTTP", 1, 1)
        self.code = 0
        self.phrase = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.framing = Framing.CLOSE
        self.length: int | None = None
        self._method = method
        self._pieces: list[bytes] = []
        self._behind = 0  # of the pieces, how many had come when the body ended
        self._barren = 0  # bytes in a row without content
        self._straight = _NOTHING
        self._head_size = 0
        # llhttp calls this once a piece: no frame of Python's own stands between.
        self.on_body = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        # Harmless where one connection carries one response, and servers do so.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
            lenient_data_after_close=True,
        )
        self._feed = self._parser.feed_data

    def take_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers, and keep them no longer: a stream may stand for hours."""
        taken, self.headers = self.headers, []
        return taken

    def receive_data(self, data: bytes) -> bytes:
        """Return what `data` holds of the body; look at `fault` and `ended` then."""
        straight = self._straight
        if straight is not _NOTHING:
            if straight is not _CHUNKS:
                return data
            # Nothing else than a chunk begins and ends so.
            begin = data.find(b"\r\n") + 2
            size = len(data) - begin - 2
            if size > 0 and data.startswith(b"%x\r\n" % size) and data.endswith(b"\r\n"):
                return data[begin:-2]
            self._straight = _NOTHING
        return self._read(data)

    def _read(self, data: bytes) -> bytes:
        """Let llhttp read `data`."""
        if self.ended or self.fault is not None:
            return b""
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.ended:
                self.fault = _read_as(error)
        pieces = self._pieces
        if len(pieces) == 1 and not self.ended:
            self._barren = 0
            content = pieces.pop()
        else:
            content = self._rest(len(data))
        if self.headed and not self.ended and self.fault is None:
            self._straight = self._what_follows(data, content)
        return content

    def _what_follows(self, data: bytes, content: bytes) -> _Straight:
        """
        Return what may go straight behind `data`, of which llhttp has made `content`.

        llhttp stands in front of a chunk if `data` was one, and if it stood there before: else,
        within a chunk, what it has made would begin as `data` does.
        """
        if self.framing is Framing.CLOSE:
            return _Straight.ALL
        if self.framing is not Framing.CHUNKS or data[:1] == content[:1]:
            return _NOTHING
        return _CHUNKS if data == b"%x\r\n%s\r\n" % (len(content), content) else _NOTHING

    def _rest(self, size: int) -> bytes:
        """Return the content of a read of `size` bytes that was not just one piece."""
        if self.ended:
            del self._pieces[self._behind :]
        elif self._pieces:
            self._barren = 0
        else:
            self._barren += size
            most = MAX_FRAMING if self.headed else MAX_HEAD
            if self._barren > most and self.fault is None:
                what = "nothing of its body" if self.headed else "no end of its headers"
                self.fault = BadResponse(f"there was {what} in {most} bytes")
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content

    # What llhttp calls.

    def on_status(self, phrase: bytes) -> None:
        """Take what the status line says behind the code, or a part of it."""
        if not self.headed:
            self.phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer says nothing that anybody asks for."""
        if self.headed:
            return
        self.headers.append((name, value.rstrip()))
        self._head_size += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._head_size > MAX_HEAD:
            raise BadResponse(
                f"it has more than {MAX_HEADERS} headers, or {MAX_HEAD} bytes of them"
            )

    def on_headers_complete(self) -> None:
        """Take note of the status, and of what ends the body."""
        if self.ended:
            return
        code = self._parser.get_status_code()
        if code in _INTERIM:
            if code == HTTPStatus.SWITCHING_PROTOCOLS:
                raise BadResponse("it speaks another protocol from here on")
            self.phrase = b""
            self.headers.clear()
            return
        major, _, minor = self._parser.get_http_version().partition(".")
        self.version = (b"HTTP", int(major), int(minor))
        self.code = code
        self._frame()
        self.headed = True
        if self._method == b"HEAD" or code in _BODILESS:
            self._end()

    def on_message_complete(self) -> None:
        """Take note of the body's end."""
        if self.headed and not self.ended:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._behind = len(self._pieces)

    def _frame(self) -> None:
        codings = [value.lower() for name, value in self.headers if _is(name, b"transfer-encoding")]
        lengths = [value for name, value in self.headers if _is(name, b"content-length")]
        if codings:
            if codings != [b"chunked"] or lengths:
                raise BadResponse("its Transfer-Encoding cannot be read, or contradicts its length")
            self.framing = Framing.CHUNKS
        elif lengths:
            self.framing = Framing.LENGTH
            self.length = int(lengths[0])


def _is(name: bytes, wanted: bytes) -> bool:
    return name.lower() == wanted


def _read_as(error: Exception) -> BadResponse:
    """Return what is said of an error of llhttp, or of ours within its calls."""
    if isinstance(error.__context__, BadResponse):
        return error.__context__
    if isinstance(error, httptools.HttpParserUpgrade):
        return BadResponse("it speaks another protocol from here on")
    return BadResponse(str(error) or type(error).__name__)
