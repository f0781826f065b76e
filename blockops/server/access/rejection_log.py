"""
The limit for log entries about rejected requests and connections.

Clients without a key could have the records of others rotated out. So one rejection a minute is
logged, and all are counted.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blockops.server.limits import LOG_INTERVAL

UNKNOWN_KEY = (
    "Rejected {count} requests without a known API key since the last such message. The last one,"
    " from {client}, is the only one in the traffic log"
)


class RejectionLog:
    """Logs rejections once a minute; `message` has the fields `count` and those of `should_log`."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, message: str = UNKNOWN_KEY) -> None:
        self._clock = clock
        self._message = message
        self._logged_at: float | None = None
        self._unlogged = 0

    def should_log(self, **fields: object) -> bool:
        """Count a rejection, and return True if it was logged."""
        self._unlogged += 1
        now = self._clock.seconds()
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL:
            return False
        self._log.warn(self._message, count=self._unlogged, **fields)
        self._logged_at, self._unlogged = now, 0
        return True
