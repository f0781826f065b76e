"""
The response to one client's request.

============ ========================= ======================= =====================================
state        entered when              attributes              allowed
============ ========================= ======================= =====================================
open         created                   -                       `begin`, then `write` and `finish`;
                                                               or `send`; `abort`
finished     `finish`, `send`          `is_closed`             `abort`; pending data is still sent
sent         the transport has all     `is_closed`, `_is_done` -
             data
disconnected `abort`,                  `is_closed`, `_is_done` -
             `mark_disconnected`       `has_client_left`
============ ========================= ======================= =====================================

Calls that are not allowed send nothing, so that callers need not check for a disconnect.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from zope.interface import implementer

from blockops.errors import ApiError
from blockops.net.socket_state import unsent_bytes
from blockops.net.writer import HIGH_WATER
from blockops.server.connection import ClientConnection
from blockops.server.request import ClientRequest
from blockops.server.response_head import response_head

Header = tuple[bytes, bytes]

#: The headers of an event stream. A reverse proxy such as nginx must not buffer it.
STREAM_HEADERS: tuple[Header, ...] = (
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)
JSON_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"application/json"),)

#: Bytes of one write to the transport. It pauses this response when more than this is unsent, and
#: resumes it when nothing is, so at most two pieces wait there.
WRITE_SIZE = HIGH_WATER
#: The framing of a chunk: size and data (RFC 9112, section 7.1).
_CHUNK = b"%x\r\n%s\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


@implementer(IPushProducer)
class ClientResponse:
    """
    The response to one request, with backpressure to its source.

    :ivar last_write: when data was last written, in seconds of the reactor's clock
    :ivar stalled_since: since when the transport cannot send more, because the client does not read
        fast enough; None if it can
    :ivar bytes_sent: bytes of the body that were written
    :ivar status: the HTTP status; 0 before `begin` or `send`
    :ivar is_closed: nothing more can be written
    :ivar has_client_left: the client has disconnected, or the response was aborted
    """

    __slots__ = (
        "_clock",
        "_connection",
        "_is_chunked",
        "_is_done",
        "_last_progress",
        "_on_done",
        "_pending",
        "_request",
        "_source",
        "_unsent",
        "_write",
        "bytes_sent",
        "has_client_left",
        "is_closed",
        "last_write",
        "stalled_since",
        "status",
    )

    def __init__(self, request: ClientRequest, clock: IReactorTime) -> None:
        self._request = request
        self._connection: ClientConnection = request.connection
        self._write: Callable[[bytes], object] = self._connection.writer.write
        self._clock = clock
        self._source: IPushProducer | None = None
        self.is_closed = self._is_done = self.has_client_left = False
        self._is_chunked = False
        # Data to write when the transport resumes: at most one event, or a non-streaming response.
        self._pending: list[memoryview] = []
        self._on_done: list[Deferred[None]] = []
        self.status = 0
        self.bytes_sent = 0
        self.last_write = clock.seconds()
        self.stalled_since: float | None = None
        # The system's unsent bytes when they last changed, and when that was.
        self._unsent: int | None = None
        self._last_progress = 0.0

    @property
    def has_begun(self) -> bool:
        """True if the status is sent: an error can only be reported in the body."""
        return self.status != 0

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        self._begin(status, headers, b"")

    def send(self, status: int, body: bytes, headers: Iterable[Header] = JSON_HEADERS) -> None:
        """Send a complete response, with the head and the start of the body in one write."""
        length = (b"Content-Length", b"%d" % len(body))
        self._begin(status, [*headers, length], body[:WRITE_SIZE])
        self.finish(body[WRITE_SIZE:])

    def send_error(self, error: ApiError) -> None:
        self.send(error.status, error.body(), [*JSON_HEADERS, *error.headers()])

    def _begin(self, status: int, headers: Iterable[Header], body_start: bytes) -> None:
        """Send the head, and the start of a body that has a `Content-Length`."""
        # The traffic log has the status also if the client has left.
        self.status = status
        if self.is_closed:
            return
        request = self._request
        # The headers are released, because a stream may stay open for hours.
        all_headers, request.responseHeaders = request.responseHeaders, Headers()
        for name, value in headers:
            all_headers.addRawHeader(name, value)
        has_body = request.method != b"HEAD" and status not in NO_BODY_CODES
        has_length = all_headers.hasHeader(b"Content-Length")
        self._is_chunked = has_body and not has_length and request.version == b"HTTP/1.1"
        self._connection.begin_response(self)
        framing = b"" if self._connection.is_persistent else b"Connection: close\r\n"
        if self._is_chunked:
            framing += b"Transfer-Encoding: chunked\r\n"
        head = response_head(request.version, status, all_headers, framing)
        self.bytes_sent += len(body_start)
        self._write(head + body_start if has_body else head)
        if not has_body:
            self._write = _ignore

    def write(self, data: bytes) -> None:
        size = len(data)
        if not size or self.is_closed:
            return
        self.last_write = self._clock.seconds()
        self.bytes_sent += size
        if self.stalled_since is not None or size > WRITE_SIZE:
            self._pending.append(memoryview(data))
            self._flush()
        elif self._is_chunked:
            self._write(_CHUNK % (size, data))
        else:
            self._write(data)

    def finish(self, data: bytes = b"") -> None:
        """Send the last piece of the body, and end the response."""
        if not self.is_closed:
            self.write(data)
            self.is_closed = True
            self._flush()

    def _flush(self) -> None:
        """Write pending data until the transport pauses, and end a finished response after it."""
        while self._pending and self.stalled_since is None:
            piece = self._pending.pop(0)
            if len(piece) > WRITE_SIZE:
                self._pending.insert(0, piece[WRITE_SIZE:])
            data = bytes(piece[:WRITE_SIZE])
            self._write(_CHUNK % (len(data), data) if self._is_chunked else data)
        if not self._pending and self.is_closed and not self._is_done:
            if self._is_chunked:
                self._write(_LAST_CHUNK)
            self._end()
            self._request.finish()

    def when_done(self) -> Deferred[None]:
        """Return a deferred that fires when all data was sent, or when the client has left."""
        done: Deferred[None] = Deferred()
        if self._is_done:
            done.callback(None)
        else:
            self._on_done.append(done)
        return done

    def abort(self) -> None:
        """Close the connection, so that no client takes the response for a complete one."""
        if not self._is_done:
            self._connection.abort()
            self.mark_disconnected()

    def mark_disconnected(self) -> None:
        if not self._is_done:
            self.has_client_left = True
            self._end()

    def _end(self) -> None:
        self.is_closed = self._is_done = True
        self._write = _ignore
        self._source = self.stalled_since = None
        self._pending.clear()
        waiting, self._on_done = self._on_done, []
        for done in waiting:
            done.callback(None)

    def set_source(self, source: IPushProducer | None) -> None:
        """Pause and resume `source` as the client reads; None for no source."""
        self._source = source
        if source is not None and self.stalled_since is not None:
            source.pauseProducing()

    def seconds_stalled(self, now: float) -> float:
        """
        Return for how many seconds the client has read nothing of the unsent data.

        Call it regularly while the response is stalled. A slow client reads from the system's
        buffers, and it may take minutes until the transport resumes the producer.
        """
        unsent = unsent_bytes(self._connection.transport)
        if unsent != self._unsent:
            self._unsent, self._last_progress = unsent, now
        return now - self._last_progress

    def pauseProducing(self) -> None:
        self.stalled_since = self._last_progress = self._clock.seconds()
        self._unsent = unsent_bytes(self._connection.transport)
        if self._source is not None:
            self._source.pauseProducing()

    def resumeProducing(self) -> None:
        self.stalled_since = None
        self._flush()
        if self._source is not None and self.stalled_since is None:
            self._source.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the connection is closing, and `mark_disconnected` is called next."""


def _ignore(data: bytes) -> None: ...
