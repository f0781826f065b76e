"""
The limit for the traffic log's records of rejected requests without a known API key.

Clients without a key could have the records of others rotated out. So one rejection a minute is
logged, and all are counted.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blockops.server.limits import LOG_INTERVAL


class RejectionLog:
    """Counts rejected requests without a known API key, and logs their number once a minute."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._logged_at: float | None = None
        self._unlogged = 0

    def should_log(self, client: str | None) -> bool:
        """
        Count a rejection, and return True if the traffic log should have a record of it.

        :param client: the address of the client; None for a Unix socket
        """
        self._unlogged += 1
        now = self._clock.seconds()
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL:
            return False
        self._log.warn(
            "Rejected {count} requests without a known API key since the last such message. The"
            " last one, from {client}, is the only one in the traffic log",
            count=self._unlogged,
            client=client or "a Unix socket",
        )
        self._logged_at, self._unlogged = now, 0
        return True
