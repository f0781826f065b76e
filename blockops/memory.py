"""How much memory the machine has left, in tiers."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import psutil
from twisted.logger import Logger


class Tier(IntEnum):
    """How tight memory is; each begins below a share of the whole that is still available."""

    FINE = 0
    NOTICE = 1
    WARNING = 2
    HIGH = 3
    CRITICAL = 4


#: Shares of the machine's memory, in per cent: below the first a tier begins.
THRESHOLDS = {Tier.CRITICAL: 5.0, Tier.HIGH: 10.0, Tier.WARNING: 15.0, Tier.NOTICE: 20.0}


def available_percent() -> float:
    """Return the share of the machine's memory that programs can still have, in per cent."""
    memory = psutil.virtual_memory()
    return float(100.0 * memory.available / memory.total)


def tier_of(percent: float) -> Tier:
    """Return the tier that `percent` of available memory is in."""
    for tier, threshold in THRESHOLDS.items():
        if percent < threshold:
            return tier
    return Tier.FINE


class MemoryGauge:
    """The last reading of the machine's memory. Changes of its tier go to the daemon's log."""

    _log = Logger()

    def __init__(self, read: Callable[[], float] = available_percent) -> None:
        self._read = read
        self.percent = 100.0
        self.tier = Tier.FINE
        self._readable = True

    def poll(self) -> None:
        """Read anew, if the system lets us."""
        try:
            self.percent = self._read()
        except OSError as error:
            if self._readable:
                self._readable = False
                self._log.warn("The machine's memory cannot be read: {error}", error=error)
            return
        self._readable = True
        before, self.tier = self.tier, tier_of(self.percent)
        if self.tier > before:
            self._log.warn(
                "Memory is getting tight ({tier}): {percent:.1f} % of it is available",
                tier=self.tier.name.lower(),
                percent=self.percent,
            )
        elif self.tier < before:
            self._log.info("{percent:.1f} % of memory is available again", percent=self.percent)
