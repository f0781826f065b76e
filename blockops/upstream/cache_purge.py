"""
Schedules purges of the backend's prompt cache: never while a request is active.

Each request with a slot calls `request_started` and `request_finished`, and is active in between. A
purge waits until no request is active; requests that arrive during a purge wait for its end, which
comes within `PURGE_TIMEOUT` seconds.

| state   | event                      | effect                                                |
| ------- | -------------------------- | ----------------------------------------------------- |
| idle    | `request_started`          | active                                                |
|         | `schedule`, `purge_within` | purging, at once                                      |
| active  | `schedule`                 | a purge is due when the last request has finished     |
|         | `cancel`                   | the session's scheduled purge is dropped              |
|         | `purge_within`             | waits for the last request; skipped after `seconds`   |
|         | last `request_finished`    | purging if one is due, otherwise idle                 |
| purging | `request_started`          | waits for the end of the purge                        |
|         | `schedule`                 | nothing: this purge covers it                         |
|         | `purge_within`             | waits for the end of this purge                       |
|         | success, failure, timeout  | idle; the waiting requests start                      |
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

#: Seconds that a purge may take, and thus that it may delay a request.
PURGE_TIMEOUT = 5.0


class CachePurge:
    """
    Purges the backend's prompt cache when no request is active.

    :param is_supported: returns False if no reset is possible
    :ivar purges_skipped: number of purges skipped because requests stayed active
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        reset: Callable[[], Coroutine[Deferred[Any], Any, None]],
        is_supported: Callable[[], bool] = lambda: True,
    ) -> None:
        self._clock = clock
        self._reset = reset
        self._is_supported = is_supported
        self._active_requests = 0
        #: Sessions for which a purge is due when the last active request has finished.
        self._scheduled: set[str] = set()
        #: Calls of `purge_within` that wait until no request is active.
        self._idle_waiters: list[Deferred[None]] = []
        #: Calls that wait for the end of the purge in progress; None if there is no purge.
        self._purge_waiters: list[Deferred[None]] | None = None
        self.purges_skipped = 0

    async def request_started(self) -> None:
        """Wait for the end of a purge in progress, then hold off purges until the request ends."""
        if self._purge_waiters is not None:
            await self._purge_ended()
        self._active_requests += 1

    def request_finished(self) -> None:
        """Record the end of an active request; start a purge that is due after the last one."""
        self._active_requests -= 1
        self._purge_if_due()

    def schedule(self, session: str) -> None:
        """Purge for `session` as soon as no request is active."""
        self._scheduled.add(session)
        self._purge_if_due()

    def cancel(self, session: str) -> None:
        """Drop the purge scheduled for `session`, which is filling the cache again."""
        self._scheduled.discard(session)

    async def purge_within(self, seconds: float) -> None:
        """Purge now; skip it if requests are still active after `seconds`."""
        if not self._is_supported():
            return
        if not self._active_requests:
            self._start_purge()
        else:
            try:
                await _add_waiter(self._idle_waiters).addTimeout(seconds, self._clock)
            except defer.TimeoutError:
                self.purges_skipped += 1
                return
        await self._purge_ended()

    async def _purge_ended(self) -> None:
        while self._purge_waiters is not None:
            await _add_waiter(self._purge_waiters)

    def _purge_if_due(self) -> None:
        if not self._active_requests and (self._scheduled or self._idle_waiters):
            self._scheduled.clear()
            self._start_purge()
            _fire_all(self._idle_waiters)

    def _start_purge(self) -> None:
        if self._purge_waiters is None:
            self._purge_waiters = []
            Deferred.fromCoroutine(self._purge())

    async def _purge(self) -> None:
        reset: Deferred[None] = Deferred.fromCoroutine(self._reset())
        try:
            await reset.addTimeout(PURGE_TIMEOUT, self._clock)
        except defer.TimeoutError:
            self._log.warn(
                "The prompt cache is not reset: the backend did not respond within {timeout:g}"
                " seconds. The next reset tries again.",
                timeout=PURGE_TIMEOUT,
            )
        except Exception:  # noqa: BLE001 - no caller awaits this coroutine
            self._log.failure("A purge of the prompt cache failed. Please report this bug.")
        finally:
            waiters, self._purge_waiters = self._purge_waiters or [], None
            _fire_all(waiters)


def _add_waiter(waiters: list[Deferred[None]]) -> Deferred[None]:
    """Add a Deferred to `waiters`, for `_fire_all` to fire, and return it."""
    waiter: Deferred[None] = Deferred(waiters.remove)
    waiters.append(waiter)
    return waiter


def _fire_all(waiters: list[Deferred[None]]) -> None:
    while waiters:
        waiters.pop(0).callback(None)
