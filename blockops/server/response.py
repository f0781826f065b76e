"""The answer to one client's request: begun once, written in order, finished once or cut."""

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
from blockops.server.request import IncomingRequest

Header = tuple[bytes, bytes]

#: What an event stream's answer says: buffering by a proxy in between (nginx) would defeat it.
STREAM_HEADERS: tuple[Header, ...] = (
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)
JSON_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"application/json"),)

#: What stands behind a status, by the standard; backends make up others.
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}

#: Bytes that the transport is given at once. It asks for a pause when it holds more than this, and
#: for more when it holds none: so each slice that a client has read shows that it reads.
SLICE = 64 * 1024


class _State(Enum):
    OPEN = auto()
    #: All is said, but not all of it is with the transport.
    FINISHED = auto()
    DELIVERED = auto()
    GONE = auto()


_SETTLED = frozenset({_State.DELIVERED, _State.GONE})


@implementer(IPushProducer)
class Downstream:
    """
    What goes to the client.

    Everything may be called after the client has gone; it is then without effect.

    :ivar last_write: when bytes were last written, in seconds of the reactor's clock
    :ivar stalled_since: since when the transport waits for the client to read what it holds; None
        while it holds less than a slice
    :ivar bytes_sent: bytes of the body that were written
    :ivar status: of the answer, once it has begun; 0 before
    """

    __slots__ = (
        "_clock",
        "_delivered",
        "_moved",
        "_request",
        "_source",
        "_state",
        "_unread",
        "_waiting",
        "_way_out",
        "bytes_sent",
        "last_write",
        "stalled_since",
        "status",
    )

    def __init__(self, request: IncomingRequest, clock: IReactorTime) -> None:
        self._request = request
        self._clock = clock
        self._source: IPushProducer | None = None
        self._state = _State.OPEN
        # What waits for the transport: of it, as much as one event, or one whole answer.
        self._waiting: list[memoryview] = []
        self._delivered: list[Deferred[None]] = []
        # What takes chunks without a detour; None while there is more to it.
        self._way_out: Callable[[bytes], object] | None = None
        self.status = 0
        self.bytes_sent = 0
        self.last_write = clock.seconds()
        self.stalled_since: float | None = None
        # What the system held for the client when that last changed, and when that was.
        self._unread: int | None = None
        self._moved = 0.0

    @property
    def begun(self) -> bool:
        """The status has left: an error can only be told in the body."""
        return self.status != 0

    @property
    def gone(self) -> bool:
        """The client has left."""
        return self._state is _State.GONE

    @property
    def settled(self) -> bool:
        """The transport has the last of a finished answer, or all is off."""
        return self._state in _SETTLED

    @property
    def over(self) -> bool:
        """Nothing more is to be said, or nobody is there to hear it."""
        return self._state is not _State.OPEN

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Send status and headers."""
        self._begin(status, headers)
        if not self.over:
            self._request.write(b"")
            self._look_for_way_out()

    def _begin(self, status: int, headers: Iterable[Header]) -> None:
        self.status = status
        if self.over:
            return
        self._request.setResponseCode(status, PHRASES.get(status, b""))
        for name, value in headers:
            self._request.responseHeaders.addRawHeader(name, value)
        self._request.registerProducer(self, streaming=True)

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        size = len(data)
        if self._way_out is not None and 0 < size <= SLICE:
            self.last_write = self._clock.seconds()
            self.bytes_sent += size
            self._way_out(b"%x\r\n%s\r\n" % (size, data))
        elif size and not self.over:
            self._write(data)

    def _write(self, data: bytes) -> None:
        """Send a piece of the body in whatever way there is."""
        self.last_write = self._clock.seconds()
        self.bytes_sent += len(data)
        if self.stalled_since is None and len(data) <= SLICE:
            self._request.write(data)
        else:
            self._waiting.append(memoryview(data))
            self._write_on()

    def finish(self, data: bytes = b"") -> None:
        """Send the last piece of the body, and end the answer."""
        if self.over:
            return
        self.write(data)
        self._state = _State.FINISHED
        self._way_out = None
        self._write_on()

    def delivered(self) -> Deferred[None]:
        """Return what fires when the transport has the last of a finished answer, or all is off."""
        delivered: Deferred[None] = Deferred()
        if self.settled:
            delivered.callback(None)
        else:
            self._delivered.append(delivered)
        return delivered

    def answer(self, status: int, body: bytes, headers: Iterable[Header] = JSON_HEADERS) -> None:
        """Begin and finish in one, so that head and body leave together."""
        self._begin(status, [*headers, (b"Content-Length", b"%d" % len(body))])
        self.finish(body)

    def refuse(self, error: ApiError) -> None:
        """Answer with `error`, if nothing was answered yet."""
        self.answer(error.status, error.body(), [*JSON_HEADERS, *error.headers()])

    def cut(self) -> None:
        """End so that no client can take the answer for a whole one: the connection breaks."""
        if self._state in {_State.OPEN, _State.FINISHED}:
            self._request.cut()
            self.lost()

    def lost(self) -> None:
        """Note that the client has gone."""
        if self._state is not _State.DELIVERED:
            self._end(_State.GONE)

    def unmoved(self, now: float) -> float:
        """
        Return for how many seconds the client has read nothing of what waits for it.

        To be asked now and then while it is stalled: a client that reads slowly gets at what the
        system holds, and it may be minutes until the transport is asked for more.
        """
        unread = self._request.unread()
        if unread != self._unread:
            self._unread, self._moved = unread, now
        return now - self._moved

    def feed_from(self, source: IPushProducer | None) -> None:
        """Let the client's speed be that of `source`: what it does not read, stays there."""
        self._source = source
        if source is not None and self.stalled_since is not None:
            source.pauseProducing()

    def _write_on(self) -> None:
        """Give the transport slices of what waits, until it asks for a pause."""
        while self._waiting and self.stalled_since is None:
            piece = self._waiting.pop(0)
            if len(piece) > SLICE:
                self._waiting.insert(0, piece[SLICE:])
            self._request.write(bytes(piece[:SLICE]))
        if not self._waiting and self._state is _State.FINISHED:
            self._request.unregisterProducer()
            self._end(_State.DELIVERED)
            self._request.finish()

    def _look_for_way_out(self) -> None:
        """Let chunks go straight to the connection while nothing waits, and none has to."""
        straight = self.stalled_since is None and self._state is _State.OPEN and self.begun
        self._way_out = self._request.way_out() if straight else None

    def _end(self, state: _State) -> None:
        self._state = state
        self._way_out = None
        self._source = None
        self._waiting.clear()
        waiting, self._delivered = self._delivered, []
        for delivered in waiting:
            delivered.callback(None)

    def pauseProducing(self) -> None:
        self.stalled_since = self._moved = self._clock.seconds()
        self._unread = self._request.unread()
        self._way_out = None
        if self._source is not None:
            self._source.pauseProducing()

    def resumeProducing(self) -> None:
        self.stalled_since = None
        self._write_on()
        self._look_for_way_out()
        if self._source is not None and self.stalled_since is None:
            self._source.resumeProducing()

    def stopProducing(self) -> None:
        """The client is going: `lost` follows, and says so to whoever feeds."""
