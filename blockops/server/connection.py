"""One client's connection: what it may send, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Protocol, cast

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from zope.interface import implementer

from blockops import __version__
from blockops.errors import ApiError
from blockops.net.socket_state import unread
from blockops.net.writer import Nowhere, Outlet, outlet
from blockops.server.body_budget import Room
from blockops.server.http1.body import Body, Chunked, Sized
from blockops.server.http1.head import Head, body_length, end_of_head, read_head, request_line
from blockops.server.limits import KEEP_ALIVE, LINGER, MAX_HELD, MAX_IN_A_ROW, SLOWEST_BODY

#: What answers say they come from.
SERVER = f"blockops/{__version__}".encode()


class _Stage(Enum):
    """How far a channel is with its client."""

    #: Nothing of a request has come.
    IDLE = auto()
    #: Something has.
    HEAD = auto()
    #: The head is here, the body is not.
    BODY = auto()
    #: All of a request is here. What comes now is of the next one, and waits.
    ANSWERING = auto()
    #: The client was told that its request is none. What there is of a body goes into the void.
    REFUSED = auto()
    #: The connection closes when what was written is sent. What comes now is of no interest.
    LEAVING = auto()


class House(Protocol):
    """
    Where channels belong: `blockops.server.site.Site`.

    :ivar unread: those of them that nothing is read from, because nobody takes what comes
    :ivar closing: each connection closes behind the answer that is under way on it
    """

    reactor: Any
    max_body: int
    room: Room
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


class Asked(Protocol):
    """What a channel makes of a head: `blockops.server.request.IncomingRequest`."""

    method: bytes
    uri: bytes
    clientproto: bytes
    startedWriting: int
    responseHeaders: Headers
    caller: str

    def gotLength(self, length: int | None, /) -> None:
        """Take note of the length of the body; None: it comes in chunks."""

    def handleContentChunk(self, data: bytes, /) -> None:
        """Take the next piece of the body."""

    def requestReceived(self, command: bytes, path: bytes, version: bytes, /) -> None:
        """Take note that all of the request is here."""

    def connectionLost(self, reason: Failure, /) -> None:
        """Take note that there is nobody to answer any more."""


@implementer(IPushProducer)
class Channel(TwistedProtocol):
    """
    One client's connection: its requests one after the other, and the answers to them.

    To its `twisted.web.server.Request` it is what `twisted.web.http.HTTPChannel` is.

    :ivar request: the one that is under way; None between two of them
    :ivar due: until when the client has to do what is next, in seconds of the reactor's clock; None
        while it has all the time it wants
    :ivar persistent: the connection stays when the answer that is under way has ended
    """

    __slots__ = (
        "_body",
        "_body_due",
        "_full",
        "_host",
        "_left",
        "_make",
        "_out",
        "_paused_since",
        "_peer",
        "_pending",
        "_producer",
        "_reading",
        "_resting",
        "_searched",
        "_stage",
        "_taking",
        "due",
        "persistent",
        "request",
        "site",
    )

    def __init__(self, site: House, make: Callable[[Channel, Head], Asked]) -> None:
        self.site = site
        self.request: Asked | None = None
        self.due: float | None = None
        self.persistent = True
        self._make = make
        self._peer: IAddress | None = None
        self._host: IAddress | None = None
        self._stage = _Stage.IDLE
        # What has come and was not taken yet.
        self._pending = b""
        # Of that, what was searched for the end of a head.
        self._searched = 0
        self._taking = False
        # Until it goes on with what has come; None while it is not others' turn.
        self._resting: IDelayedCall | None = None
        self._body: Body | None = None
        # Until when a body has to be whole; None while there is none on its way.
        self._body_due: float | None = None
        self._paused_since: float | None = None
        self._reading = True
        # More waits for the client than it should.
        self._full = False
        self._producer: IPushProducer | None = None
        # Bytes that a client that leaves had still to take when it was last late.
        self._left: int | None = None

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._out: Outlet = outlet(self.transport, self)
        self.site.opened(self)
        self.wait(self.site.header_timeout)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.due = self._body_due = None
        self._stage = _Stage.LEAVING
        self._out = Nowhere()
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self.site.closed(self)
        self._forsake(reason)

    def _forsake(self, reason: Failure) -> None:
        """Let the request that is under way, if there is one, come to nothing."""
        request, self.request = self.request, None
        if request is not None:
            request.connectionLost(reason)

    # What comes from the client.

    def dataReceived(self, data: bytes) -> None:
        self._pending = self._pending + data if self._pending else data
        self._take_on()

    def _take_on(self) -> None:
        """Take of what has come as much as there is a use for now, and let others have a turn."""
        if self._taking or self._resting is not None:
            return
        self._taking = True
        try:
            for _ in range(MAX_IN_A_ROW):
                if not self._pending or not self._take():
                    break
                # An answer that is given at once makes room for the next request.
            else:
                self._resting = self.site.reactor.callLater(0, self._rested)
        finally:
            self._taking = False
        self._regulate()

    def _rested(self) -> None:
        self._resting = None
        self._take_on()

    def _take(self) -> bool:
        """Take what is next; return False if it is not whole, or not wanted yet."""
        match self._stage:
            case _Stage.IDLE | _Stage.HEAD:
                # Who does not read an answer is not read either, or answers would pile up.
                return not self._full and self._take_head()
            case _Stage.BODY | _Stage.REFUSED:
                return self._take_body()
            case _Stage.LEAVING:
                self._pending = b""
        return False

    def _take_head(self) -> bool:
        if self._stage is _Stage.IDLE:
            self._stage = _Stage.HEAD
            self._searched = 0
            self.wait(self.site.header_timeout)
        try:
            end = end_of_head(self._pending, self._searched)
            if not end:
                self._searched = len(self._pending)
                return False
            head = read_head(self._pending[:end])
            length = body_length(head, self.site.max_body)
        except ApiError as error:
            self.refuse(error)
            self.part()
            return False
        self._pending = self._pending[end:]
        self._begin(head, length)
        return True

    def _begin(self, head: Head, length: int | None) -> None:
        self._stage = _Stage.BODY
        self.request = request = self._make(self, head)
        self.persistent = not self.site.closing and stays_open(head)
        request.gotLength(length)
        if length == 0:
            self._received(request)
            return
        take = request.handleContentChunk
        self._body = Chunked(take) if length is None else Sized(length, take)
        if head.version == b"HTTP/1.1" and expects_leave(head.headers):
            self._out.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _take_body(self) -> bool:
        data, self._pending = self._pending, b""
        try:
            rest = cast("Body", self._body).receive(data)
        except ApiError as error:
            self._broken(error)
            return False
        if rest is None:
            return False
        self._pending = rest
        self._received(cast("Asked", self.request))
        return True

    def _received(self, request: Asked) -> None:
        self._body = None
        if self._stage is _Stage.BODY:
            self._stage = _Stage.ANSWERING
        request.requestReceived(request.method, request.uri, request.clientproto)

    def _broken(self, error: ApiError) -> None:
        """Refuse a body of which nobody knows where it ends."""
        if self._stage is not _Stage.BODY or self._answering():
            self.abort()
        else:
            self.refuse(error)
            self.part()

    def asked(self) -> tuple[bytes, bytes]:
        """Return method and target of what the client asks, as far as they are known."""
        if self.request is not None:
            return self.request.method, self.request.uri
        return request_line(self._pending)

    @property
    def caller(self) -> str:
        """The name of the API key that the request under way came with; empty without one."""
        return self.request.caller if self.request is not None else ""

    def _answering(self) -> bool:
        return self.request is not None and bool(self.request.startedWriting)

    # Bodies.

    def expect_body(self, size: int) -> None:
        """Give a body of `size` bytes the time that it may take."""
        now = self.site.reactor.seconds()
        self._body_due = now + self.site.header_timeout + size / SLOWEST_BODY
        self.body_came()

    def body_came(self) -> None:
        """Wait for the next piece of the body."""
        if self._body_due is not None and self._paused_since is None:
            self.wait(self.site.header_timeout)
            self.due = min(cast("float", self.due), self._body_due)

    def body_ended(self) -> None:
        """Wait for nothing more."""
        self._body_due = self._paused_since = None
        self._regulate()
        self.wait(None)

    def pause_body(self) -> None:
        """Read nothing, and let the time that passes not count."""
        if self._paused_since is None:
            self._paused_since = self.site.reactor.seconds()
            self.wait(None)
            self._regulate()

    def resume_body(self) -> None:
        """Read on."""
        if self._paused_since is not None and self._body_due is not None:
            self._body_due += self.site.reactor.seconds() - self._paused_since
            self._paused_since = None
            self.body_came()
            self._regulate()

    @property
    def reading(self) -> IPushProducer:
        """The client, as what sends a body: while it is paused, its deadlines are too."""
        return _Reading(self)

    def _regulate(self) -> None:
        """Read from the client if there is a use for what it sends."""
        if self._stage is _Stage.LEAVING:
            return
        waits = self._stage is _Stage.ANSWERING or self._resting is not None
        held = waits and len(self._pending) > MAX_HELD
        behind = self._full and self._stage in {_Stage.IDLE, _Stage.HEAD}
        paused = self._paused_since is not None
        if self._reading is (held or behind or paused):
            self._reading = not self._reading
            transport = cast("IPushProducer", self.transport)
            if self._reading:
                self.site.unread.discard(self)
                transport.resumeProducing()
            else:
                if not behind:
                    self.site.unread.add(self)
                transport.pauseProducing()

    # What goes to the client.

    def write(self, data: bytes) -> None:
        if self._stage is not _Stage.LEAVING:
            self._out.write(data)

    def way_out(self) -> Callable[[bytes], object]:
        """Return what `write` comes to, as long as an answer is open: a chunk is written often."""
        return self._out.write

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:  # noqa: FBT001
        """Let `producer`, which pushes, pause while too much waits for the client."""
        if self._producer is not None or not streaming:
            raise RuntimeError(f"{producer!r} pulls, or {self._producer!r} is still there")
        self._producer = producer
        if self._full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._full = True
        if self._producer is not None:
            self._producer.pauseProducing()
        self._regulate()

    def resumeProducing(self) -> None:
        self._full = False
        if self._producer is not None:
            self._producer.resumeProducing()
        self._take_on()

    def stopProducing(self) -> None:
        if self._producer is not None:
            self._producer.stopProducing()

    def requestDone(self, request: object) -> None:
        """Go on to the next request, if there may be one."""
        self.request = None
        if self._stage is _Stage.LEAVING:
            return
        self._stage = _Stage.IDLE
        if self.persistent:
            self.wait(KEEP_ALIVE)
            self._take_on()
        elif self._pending:
            self.part()
        else:
            self.loseConnection()

    # What requests want to know.

    # A transport asks the system, each time.

    def getPeer(self) -> IAddress:
        if self._peer is None:
            self._peer = cast("ITransport", self.transport).getPeer()
        return self._peer

    def getHost(self) -> IAddress:
        if self._host is None:
            self._host = cast("ITransport", self.transport).getHost()
        return self._host

    def isSecure(self) -> bool:
        return ISSLTransport.providedBy(self.transport)

    # Ends.

    def close_when_idle(self) -> None:
        """Close now, or when the request that has begun has its answer."""
        self.persistent = False
        if self._stage is _Stage.IDLE:
            self.loseConnection()

    def loseConnection(self) -> None:
        if self._stage is not _Stage.LEAVING:
            self._stage = _Stage.LEAVING
            # A client that does not read, or does not take its leave of TLS, would stay for ever.
            self.wait(LINGER)
            self._out.close()

    def part(self) -> None:
        """
        Close the connection of a client that may still be sending.

        What it sends is read, and forgotten: else it would be reset before it has read its answer.
        """
        if self._stage is not _Stage.LEAVING:
            self._stage = _Stage.LEAVING
            self._pending = b""
            self._body_due = None
            self.wait(LINGER)
            self._out.part()
            self._forsake(Failure(ConnectionDone()))
            if not self._reading:
                self._reading = True
                self.site.unread.discard(self)
                cast("IPushProducer", self.transport).resumeProducing()

    def abort(self) -> None:
        """Break the connection."""
        self._out.abort()

    def wait(self, seconds: float | None) -> None:
        """Give the client `seconds` for what it has to do now; None: all the time it wants."""
        self.due = None if seconds is None else self.site.reactor.seconds() + seconds

    def too_late(self) -> None:
        """Do what is to be done when what is `due` has not come."""
        self.due = None
        if self._stage is _Stage.IDLE:
            self.loseConnection()
        elif self._stage in {_Stage.HEAD, _Stage.BODY} and not self._answering():
            ends = self.part if self._stage is _Stage.BODY else self.loseConnection
            self.refuse(ApiError(408, "The request did not come in time.", code="request_timeout"))
            ends()
        elif self._stage is _Stage.LEAVING and self._reads_on():
            self.wait(LINGER)
        else:
            self.abort()

    def _reads_on(self) -> bool:
        """Say whether the client has read of what is left for it, since this was last asked."""
        before, self._left = self._left, unread(self.transport)
        return bool(self._left) and self._left != before

    def refuse(self, error: ApiError) -> None:
        """Answer with `error` what never became a request, and give the client time to read it."""
        # What pages may read was said when the headers were here.
        known = self.request.responseHeaders if self.request is not None else Headers()
        self._stage = _Stage.REFUSED
        self._body_due = None
        self._out.write(parting(error, known))
        self.site.refused(self, error)
        self.wait(LINGER)


def parting(error: ApiError, more: Headers) -> bytes:
    """
    Return the whole answer that tells `error`, behind which the connection closes.

    :param more: headers that it has besides
    """
    body = error.body()
    lines = header_lines(more) + b"".join(b"%s: %s\r\n" % header for header in error.headers())
    return (
        b"HTTP/1.1 %d %s\r\nServer: %s\r\nContent-Type: application/json\r\n"
        b"%sContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    ) % (error.status, HTTPStatus(error.status).phrase.encode(), SERVER, lines, len(body), body)


def header_lines(headers: Headers) -> bytes:
    """Return `headers` as they are sent."""
    return b"".join(
        [
            b"%s: %s\r\n" % (name, value)
            for name, values in headers.getAllRawHeaders()
            for value in values
        ]
    )


def stays_open(head: Head) -> bool:
    """Say whether a client expects to ask more on the connection that `head` came on."""
    said = head.headers.getRawHeaders(b"Connection", ())
    tokens = b",".join(said).lower().replace(b",", b" ").split()
    return head.version == b"HTTP/1.1" and b"close" not in tokens


def expects_leave(headers: Headers) -> bool:
    """Say whether a client waits for leave to send its body."""
    said = headers.getRawHeaders(b"Expect", ())
    return bool(said) and said[0].lower() == b"100-continue"


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
