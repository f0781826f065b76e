"""The answer to one client's request: begun once, written in order, finished once or cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from twisted.internet.interfaces import IPushProducer, IReactorTime, ITCPTransport
from twisted.web.server import Request
from zope.interface import implementer

from blockops.wire.errors import ApiError

Header = tuple[str, str]

#: What an event stream's answer says: buffering by a proxy in between (nginx) would defeat it.
STREAM_HEADERS: tuple[Header, ...] = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),
)
JSON_HEADERS: tuple[Header, ...] = (("Content-Type", "application/json"),)


@implementer(IPushProducer)
class Downstream:
    """
    What goes to the client.

    Everything may be called after the client has gone; it is then without effect.

    :ivar last_write: when bytes were last written, in seconds of the reactor's clock
    :ivar stalled_since: since when more than the transport's 64 KiB wait for the client to read;
        None while it keeps up
    :ivar bytes_sent: bytes of the body that were written
    :ivar status: of the answer, once it has begun; 0 before
    """

    def __init__(self, request: Request, clock: IReactorTime) -> None:
        self._request = request
        self._clock = clock
        self._source: IPushProducer | None = None
        self._finished = False
        self.gone = False
        self.status = 0
        self.bytes_sent = 0
        self.last_write = clock.seconds()
        self.stalled_since: float | None = None

    @property
    def begun(self) -> bool:
        """The status has left: an error can only be told in the body."""
        return self.status != 0

    @property
    def over(self) -> bool:
        """Nothing more is to be said, or nobody is there to hear it."""
        return self._finished or self.gone

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Send status and headers."""
        self.status = status
        if self.over:
            return
        self._request.setResponseCode(status)
        for name, value in headers:
            self._request.responseHeaders.addRawHeader(name, value)
        self._request.registerProducer(self, streaming=True)
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Send a piece of the body. The first one takes the headers along."""
        if self.over:
            return
        self.last_write = self._clock.seconds()
        self.bytes_sent += len(data)
        self._request.write(data)

    def finish(self, data: bytes = b"") -> None:
        """Send the last piece of the body, and end the answer."""
        if self.over:
            return
        if data:
            self.write(data)
        self._finished = True
        self._request.unregisterProducer()
        self._request.finish()

    def answer(self, status: int, body: bytes, headers: Iterable[Header] = JSON_HEADERS) -> None:
        """Begin and finish in one."""
        self.begin(status, [*headers, ("Content-Length", str(len(body)))])
        self.finish(body)

    def refuse(self, error: ApiError) -> None:
        """Answer with `error`, if nothing was answered yet."""
        wait = [] if error.retry_after is None else [("Retry-After", str(error.retry_after))]
        self.answer(error.status, error.body(), [*JSON_HEADERS, *wait])

    def cut(self) -> None:
        """End so that no client can take the answer for a whole one: the connection breaks."""
        if self.over:
            return
        self._finished = True
        cast("ITCPTransport", self._request.transport).abortConnection()

    def lost(self) -> None:
        """The client has gone."""
        self.gone = True
        self._source = None

    def feed_from(self, source: IPushProducer | None) -> None:
        """Let the client's speed be that of `source`: what it does not read, stays there."""
        self._source = source
        if source is not None and self.stalled_since is not None:
            source.pauseProducing()

    def pauseProducing(self) -> None:
        self.stalled_since = self._clock.seconds()
        if self._source is not None:
            self._source.pauseProducing()

    def resumeProducing(self) -> None:
        self.stalled_since = None
        if self._source is not None:
            self._source.resumeProducing()

    def stopProducing(self) -> None:
        """The client is going: `lost` follows, and says so to whoever feeds."""
