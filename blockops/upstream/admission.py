"""The bounded queue in front of the backend: who is let through, who waits, who is sent away."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from blockops.errors import ApiError


class AdmissionQueue:
    """
    Places at the backend, given out first come, first served.

    :param places: requests that may be at the backend at once
    :param max_queue: requests that may wait for a place
    :param queue_timeout: seconds that one may wait
    """

    #: How much the newest request counts in the average that `Retry-After` is made from.
    WEIGHT = 0.2
    #: Bounds of `Retry-After`, in seconds: a client should neither hammer nor sleep for ever.
    RETRY_AFTER = (1, 60)

    def __init__(
        self, clock: IReactorTime, *, slots: int, max_queue: int, queue_timeout: float
    ) -> None:
        self._clock = clock
        self._places = defer.DeferredSemaphore(slots)
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._seconds_held = 1.0
        self._verdict: Callable[[], ApiError] | None = None
        self.refused = 0

    @property
    def running(self) -> int:
        """How many hold a place."""
        return self._places.limit - self._places.tokens

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._places.waiting)

    async def acquire(self) -> float:
        """
        Wait for a place; return since when it is held, in seconds of the clock.

        Cancelling the wait leaves the queue. Whoever has a place must `leave` it.

        :raises ApiError: 429, the queue is full or the wait was too long; what `dismiss` says
        """
        acquired = self._acquire()
        if not acquired.called:
            await acquired
            # release() runs the next waiter inside itself: a hundred that end at once would
            # overflow the stack and lose a place (twisted#9304). So nobody ends in there.
            try:
                await deferLater(self._clock, 0)
            except BaseException:
                self._places.release()
                raise
        return self._clock.seconds()

    def release(self, since: float, *, completed: bool) -> None:
        """
        Give a place back.

        :param since: from `enter`
        :param well: the request took as long as one takes that nothing has cut short
        """
        if completed:
            self._learn(self._clock.seconds() - since)
        self._places.release()

    def reject_waiting(self, verdict: Callable[[], ApiError]) -> None:
        """Let all who wait fail with what `verdict` returns: there is nothing to wait for."""
        self._verdict = verdict
        for waiting in list(self._places.waiting):
            waiting.cancel()
        self._verdict = None

    def _acquire(self) -> defer.Deferred[defer.DeferredSemaphore]:
        if self.waiting >= self._max_queue and not self._places.tokens:
            raise self._refusal(f"{self.running} requests are running and {self.waiting} waiting")
        acquired = self._places.acquire()
        if acquired.called:
            return acquired
        acquired.addTimeout(self._queue_timeout, self._clock)
        return acquired.addErrback(self._out_of_the_queue)

    def _out_of_the_queue(self, failure: Failure) -> NoReturn:
        if self._verdict is not None:
            raise self._verdict()
        failure.trap(defer.TimeoutError)
        raise self._refusal(f"no place came free in {self._queue_timeout:g} seconds")

    def _refusal(self, why: str) -> ApiError:
        self.refused += 1
        return ApiError(
            429,
            f"The backend is busy: {why}. Ask again later, or raise MAX_CONCURRENT, MAX_QUEUE or "
            "QUEUE_TIMEOUT if the backend bears more.",
            type="rate_limit_error",
            code="concurrency_limit",
            retry_after=self._retry_after(),
        )

    def _learn(self, seconds: float) -> None:
        self._seconds_held += self.WEIGHT * (seconds - self._seconds_held)

    def _retry_after(self) -> int:
        """Return when a place should come free, going by how long the last requests took."""
        ahead = (self.waiting + 1) / self._places.limit
        shortest, longest = self.RETRY_AFTER
        return min(max(math.ceil(ahead * self._seconds_held), shortest), longest)
