"""
One client's connection: its requests, one after the other, and their deadlines.

The connection is always in one of these states:

========== ============================ ========================= ==================================
state      entered when                 input                     when the deadline has passed
========== ============================ ========================= ==================================
IDLE       connected, or a response     a part of a head: HEAD;   `header_timeout` after connecting,
           has ended                    otherwise as in HEAD      `KEEP_ALIVE` between requests:
                                                                  close
HEAD       a part of a head has arrived a complete head: BODY, or `header_timeout`: 408, close
                                        RESPONDING without one;
                                        an invalid head: 400,
                                        lingering close
BODY       the head is complete         the body, to the request; the body deadline: 408, lingering
                                        its end: RESPONDING;      close; abort if the response has
                                        invalid: 400, lingering   begun
                                        close; abort if the
                                        response has begun
RESPONDING the request is complete      kept for the next         none: `blockops.proxy` has the
                                        request                   deadlines of responses
DISCARDING the response was sent before the body, discarded;      `LINGER`: abort
           the request was complete: an its end: close; invalid:
           early response, or `reject`  abort
CLOSING    a close has begun            discarded                 `LINGER`: abort; `LINGER` again if
                                                                  the client has read data meanwhile
========== ============================ ========================= ==================================

A response that begins before the request is complete (an early response, a streamed upload) is sent
in BODY, and the connection closes after it. `response_sent` ends RESPONDING: the next state is IDLE
if the connection is persistent, else CLOSING. A connection over the limit, a close and the loss of
the connection lead to CLOSING from every state.

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

from enum import Enum, auto
from typing import Any, cast

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from zope.interface import implementer

from blockops.errors import ApiError
from blockops.net.socket_state import unsent_bytes
from blockops.net.writer import EagerWriter
from blockops.server.http1.body import ChunkedBody, FixedLengthBody
from blockops.server.http1.head import (
    body_length,
    expects_continue,
    find_head_end,
    find_request_line,
    parse_head,
    wants_keep_alive,
)
from blockops.server.limits import (
    KEEP_ALIVE,
    LINGER,
    MAX_PIPELINED,
    MAX_REQUESTS_PER_TURN,
    MIN_UPLOAD_RATE,
    REJECTION_LINGER,
)
from blockops.server.request import ClientRequest
from blockops.server.response_head import error_response


class _State(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    RESPONDING = auto()
    DISCARDING = auto()
    CLOSING = auto()


@implementer(IPushProducer)
class ClientConnection(Protocol):
    """
    One client's connection: its requests one after the other, and their responses.

    :param site: the `blockops.server.site.Site`, whose module imports this one
    :ivar request: the current request; None between two requests
    :ivar deadline: when `on_deadline` is to be called, in seconds of the reactor's clock, or None
    :ivar is_persistent: the connection stays open after the current response
    """

    __slots__ = (
        "_body",
        "_body_deadline",
        "_body_paused_at",
        "_is_processing",
        "_is_reading",
        "_is_write_paused",
        "_next_turn",
        "_pending",
        "_response",
        "_searched_size",
        "_state",
        "_unsent",
        "client_address",
        "deadline",
        "is_persistent",
        "request",
        "site",
        "writer",
    )

    writer: EagerWriter
    client_address: IAddress

    def __init__(self, site: Any) -> None:
        self.site = site
        self.request: ClientRequest | None = None
        self.deadline: float | None = None
        self.is_persistent = True
        self._state = _State.IDLE
        # Input that is not processed yet, and how much of it was searched for the end of a head.
        self._pending = b""
        self._searched_size = 0
        self._is_processing = False
        # The call that continues to process input, while other connections have their turn.
        self._next_turn: IDelayedCall | None = None
        # The body that is arriving, and the deadline for all of it. None between bodies.
        self._body: FixedLengthBody | ChunkedBody | None = None
        self._body_deadline: float | None = None
        self._body_paused_at: float | None = None
        self._is_reading = True
        self._is_write_paused = False
        # The response that has begun, which is paused while the client does not read.
        self._response: IPushProducer | None = None
        # Bytes that the system held for the client when the deadline in CLOSING last passed.
        self._unsent: int | None = None

    def connectionMade(self) -> None:
        transport = cast("ITransport", self.transport)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        # A transport makes a new address for each call.
        self.client_address = transport.getPeer()
        self.writer = EagerWriter(transport, self)
        self._set_deadline(self.site.header_timeout)
        self.site.on_opened(self)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.site.on_closed(self)
        self._start_closing()
        self.deadline = None
        del self.writer  # it refers to this connection
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None

    # Input.

    def dataReceived(self, data: bytes) -> None:
        if self._state is not _State.CLOSING:
            self._pending = self._pending + data if self._pending else data
            self._process()

    def _process(self) -> None:
        """Process the pending input, at most `MAX_REQUESTS_PER_TURN` heads and bodies at once."""
        if self._is_processing or self._next_turn is not None:
            return
        self._is_processing = True
        try:
            # After a response that is sent at once, the loop continues with the next request.
            for _ in range(MAX_REQUESTS_PER_TURN):
                if not self._pending:
                    break
                if self._body is not None:
                    is_complete = self._read_body(self._body)
                elif self._state is _State.RESPONDING or self._is_write_paused:
                    # A client that does not read responses gets no new ones, or they would pile up.
                    break
                else:
                    is_complete = self._read_head()
                if not is_complete:
                    break
            else:
                self._next_turn = self.site.reactor.callLater(0, self._take_turn)
        finally:
            self._is_processing = False
        self._update_reading()

    def _take_turn(self) -> None:
        self._next_turn = None
        self._process()

    def _read_head(self) -> bool:
        """Process the next head. Return False if it is incomplete or invalid."""
        pending = self._pending
        try:
            end = find_head_end(pending, self._searched_size)
            if not end:
                self._searched_size = len(pending)
                if self._state is _State.IDLE:
                    self._state = _State.HEAD
                    self._set_deadline(self.site.header_timeout)
                return False
            head = parse_head(pending[:end])
            length = body_length(head, self.site.max_body)
        except ApiError as error:
            self.reject(error)
            self.lingering_close()
            return False
        self._pending = pending[end:]
        self._searched_size = 0
        self.is_persistent = not self.site.is_closing and wants_keep_alive(head)
        self.request = request = ClientRequest(self, head)
        if length == 0:
            self._state = _State.RESPONDING
            self.deadline = None
            request.start(0)
            request.body_complete()
            return True
        self._state = _State.BODY
        self._body = ChunkedBody() if length is None else FixedLengthBody(length)
        max_size = self.site.max_body if length is None else length
        self.deadline = self.site.reactor.seconds() + self.site.header_timeout
        self._body_deadline = self.deadline + max_size / MIN_UPLOAD_RATE
        request.start(length)
        if self._state is _State.BODY and expects_continue(head):
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _read_body(self, body: FixedLengthBody | ChunkedBody) -> bool:
        """Process the next data of the body. Return True if it is complete."""
        try:
            data, rest = body.receive(self._pending)
        except ApiError as error:
            # The end of the body is unknown, so the connection cannot be used any further.
            if self._state is _State.DISCARDING or self._response is not None:
                self.abort()
            else:
                self.reject(error)
                self.lingering_close()
            return False
        self._pending = rest or b""
        if data and self.request is not None and self._state is _State.BODY:
            self.request.receive_data(data)
            if rest is None:
                self._extend_body_deadline()
        if rest is None:
            return False
        self._body = self._body_deadline = self._body_paused_at = None
        if self._state is _State.DISCARDING:
            self._close_after_response()
        elif self.request is not None:
            self._state = _State.RESPONDING
            self.deadline = None
            self.request.body_complete()
        return True

    def _extend_body_deadline(self) -> None:
        """Restart the deadline for the next piece of the body, up to the one for all of it."""
        if self._body_deadline is not None and self._body_paused_at is None:
            next_piece = self.site.reactor.seconds() + self.site.header_timeout
            self.deadline = min(next_piece, self._body_deadline)

    def pause_body(self) -> None:
        if self._state is _State.BODY and self._body_paused_at is None:
            self._body_paused_at = self.site.reactor.seconds()
            self.deadline = None
            self._update_reading()

    def resume_body(self) -> None:
        """Resume the input and the body's deadlines: the time of the pause does not count."""
        if self._body_paused_at is not None and self._body_deadline is not None:
            self._body_deadline += self.site.reactor.seconds() - self._body_paused_at
            self._body_paused_at = None
            self._extend_body_deadline()
            self._update_reading()

    def _update_reading(self) -> None:
        """Pause or resume the input; the reasons are at the head of this module."""
        waits = self._state is _State.RESPONDING or self._next_turn is not None
        has_pipelined_enough = waits and len(self._pending) > MAX_PIPELINED
        has_unread_responses = self._is_write_paused and self._state in {_State.IDLE, _State.HEAD}
        is_body_paused = self._body_paused_at is not None
        may_read = not (has_pipelined_enough or has_unread_responses or is_body_paused)
        if may_read is self._is_reading:
            return
        self._is_reading = may_read
        transport = cast("IPushProducer", self.transport)
        if may_read:
            self.site.paused_connections.discard(self)
            transport.resumeProducing()
        else:
            # With unread responses the transport has data to send, and notices a disconnect by it.
            if not has_unread_responses:
                self.site.paused_connections.add(self)
            transport.pauseProducing()

    # Output.

    def begin_response(self, response: IPushProducer) -> None:
        """Pause `response` while the client does not read, and decide on `is_persistent`."""
        self._response = response
        if self._state is _State.BODY or self.site.is_closing:
            self.is_persistent = False
        if self._is_write_paused:
            response.pauseProducing()

    def response_sent(self) -> None:
        """Continue with the next request, or close the connection if it is not persistent."""
        self.request = self._response = None
        if self._body is not None:
            self._discard_body()
        elif self.is_persistent:
            self._state = _State.IDLE
            self._set_deadline(KEEP_ALIVE)
            self._process()
        else:
            self._close_after_response()

    def reject(self, error: ApiError) -> None:
        """Send `error` as the response to an incomplete or invalid request; discard its body."""
        # The CORS headers were set when the request's headers were complete.
        headers = self.request.responseHeaders if self.request is not None else Headers()
        self.writer.write(error_response(error, headers))
        self.site.on_rejected(self, error)
        self._discard_body()

    def _discard_body(self) -> None:
        self._state = _State.DISCARDING
        self._body_deadline = self._body_paused_at = None
        self._set_deadline(LINGER)
        self._update_reading()

    def reject_connection(self, error: ApiError, *, may_linger: bool) -> None:
        """Send `error` and close the connection, which is over a limit, without a request."""
        if not may_linger and ISSLTransport.providedBy(self.transport):
            # Nothing can be sent before the TLS handshake, and no timeout bounds the handshake.
            self.abort()
            return
        self.writer.write(error_response(error, Headers()))
        if may_linger:
            self.lingering_close()
            self._set_deadline(REJECTION_LINGER)
        else:
            self.close()

    def pauseProducing(self) -> None:
        self._is_write_paused = True
        if self._response is not None:
            self._response.pauseProducing()
        self._update_reading()

    def resumeProducing(self) -> None:
        self._is_write_paused = False
        if self._response is not None:
            self._response.resumeProducing()
        self._process()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` is called next."""

    # The end of the connection.

    def close_when_idle(self) -> None:
        """Close now, or after the response to the current request."""
        self.is_persistent = False
        if self._state is _State.IDLE:
            self.close()

    def close(self) -> None:
        if self._state is not _State.CLOSING:
            self._start_closing()
            self.writer.close()

    def lingering_close(self) -> None:
        """Half-close, and discard input until the client closes or `LINGER` has passed."""
        if self._state is not _State.CLOSING:
            self._start_closing()
            self.writer.half_close()
            self._update_reading()

    def abort(self) -> None:
        self.writer.abort()

    def _close_after_response(self) -> None:
        if self._pending:
            self.lingering_close()
        else:
            self.close()

    def _start_closing(self) -> None:
        self._state = _State.CLOSING
        self._pending = b""
        self._body = self._body_deadline = self._body_paused_at = None
        # A client that does not read, or sends no close alert of TLS, would stay connected forever.
        self._set_deadline(LINGER)
        request, self.request, self._response = self.request, None, None
        if request is not None:
            request.disconnected()

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = self.site.reactor.seconds() + seconds

    def on_deadline(self) -> None:
        """Reject the request, or close the connection: the client has missed its deadline."""
        self.deadline = None
        if self._state is _State.IDLE:
            self.close()
        elif self._state in {_State.HEAD, _State.BODY} and self._response is None:
            close = self.close if self._state is _State.HEAD else self.lingering_close
            self.reject(
                ApiError(
                    408,
                    "The request did not arrive in time. Send it again, or start blockops with a"
                    " longer --header-timeout.",
                    code="request_timeout",
                )
            )
            close()
        elif (
            self._state is _State.CLOSING
            and self not in self.site.rejected_connections
            and self._has_client_read()
        ):
            self._set_deadline(LINGER)
        else:
            self.abort()

    def _has_client_read(self) -> bool:
        """
        Return True if the client has read some of the unsent data since the last call.

        The first call returns True if any data is unsent.
        """
        before, self._unsent = self._unsent, unsent_bytes(self.transport)
        return bool(self._unsent) and self._unsent != before

    # For the log and the access control.

    def request_line(self) -> tuple[bytes, bytes]:
        """Return method and target of the current request, or two empty strings if unknown."""
        if self.request is not None:
            return self.request.method, self.request.uri
        return find_request_line(self._pending)

    @property
    def api_key_owner(self) -> str:
        """The owner of the current request's API key; empty without a key."""
        return self.request.api_key_owner if self.request is not None else ""

    def server_address(self) -> IAddress:
        """Return the address that the client has connected to; this makes a system call."""
        return cast("ITransport", self.transport).getHost()
