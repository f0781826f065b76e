"""
The HTTP server: bounded, with deadlines, and with errors in OpenAI's format.

Of twisted.web, the resources and the headers are used. Its server reads the whole body of a
request, however large, before it renders a resource; its errors are plain text or HTML; it does not
time out a client that sends a byte now and then; and it takes twice the time. This server differs:

- A body over the limit is rejected as soon as that is known, if possible from its declared length.
- Access is decided when the headers of a request are complete, before its body (`check_access`).
- A request whose body is only forwarded (`Route.streams_upload`) starts when its headers are
  complete. Its body follows through a `StreamingUpload`, at the speed of its consumer.
- Connections have deadlines; they are in `blockops.server.connection`. Those over the limit get an
  error response at once, and are closed.
- The disconnect of a client whose input is paused is noticed by polling (`Site.tick`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.web.resource import Resource

from blockops.errors import ApiError
from blockops.net.socket_state import has_peer_closed
from blockops.server.access.cors import PreflightResponse
from blockops.server.body_budget import BodyBudget
from blockops.server.connection import ClientConnection
from blockops.server.connection_limit import ConnectionLimiter
from blockops.server.limits import MAX_LINGERING
from blockops.server.request import ClientRequest, Route


@dataclass(eq=False, repr=False)
class Site(ServerFactory):
    """
    Accepts connections, and ends those that miss a deadline.

    :param resource: renders each request that is to be responded to
    :param body_budget: for the bodies of all requests together
    :param header_timeout: seconds for a request's headers, and for each next piece of its body
    :param match_route: returns the route for a method and a target
    :param check_access: is called when a request's headers are complete, and returns the response
        to send in place of the route's, or None
    :param on_rejected: is called with each connection that sends an error for an incomplete or
        invalid request, and with the error
    :ivar rejected_connections: those over the limit that stay open until the client has read why
    :ivar paused_connections: those whose disconnect Twisted's transports do not notice, because
        input is paused and no response is unread
    :ivar is_closing: each connection closes after its current response
    """

    noisy = False

    resource: Resource
    _: KW_ONLY
    reactor: Any
    max_body: int
    body_budget: BodyBudget
    header_timeout: float
    match_route: Callable[[bytes, bytes], Route]
    connection_limiter: ConnectionLimiter
    on_rejected: Callable[[ClientConnection, ApiError], object]
    check_access: Callable[[ClientRequest], ApiError | PreflightResponse | None]
    connections: set[ClientConnection] = field(init=False, default_factory=set)
    rejected_connections: set[ClientConnection] = field(init=False, default_factory=set)
    paused_connections: set[ClientConnection] = field(init=False, default_factory=set)
    is_closing: bool = field(init=False, default=False)
    _all_closed: Deferred[None] | None = field(init=False, default=None)

    def buildProtocol(self, addr: IAddress | None) -> ClientConnection:
        return ClientConnection(self)

    def close_idle(self) -> None:
        """Close the idle connections now, and the others after their current response."""
        self.is_closing = True
        for connection in list(self.connections):
            connection.close_when_idle()

    async def close(self, flush_timeout: float) -> None:
        """Close all connections. Clients have `flush_timeout` seconds to read what was written."""
        self.close_idle()
        if self.connections:
            self._all_closed = Deferred()
            abort = self.reactor.callLater(flush_timeout, self._abort_all)
            await self._all_closed
            if abort.active():
                abort.cancel()

    def _abort_all(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    def tick(self, now: float) -> None:
        """End connections whose deadline has passed, and paused ones whose client has left."""
        for connection in [*self.connections, *self.rejected_connections]:
            if connection.deadline is not None and connection.deadline <= now:
                connection.on_deadline()
        for connection in list(self.paused_connections):
            if has_peer_closed(connection.transport):
                connection.abort()

    def on_opened(self, connection: ClientConnection) -> None:
        error = self.connection_limiter.add(connection.client_address)
        if error is None:
            self.connections.add(connection)
            return
        may_linger = len(self.rejected_connections) < MAX_LINGERING
        if may_linger:
            self.rejected_connections.add(connection)
        connection.reject_connection(error, may_linger=may_linger)

    def on_closed(self, connection: ClientConnection) -> None:
        self.paused_connections.discard(connection)
        self.rejected_connections.discard(connection)
        if connection in self.connections:
            self.connections.discard(connection)
            self.connection_limiter.remove(connection.client_address)
        if not self.connections and self._all_closed is not None:
            self._all_closed.callback(None)
            self._all_closed = None
