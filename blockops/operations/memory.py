"""The machine's available memory in tiers, and the gate that rejects requests at the lowest one."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import psutil
from twisted.logger import Logger

from blockops.errors import ApiError


class Tier(IntEnum):
    """How low the available memory is; see `THRESHOLDS`."""

    NORMAL = 0
    NOTICE = 1
    WARNING = 2
    HIGH = 3
    CRITICAL = 4


#: Upper bounds of the tiers from `NOTICE` on: available memory in per cent of the machine's.
THRESHOLDS = (20.0, 15.0, 10.0, 5.0)


def available_percent() -> float:
    """Return the memory that is available to programs, in per cent of the machine's."""
    memory = psutil.virtual_memory()
    return float(100.0 * memory.available / memory.total)


def tier_of(percent: float) -> Tier:
    """Return the tier for `percent` of available memory."""
    return Tier(sum(percent < threshold for threshold in THRESHOLDS))


class MemoryMonitor:
    """Reads the available memory, in per cent, and logs changes of its tier."""

    _log = Logger()

    def __init__(self, read: Callable[[], float] = available_percent) -> None:
        self._read = read
        self.percent = 100.0
        self.tier = Tier.NORMAL
        self._is_readable = True

    def poll(self) -> None:
        """Read the memory. If the system does not provide it, the last reading stays."""
        try:
            self.percent = self._read()
        except OSError as error:
            if self._is_readable:
                self._is_readable = False
                self._log.warn(
                    "The available memory cannot be read ({error}). Until it can, the last reading"
                    " ({percent:.1f} %) is used.",
                    error=error,
                    percent=self.percent,
                )
            return
        self._is_readable = True
        before, self.tier = self.tier, tier_of(self.percent)
        if self.tier > before:
            self._log.warn(
                "Memory is low ({tier}): {percent:.1f} % is available",
                tier=self.tier.name.lower(),
                percent=self.percent,
            )
        elif self.tier < before:
            self._log.info("Memory recovers: {percent:.1f} % is available", percent=self.percent)


class MemoryGate:
    """Rejects new requests while memory is critical; clients retry after `retry_after` seconds."""

    def __init__(self, monitor: MemoryMonitor, *, is_enabled: bool, retry_after: float) -> None:
        self._monitor = monitor
        self._is_enabled = is_enabled
        self._retry_after = retry_after

    def check(self) -> None:
        """Raise `ApiError`, 503, if memory is critical."""
        if self._is_enabled and self._monitor.tier is Tier.CRITICAL:
            raise ApiError(
                503,
                f"The machine is nearly out of memory: {self._monitor.percent:.1f} % is available."
                " Retry later, or end other programs on the machine.",
                type="server_error",
                code="memory_critical",
                retry_after=max(1, math.ceil(self._retry_after)),
            )
