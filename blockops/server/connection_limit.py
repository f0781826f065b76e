"""
Upper bounds for the number of connections: in all, and from one address.

Connections over the limit get a 503 at once and are closed. That costs next to nothing: no request
is read, and the connection is only kept open for a moment so that the client can read the response.
"""

from __future__ import annotations

from collections import Counter

from twisted.internet.interfaces import IAddress, IReactorTime

from blockops.errors import ApiError
from blockops.net.addresses import is_local
from blockops.server.access.rejection_log import RejectionLog
from blockops.server.limits import RETRY_AFTER


class ConnectionLimiter:
    """
    Counts connections and decides which are over the limit.

    :param limit: connections in all
    :param limit_per_client: connections from one address; 0 for no such limit. It does not apply to
        loopback addresses and Unix sockets: all clients of a reverse proxy on this machine have
        one of these
    """

    def __init__(self, clock: IReactorTime, *, limit: int, limit_per_client: int) -> None:
        self._limit = limit
        self._limit_per_client = limit_per_client or limit
        self._by_host: Counter[str] = Counter()
        self._rejection_log = RejectionLog(
            clock, "Rejected {count} connections since the last such message: {reason}"
        )
        self.count = 0
        self.rejections = 0

    def status(self) -> dict[str, object]:
        """Return the fields for `/health`."""
        return {"connections": self.count, "connections_refused": self.rejections}

    def add(self, address: IAddress) -> ApiError | None:
        """Count one more connection from `address`, or return the 503 if it is over a limit."""
        host = _host(address)
        if self.count >= self._limit:
            reason = f"{self.count} connections are open, the most that --max-connections allows"
        elif self._by_host[host] >= self._limit_per_client and not is_local(address):
            reason = (
                f"{self._limit_per_client} connections from {host} are open, the most that"
                " --max-connections-per-client allows"
            )
        else:
            self.count += 1
            self._by_host[host] += 1
            return None
        self.rejections += 1
        self._rejection_log.should_log(reason=reason)
        return ApiError(
            503,
            f"blockops has too many connections: {reason}. Retry later, or use a connection that"
            " is already open.",
            type="server_error",
            code="too_many_connections",
            retry_after=RETRY_AFTER,
        )

    def remove(self, address: IAddress) -> None:
        host = _host(address)
        self.count -= 1
        self._by_host[host] -= 1
        if not self._by_host[host]:
            del self._by_host[host]


def _host(address: IAddress) -> str:
    return str(getattr(address, "host", ""))  # a Unix socket has no host
