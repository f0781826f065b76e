"""
When the backend's prompt cache is purged: never under a running request.

Whoever works at the backend says so by `begin` and `end`. A purge waits until nobody does, and
whoever comes meanwhile waits for the purge, which is short and bounded. So neither feels the other.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

#: Seconds that a purge may take; who comes meanwhile waits no longer.
LONGEST = 5.0


Forget = Callable[[], Coroutine[Deferred[Any], Any, None]]


class Purge:
    """
    Purges the backend's cache when it is idle.

    :param forget: makes the backend forget
    :param possible: says whether it can, as far as is known
    :ivar skipped: how often the backend was not idle in time
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, forget: Forget, possible: Callable[[], bool] = lambda: True
    ) -> None:
        self._clock = clock
        self._forget = forget
        self._possible = possible
        self._working = 0
        self._owed: set[str] = set()
        #: Those who wait for the backend to be idle.
        self._patient: list[Deferred[None]] = []
        #: Those who wait for the end of the purge that is under way; None if none is.
        self._behind: list[Deferred[None]] | None = None
        self.skipped = 0

    async def begin(self) -> None:
        """Hold purges off until `end`; wait for the end of the one that is under way."""
        await self._end_of_purge()
        self._working += 1

    def end(self) -> None:
        """Hold them off no longer."""
        self._working -= 1
        if not self._working:
            self._when_idle()

    def later(self, session: str) -> None:
        """Purge for `session` as soon as the backend is idle."""
        self._owed.add(session)
        if not self._working:
            self._when_idle()

    def never_mind(self, session: str) -> None:
        """Do not purge for `session` any more: it is filling the cache again."""
        self._owed.discard(session)

    async def within(self, patience: float) -> None:
        """Purge before anything else is done; let it be if the backend is not idle in time."""
        if not self._possible():
            return
        if not self._working:
            self._forget_now()
        else:
            try:
                await _told(self._patient).addTimeout(patience, self._clock)
            except defer.TimeoutError:
                self.skipped += 1
                return
        await self._end_of_purge()

    async def _end_of_purge(self) -> None:
        while self._behind is not None:
            await _told(self._behind)

    def _when_idle(self) -> None:
        if self._owed or self._patient:
            self._owed.clear()
            self._forget_now()
            _tell(self._patient)

    def _forget_now(self) -> None:
        if self._behind is None:
            self._behind = []
            Deferred.fromCoroutine(self._purge())

    async def _purge(self) -> None:
        forgotten: Deferred[None] = Deferred.fromCoroutine(self._forget())
        try:
            await forgotten.addTimeout(LONGEST, self._clock)
        except defer.TimeoutError:
            self._log.warn("The backend did not forget its prompt cache in time")
        except Exception:  # noqa: BLE001 - nobody is there to take it
            self._log.failure("A purge failed")
        finally:
            behind, self._behind = self._behind or [], None
            _tell(behind)


def _told(line: list[Deferred[None]]) -> Deferred[None]:
    """Return what fires when those in `line` are told."""

    def leave(waiting: Deferred[None]) -> None:
        with suppress(ValueError):
            line.remove(waiting)

    waiting: Deferred[None] = Deferred(leave)
    line.append(waiting)
    return waiting


def _tell(line: list[Deferred[None]]) -> None:
    told = line[:]
    line.clear()
    for waiting in told:
        waiting.callback(None)
