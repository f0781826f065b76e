"""
One client's connection: its requests, one after the other, and their deadlines.

The connection is always in one of these states:

========== ============================ ========================= ==================================
state      entered when                 input                     when the deadline has passed
========== ============================ ========================= ==================================
IDLE       connected, or a response     the first byte: HEAD      `header_timeout` after connecting,
           has ended                                              `KEEP_ALIVE` between requests:
                                                                  close
HEAD       the first byte has arrived   a complete head: BODY;    `header_timeout`: 408, close
                                        an invalid one: 400,
                                        lingering close
BODY       the head is complete         the body, to the request; the body deadline: 408, lingering
                                        its end: RESPONDING;      close; abort if the response has
                                        invalid: 400, lingering   begun; after the end of an early
                                        close; abort if the       response, `LINGER`: abort
                                        response has begun
RESPONDING the request is complete      kept for the next         none: `blockops.proxy` has the
                                        request                   deadlines of responses
REJECTED   `reject` has sent an error   the body, discarded;      `LINGER`: abort
           response                     its end: close; invalid:
                                        abort
CLOSING    a close has begun            discarded                 `LINGER`: abort; `LINGER` again if
                                                                  the client has read data meanwhile
========== ============================ ========================= ==================================

A response that begins before the request is complete (an early response, a streamed upload) is sent
in BODY. `requestDone` ends RESPONDING: the next state is IDLE if the connection is persistent, else
CLOSING. `loseConnection`, `lingering_close` and the loss of the connection lead to CLOSING from
every state.

Input is paused (`_update_reading`):

- in RESPONDING, and while other connections have their turn, if more than `MAX_PIPELINED` bytes
  are pending. Up to that, reading continues, because only reading shows a disconnect.
- in IDLE and HEAD while the client does not read responses: otherwise they would pile up.
- while the consumer of an upload is paused. The body deadline does not run then.

Lingering close (RFC 9112, section 9.6): a socket that is closed with unread input sends a reset,
which may destroy the response on its way. So if the client may still be sending, blockops only
half-closes, and discards input until the client closes too.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
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

from blockops.errors import ApiError
from blockops.net.socket_state import unsent_bytes
from blockops.net.writer import ClosedWriter, Writer, make_writer
from blockops.server.body_budget import BodyBudget
from blockops.server.common_headers import common_headers
from blockops.server.http1.body import Body, ChunkedBody, FixedLengthBody
from blockops.server.http1.head import (
    RequestHead,
    body_length,
    expects_continue,
    find_head_end,
    find_request_line,
    parse_head,
    wants_keep_alive,
)
from blockops.server.http1.serialize import error_response
from blockops.server.limits import (
    KEEP_ALIVE,
    LINGER,
    MAX_PIPELINED,
    MAX_REQUESTS_PER_TURN,
    MIN_UPLOAD_RATE,
)


class _State(Enum):
    """See the table at the head of this module."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    RESPONDING = auto()
    REJECTED = auto()
    CLOSING = auto()


class ConnectionOwner(Protocol):
    """
    The part of `blockops.server.site.Site` that connections use.

    :ivar paused_connections: those whose input is paused while no response is unread
    :ivar is_closing: each connection closes after its current response
    """

    reactor: Any
    max_body: int
    body_budget: BodyBudget
    header_timeout: float
    is_closing: bool
    paused_connections: set[ClientConnection]

    def check_access(self, request: Any, /) -> Any:
        """Return the response to send in place of the route's, or None if access is allowed."""

    def match_route(self, method: bytes, target: bytes, /) -> Any:
        """Return the `Route` of a request."""

    def on_rejected(self, connection: ClientConnection, error: ApiError, /) -> object:
        """Log that `connection` sent `error` for an incomplete or invalid request."""

    def on_opened(self, connection: ClientConnection) -> None: ...
    def on_closed(self, connection: ClientConnection) -> None: ...


class ConnectionRequest(Protocol):
    """The part of `blockops.server.request.ClientRequest` that a connection uses."""

    method: bytes
    uri: bytes
    clientproto: bytes
    startedWriting: int
    responseHeaders: Headers
    api_key_owner: str

    def gotLength(self, length: int | None, /) -> None:
        """Start the request, whose body has `length` bytes; None if it is chunked."""

    def handleContentChunk(self, data: bytes, /) -> None:
        """Process the next piece of the body."""

    def requestReceived(self, command: bytes, path: bytes, version: bytes, /) -> None:
        """Process the request, which has arrived completely."""

    def connectionLost(self, reason: Failure, /) -> None:
        """Stop the request: its response cannot be sent any more."""


@implementer(IPushProducer)
class ClientConnection(TwistedProtocol):
    """
    One client's connection: its requests one after the other, and their responses.

    It takes the place of `twisted.web.http.HTTPChannel` for its `twisted.web.server.Request`.

    :ivar request: the current request; None between two requests
    :ivar deadline: when `on_deadline` is to be called, in seconds of the reactor's clock, or None
    :ivar is_persistent: the connection stays open after the current response
    """

    __slots__ = (
        "_body",
        "_body_deadline",
        "_body_paused_at",
        "_host",
        "_is_processing",
        "_is_reading",
        "_is_write_paused",
        "_make_request",
        "_next_turn",
        "_peer",
        "_pending",
        "_producer",
        "_searched_size",
        "_state",
        "_unsent",
        "_writer",
        "deadline",
        "is_persistent",
        "request",
        "site",
    )

    def __init__(
        self,
        site: ConnectionOwner,
        make_request: Callable[[ClientConnection, RequestHead], ConnectionRequest],
    ) -> None:
        self.site = site
        self.request: ConnectionRequest | None = None
        self.deadline: float | None = None
        self.is_persistent = True
        self._make_request = make_request
        self._peer: IAddress | None = None
        self._host: IAddress | None = None
        self._state = _State.IDLE
        # Input that is not processed yet, and how much of it was searched for the end of a head.
        self._pending = b""
        self._searched_size = 0
        self._is_processing = False
        # The call that continues to process input, while other connections have their turn.
        self._next_turn: IDelayedCall | None = None
        self._body: Body | None = None
        # For the whole body; None while no body is expected.
        self._body_deadline: float | None = None
        self._body_paused_at: float | None = None
        self._is_reading = True
        self._is_write_paused = False
        self._producer: IPushProducer | None = None
        # Bytes that the system held for the client when the deadline in CLOSING last passed.
        self._unsent: int | None = None

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._writer: Writer = make_writer(self.transport, self)
        self.site.on_opened(self)
        self.set_deadline(self.site.header_timeout)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.deadline = self._body_deadline = None
        self._state = _State.CLOSING
        self._writer = ClosedWriter()
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self.site.on_closed(self)
        self._abandon_request(reason)

    def _abandon_request(self, reason: Failure) -> None:
        request, self.request = self.request, None
        if request is not None:
            request.connectionLost(reason)

    # Input.

    def dataReceived(self, data: bytes) -> None:
        self._pending = self._pending + data if self._pending else data
        self._process()

    def _process(self) -> None:
        """Process the pending input, at most `MAX_REQUESTS_PER_TURN` requests at once."""
        if self._is_processing or self._next_turn is not None:
            return
        self._is_processing = True
        try:
            # After a response that is sent at once, the loop continues with the next request.
            for _ in range(MAX_REQUESTS_PER_TURN):
                if not self._pending or not self._process_next():
                    break
            else:
                self._next_turn = self.site.reactor.callLater(0, self._take_turn)
        finally:
            self._is_processing = False
        self._update_reading()

    def _take_turn(self) -> None:
        self._next_turn = None
        self._process()

    def _process_next(self) -> bool:
        """Process the next head or body. Return False if it is incomplete or has to wait."""
        match self._state:
            case _State.IDLE | _State.HEAD:
                # A client that does not read responses gets no new ones, or they would pile up.
                return not self._is_write_paused and self._read_head()
            case _State.BODY | _State.REJECTED:
                return self._read_body()
            case _State.CLOSING:
                self._pending = b""
        return False

    def _read_head(self) -> bool:
        if self._state is _State.IDLE:
            self._state = _State.HEAD
            self._searched_size = 0
            self.set_deadline(self.site.header_timeout)
        try:
            end = find_head_end(self._pending, self._searched_size)
            if not end:
                self._searched_size = len(self._pending)
                return False
            head = parse_head(self._pending[:end])
            length = body_length(head, self.site.max_body)
        except ApiError as error:
            self.reject(error)
            self.lingering_close()
            return False
        self._pending = self._pending[end:]
        self._start_request(head, length)
        return True

    def _start_request(self, head: RequestHead, length: int | None) -> None:
        self._state = _State.BODY
        self.request = request = self._make_request(self, head)
        self.is_persistent = not self.site.is_closing and wants_keep_alive(head)
        request.gotLength(length)
        if length == 0:
            self._request_complete(request)
            return
        on_data = request.handleContentChunk
        self._body = ChunkedBody(on_data) if length is None else FixedLengthBody(length, on_data)
        if head.version == b"HTTP/1.1" and expects_continue(head.headers):
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read_body(self) -> bool:
        data, self._pending = self._pending, b""
        try:
            rest = cast("Body", self._body).receive(data)
        except ApiError as error:
            # The end of the body is unknown, so the connection cannot be used any further.
            if self._state is not _State.BODY or self._response_has_begun():
                self.abort()
            else:
                self.reject(error)
                self.lingering_close()
            return False
        if rest is None:
            return False
        self._pending = rest
        self._request_complete(cast("ConnectionRequest", self.request))
        return True

    def _request_complete(self, request: ConnectionRequest) -> None:
        self._body = None
        if self._state is _State.BODY:
            self._state = _State.RESPONDING
        request.requestReceived(request.method, request.uri, request.clientproto)

    def request_line(self) -> tuple[bytes, bytes]:
        """Return method and target of the current request, or two empty strings if unknown."""
        if self.request is not None:
            return self.request.method, self.request.uri
        return find_request_line(self._pending)

    @property
    def api_key_owner(self) -> str:
        """The owner of the current request's API key; empty without a key."""
        return self.request.api_key_owner if self.request is not None else ""

    def _response_has_begun(self) -> bool:
        return self.request is not None and bool(self.request.startedWriting)

    # Request bodies.

    def start_body_deadline(self, size: int) -> None:
        """Start the deadlines for a body of `size` bytes: for its next piece and for all of it."""
        now = self.site.reactor.seconds()
        self._body_deadline = now + self.site.header_timeout + size / MIN_UPLOAD_RATE
        self.extend_body_deadline()

    def extend_body_deadline(self) -> None:
        """Restart the deadline for the next piece of the body, up to the one for all of it."""
        if self._body_deadline is not None and self._body_paused_at is None:
            self.set_deadline(self.site.header_timeout)
            self.deadline = min(cast("float", self.deadline), self._body_deadline)

    def clear_body_deadline(self) -> None:
        """Remove the deadlines: the body is complete."""
        self._body_deadline = self._body_paused_at = None
        self._update_reading()
        self.set_deadline(None)

    def pause_body(self) -> None:
        """Pause the input and the body's deadlines."""
        if self._body_paused_at is None:
            self._body_paused_at = self.site.reactor.seconds()
            self.set_deadline(None)
            self._update_reading()

    def resume_body(self) -> None:
        """Resume the input and the body's deadlines: the time of the pause does not count."""
        if self._body_paused_at is not None and self._body_deadline is not None:
            self._body_deadline += self.site.reactor.seconds() - self._body_paused_at
            self._body_paused_at = None
            self.extend_body_deadline()
            self._update_reading()

    @property
    def body_producer(self) -> IPushProducer:
        """The client as the producer of the request body."""
        return _BodyProducer(self)

    def _update_reading(self) -> None:
        """Pause or resume the input; the reasons are at the head of this module."""
        if self._state is _State.CLOSING:
            return
        waits = self._state is _State.RESPONDING or self._next_turn is not None
        has_pipelined_enough = waits and len(self._pending) > MAX_PIPELINED
        has_unread_responses = self._is_write_paused and self._state in {_State.IDLE, _State.HEAD}
        is_body_paused = self._body_paused_at is not None
        may_read = not (has_pipelined_enough or has_unread_responses or is_body_paused)
        if may_read and not self._is_reading:
            self._resume_reading()
        elif self._is_reading and not may_read:
            self._is_reading = False
            # With unread responses the transport has data to send, and notices a disconnect by it.
            if not has_unread_responses:
                self.site.paused_connections.add(self)
            cast("IPushProducer", self.transport).pauseProducing()

    def _resume_reading(self) -> None:
        self._is_reading = True
        self.site.paused_connections.discard(self)
        cast("IPushProducer", self.transport).resumeProducing()

    # Output.

    def write(self, data: bytes) -> None:
        if self._state is not _State.CLOSING:
            self._writer.write(data)

    def raw_write(self) -> Callable[[bytes], object]:
        """Return the function that `write` calls while a response is open, to save a call."""
        return self._writer.write

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:  # noqa: FBT001
        """Pause `producer`, a push producer, while more than the high-water mark is unsent."""
        if self._producer is not None or not streaming:
            raise RuntimeError(f"{producer!r} is a pull producer, or {self._producer!r} is active")
        self._producer = producer
        if self._is_write_paused:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._is_write_paused = True
        if self._producer is not None:
            self._producer.pauseProducing()
        self._update_reading()

    def resumeProducing(self) -> None:
        self._is_write_paused = False
        if self._producer is not None:
            self._producer.resumeProducing()
        self._process()

    def stopProducing(self) -> None:
        if self._producer is not None:
            self._producer.stopProducing()

    def requestDone(self, request: object) -> None:
        """Continue with the next request, or close the connection if it is not persistent."""
        self.request = None
        if self._state is _State.CLOSING:
            return
        self._state = _State.IDLE
        if self.is_persistent:
            self.set_deadline(KEEP_ALIVE)
            self._process()
        elif self._pending:
            self.lingering_close()
        else:
            self.loseConnection()

    # Methods of `HTTPChannel` that requests call. The addresses are kept, because a transport makes
    # a system call for each.

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

    # The end of the connection.

    def close_when_idle(self) -> None:
        """Close now, or after the response to the current request."""
        self.is_persistent = False
        if self._state is _State.IDLE:
            self.loseConnection()

    def loseConnection(self) -> None:
        if self._state is not _State.CLOSING:
            self._state = _State.CLOSING
            # A client that does not read, or sends no close alert of TLS, would stay connected for
            # ever.
            self.set_deadline(LINGER)
            self._writer.close()

    def lingering_close(self) -> None:
        """Half-close, and discard input until the client closes or `LINGER` has passed."""
        if self._state is not _State.CLOSING:
            self._state = _State.CLOSING
            self._pending = b""
            self._body_deadline = None
            self.set_deadline(LINGER)
            self._writer.half_close()
            self._abandon_request(Failure(ConnectionDone()))
            if not self._is_reading:
                self._resume_reading()

    def abort(self) -> None:
        """Close the connection immediately."""
        self._writer.abort()

    def set_deadline(self, seconds: float | None) -> None:
        """Set the deadline to `seconds` from now, or remove it if `seconds` is None."""
        self.deadline = None if seconds is None else self.site.reactor.seconds() + seconds

    def on_deadline(self) -> None:
        """Reject the request, or close the connection: the client has missed its deadline."""
        self.deadline = None
        if self._state is _State.IDLE:
            self.loseConnection()
        elif self._state in {_State.HEAD, _State.BODY} and not self._response_has_begun():
            close = self.lingering_close if self._state is _State.BODY else self.loseConnection
            self.reject(
                ApiError(
                    408,
                    "The request did not arrive in time. Send it again, or start blockops with a"
                    " longer --header-timeout.",
                    code="request_timeout",
                )
            )
            close()
        elif self._state is _State.CLOSING and self._has_client_read():
            self.set_deadline(LINGER)
        else:
            self.abort()

    def _has_client_read(self) -> bool:
        """
        Return True if the client has read some of the unsent data since the last call.

        The first call returns True if any data is unsent.
        """
        before, self._unsent = self._unsent, unsent_bytes(self.transport)
        return bool(self._unsent) and self._unsent != before

    def reject(self, error: ApiError) -> None:
        """Send `error` as the response to an incomplete or invalid request; discard its body."""
        # The CORS headers were set when the request's headers were complete.
        headers = self.request.responseHeaders if self.request is not None else Headers()
        self._state = _State.REJECTED
        self._body_deadline = None
        self._writer.write(error_response(error, common_headers(), headers))
        self.site.on_rejected(self, error)
        self.set_deadline(LINGER)


@implementer(IPushProducer)
class _BodyProducer:
    """The client as the producer of a request body: a pause also stops the body's deadlines."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def pauseProducing(self) -> None:
        self._connection.pause_body()

    def resumeProducing(self) -> None:
        self._connection.resume_body()

    def stopProducing(self) -> None:
        """Never called: the client stops when the body is complete, or disconnects."""
