"""
An `IAgent` of our own, to go under treq: one connection for each request, and llhttp to read it.

Beside Twisted's it takes a tenth of the time for a piece of a body, and it can end a connection at
once, which that one cannot (twisted#8227): losing a TLS connection politely takes an answer from
the peer, and one that hangs never gives it.

It asks for no compression, whatever its caller says: to undo it costs more than the way from the
next process saves, and holds tokens back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, NoReturn, cast
from typing import Protocol as TypingProtocol

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IConsumer,
    IHandshakeListener,
    IProtocol,
    IPushProducer,
    ISSLTransport,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    RequestGenerationFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import (
    UNKNOWN_LENGTH,
    IAgent,
    IBodyProducer,
    IClientRequest,
    IPolicyForHTTPS,
    IResponse,
)
from zope.interface import implementer

from blockops.net.writer import send_first
from blockops.upstream.http import nearby
from blockops.upstream.http.inflate import CODINGS, Inflating
from blockops.upstream.http.response_parser import Framing, ResponseReader

#: Seconds that the next address of a name waits for the one before it: with `::1` first and a
#: server on 127.0.0.1 only, Twisted's default costs 0.3 s a connection (twisted#9345).
ATTEMPT_DELAY = 0.02

#: Codings of one body that are undone. More than one is odd enough.
MAX_CODINGS = 2

#: Said by the agent alone.
_OURS = frozenset({b"Accept-Encoding", b"Connection", b"Content-Length", b"Transfer-Encoding"})
_TARGET = re.compile(rb"[!-~]+")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Methods of which a server may expect a length, though there is no body.
_WITH_LENGTH = frozenset({b"POST", b"PUT", b"PATCH"})


class WrongLength(Exception):
    """The body of a request is not as long as was announced."""


@implementer(IBodyProducer)
class WholeBody:
    """
    A request's body that is already here: it leaves with the head, and nobody has to be asked.

    treq's own producer feeds bytes through the global cooperator, which needs the real reactor and
    sends headers and body apart.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def take(self) -> bytes:
        """Return the body, and keep it no longer: an answer may take minutes."""
        body, self._body = self._body, b""
        return body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self.take())
        return succeed(None)

    def pauseProducing(self) -> None:
        """All of it is written at once: there is nothing to pause."""

    resumeProducing = pauseProducing
    stopProducing = pauseProducing


class _Origin:
    """
    A server, and how to connect to it.

    :param connect_timeout: seconds that connecting may take
    """

    def __init__(self, reactor: Any, uri: URI, policy: IPolicyForHTTPS, timeout: float) -> None:
        self._reactor = reactor
        self._host = uri.host.strip(b"[]").decode("ascii")
        self._port = uri.port
        self._timeout = timeout
        self._secure = uri.scheme == b"https"
        self._endpoint = self._endpoint_for(uri, policy)
        plain = self._endpoint is None
        self._near = nearby.family_if_near(reactor, self._host) if plain else None
        self.netloc = uri.netloc

    def _endpoint_for(self, uri: URI, policy: IPolicyForHTTPS) -> IStreamClientEndpoint | None:
        """Return what connects; None where it takes no more than an address."""
        if uri.scheme != b"https" and _is_address(self._host):
            return None
        endpoint = HostnameEndpoint(
            self._reactor,
            self._host,
            self._port,
            timeout=self._timeout,
            attemptDelay=ATTEMPT_DELAY,
        )
        if uri.scheme != b"https":
            return endpoint
        context = policy.creatorForNetloc(self._host.encode(), self._port)
        return wrapClientTLS(context, endpoint)

    def connect(self, connection: _Connection) -> Callable[[], object]:
        """Let `connection` be made, or fail; return what ends the attempt."""
        factory = _Factory(connection)
        if self._near is not None and nearby.connected(
            self._reactor, self._near, self._host, self._port, factory
        ):
            return _nothing
        if self._endpoint is None:
            # An address needs no resolver, which is a thread, and no layer that stays between the
            # socket and what reads from it, as endpoints leave one.
            return self._reactor.connectTCP(  # type: ignore[no-any-return]
                self._host, self._port, factory, timeout=self._timeout
            ).stopConnecting
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        if self._secure:
            secured = connection.to_be_secured()
            connecting.addCallback(lambda _: secured)
        # The endpoint bounds each attempt, but not how long a name takes to become an address, nor
        # how long a peer is silent that TLS waits for.
        connecting.addTimeout(self._timeout, self._reactor, _took_too_long)
        connecting.addErrback(connection.unconnected)
        return connecting.cancel


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _took_too_long(_: object, seconds: float) -> NoReturn:
    raise error.TimeoutError(f"{seconds:g} seconds")


class _Factory(ClientFactory):
    """Makes one connection, without lines in the log."""

    noisy = False

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def doStart(self) -> None:
        """No line in the log for each connection."""

    doStop = doStart

    def buildProtocol(self, addr: IAddress | None) -> _Connection:
        return self._connection

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self._connection.unconnected(reason)


@implementer(IAgent)
class OneShotAgent:
    """
    Asks each request over a connection of its own.

    :param policy: whom to believe behind `https://`
    :param connect_timeout: seconds that connecting may take
    :param on_connected: called whenever a connection was made
    """

    def __init__(
        self,
        reactor: Any,
        policy: IPolicyForHTTPS,
        connect_timeout: float,
        on_connected: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._policy = policy
        self._connect_timeout = connect_timeout
        self._on_connected = on_connected
        self._asked_last: tuple[bytes, _Origin] | None = None

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """
        Ask, and fire when status and headers of the answer are here.

        Cancelling closes the connection, or ends the attempt to make one. Fails with what Twisted
        says of a connection that cannot be made, with RequestGenerationFailed if the body cannot
        be had, and with ResponseNeverReceived.

        :raises ValueError: this is no request
        """
        base, target = _split(uri)
        if _METHOD.fullmatch(method) is None or _TARGET.fullmatch(target) is None:
            raise ValueError(f"not to be sent: {method!r} {target!r}")
        origin = self._origin(base)
        sent = headers if headers is not None else Headers()
        asked = _Asked(method, uri, sent)
        head = _head(method, target, origin.netloc, sent, bodyProducer)
        connection = _Connection(asked, head, bodyProducer, self._on_connected)
        answered = connection.wait()
        connection.ends_attempt = origin.connect(connection)
        return answered

    def _origin(self, base: bytes) -> _Origin:
        """Return the server at `base`. One is remembered: TLS takes a while to be set up."""
        if self._asked_last is None or self._asked_last[0] != base:
            uri = URI.fromBytes(base)
            origin = _Origin(self._reactor, uri, self._policy, self._connect_timeout)
            self._asked_last = base, origin
        return self._asked_last[1]


def _split(uri: bytes) -> tuple[bytes, bytes]:
    """Return scheme and server of an URL, and its path and query, exactly as they stand there."""
    start = uri.find(b"/", uri.find(b"://") + 3)
    return (uri, b"/") if start < 0 else (uri[:start], uri[start:])


def _head(
    method: bytes, target: bytes, netloc: bytes, headers: Headers, body: IBodyProducer | None
) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, target)]
    if not headers.hasHeader(b"Host"):
        lines.append(b"Host: " + netloc)
    for name, values in headers.getAllRawHeaders():
        if name not in _OURS:
            lines += [b"%s: %s" % (name, value) for value in values]
    lines.append(b"Accept-Encoding: identity\r\nConnection: close")
    if body is None:
        if method in _WITH_LENGTH:
            lines.append(b"Content-Length: 0")
    elif body.length is UNKNOWN_LENGTH:
        lines.append(b"Transfer-Encoding: chunked")
    else:
        lines.append(b"Content-Length: %d" % body.length)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


@implementer(IClientRequest)
class _Asked:
    """What was asked, as its response remembers it."""

    __slots__ = ("absoluteURI", "headers", "method")

    def __init__(self, method: bytes, uri: bytes, headers: Headers) -> None:
        self.method = method
        self.absoluteURI = uri
        self.headers = headers


@implementer(IConsumer)
class _Sending:
    """
    The body of a request, on its way out.

    The head, and what of the body is here already, leave in one write.

    :ivar over: fires when the body is sent, or fails with why it cannot be had
    """

    def __init__(self, transport: Any, body: IBodyProducer) -> None:
        self.over: Deferred[None] = Deferred()
        self._transport = transport
        self._body = body
        self._chunked = body.length is UNKNOWN_LENGTH
        self._left = 0 if self._chunked else body.length
        self._put: Callable[[bytes], object] = transport.write

    def start(self, head: bytes) -> None:
        early = [head]
        self._put = early.append
        made: Deferred[None] = maybeDeferred(self._body.startProducing, self)
        made.addCallback(self._made).addBoth(self._end)
        self._put = self._transport.write
        send_first(self._transport, b"".join(early))
        if not self.over.called:
            self._transport.registerProducer(self._body, True)  # noqa: FBT003
            self.over.addBoth(self._released)

    def write(self, data: bytes) -> None:
        if self.over.called:
            return
        if self._chunked:
            if data:
                self._put(b"%x\r\n%s\r\n" % (len(data), data))
            return
        self._left -= len(data)
        if self._left < 0:
            self._end(Failure(WrongLength("the body is longer than was announced")))
            self._body.stopProducing()
        else:
            self._put(data)

    def _made(self, _: object) -> None:
        if self._left > 0:
            raise WrongLength("the body is shorter than was announced")
        if self._chunked:
            self._put(b"0\r\n\r\n")

    def _end(self, result: Failure | None) -> None:
        if not self.over.called:
            self.over.callback(cast("None", result))

    def _released(self, result: Failure | None) -> Failure | None:
        self._transport.unregisterProducer()
        return result

    def stop(self) -> None:
        """Want no more of the body."""
        if not self.over.called:
            self._end(None)
            self._body.stopProducing()

    def registerProducer(self, producer: object, streaming: bool) -> None:  # noqa: FBT001
        """Not called: `startProducing` alone asks for the body."""

    def unregisterProducer(self) -> None:
        """Not called either."""


@implementer(IResponse)
class _Response:
    """
    What the server answered. It takes its body itself until somebody else does.

    :param source: the connection that its body comes from
    """

    __slots__ = (
        "_codings",
        "_early",
        "_outcome",
        "_source",
        "code",
        "headers",
        "length",
        "phrase",
        "previousResponse",
        "request",
        "version",
    )

    def __init__(self, reader: ResponseReader, asked: _Asked, source: _Connection) -> None:
        self.version = reader.version
        self.code = reader.code
        self.phrase = reader.phrase
        self.headers = Headers()
        for name, value in reader.take_headers():
            self.headers.addRawHeader(name, value)
        self.request = asked
        self.previousResponse: IResponse | None = None
        self._codings = _take_codings(self.headers)
        unknown = self._codings or reader.length is None
        self.length = UNKNOWN_LENGTH if unknown else reader.length
        self._source: _Connection | None = source
        self._early: list[bytes] = []
        self._outcome: Failure | None = None

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response

    def deliverBody(self, protocol: IProtocol) -> None:
        """
        Let `protocol` receive the body, from its beginning.

        Its transport can pause and resume, and be aborted. It ends with ResponseDone if it is
        whole, with PotentialDataLoss if only its content can tell, and else with ResponseFailed.

        :raises RuntimeError: another one does
        """
        source, self._source = self._source, None
        if source is None:
            raise RuntimeError("the body of this response was taken already")
        for coding in self._codings:
            protocol = Inflating(protocol, coding)
        source.begin(protocol)
        for piece in self._early:
            protocol.dataReceived(piece)
        self._early.clear()
        if self._outcome is not None:
            protocol.connectionLost(self._outcome)
        else:
            source.go_on()

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece of the body that came before anybody has asked for it."""
        self._early.append(data)

    def connectionLost(self, reason: Failure) -> None:
        """Take note that nothing more comes."""
        self._outcome = reason


def _take_codings(headers: Headers) -> list[bytes]:
    """Take out of `headers` the codings of the body that can be undone, innermost first."""
    said = b",".join(headers.getRawHeaders(b"Content-Encoding", []))
    if not said:
        return []
    rest = [coding.strip().lower() for coding in said.split(b",")]
    undone: list[bytes] = []
    while rest and rest[-1] in CODINGS and len(undone) < MAX_CODINGS:
        undone.insert(0, rest.pop())
    headers.removeHeader(b"Content-Encoding")
    if rest:
        headers.addRawHeader(b"Content-Encoding", b", ".join(rest))
    return undone


class _Taker(TypingProtocol):
    """Takes a response's body."""

    def dataReceived(self, data: bytes, /) -> None: ...
    def connectionLost(self, reason: Failure, /) -> None: ...


@implementer(IPushProducer, IHandshakeListener)
class _Connection(Protocol):
    """
    One request and its response, and the connection that they have to themselves.

    To the response's body this is the transport; nothing of it passes before it is asked for.

    :param head: the request's, as it is sent
    :ivar ends_attempt: ends the attempt to connect, as long as it is one
    """

    # Attributes that come late, when many others are connecting, get no place beside shared keys.
    __slots__ = (
        "_answered",
        "_asked",
        "_body",
        "_head",
        "_held",
        "_on_made",
        "_paused",
        "_reader",
        "_secured",
        "_sending",
        "_taker",
        "ends_attempt",
    )

    def __init__(
        self,
        asked: _Asked,
        head: bytes,
        body: IBodyProducer | None,
        on_made: Callable[[], object],
    ) -> None:
        # What fires with the response; None before it is waited for, and once it has fired.
        self._answered: Deferred[IResponse] | None = None
        self.ends_attempt: Callable[[], object] = _nothing
        self._asked: _Asked | None = asked
        self._on_made = on_made
        self._head = head
        self._body = body
        self._sending: _Sending | None = None
        self._reader = ResponseReader(asked.method)
        # Who takes the body; None before there is one, and once it has ended.
        self._taker: _Taker | None = None
        self._secured: Deferred[None] | None = None
        self._paused = False

    @property
    def _wire(self) -> Any:
        return self.transport

    def wait(self) -> Deferred[IResponse]:
        """Return what fires with the response when its headers are here; cancelling it ends all."""
        self._answered = Deferred(self._cancelled)
        return self._answered

    # The request.

    def connectionMade(self) -> None:
        if self._answered is None:
            self.abortConnection()
            return
        if not ISSLTransport.providedBy(self.transport):
            self._on_made()
        # Neither is kept: an answer may take minutes, and a body megabytes.
        head, self._head = self._head, b""
        body, self._body = self._body, None
        if body is None:
            send_first(self._wire, head)
        elif isinstance(body, WholeBody):
            send_first(self._wire, head + body.take())
        else:
            self._sending = _Sending(self._wire, body)
            self._sending.start(head)
            self._sending.over.addErrback(self._unsent).addBoth(self._sent)

    def handshakeCompleted(self) -> None:
        """Take note that the peer is who it should be: only now it gets what was written."""
        self._on_made()
        self._settle()

    def to_be_secured(self) -> Deferred[None]:
        """Return what fires when the peer is known, or lost; cancelling it ends all."""
        self._secured = Deferred(lambda _: self.abortConnection())
        return self._secured

    def _settle(self) -> None:
        if self._secured is not None and not self._secured.called:
            self._secured.callback(None)

    def unconnected(self, reason: Failure) -> None:
        """Take note that there is no connection, and why."""
        self._fail(reason)

    def _unsent(self, reason: Failure) -> None:
        self._fail(Failure(RequestGenerationFailed([reason])))
        self.abortConnection()

    def _sent(self, _: object) -> None:
        self._sending = None

    def _fail(self, reason: Failure) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered.errback(reason)

    def _cancelled(self, _: object) -> None:
        self._fail(Failure(CancelledError()))
        if self.transport is None:
            self.ends_attempt()
        else:
            self.abortConnection()

    # The response.

    def dataReceived(self, data: bytes) -> None:
        reader = self._reader
        content = reader.receive_data(data)
        if self._taker is None:
            answered = self._answered
            if reader.headed and answered is not None:
                self._answered = None
                self._answer(answered, content)
        elif content:
            self._taker.dataReceived(content)
        if reader.ended:
            self._close(_WHOLE)
        elif reader.fault is not None:
            self._close(Failure(ResponseFailed([Failure(reader.fault)])))

    def _answer(self, answered: Deferred[IResponse], content: bytes) -> None:
        # The response remembers it as long as somebody wants to know.
        asked, self._asked = cast("_Asked", self._asked), None
        response = self._taker = _Response(self._reader, asked, self)
        if content:
            response.dataReceived(content)
        if self._reader.ended:
            # Who takes the body finds all of it, and its end: nobody has to wait for that.
            self._taker = None
            response.connectionLost(_WHOLE)
        answered.callback(response)
        if self._taker is response and not self._reader.ended:
            self.pauseProducing()

    def _close(self, outcome: Failure) -> None:
        """Be done with the connection: nothing more of it is wanted, or to be had."""
        self.abortConnection()
        if self._sending is not None:
            self._sending.stop()
        taker, self._taker = self._taker, None
        if taker is not None:
            taker.connectionLost(outcome)
        else:
            self._fail(outcome)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._settle()
        if self._taker is None:
            self._close(Failure(ResponseNeverReceived([reason])))
        elif self._reader.framing is Framing.CLOSE and reason.check(error.ConnectionDone):
            self._close(_PERHAPS_WHOLE)
        else:
            self._close(Failure(ResponseFailed([reason])))

    # What the body has for a transport.

    def begin(self, taker: IProtocol) -> None:
        """Be the transport of `taker`, and let it have the body, if that has not ended."""
        if self._taker is not None:
            self._taker = taker
        self._held, self._paused = self._paused, False
        taker.makeConnection(cast("ITCPTransport", self))

    def go_on(self) -> None:
        """Let pass what was held until somebody takes it, if they did not ask for a pause."""
        if self._held and not self._paused:
            self._wire.resumeProducing()

    def pauseProducing(self) -> None:
        self._paused = True
        self._wire.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._wire.resumeProducing()

    def abortConnection(self) -> None:
        """Close at once: the peer is not asked."""
        self._wire.abortConnection()

    stopProducing = loseConnection = abortConnection


#: How a body ends that came to its announced end.
_WHOLE = Failure(ResponseDone())
#: How one ends that ended because the connection did.
_PERHAPS_WHOLE = Failure(PotentialDataLoss())


def _nothing() -> None:
    """There is nothing to end."""
