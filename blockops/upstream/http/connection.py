"""
`BackendConnection`: one connection, which carries one request and its response.

| state      | event                     | effect                                                 |
| ---------- | ------------------------- | ------------------------------------------------------ |
| connecting | connection made           | waiting; the request is sent                           |
|            | `fail`                    | closed; the response fails with Twisted's error        |
|            | cancelled                 | closed; the attempt is cancelled                       |
| waiting    | response headers complete | held; the response fires, reading is paused            |
|            | the request's body fails  | closing: `RequestGenerationFailed`                     |
|            | invalid response          | closing: `ResponseFailed`                              |
|            | cancelled                 | closing                                                |
|            | connection lost           | closed: `ResponseNeverReceived`                        |
| held       | more of the body          | buffered in the response                               |
|            | `deliverBody`             | delivering: first the buffered part of the body        |
| delivering | more of the body          | passed to the receiver                                 |
| held or    | the body is complete      | closing: `ResponseDone`                                |
| delivering | invalid framing           | closing: `ResponseFailed`                              |
|            | the request's body fails  | closing: `ResponseFailed`                              |
|            | `abortConnection`,        | closing: `ResponseFailed`                              |
|            | `loseConnection`          |                                                        |
|            | connection lost           | closed: `PotentialDataLoss` if only a regular close    |
|            |                           | ends the body, otherwise `ResponseFailed`              |
| closing    | connection lost           | closed, with the first of the reasons above            |
| closed     | connection made           | closing: the attempt was cancelled too late            |

Closing aborts the connection, which does not wait for the peer, and stops a request's body that is
still being sent. The reactor reports an aborted connection as lost in its next turn. Only then the
reason is delivered: as the failure of the response in the state waiting, later as the end of the
body. So the code that waits for the end never runs within `dataReceived`. A cancelled response
fails at once, with `CancelledError`. A body that ends while it is held is delivered, with its end,
by `deliverBody`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IConsumer,
    IHandshakeListener,
    IProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
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
from blockops.upstream.http.response_parser import ResponseParser

#: The end of a body that is complete.
BODY_COMPLETE = Failure(ResponseDone())
#: The end of a body that only the close of the connection ends.
BODY_CLOSED = Failure(PotentialDataLoss())


@implementer(IClientRequest)
@dataclass(frozen=True)
class BackendRequest:
    """The request, for `IResponse.request`."""

    method: bytes
    absoluteURI: bytes
    headers: Headers


class _BodySender:
    """Sends a request's body as its producer writes it: what is available at once in one write."""

    def __init__(self, transport: Any, body: IBodyProducer) -> None:
        # Fires when the body is sent or stopped; fails if the producer fails.
        self.done: Deferred[None] = Deferred()
        self._transport = transport
        self._body = body
        self._is_chunked = body.length is UNKNOWN_LENGTH
        self._write: Callable[[bytes], object] = transport.write

    def start(self, head: bytes) -> None:
        # `write` collects what the producer writes within `startProducing`.
        first_write = [head]
        self._write = first_write.append
        produced: Deferred[None] = maybeDeferred(self._body.startProducing, cast("IConsumer", self))
        produced.addCallback(self._produced).addBoth(self._finish)
        self._write = self._transport.write
        send_now(self._transport, b"".join(first_write))
        if not self.done.called:
            self._transport.registerProducer(self._body, True)  # noqa: FBT003
            self.done.addBoth(self._unregister)

    def write(self, data: bytes) -> None:
        if self.done.called:
            return
        if not self._is_chunked:
            self._write(data)
        elif data:
            self._write(b"%x\r\n%s\r\n" % (len(data), data))

    def _produced(self, _: object) -> None:
        if self._is_chunked:
            self._write(b"0\r\n\r\n")

    def _finish(self, result: Failure | None) -> None:
        if not self.done.called:
            self.done.callback(cast("None", result))

    def _unregister(self, result: Failure | None) -> Failure | None:
        self._transport.unregisterProducer()
        return result

    def stop(self) -> None:
        if not self.done.called:
            self._finish(None)
            self._body.stopProducing()


@implementer(IResponse)
class _Response:
    """A response, which buffers its body until `deliverBody` is called."""

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
        self.length = UNKNOWN_LENGTH if parser.length is None else parser.length
        self._connection: BackendConnection | None = connection
        self._buffered: list[bytes] = []
        self._end_reason: Failure | None = None

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response

    def deliverBody(self, protocol: IProtocol) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            raise RuntimeError("the body of this response was delivered before")
        connection.deliver_to(protocol)
        for piece in self._buffered:
            protocol.dataReceived(piece)
        self._buffered.clear()
        if self._end_reason is not None:
            protocol.connectionLost(self._end_reason)

    # The receiver of the body until `deliverBody` is called.

    def dataReceived(self, data: bytes) -> None:
        self._buffered.append(data)

    def connectionLost(self, reason: Failure) -> None:
        self._end_reason = reason


@implementer(IPushProducer, IHandshakeListener)
class BackendConnection(Protocol):
    """
    One request and its response, over one connection; see the table above.

    It is also the transport of the protocol that receives the body.

    :param on_connected: called when the connection is made, for TLS after the handshake
    :ivar response: fires with the response when its headers are complete; None afterwards
    :ivar handshake: for TLS: fires when the handshake is complete or the connection is lost
    """

    transport: Any
    _parser: ResponseParser
    cancel_connect: Callable[[], object]

    def __init__(
        self,
        request: BackendRequest,
        head: bytes,
        body: IBodyProducer | None,
        on_connected: Callable[[], object],
    ) -> None:
        self.response: Deferred[IResponse] | None = Deferred(self._cancelled)
        self._request: BackendRequest | None = request
        self._on_connected = on_connected
        self._head = head
        self._body = body
        self._sender: _BodySender | None = None
        self._is_lost = False
        # The response while it holds the body, then the protocol of `deliverBody`. None before the
        # response's headers are complete, and after the connection is lost.
        self._receiver: IProtocol | None = None
        # Why the connection is being closed; None if it is open.
        self._end_reason: Failure | None = None
        self.handshake: Deferred[None] | None = None

    # The request.

    def connectionMade(self) -> None:
        self._parser = ResponseParser(cast("BackendRequest", self._request).method)
        if self.response is None:
            self.abortConnection()
            return
        if not ISSLTransport.providedBy(self.transport):
            self._on_connected()
        # Release both: the response may take minutes.
        head, self._head = self._head, b""
        body, self._body = self._body, None
        if body is None:
            send_now(self.transport, head)
        else:
            self._sender = _BodySender(self.transport, body)
            self._sender.start(head)
            self._sender.done.addErrback(self._body_failed).addBoth(self._body_sent)

    def handshakeCompleted(self) -> None:
        """Report the connection as made: only now TLS sends the request that was written."""
        self._on_connected()
        self._handshake_done()

    def _handshake_done(self) -> None:
        if self.handshake is not None and not self.handshake.called:
            self.handshake.callback(None)

    def fail(self, reason: Failure) -> None:
        """Fail the response, unless it has fired or failed before."""
        response, self.response = self.response, None
        if response is not None:
            response.errback(reason)

    def _body_failed(self, reason: Failure) -> None:
        wrapper = RequestGenerationFailed if self._receiver is None else ResponseFailed
        self._close(Failure(wrapper([reason])))

    def _body_sent(self, _: object) -> None:
        self._sender = None

    def _cancelled(self, _: object) -> None:
        self.response = None
        if self.transport is None:
            self.cancel_connect()
        else:
            self.abortConnection()

    # The response.

    def dataReceived(self, data: bytes) -> None:
        parser = self._parser
        content = parser.receive_data(data)
        if self.response is not None and parser.headers_complete:
            self._respond()
        if content and self._receiver is not None:
            self._receiver.dataReceived(content)
        if parser.complete:
            self._close(BODY_COMPLETE)
        elif parser.error is not None:
            self._close(Failure(ResponseFailed([Failure(parser.error)])))

    def _respond(self) -> None:
        deferred, self.response = cast("Deferred[IResponse]", self.response), None
        # From now on only the response holds the request, which is released with it.
        request, self._request = cast("BackendRequest", self._request), None
        response = _Response(self._parser, request, self)
        holding = self._receiver = cast("IProtocol", response)
        deferred.callback(response)
        if self._receiver is holding:
            self.pauseProducing()

    def _close(self, reason: Failure) -> None:
        if self._end_reason is None:
            self._end_reason = reason
        self.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        self._handshake_done()
        if self._sender is not None:
            self._sender.stop()
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            self.fail(self._end_reason or Failure(ResponseNeverReceived([reason])))
        elif self._end_reason is not None:
            receiver.connectionLost(self._end_reason)
        elif self._parser.ends_at_close and reason.check(ConnectionDone):
            receiver.connectionLost(BODY_CLOSED)
        else:
            receiver.connectionLost(Failure(ResponseFailed([reason])))

    # The transport of the body's receiver.

    def deliver_to(self, receiver: IProtocol) -> None:
        """Become the transport of `receiver`, which gets the rest of the body, if there is one."""
        if self._receiver is not None:
            self._receiver = receiver
            self.resumeProducing()
        receiver.makeConnection(cast("ITCPTransport", self))

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def abortConnection(self) -> None:
        if not self._is_lost:  # Twisted's TLS transports raise AttributeError then
            self.transport.abortConnection()

    stopProducing = loseConnection = abortConnection


class ConnectionFactory(ClientFactory):
    """Connects one `BackendConnection`, without log lines."""

    noisy = False

    def __init__(self, connection: BackendConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> BackendConnection:
        return self._connection

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self._connection.fail(reason)
