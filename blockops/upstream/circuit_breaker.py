"""
The circuit breaker: rejects requests at once while the backend is known to be unreachable.

Without it, each request to a backend that is down would fail only after a connection timeout. With
it, only the first few do; later ones are rejected at once with `Retry-After`, and one request at a
time tests whether the backend is reachable again.

| state     | request arrives        | connected | connection failed        | cancelled, or a bug  |
| --------- | ---------------------- | --------- | ------------------------ | -------------------- |
| CLOSED    | passes                 | CLOSED    | OPEN, after              | CLOSED               |
|           |                        |           | `failure_threshold`      |                      |
|           |                        |           | failures in a row        |                      |
| OPEN      | rejected until         | CLOSED    | OPEN; not counted, since | OPEN                 |
|           | `reset_timeout` is     |           | the request started      |                      |
|           | over; then it is the   |           | before the breaker       |                      |
|           | trial: HALF_OPEN       |           | opened                   |                      |
| HALF_OPEN | rejected               | CLOSED    | of the trial: OPEN, for  | of the trial: OPEN,  |
|           |                        |           | another `reset_timeout`; | and the next request |
|           |                        |           | of another request: no   | is the trial         |
|           |                        |           | change                   |                      |

As in an electric circuit, closed means that requests pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blockops.errors import ApiError
from blockops.upstream.client import ConnectError


class State(Enum):
    """The states of the table above; the values are those of `/health`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """
    Rejects requests after too many consecutive failures to connect to the backend.

    :param failure_threshold: consecutive failures that open the breaker; 0 if it never opens
    :param reset_timeout: seconds from the last counted failure to the next trial
    :param reject_waiting: called when the breaker opens, with a function that makes the error for
        each queued request
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        failure_threshold: int,
        reset_timeout: float,
        reject_waiting: Callable[[Callable[[], ApiError]], object],
    ) -> None:
        self._clock = clock
        self._failure_threshold = failure_threshold
        self._reset_timeout = reset_timeout
        self._reject_waiting = reject_waiting
        self._failures = 0
        self._trial: object = None
        # Of the counted failures: the time of the first, the message of the last.
        self._unreachable_since = 0.0
        self._last_error = ""
        self._retry_at = 0.0
        self.state = State.CLOSED
        self.times_opened = 0

    def status(self) -> dict[str, object]:
        """Return the fields for `/health`."""
        closed = self.state is State.CLOSED
        return {
            "circuit": self.state.value,
            "circuit_opened": self.times_opened,
            "backend_unreachable_seconds": (
                None if closed else round(self._clock.seconds() - self._unreachable_since)
            ),
        }

    def check(self) -> None:
        """Raise the 503 of `guard` early, before any work is done for a request."""
        if self.state is State.HALF_OPEN or (
            self.state is State.OPEN and self._clock.seconds() < self._retry_at
        ):
            raise self._rejection()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """
        Record the outcome of one request; the block lasts until the backend responds or fails.

        :raises ApiError: 503, the backend is known to be unreachable
        """
        request = object()
        if self.state is not State.CLOSED:
            self.check()
            self.state, self._trial = State.HALF_OPEN, request
        try:
            yield
        except ConnectError as failure:
            self._record_failure(request, failure)
            raise
        except ApiError:
            # It happened after the TCP connection was made, such as a failed TLS handshake: the
            # backend can be reached.
            self.record_connection()
            raise
        else:
            self.record_connection()
        finally:
            if request is self._trial:
                # The trial ended without a result, so the next request is the trial.
                self.state, self._trial = State.OPEN, None

    def record_connection(self) -> None:
        """Close the breaker: a connection to the backend was made, by any request."""
        self._failures = 0
        if self.state is not State.CLOSED:
            self.state, self._trial = State.CLOSED, None
            self._log.info(
                "The backend is reachable again, after {seconds} seconds",
                seconds=round(self._clock.seconds() - self._unreachable_since),
            )

    def _record_failure(self, request: object, failure: ConnectError) -> None:
        now = self._clock.seconds()
        if self.state is State.CLOSED:
            self._failures += 1
            self._last_error = failure.message
            if self._failures == 1:
                self._unreachable_since = now
            if self._failures == self._failure_threshold:
                self.times_opened += 1
                self._log.warn(
                    "{error} After {failures} consecutive failures, requests are rejected until"
                    " the backend is reachable again.",
                    error=self._last_error,
                    failures=self._failures,
                )
                self._open(now)
        elif request is self._trial:
            self._last_error = failure.message
            self._open(now)

    def _open(self, now: float) -> None:
        self.state, self._trial = State.OPEN, None
        self._retry_at = now + self._reset_timeout
        self._reject_waiting(self._rejection)

    def _rejection(self) -> ApiError:
        seconds = max(1, math.ceil(self._retry_at - self._clock.seconds()))
        since = datetime.fromtimestamp(self._unreachable_since, UTC).isoformat(timespec="seconds")
        return ApiError(
            503,
            f"{self._last_error} It has been unreachable since {since}. Retry in {seconds}"
            " seconds.",
            type="server_error",
            code="backend_unreachable",
            retry_after=seconds,
        )
