"""
The HTTP server's side of a connection: bounded, with deadlines, with errors in OpenAI's shape.

twisted.web reads a request's whole body, however large, before anybody is asked; its errors are
bare or HTML; and a client that sends a byte now and then is never timed out. What is different:

- A body over the bound is refused as soon as that is known, be it from its declared length.
- A request that need not be understood to be relayed (`streams_up`) is rendered when its headers
  are here. Its body follows through an `Upload`, at the speed of who takes it.
- Headers have to be whole within `header_timeout`, a body within that and the time that its size
  takes at `SLOWEST_BODY`; a connection may be idle for `KEEP_ALIVE` between two requests.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from io import BytesIO
from typing import cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, INonQueuedRequestFactory
from twisted.web.resource import IResource
from twisted.web.server import Request
from twisted.web.server import Site as TwistedSite
from zope.interface import implementer, provider

from blockops import __version__
from blockops.wire.errors import ApiError

#: Bytes a second below which a client that sends a body is taken for one that never will.
SLOWEST_BODY = 16 * 1024
#: Seconds that a refused client may go on sending: it reads the refusal only when it has sent all.
LINGER = 30.0
#: Bytes of an upload that wait in memory before the client is asked to pause.
UPLOAD_BUFFER = 64 * 1024
#: Seconds that a connection may be idle between two requests: nginx's keepalive_timeout.
KEEP_ALIVE = 75.0


@implementer(IBodyProducer)
class Upload:
    """
    A request's body on its way from the client to whoever takes it, as it comes.

    :param length: bytes of the whole; None if the client did not say
    :param client: whom to pause when more comes than is taken
    :ivar complete: the client has sent all of it
    """

    def __init__(self, length: int | None, client: IPushProducer) -> None:
        self.length = UNKNOWN_LENGTH if length is None else length
        self.complete = False
        self._client = client
        self._early: list[bytes] = []
        self._early_size = 0
        self._take: Callable[[bytes], None] = self._keep
        self._taken: Deferred[None] = Deferred()
        self._failure: Failure | None = None

    def received(self, data: bytes) -> None:
        """Take the next piece from the client."""
        self._take(data)

    def completed(self) -> None:
        """Note that the client has sent all of it."""
        self.complete = True
        if self._take not in {self._keep, _discard}:
            self._taken.callback(None)

    def failed(self, error: ApiError) -> None:
        """Note that it is not going to be whole. Who takes it is told `error`."""
        taker, self._failure = self._take, Failure(error)
        self.drop()
        if taker not in {self._keep, _discard}:
            self._taken.errback(self._failure)

    def drop(self) -> None:
        """Let nobody have what comes from now on."""
        self._take = _discard
        self._early.clear()
        self.resumeProducing()

    def _keep(self, data: bytes) -> None:
        self._early.append(data)
        self._early_size += len(data)
        if self._early_size > UPLOAD_BUFFER:
            self.pauseProducing()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        if self._failure is not None:
            return fail(self._failure)
        self._take = consumer.write
        for piece in self._early:
            consumer.write(piece)
        self._early.clear()
        if self.complete:
            self._taken.callback(None)
        self.resumeProducing()
        return self._taken

    def pauseProducing(self) -> None:
        if not self.complete:
            self._client.pauseProducing()

    def resumeProducing(self) -> None:
        if not self.complete:
            self._client.resumeProducing()

    def stopProducing(self) -> None:
        self.drop()


def _discard(data: bytes) -> None:
    """Take what nobody wants."""


@implementer(IPushProducer)
class _Reading:
    """A channel's client, as what sends a body: while it is paused, its deadline is too."""

    def __init__(self, channel: Channel, seconds: float) -> None:
        self._channel = channel
        self._seconds = seconds

    def pauseProducing(self) -> None:
        self._channel.wait(None)
        cast("IPushProducer", self._channel.transport).pauseProducing()

    def resumeProducing(self) -> None:
        self._channel.wait(self._seconds)
        cast("IPushProducer", self._channel.transport).resumeProducing()

    def stopProducing(self) -> None:
        """Never asked for: the client stops when it has sent all, or goes."""


@provider(INonQueuedRequestFactory)
class IncomingRequest(Request):
    """
    A request whose body is bounded, and may still be on its way when the request is rendered.

    :ivar upload: the body of a request that `Site.streams_up`; None for others, whose body is in
        `content`
    """

    channel: Channel
    defaultContentType = b"application/json"

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)
        self.upload: Upload | None = None
        self._size = 0
        self._take: Callable[[bytes], object] = _discard
        self._when_received: Callable[[], None] | None = None

    def began(self, line: bytes) -> None:
        """Take the request line: a method, a target and a version."""
        self.method, self.uri, self.clientproto = line.split(b" ")

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()
        if length == 0:
            return
        limit = self.channel.site.max_body
        if length is not None and length > limit:
            self._refuse(limit)
            return
        seconds = self.channel.site.header_timeout + (length or limit) / SLOWEST_BODY
        self.channel.wait(seconds)
        if self.channel.site.streams_up(self.uri):
            self.upload = Upload(length, _Reading(self.channel, seconds))
            self._take = self.upload.received
            super().requestReceived(self.method, self.uri, self.clientproto)
        else:
            self._take = self.content.write

    def handleContentChunk(self, data: bytes) -> None:
        self._size += len(data)
        limit = self.channel.site.max_body
        if self._size <= limit or self._take is _discard:
            self._take(data)
        elif self.upload is None:
            self._refuse(limit)
        else:
            self._take = _discard
            self.upload.failed(_too_large(limit))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.channel.wait(None)
        if self._when_received is not None:
            self._when_received()
        elif self.upload is None:
            super().requestReceived(command, path, version)
        else:
            self.upload.completed()

    def finish(self) -> None:
        if self.upload is None or self.upload.complete:
            super().finish()
            return
        # The answer is there before the request is. A client reads it when it has sent all.
        self.upload.drop()
        self._when_received = super().finish
        self.channel.wait(LINGER)

    def _refuse(self, limit: int) -> None:
        """Say at once that the body is too large; then let the client send it into the void."""
        self._take = _discard
        self._when_received = self.channel.loseConnection
        # Whoever waits for leave to send such a body does not get it.
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.refuse(_too_large(limit))


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request's body is larger than {limit} bytes. Send less, or start blockops with a "
        "higher --max-body.",
        code="request_too_large",
    )


class _Manner(Enum):
    """How a channel treats its client."""

    SERVING = auto()
    #: It was told that its request is none. What it sends now is of no interest.
    REFUSING = auto()
    #: The connection closes when what was written is sent.
    LEAVING = auto()


class Channel(HTTPChannel):
    """One client's connection, and the deadline for what it has to send next."""

    site: Site
    _deadline: IDelayedCall | None = None
    _manner = _Manner.SERVING

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.opened(self)
        self.wait(self.site.header_timeout)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.wait(None)
        self.site.closed(self)
        super().connectionLost(reason)

    def lineReceived(self, line: bytes) -> None:
        known = len(self.requests)
        super().lineReceived(line)
        if len(self.requests) > known and self._manner is _Manner.SERVING:
            self.requests[-1].began(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        what = "A header of the request" if self.requests else "The request line"
        self.refuse(ApiError(431, f"{what} is longer than {self.MAX_LENGTH} bytes."))
        self.loseConnection()

    def requestDone(self, request: Request) -> None:
        # Before the next request, which may be here already, is begun in the call.
        self.wait(KEEP_ALIVE + self.site.header_timeout)
        super().requestDone(request)

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        return bool(super().checkPersistence(request, version)) and not self.site.closing

    def close_when_idle(self) -> None:
        """Close now, or when the request that is on the connection has its answer."""
        self.persistent = False
        if not self.requests:
            self.loseConnection()

    def loseConnection(self) -> None:
        if self._manner is not _Manner.LEAVING:
            self._manner = _Manner.LEAVING
            super().loseConnection()

    def wait(self, seconds: float | None) -> None:
        """Give the client `seconds` for what it has to send now; None: all the time it wants."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.callLater(seconds, self._too_late)

    def _too_late(self) -> None:
        begun = bool(self.requests) and not self.requests[-1].startedWriting
        if begun and self._manner is _Manner.SERVING:
            self.refuse(ApiError(408, "The request did not come in time.", code="request_timeout"))
            self.loseConnection()
        else:
            cast("ITCPTransport", self.transport).abortConnection()

    def refuse(self, error: ApiError) -> None:
        """Answer with `error` what never became a request, and give the client time to read it."""
        body = error.body()
        status = HTTPStatus(error.status)
        self._manner = _Manner.REFUSING
        cast("ITCPTransport", self.transport).write(
            b"HTTP/1.1 %d %s\r\nServer: %s\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, status.phrase.encode(), SERVER, len(body), body)
        )
        self.wait(LINGER)

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's own, private name: there is no public way to say more than a bare 400.
        self.refuse(ApiError(400, "This is not a valid HTTP/1.1 request."))
        self.loseConnection()


#: What answers say they come from.
SERVER = f"blockops/{__version__}".encode()


class Site(TwistedSite):
    """
    Makes channels.

    :param max_body: bytes that a request's body may have
    :param header_timeout: seconds that a request's headers may take
    :param streams_up: given a request's target, says whether to render it before its body is here
    :ivar channels: those that are open
    :ivar closing: each connection closes behind the answer that is under way on it
    """

    noisy = False

    def __init__(
        self,
        resource: IResource,
        *,
        reactor: IReactorTime,
        max_body: int,
        header_timeout: float,
        streams_up: Callable[[bytes], bool],
    ) -> None:
        super().__init__(resource, IncomingRequest, reactor=reactor)
        self.max_body = max_body
        self.header_timeout = header_timeout
        self.streams_up = streams_up
        self.channels: set[Channel] = set()
        self.closing = False
        self._all_closed: Deferred[None] | None = None

    def startFactory(self) -> None:
        """Keep no access log, and no clock that ticks every second for its time stamps."""

    stopFactory = startFactory

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> Channel:
        channel = Channel()
        channel.site = self
        channel.requestFactory = IncomingRequest  # type: ignore[assignment]
        channel.callLater = self.reactor.callLater  # type: ignore[assignment,method-assign]
        # Channel.wait() is the one deadline. Twisted's moves with each byte that trickles in.
        channel.timeOut = None
        return channel

    def close_idle(self) -> None:
        """Close the connections that no request is on, and the others once theirs is answered."""
        self.closing = True
        for channel in list(self.channels):
            channel.close_when_idle()

    async def close(self, patience: float) -> None:
        """
        Close all connections.

        :param patience: seconds that clients have to read what was written for them
        """
        self.close_idle()
        if self.channels:
            self._all_closed = Deferred()
            late = self.reactor.callLater(patience, self._abort)
            await self._all_closed
            if late.active():
                late.cancel()

    def _abort(self) -> None:
        for channel in list(self.channels):
            cast("ITCPTransport", channel.transport).abortConnection()

    def opened(self, channel: Channel) -> None:
        self.channels.add(channel)

    def closed(self, channel: Channel) -> None:
        self.channels.discard(channel)
        if not self.channels and self._all_closed is not None:
            self._all_closed.callback(None)
            self._all_closed = None
