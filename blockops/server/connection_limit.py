"""
Upper bounds for the number of connections: in all, and from one address.

Connections over the limit get a 503 at once and are closed. That costs next to nothing: no request
is read, and the connection is only kept open for a moment so that the client can read the response.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.net.addresses import is_local
from blockops.server.common_headers import common_headers
from blockops.server.http1.serialize import error_response
from blockops.server.limits import LOG_INTERVAL, MAX_LINGERING, REJECTION_LINGER, RETRY_AFTER


class ConnectionLimiter:
    """
    Counts connections and decides which are over the limit.

    :param limit: connections in all
    :param limit_per_client: connections from one address; 0 for no such limit. It does not apply to
        loopback addresses and Unix sockets: all clients of a reverse proxy on this machine have
        one of these
    :ivar count: open connections
    :ivar rejections: connections that were rejected
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, *, limit: int, limit_per_client: int) -> None:
        self._clock = clock
        self._limit = limit
        self._limit_per_client = limit_per_client or limit
        self._by_host: Counter[str] = Counter()
        self._logged_at: float | None = None
        # The value of `rejections` in the last log line.
        self._logged_rejections = 0
        # Rejected connections that are still open, and the calls that abort them.
        self._abort_calls: dict[RejectedConnection, IDelayedCall] = {}
        self.count = 0
        self.rejections = 0

    def status(self) -> dict[str, object]:
        """Return the fields for `/health`."""
        return {"connections": self.count, "connections_refused": self.rejections}

    def check(self, address: IAddress | None) -> ApiError | None:
        """Return the 503 for one more connection from `address`, or None if it is accepted."""
        host = _host(address)
        if self.count >= self._limit:
            reason = f"{self.count} connections are open, the most that --max-connections allows"
        elif self._by_host[host] >= self._limit_per_client and not is_local(address):
            reason = (
                f"{self._limit_per_client} connections from {host} are open, the most that"
                " --max-connections-per-client allows"
            )
        else:
            return None
        self.rejections += 1
        self._log_rejections(reason)
        return ApiError(
            503,
            f"blockops has too many connections: {reason}. Retry later, or use a connection that"
            " is already open.",
            type="server_error",
            code="too_many_connections",
            retry_after=RETRY_AFTER,
        )

    def add(self, address: IAddress | None) -> None:
        self.count += 1
        self._by_host[_host(address)] += 1

    def remove(self, address: IAddress | None) -> None:
        host = _host(address)
        self.count -= 1
        self._by_host[host] -= 1
        if not self._by_host[host]:
            del self._by_host[host]

    def start_linger(self, connection: RejectedConnection) -> bool:
        """Return True if `connection` may stay open for `REJECTION_LINGER`, else False."""
        if len(self._abort_calls) >= MAX_LINGERING:
            return False
        self._abort_calls[connection] = self._clock.callLater(REJECTION_LINGER, connection.abort)
        return True

    def end_linger(self, connection: RejectedConnection) -> None:
        abort = self._abort_calls.pop(connection, None)
        if abort is not None and abort.active():
            abort.cancel()

    def _log_rejections(self, reason: str) -> None:
        now = self._clock.seconds()
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL:
            return
        self._log.warn(
            "Rejected {count} connections since the last such message: {reason}",
            reason=reason,
            count=self.rejections - self._logged_rejections,
        )
        self._logged_at, self._logged_rejections = now, self.rejections


class RejectedConnection(Protocol):
    """A connection over the limit: sends `error`, parses no request, and closes."""

    def __init__(self, limiter: ConnectionLimiter, error: ApiError) -> None:
        self._limiter = limiter
        self._error = error

    def connectionMade(self) -> None:
        transport = cast("ITCPTransport", self.transport)
        secure = ISSLTransport.providedBy(transport)
        lingers = self._limiter.start_linger(self)
        if secure and not lingers:
            # Nothing can be sent before the TLS handshake, and no timeout bounds the handshake.
            transport.abortConnection()
            return
        transport.write(error_response(self._error, common_headers(), Headers()))
        # A socket that is closed with unread input sends a reset, which may destroy the response on
        # its way. So half-close, and discard input for `REJECTION_LINGER`.
        if secure or not lingers:
            transport.loseConnection()
        else:
            transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        """Ignore `data`."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._limiter.end_linger(self)

    def abort(self) -> None:
        cast("ITCPTransport", self.transport).abortConnection()


def _host(address: IAddress | None) -> str:
    """Return the host of `address`, or "" for a Unix socket."""
    return str(getattr(address, "host", ""))
