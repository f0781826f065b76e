"""
`BackendConnection`: one connection, which carries one request and its response.

| state      | event                     | effect                                                |
| ---------- | ------------------------- | ----------------------------------------------------- |
| connecting | connection made           | waiting; the request is sent                          |
|            | `connection_failed`       | closed; the response fails with Twisted's error       |
|            | cancelled                 | closed; the attempt is cancelled, and the response    |
|            |                           | fails: `CancelledError`                               |
| waiting    | response headers complete | held; the response fires, reading is paused           |
|            | the request's body fails  | closed; the response fails: `RequestGenerationFailed` |
|            | invalid response          | closed; the response fails: `ResponseFailed`          |
|            | connection lost           | closed; the response fails: `ResponseNeverReceived`   |
|            | cancelled                 | closed; the response fails: `CancelledError`          |
| held       | more of the body          | buffered in the response                              |
|            | `deliverBody`             | delivering: first the buffered part of the body       |
| delivering | more of the body          | passed to the receiver                                |
| held or    | the body is complete      | closed; the body ends with `ResponseDone`             |
| delivering | invalid framing           | closed; the body ends with `ResponseFailed`           |
|            | the request's body fails  | aborted; the body ends with `ResponseFailed`          |
|            | connection lost           | closed; the body ends with `PotentialDataLoss` if     |
|            |                           | only a regular close ends it (`Framing.CLOSE`),       |
|            |                           | otherwise with `ResponseFailed`                       |
|            | `abortConnection`,        | aborted; the body ends with `ResponseFailed`          |
|            | `loseConnection`          |                                                       |
| closed     | connection made           | aborted: the attempt was cancelled too late           |

A body that ends while it is held is delivered, with its end, by `deliverBody`. Closing does not
wait for the peer, and stops a request's body that is still being sent. The reactor reports an
aborted connection as lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from typing import Protocol as TypingProtocol

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IConsumer,
    IHandshakeListener,
    IProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, IClientRequest, IResponse
from zope.interface import implementer

from blockops.net.writer import send_now
from blockops.upstream.http.inflate import CODINGS, InflatingProtocol
from blockops.upstream.http.response_parser import Framing, ResponseParser

#: Bound of the codings of one body that are decoded. Even two are unusual.
MAX_CODINGS = 2

#: The end of a body that is complete.
BODY_COMPLETE = Failure(ResponseDone())
#: The end of a body that only the close of the connection ends.
BODY_CLOSED = Failure(PotentialDataLoss())


class WrongLength(Exception):
    """A request's body is shorter or longer than its announced length."""


@implementer(IBodyProducer)
class BytesBody:
    """
    A request's body in memory, sent in one write with the head.

    treq's own producer feeds bytes through the global cooperator, which needs the real reactor and
    sends the headers and the body separately.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def pop(self) -> bytes:
        """Return the body and release it: the response may take minutes."""
        body, self._body = self._body, b""
        return body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self.pop())
        return succeed(None)

    def pauseProducing(self) -> None:
        """Do nothing: all of the body is written at once."""

    resumeProducing = pauseProducing
    stopProducing = pauseProducing


@implementer(IClientRequest)
class BackendRequest:
    """The request, for `IResponse.request`."""

    __slots__ = ("absoluteURI", "headers", "method")

    def __init__(self, method: bytes, uri: bytes, headers: Headers) -> None:
        self.method = method
        self.absoluteURI = uri
        self.headers = headers


@implementer(IConsumer)
class _BodySender:
    """
    Sends a request's body as its producer writes it.

    The head and the part of the body that is available at once are sent in one write.

    :ivar done: fires when the body is sent or stopped; fails if the producer fails, or the length
        is wrong
    """

    def __init__(self, transport: Any, body: IBodyProducer) -> None:
        self.done: Deferred[None] = Deferred()
        self._transport = transport
        self._body = body
        self._is_chunked = body.length is UNKNOWN_LENGTH
        self._remaining = 0 if self._is_chunked else body.length
        self._write: Callable[[bytes], object] = transport.write

    def start(self, head: bytes) -> None:
        """Send `head`, and start the producer."""
        # `write` collects what the producer writes within `startProducing`.
        first_write = [head]
        self._write = first_write.append
        produced: Deferred[None] = maybeDeferred(self._body.startProducing, self)
        produced.addCallback(self._produced).addBoth(self._finish)
        self._write = self._transport.write
        send_now(self._transport, b"".join(first_write))
        if not self.done.called:
            self._transport.registerProducer(self._body, True)  # noqa: FBT003
            self.done.addBoth(self._unregister)

    def write(self, data: bytes) -> None:
        if self.done.called:
            return
        if self._is_chunked:
            if data:
                self._write(b"%x\r\n%s\r\n" % (len(data), data))
            return
        self._remaining -= len(data)
        if self._remaining < 0:
            self._finish(Failure(WrongLength("the body is longer than its announced length")))
            self._body.stopProducing()
        else:
            self._write(data)

    def _produced(self, _: object) -> None:
        if self._remaining > 0:
            raise WrongLength("the body is shorter than its announced length")
        if self._is_chunked:
            self._write(b"0\r\n\r\n")

    def _finish(self, result: Failure | None) -> None:
        if not self.done.called:
            self.done.callback(cast("None", result))

    def _unregister(self, result: Failure | None) -> Failure | None:
        self._transport.unregisterProducer()
        return result

    def stop(self) -> None:
        """Stop the producer, if the body is not sent yet."""
        if not self.done.called:
            self._finish(None)
            self._body.stopProducing()

    def registerProducer(self, producer: object, streaming: bool) -> None:  # noqa: FBT001
        """Do nothing: `startProducing` alone starts the producer."""

    def unregisterProducer(self) -> None:
        """Do nothing; see `registerProducer`."""


@implementer(IResponse)
class _Response:
    """
    A response, which buffers its body until `deliverBody` is called.

    :param connection: delivers the body
    """

    __slots__ = (
        "_buffered",
        "_codings",
        "_connection",
        "_end_reason",
        "code",
        "headers",
        "length",
        "phrase",
        "previousResponse",
        "request",
        "version",
    )

    def __init__(
        self, parser: ResponseParser, request: BackendRequest, connection: BackendConnection
    ) -> None:
        self.version = parser.version
        self.code = parser.code
        self.phrase = parser.phrase
        self.headers = Headers()
        for name, value in parser.pop_headers():
            self.headers.addRawHeader(name, value)
        self.request = request
        self.previousResponse: IResponse | None = None
        self._codings = _pop_codings(self.headers)
        unknown = self._codings or parser.length is None
        self.length = UNKNOWN_LENGTH if unknown else parser.length
        self._connection: BackendConnection | None = connection
        self._buffered: list[bytes] = []
        self._end_reason: Failure | None = None

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response

    def deliverBody(self, protocol: IProtocol) -> None:
        """
        Deliver the body to `protocol`, from its beginning.

        The protocol's transport can be paused, resumed and aborted. `connectionLost` gets
        `ResponseDone` if the body is complete, `PotentialDataLoss` if only its content can show
        that, and `ResponseFailed` otherwise.

        :raises RuntimeError: the body was delivered before
        """
        connection, self._connection = self._connection, None
        if connection is None:
            raise RuntimeError("the body of this response was delivered before")
        for coding in self._codings:
            protocol = InflatingProtocol(protocol, coding)
        connection.deliver_to(protocol)
        for piece in self._buffered:
            protocol.dataReceived(piece)
        self._buffered.clear()
        if self._end_reason is not None:
            protocol.connectionLost(self._end_reason)
        else:
            connection.resume_delivery()

    def dataReceived(self, data: bytes) -> None:
        """Buffer a piece of the body that arrives before `deliverBody`."""
        self._buffered.append(data)

    def connectionLost(self, reason: Failure) -> None:
        """Record the end of a body that ends before `deliverBody`."""
        self._end_reason = reason


def _pop_codings(headers: Headers) -> list[bytes]:
    """Remove the codings that can be decoded from `Content-Encoding`; return them in its order."""
    value = b",".join(headers.getRawHeaders(b"Content-Encoding", []))
    if not value:
        return []
    remaining = [coding.strip().lower() for coding in value.split(b",")]
    decoded: list[bytes] = []
    while remaining and remaining[-1] in CODINGS and len(decoded) < MAX_CODINGS:
        decoded.insert(0, remaining.pop())
    headers.removeHeader(b"Content-Encoding")
    if remaining:
        headers.addRawHeader(b"Content-Encoding", b", ".join(remaining))
    return decoded


class _BodyReceiver(TypingProtocol):
    """Receives the body: the response while it is held, then the protocol of `deliverBody`."""

    def dataReceived(self, data: bytes, /) -> None: ...
    def connectionLost(self, reason: Failure, /) -> None: ...


@implementer(IPushProducer, IHandshakeListener)
class BackendConnection(Protocol):
    """
    One request and its response, over one connection; see the table above.

    It is also the transport of the protocol that receives the body.

    :param head: the request line and the headers, as sent
    :param body: the request's body, or None
    :param on_connected: called when the connection is made, for TLS after the handshake
    :ivar cancel_connect: cancels the attempt to connect
    """

    # Slots keep the dict of an open stream small: Twisted adds `transport` and `connected` to it
    # after `__init__`, and then CPython no longer shares its keys among the instances.
    __slots__ = (
        "_body",
        "_handshake",
        "_head",
        "_is_paused",
        "_is_paused_by_hold",
        "_on_connected",
        "_parser",
        "_receiver",
        "_request",
        "_response",
        "_sender",
        "cancel_connect",
    )

    def __init__(
        self,
        request: BackendRequest,
        head: bytes,
        body: IBodyProducer | None,
        on_connected: Callable[[], object],
    ) -> None:
        # Fires with the response; None before `response()` is called and after it has fired.
        self._response: Deferred[IResponse] | None = None
        self.cancel_connect: Callable[[], object] = _noop
        self._request: BackendRequest | None = request
        self._on_connected = on_connected
        self._head = head
        self._body = body
        self._sender: _BodySender | None = None
        self._parser = ResponseParser(request.method)
        # None before the response's headers are complete and after the body has ended.
        self._receiver: _BodyReceiver | None = None
        self._handshake: Deferred[None] | None = None
        # By `pauseProducing`: for a held body, then by the receiver.
        self._is_paused = False
        # Reading was paused for the held body when its receiver was set.
        self._is_paused_by_hold = False

    @property
    def _transport(self) -> Any:
        return self.transport

    def response(self) -> Deferred[IResponse]:
        """Return a Deferred of the response, fired when its headers are complete. Call it once."""
        self._response = Deferred(self._cancelled)
        return self._response

    # The request.

    def connectionMade(self) -> None:
        if self._response is None:
            self.abortConnection()
            return
        if not ISSLTransport.providedBy(self.transport):
            self._on_connected()
        # Release both: the response may take minutes, and the body may have many megabytes.
        head, self._head = self._head, b""
        body, self._body = self._body, None
        if body is None:
            send_now(self._transport, head)
        elif isinstance(body, BytesBody):
            send_now(self._transport, head + body.pop())
        else:
            self._sender = _BodySender(self._transport, body)
            self._sender.start(head)
            self._sender.done.addErrback(self._body_failed).addBoth(self._body_sent)

    def handshakeCompleted(self) -> None:
        """Report the connection as made: only now TLS sends the request that was written."""
        self._on_connected()
        self._handshake_done()

    def handshake(self) -> Deferred[None]:
        """
        Return a Deferred that fires when the TLS handshake is complete or the connection is lost.

        Cancelling it aborts the connection.
        """
        self._handshake = Deferred(lambda _: self.abortConnection())
        return self._handshake

    def _handshake_done(self) -> None:
        if self._handshake is not None and not self._handshake.called:
            self._handshake.callback(None)

    def connection_failed(self, reason: Failure) -> None:
        """Fail the response: no connection was made."""
        self._fail(reason)

    def _body_failed(self, reason: Failure) -> None:
        self._fail(Failure(RequestGenerationFailed([reason])))
        self.abortConnection()

    def _body_sent(self, _: object) -> None:
        self._sender = None

    def _fail(self, reason: Failure) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.errback(reason)

    def _cancelled(self, _: object) -> None:
        self._fail(Failure(CancelledError()))
        if self.transport is None:
            self.cancel_connect()
        else:
            self.abortConnection()

    # The response.

    def dataReceived(self, data: bytes) -> None:
        parser = self._parser
        content = parser.receive_data(data)
        if self._receiver is None:
            response = self._response
            if parser.headers_complete and response is not None:
                self._response = None
                self._respond(response, content)
        elif content:
            self._receiver.dataReceived(content)
        if parser.complete:
            self._close(BODY_COMPLETE)
        elif parser.error is not None:
            self._close(Failure(ResponseFailed([Failure(parser.error)])))

    def _respond(self, deferred: Deferred[IResponse], content: bytes) -> None:
        """Fire `deferred` with the response, whose body begins with `content`."""
        # From now on only the response holds the request, which is released with it.
        request, self._request = cast("BackendRequest", self._request), None
        response = self._receiver = _Response(self._parser, request, self)
        if content:
            response.dataReceived(content)
        if self._parser.complete:
            # The response has the whole body and its end, so that `deliverBody` delivers at once.
            self._receiver = None
            response.connectionLost(BODY_COMPLETE)
        deferred.callback(response)
        if self._receiver is response and not self._parser.complete:
            self.pauseProducing()

    def _close(self, reason: Failure) -> None:
        """Abort the connection, and end the body, or fail the response, with `reason`."""
        self.abortConnection()
        if self._sender is not None:
            self._sender.stop()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.connectionLost(reason)
        else:
            self._fail(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._handshake_done()
        if self._receiver is None:
            self._close(Failure(ResponseNeverReceived([reason])))
        elif self._parser.framing is Framing.CLOSE and reason.check(error.ConnectionDone):
            self._close(BODY_CLOSED)
        else:
            self._close(Failure(ResponseFailed([reason])))

    # The transport of the body's receiver.

    def deliver_to(self, receiver: IProtocol) -> None:
        """Become the transport of `receiver`, and pass it the rest of the body, if there is one."""
        if self._receiver is not None:
            self._receiver = receiver
        self._is_paused_by_hold, self._is_paused = self._is_paused, False
        receiver.makeConnection(cast("ITCPTransport", self))

    def resume_delivery(self) -> None:
        """Resume reading if it was paused because the body was held, and only because of that."""
        if self._is_paused_by_hold and not self._is_paused:
            self._transport.resumeProducing()

    def pauseProducing(self) -> None:
        self._is_paused = True
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._transport.resumeProducing()

    def abortConnection(self) -> None:
        """Close the connection immediately, without waiting for the peer."""
        self._transport.abortConnection()

    stopProducing = loseConnection = abortConnection


def _noop() -> None:
    pass
