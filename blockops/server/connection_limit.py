"""
How many connections are served: in all, and from one address.

Who comes when it is full is told so and sent away at once, which costs next to nothing: no request
is read, and nothing is kept of the connection but a moment to read the refusal.
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
from blockops.server.connection import parting
from blockops.server.limits import FULL_FOR, MAX_TURNED_AWAY, NOTED_EVERY, PARTING
from blockops.server.listener import is_local


class Crowd:
    """
    Counts connections, and says who is one too many.

    :param most: connections in all
    :param most_per_client: from one address; 0: as many as there may be in all. Loopback addresses
        and Unix sockets are not counted by address: behind a proxy on this machine all come from
        there.
    :ivar refused: how many were turned away
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, *, most: int, most_per_client: int) -> None:
        self._clock = clock
        self._most = most
        self._most_per_client = most_per_client or most
        self._by_client: Counter[str] = Counter()
        self._noted: float | None = None
        self._noted_at = 0
        # Those that read their refusal, and until when.
        self._parting: dict[TurnedAway, IDelayedCall] = {}
        self.size = 0
        self.refused = 0

    def vitals(self) -> dict[str, object]:
        """Return what `/health` tells."""
        return {"connections": self.size, "connections_refused": self.refused}

    def full(self, address: IAddress | None) -> ApiError | None:
        """Return what is told to one more from `address`; None if there is room."""
        if self.size >= self._most:
            why = f"{self.size} connections are open, as many as --max-connections allows"
        elif self._by_client[_name(address)] >= self._most_per_client and not is_local(address):
            why = (
                f"{self._most_per_client} connections from {_name(address)} are open, as many as"
                " --max-connections-per-client allows"
            )
        else:
            return None
        self.refused += 1
        self._note(why)
        return ApiError(
            503,
            f"blockops is full: {why}. Ask again later, on a connection that is open already if"
            " there is one.",
            type="server_error",
            code="too_many_connections",
            retry_after=FULL_FOR,
        )

    def enter(self, address: IAddress | None) -> None:
        self.size += 1
        self._by_client[_name(address)] += 1

    def leave(self, address: IAddress | None) -> None:
        name = _name(address)
        self.size -= 1
        self._by_client[name] -= 1
        if not self._by_client[name]:
            del self._by_client[name]

    def turned_away(self, error: ApiError) -> TurnedAway:
        """Return the protocol of a connection that is told `error` and nothing else."""
        return TurnedAway(self, error)

    def linger(self, leaving: TurnedAway) -> bool:
        """Say whether `leaving` may stay for a moment."""
        if len(self._parting) >= MAX_TURNED_AWAY:
            return False
        self._parting[leaving] = self._clock.callLater(PARTING, leaving.abort)
        return True

    def gone(self, leaving: TurnedAway) -> None:
        bound = self._parting.pop(leaving, None)
        if bound is not None and bound.active():
            bound.cancel()

    def _note(self, why: str) -> None:
        now = self._clock.seconds()
        if self._noted is not None and now - self._noted < NOTED_EVERY:
            return
        self._log.warn(
            "Connections are refused: {why} ({count} since this was last said)",
            why=why,
            count=self.refused - self._noted_at,
        )
        self._noted, self._noted_at = now, self.refused


class TurnedAway(Protocol):
    """A connection that is one too many."""

    def __init__(self, crowd: Crowd, error: ApiError) -> None:
        self._crowd = crowd
        self._error = error

    def connectionMade(self) -> None:
        transport = cast("ITCPTransport", self.transport)
        secure = ISSLTransport.providedBy(transport)
        lingers = self._crowd.linger(self)
        if secure and not lingers:
            # Nothing can be told before it has shaken hands, and nobody bounds how long that takes.
            transport.abortConnection()
            return
        transport.write(parting(self._error, Headers()))
        # Who closes a connection without having read all that came resets it, and the refusal may
        # be lost. So what comes is read, for a moment.
        if secure or not lingers:
            transport.loseConnection()
        else:
            transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        """Read, and forget."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._crowd.gone(self)

    def abort(self) -> None:
        cast("ITCPTransport", self.transport).abortConnection()


def _name(address: IAddress | None) -> str:
    return str(getattr(address, "host", ""))
