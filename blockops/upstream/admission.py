"""
Admission: a bounded FIFO queue for the backend's slots.

| state   | event                         | next state                               |
| ------- | ----------------------------- | ---------------------------------------- |
| new     | a slot is free                | active, without a reactor turn           |
|         | no slot, the queue has room   | waiting                                  |
|         | no slot, the queue is full    | rejected: 429                            |
| waiting | first in the queue, and a     | active, one reactor turn later           |
|         | slot is released              |                                          |
|         | `queue_timeout` seconds pass  | rejected: 429                            |
|         | `reject_waiting`              | rejected with the error of `make_error`  |
|         | the wait is cancelled         | removed from the queue                   |
| active  | `release`                     | done; the slot goes to the next request  |
"""

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
    Hands out the backend's slots, first come, first served.

    :param slots: requests that may be active at once
    :param max_queue: requests that may wait for a slot
    :param queue_timeout: seconds that a request may wait
    """

    #: Weight of the newest request in the moving average that `Retry-After` is based on.
    EWMA_WEIGHT = 0.2
    #: Lower and upper bound of `Retry-After`, in seconds: clients should neither retry in a tight
    #: loop nor stay away long after a slot is free again.
    RETRY_AFTER_BOUNDS = (1, 60)

    def __init__(
        self, clock: IReactorTime, *, slots: int, max_queue: int, queue_timeout: float
    ) -> None:
        self._clock = clock
        self._slots = defer.DeferredSemaphore(slots)
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._average_hold = 1.0
        self._make_error: Callable[[], ApiError] | None = None

    @property
    def active(self) -> int:
        return self._slots.limit - self._slots.tokens

    @property
    def waiting(self) -> int:
        return len(self._slots.waiting)

    async def acquire(self) -> float:
        """
        Wait for a slot; return the time at which it was acquired, in seconds of the clock.

        Cancelling removes the request from the queue. Every acquired slot must be released with
        `release`.

        :raises ApiError: 429, the queue is full or the wait took too long; the error of
            `reject_waiting`
        """
        slots = self._slots
        if len(slots.waiting) >= self._max_queue and not slots.tokens:
            raise self._rejection(
                f"{self.active} requests are active and {self.waiting} are waiting"
            )
        acquired = slots.acquire()
        if not acquired.called:
            acquired.addTimeout(self._queue_timeout, self._clock)
            await acquired.addErrback(self._wait_failed)
            # DeferredSemaphore.release() runs the next waiter inside itself: a hundred requests
            # that finish at once would overflow the stack and lose a slot (twisted#9304). This
            # turn of the reactor ends the recursion.
            try:
                await deferLater(self._clock, 0)
            except BaseException:
                slots.release()
                raise
        return self._clock.seconds()

    def release(self, acquired_at: float, *, completed: bool) -> None:
        """
        Release a slot.

        :param acquired_at: the result of `acquire`
        :param completed: the request ran to its end, so that its duration counts in the average
        """
        if completed:
            seconds = self._clock.seconds() - acquired_at
            self._average_hold += self.EWMA_WEIGHT * (seconds - self._average_hold)
        self._slots.release()

    def reject_waiting(self, make_error: Callable[[], ApiError]) -> None:
        """Reject each queued request with a new error from `make_error`."""
        self._make_error = make_error
        for waiting in list(self._slots.waiting):
            waiting.cancel()
        self._make_error = None

    def _wait_failed(self, failure: Failure) -> NoReturn:
        if self._make_error is not None:
            raise self._make_error()
        failure.trap(defer.TimeoutError)
        raise self._rejection(f"no slot became free within {self._queue_timeout:g} seconds")

    def _rejection(self, reason: str) -> ApiError:
        # The time until the new request would get a slot, given how long the last ones held theirs.
        rounds = (self.waiting + 1) / self._slots.limit
        shortest, longest = self.RETRY_AFTER_BOUNDS
        return ApiError(
            429,
            f"The backend is busy: {reason}. Retry later. If the backend can handle more, raise "
            "--max-concurrent, --max-queue or --queue-timeout.",
            type="rate_limit_error",
            code="concurrency_limit",
            retry_after=min(max(math.ceil(rounds * self._average_hold), shortest), longest),
        )
