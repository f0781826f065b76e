"""How much memory the machine has left, in tiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import psutil
from twisted.logger import Logger

from blockops.errors import ApiError


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


class MemoryGate:
    """
    Turns new requests away while memory is critical, if it is asked to.

    :param closes: whether it does
    :param retry_after: seconds after which a client may ask again
    """

    def __init__(self, gauge: MemoryGauge, *, closes: bool, retry_after: float) -> None:
        self._gauge = gauge
        self._closes = closes
        self._retry_after = retry_after

    def check(self) -> None:
        """
        Let a request in.

        :raises ApiError: 503, memory is critical
        """
        if self._closes and self._gauge.tier is Tier.CRITICAL:
            raise ApiError(
                503,
                f"The machine is nearly out of memory: {self._gauge.percent:.1f} % is available. "
                "Ask again later, or end other programs on it.",
                type="server_error",
                code="memory_critical",
                retry_after=max(1, math.ceil(self._retry_after)),
            )
