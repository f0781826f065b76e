"""
Those who come without a key that is known: counted, and hardly written down.

Whoever reaches the port may knock as often as he likes. If each knock were written down, he could
fill the traffic log and have what others did rotated away.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

#: Seconds for which one of them stands for all.
SAMPLED_EVERY = 60.0


class Strangers:
    """Counts refused requests of those whom nobody knows, and tells of them once a minute."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._sampled: float | None = None
        self._unsaid = 0

    def sample(self, client: str | None) -> bool:
        """Count one more, from `client`; say whether it is the one to be written down."""
        self._unsaid += 1
        now = self._clock.seconds()
        if self._sampled is not None and now - self._sampled < SAMPLED_EVERY:
            return False
        self._log.warn(
            "Requests without a known API key were refused: {count} since this was last said, the"
            " last one from {client}. The traffic log has only that one of them",
            count=self._unsaid,
            client=client or "a Unix socket",
        )
        self._sampled, self._unsaid = now, 0
        return True
