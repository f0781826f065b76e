"""
The response to one client's request.

============ ============================== ====================================================
state        entered when                   allowed
============ ============================== ====================================================
OPEN         created                        `begin`, then `write` and `finish`; or `send`; `abort`
FINISHED     `finish`, `send`               `abort`; pending data is still sent
SENT         the transport has all data     -
DISCONNECTED `abort`, `mark_disconnected`   -
============ ============================== ====================================================

Calls that are not allowed send nothing, so that callers need not check for a disconnect.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto
from http import HTTPStatus

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from blockops.errors import ApiError
from blockops.net.writer import HIGH_WATER
from blockops.server.request import ClientRequest

Header = tuple[bytes, bytes]

#: The headers of an event stream. A reverse proxy such as nginx must not buffer it.
STREAM_HEADERS: tuple[Header, ...] = (
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)
JSON_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"application/json"),)

#: The standard's phrase for each status; backends make up others.
REASON_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}

#: Bytes of one write to the transport. It pauses this response when more than this is unsent, and
#: resumes it when nothing is, so at most two pieces wait there.
WRITE_SIZE = HIGH_WATER


class _State(Enum):
    """See the table at the head of this module."""

    OPEN = auto()
    FINISHED = auto()
    SENT = auto()
    DISCONNECTED = auto()


_FINAL_STATES = frozenset({_State.SENT, _State.DISCONNECTED})


@implementer(IPushProducer)
class ClientResponse:
    """
    The response to one request, with backpressure to its source.

    :ivar last_write: when data was last written, in seconds of the reactor's clock
    :ivar stalled_since: since when the transport cannot send more, because the client does not read
        fast enough; None if it can
    :ivar bytes_sent: bytes of the body that were written
    :ivar status: the HTTP status; 0 before `begin` or `send`
    """

    __slots__ = (
        "_clock",
        "_last_progress",
        "_on_done",
        "_pending",
        "_raw_write",
        "_request",
        "_source",
        "_state",
        "_unsent",
        "bytes_sent",
        "last_write",
        "stalled_since",
        "status",
    )

    def __init__(self, request: ClientRequest, clock: IReactorTime) -> None:
        self._request = request
        self._clock = clock
        self._source: IPushProducer | None = None
        self._state = _State.OPEN
        # Data to write when the transport resumes: at most one event, or a non-streaming response.
        self._pending: list[memoryview] = []
        self._on_done: list[Deferred[None]] = []
        # Sends framed chunks without the calls of the request; None if that is not possible.
        self._raw_write: Callable[[bytes], object] | None = None
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

    @property
    def has_client_left(self) -> bool:
        """True if the client has disconnected, or the response was aborted."""
        return self._state is _State.DISCONNECTED

    @property
    def is_done(self) -> bool:
        """True if the transport has all data of a finished response, or the client has left."""
        return self._state in _FINAL_STATES

    @property
    def is_closed(self) -> bool:
        """True if nothing more can be written: the response is finished, or the client has left."""
        return self._state is not _State.OPEN

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Send status and headers."""
        self._set_head(status, headers)
        if not self.is_closed:
            self._request.write(b"")
            self._update_raw_write()

    def _set_head(self, status: int, headers: Iterable[Header]) -> None:
        # The traffic log has the status also if the client has left.
        self.status = status
        if self.is_closed:
            return
        self._request.setResponseCode(status, REASON_PHRASES.get(status, b""))
        for name, value in headers:
            self._request.responseHeaders.addRawHeader(name, value)
        self._request.registerProducer(self, streaming=True)

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        size = len(data)
        if self._raw_write is not None and 0 < size <= WRITE_SIZE:
            self.last_write = self._clock.seconds()
            self.bytes_sent += size
            self._raw_write(b"%x\r\n%s\r\n" % (size, data))
        elif size and not self.is_closed:
            self.last_write = self._clock.seconds()
            self.bytes_sent += size
            if self.stalled_since is None and size <= WRITE_SIZE:
                self._request.write(data)
            else:
                self._pending.append(memoryview(data))
                self._flush()

    def finish(self, data: bytes = b"") -> None:
        """Send the last piece of the body, and end the response."""
        if self.is_closed:
            return
        self.write(data)
        self._state = _State.FINISHED
        self._raw_write = None
        self._flush()

    def when_done(self) -> Deferred[None]:
        """Return a deferred that fires as soon as `is_done`."""
        done: Deferred[None] = Deferred()
        if self.is_done:
            done.callback(None)
        else:
            self._on_done.append(done)
        return done

    def send(self, status: int, body: bytes, headers: Iterable[Header] = JSON_HEADERS) -> None:
        """Send a complete response, with head and body in one write."""
        self._set_head(status, [*headers, (b"Content-Length", b"%d" % len(body))])
        self.finish(body)

    def send_error(self, error: ApiError) -> None:
        """Send `error` as the complete response."""
        self.send(error.status, error.body(), [*JSON_HEADERS, *error.headers()])

    def abort(self) -> None:
        """Close the connection, so that no client takes the response for a complete one."""
        if self._state in {_State.OPEN, _State.FINISHED}:
            self._request.abort()
            self.mark_disconnected()

    def mark_disconnected(self) -> None:
        """Mark the client as disconnected."""
        if self._state is not _State.SENT:
            self._end(_State.DISCONNECTED)

    def seconds_stalled(self, now: float) -> float:
        """
        Return for how many seconds the client has read nothing of the unsent data.

        Call it regularly while the response is stalled. A slow client reads from the system's
        buffers, and it may take minutes until the transport resumes the producer.
        """
        unsent = self._request.unsent_bytes()
        if unsent != self._unsent:
            self._unsent, self._last_progress = unsent, now
        return now - self._last_progress

    def set_source(self, source: IPushProducer | None) -> None:
        """Pause and resume `source` as the client reads; None for no source."""
        self._source = source
        if source is not None and self.stalled_since is not None:
            source.pauseProducing()

    def _flush(self) -> None:
        """Write pending data until the transport pauses, and end a finished response after it."""
        while self._pending and self.stalled_since is None:
            piece = self._pending.pop(0)
            if len(piece) > WRITE_SIZE:
                self._pending.insert(0, piece[WRITE_SIZE:])
            self._request.write(bytes(piece[:WRITE_SIZE]))
        if not self._pending and self._state is _State.FINISHED:
            self._request.unregisterProducer()
            self._end(_State.SENT)
            self._request.finish()

    def _update_raw_write(self) -> None:
        """Use `raw_write` for chunks while the response is open and not stalled."""
        is_direct = self.stalled_since is None and self._state is _State.OPEN and self.has_begun
        self._raw_write = self._request.raw_write() if is_direct else None

    def _end(self, state: _State) -> None:
        self._state = state
        self._raw_write = None
        self._source = None
        self._pending.clear()
        waiting, self._on_done = self._on_done, []
        for done in waiting:
            done.callback(None)

    def pauseProducing(self) -> None:
        self.stalled_since = self._last_progress = self._clock.seconds()
        self._unsent = self._request.unsent_bytes()
        self._raw_write = None
        if self._source is not None:
            self._source.pauseProducing()

    def resumeProducing(self) -> None:
        self.stalled_since = None
        self._flush()
        self._update_raw_write()
        if self._source is not None and self.stalled_since is None:
            self._source.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the connection is closing, and `mark_disconnected` is called next."""
