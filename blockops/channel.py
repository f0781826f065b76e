"""One client's connection: what it may send, and how long it may take."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Protocol, cast

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.server import Request
from zope.interface import implementer

from blockops import __version__
from blockops.eager import Outlet, outlet
from blockops.limits import (
    KEEP_ALIVE,
    LINGER,
    MAX_DIGITS,
    MAX_HEAD,
    MAX_LINE,
    SLOWEST_BODY,
    too_large,
)
from blockops.wire.errors import ApiError

#: What answers say they come from.
SERVER = f"blockops/{__version__}".encode()


class _Manner(Enum):
    """How a channel treats its client."""

    #: Nothing of a request has come.
    IDLE = auto()
    SERVING = auto()
    #: It was told that its request is none. What it sends now is of no interest.
    REFUSING = auto()
    #: The connection closes when what was written is sent.
    LEAVING = auto()


class House(Protocol):
    """
    Where channels belong: `blockops.site.Site`.

    :ivar unread: those of them that nothing is read from, because nobody takes their upload
    :ivar closing: each connection closes behind the answer that is under way on it
    """

    reactor: Any
    max_body: int
    header_timeout: float
    closing: bool
    unread: set[Channel]

    def screen(self, request: Any, /) -> Any:
        """Return what answers `request`, whose headers are here, in place of its route, or None."""

    def streams_up(self, target: bytes, /) -> bool:
        """Say whether to render a request for `target` before its body is here."""

    def refused(self, channel: Channel, error: ApiError, /) -> object:
        """Take note that `channel` refused what never became a request."""

    def opened(self, channel: Channel) -> None: ...
    def closed(self, channel: Channel) -> None: ...


class Channel(HTTPChannel):
    """One client's connection, and the deadline for what it has to send next."""

    site: House
    MAX_LENGTH = MAX_LINE
    # Headers are counted below, where a refusal can say so.
    totalHeadersSize = 2 * MAX_HEAD
    maxHeaders = MAX_HEAD

    def __init__(self) -> None:
        super().__init__()
        self._manner = _Manner.IDLE
        self._deadline: IDelayedCall | None = None
        self._head_size = 0
        # Until when a body has to be whole; None while there is none on its way.
        self._body_due: float | None = None
        self._paused_since: float | None = None
        # More waits for the client than the transport likes to hold.
        self._full = False
        # Status and headers that wait for the body's first piece, to be sent with it.
        self._head = b""
        self.reading = _Reading(self)

    def connectionMade(self) -> None:
        super().connectionMade()
        cast("IConsumer", self.transport).unregisterProducer()
        self._out: Outlet = outlet(self.transport, self)
        self.site.opened(self)
        self.wait(self.site.header_timeout)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.wait(None)
        self._body_due = None
        self.site.closed(self)
        super().connectionLost(reason)

    # What comes from the client.

    def dataReceived(self, data: bytes) -> None:
        if data:
            self._begin()
        super().dataReceived(data)

    def _begin(self) -> None:
        if self._manner is _Manner.IDLE:
            self._manner = _Manner.SERVING
            self._head_size = 0
            self.wait(self.site.header_timeout)

    def lineReceived(self, line: bytes) -> None:
        self._begin()
        self._head_size += len(line) + len(self.delimiter)
        if self._head_size > MAX_HEAD:
            self._refuse_head("The headers of the request are together", MAX_HEAD)
            return
        known = len(self.requests)
        super().lineReceived(line)
        if len(self.requests) > known and self._manner is _Manner.SERVING:
            if line.isascii():
                self.requests[-1].began(line)
            else:
                self._respondToBadRequestAndDisconnect()

    def lineLengthExceeded(self, line: bytes) -> None:
        if self.requests:
            self._refuse_head("A header of the request is", MAX_LINE)
        else:
            what = f"The request line is longer than {MAX_LINE} bytes."
            self.refuse(ApiError(414, what, code="request_too_large"))
            self.loseConnection()

    def headerReceived(self, line: bytes) -> bool:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and len(value.strip()) > MAX_DIGITS:
            self.refuse(too_large(self.site.max_body))
            self.loseConnection()
            return False
        return bool(super().headerReceived(line))

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        return bool(super().checkPersistence(request, version)) and not self.site.closing

    # Bodies.

    def expect_body(self, size: int) -> None:
        """Give a body of `size` bytes the time that it may take."""
        now = self.site.reactor.seconds()
        self._body_due = now + self.site.header_timeout + size / SLOWEST_BODY
        self.body_came()

    def body_came(self) -> None:
        """Wait for the next piece of the body."""
        if self._body_due is not None and self._paused_since is None:
            left = max(self._body_due - self.site.reactor.seconds(), 0.0)
            self.wait(min(self.site.header_timeout, left))

    def body_ended(self) -> None:
        """Wait for nothing more."""
        self._body_due = None
        self.site.unread.discard(self)
        self.wait(None)

    def pause_body(self) -> None:
        """Read nothing, and let the time that passes not count."""
        if self._paused_since is None:
            self._paused_since = self.site.reactor.seconds()
            self.site.unread.add(self)
            self.wait(None)
            cast("IPushProducer", self.transport).pauseProducing()

    def resume_body(self) -> None:
        """Read on."""
        if self._paused_since is not None and self._body_due is not None:
            self._body_due += self.site.reactor.seconds() - self._paused_since
            self._paused_since = None
            self.site.unread.discard(self)
            self.body_came()
            cast("IPushProducer", self.transport).resumeProducing()

    # What goes to the client.

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        lines = [b"%s %s %s\r\n" % (version, code, reason)]
        lines += [
            b"%s: %s\r\n" % (name, value)
            for name, values in headers.getAllRawHeaders()
            for value in values
        ]
        self._head = b"".join([*lines, b"\r\n"])

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._out.write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def _send100Continue(self) -> None:
        self._out.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:  # noqa: FBT001
        super().registerProducer(producer, streaming)
        if self._full:
            # TLS says only once that it is full, and it may have said so to another one.
            producer.pauseProducing()

    def pauseProducing(self) -> None:
        self._full = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._full = False
        super().resumeProducing()
        if self.paused:
            self.paused = False
            self.dataReceived(b"")

    def requestDone(self, request: Request) -> None:
        self._manner = _Manner.IDLE
        self.wait(KEEP_ALIVE)
        if self._full:
            # Who does not read an answer is not read either, or answers would pile up.
            self.paused = True
            cast("IPushProducer", self.transport).pauseProducing()
        super().requestDone(request)

    # Ends.

    def close_when_idle(self) -> None:
        """Close now, or when the request that is on the connection has its answer."""
        self.persistent = False
        if not self.requests:
            self.loseConnection()

    def loseConnection(self) -> None:
        if self._manner is not _Manner.LEAVING:
            self._manner = _Manner.LEAVING
            # A client that does not read, or does not take its leave of TLS, would stay for ever.
            self.wait(LINGER)
            self._out.close()

    def abort(self) -> None:
        """Break the connection."""
        self._out.abort()

    def wait(self, seconds: float | None) -> None:
        """Give the client `seconds` for what it has to do now; None: all the time it wants."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.callLater(seconds, self._too_late)

    def _too_late(self) -> None:
        answering = bool(self.requests) and self.requests[-1].startedWriting
        if self._manner is _Manner.IDLE:
            self.loseConnection()
        elif self._manner is _Manner.SERVING and not answering:
            self.refuse(ApiError(408, "The request did not come in time.", code="request_timeout"))
            self.loseConnection()
        else:
            self.abort()

    def refuse(self, error: ApiError) -> None:
        """Answer with `error` what never became a request, and give the client time to read it."""
        body = error.body()
        status = HTTPStatus(error.status)
        # What pages may read was said when the headers were here.
        known = self.requests[-1].responseHeaders.getAllRawHeaders() if self.requests else ()
        more = b"".join(b"%s: %s\r\n" % (name, value) for name, (value,) in known)
        self._manner = _Manner.REFUSING
        self._body_due = None
        self._out.write(
            b"HTTP/1.1 %d %s\r\nServer: %s\r\nContent-Type: application/json\r\n"
            b"%sContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, status.phrase.encode(), SERVER, more, len(body), body)
        )
        self.site.refused(self, error)
        self.wait(LINGER)

    def _refuse_head(self, what: str, limit: int) -> None:
        self.refuse(ApiError(431, f"{what} longer than {limit} bytes.", code="request_too_large"))
        self.loseConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's own, private name: there is no public way to say more than a bare 400.
        if self._manner is _Manner.SERVING:
            self.refuse(ApiError(400, "This is not a valid HTTP/1.1 request."))
            self.loseConnection()


@implementer(IPushProducer)
class _Reading:
    """A channel's client, as what sends a body: while it is paused, its deadlines are too."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def pauseProducing(self) -> None:
        self._channel.pause_body()

    def resumeProducing(self) -> None:
        self._channel.resume_body()

    def stopProducing(self) -> None:
        """Never asked for: the client stops when it has sent all, or goes."""
