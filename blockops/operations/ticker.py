"""
The one clock that ticks: heartbeats, deadlines, memory.

One sweep over all that is alive costs 0.2 microseconds for each of them; a timer for each would
have to be moved at every chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger


class Beating(Protocol):
    """What is looked at in each sweep."""

    def beat(self, now: float) -> None:
        """Do what is due at `now`, in seconds of the reactor's clock."""


class Every:
    """Calls something whenever so many seconds have passed, as well as the sweeps allow."""

    def __init__(self, seconds: float, call: Callable[[], object]) -> None:
        self._seconds = seconds
        self._call = call
        self._due = 0.0

    def beat(self, now: float) -> None:
        if now >= self._due:
            self._due = now + self._seconds
            self._call()


class Pulse:
    """
    Sweeps over what beats, at a steady pace.

    :param interval: seconds from sweep to sweep: how late a heartbeat or a deadline may be
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, interval: float) -> None:
        self._interval = interval
        self._beating: dict[Beating, None] = {}
        self._clock = clock
        self._loop = LoopingCall(self._sweep)
        self._loop.clock = clock

    def __len__(self) -> int:
        return len(self._beating)

    def add(self, beating: Beating) -> None:
        self._beating[beating] = None

    def discard(self, beating: Beating) -> None:
        self._beating.pop(beating, None)

    def start(self) -> None:
        self._loop.start(self._interval, now=False)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def _sweep(self) -> None:
        now = self._clock.seconds()
        for beating in list(self._beating):
            try:
                beating.beat(now)
            except Exception:  # noqa: BLE001 - an exception would stop the LoopingCall for good
                self._log.failure("A beat failed")
