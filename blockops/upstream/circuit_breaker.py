"""
Whether the backend is asked at all: not while it is known to be out of reach.

A backend that is down would let each request fail by itself, after a wait of its own. Here the
first ones fail, the others are told at once when to come again, and one of them tries for all.

| state  | a request comes                  | connected | its connection failed         | given up |
| ------ | -------------------------------- | --------- | ----------------------------- | -------- |
| CLOSED | it goes to the backend           | CLOSED    | OPEN, if it was so often      | CLOSED   |
|        |                                  |           | in a row                      |          |
| OPEN   | it is refused; behind the pause  | CLOSED    | OPEN (begun before, or not    | OPEN     |
|        | it is the trial: TRYING          |           | counted)                      |          |
| TRYING | it is refused                    | CLOSED    | the trial: OPEN, with a pause | OPEN,    |
|        |                                  |           |                               | no pause |

The words are those of an electric circuit: closed, it lets through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from types import TracebackType

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blockops.errors import ApiError
from blockops.upstream.client import Unreached


class State(Enum):
    """See the table above."""

    CLOSED = "closed"
    OPEN = "open"
    TRYING = "half-open"


class Circuit:
    """
    Counts connections that failed, one behind the other, and turns requests away after too many.

    :param after: how many in a row open it; 0: it never opens
    :param pause: seconds from a failure to the next trial
    :param dismiss: is called when it opens, with what makes the error for each who waits
    :ivar opened: how often it has opened
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        after: int,
        pause: float,
        dismiss: Callable[[Callable[[], ApiError]], object],
    ) -> None:
        self._clock = clock
        self._after = after
        self._pause = pause
        self._dismiss = dismiss
        self._failures = 0
        self._trial: Attempt | None = None
        # Of the failures that are counted: when the first one was, and what the last one said.
        self._since = 0.0
        self._why = ""
        self._not_before = 0.0
        self.state = State.CLOSED
        self.opened = 0

    def vitals(self) -> dict[str, object]:
        """Return what `/health` tells."""
        open_for = (
            None if self.state is State.CLOSED else round(self._clock.seconds() - self._since)
        )
        return {
            "circuit": self.state.value,
            "circuit_opened": self.opened,
            "backend_unreachable_seconds": open_for,
        }

    def check(self) -> None:
        """
        Turn a request away before anything is done for it, if it would be turned away later.

        :raises ApiError: 503
        """
        if self._refuses():
            raise self._refusal()

    def attempt(self) -> Attempt:
        """
        Let a block ask the backend, and learn from how it ends.

        :raises ApiError: 503, at once: the backend is known to be out of reach
        """
        self.check()
        attempt = Attempt(self)
        if self.state is State.OPEN:
            self.state, self._trial = State.TRYING, attempt
        return attempt

    def ended(self, attempt: Attempt, failure: BaseException | None) -> None:
        """Learn from how an attempt ended; None: it has an answer."""
        if isinstance(failure, Unreached):
            self._failed(attempt, failure)
        elif failure is None or isinstance(failure, ApiError):
            self.connected()  # what failed came later
        self._given_up(attempt)

    def connected(self) -> None:
        """Note that there is a connection to the backend: whoever made it, it is there again."""
        self._failures = 0
        if self.state is not State.CLOSED:
            self.state, self._trial = State.CLOSED, None
            self._log.info(
                "The backend can be reached again, after {seconds} seconds",
                seconds=round(self._clock.seconds() - self._since),
            )

    def _failed(self, attempt: Attempt, failure: Unreached) -> None:
        now = self._clock.seconds()
        if self.state is State.CLOSED:
            self._failures += 1
            self._why = failure.message
            if self._failures == 1:
                self._since = now
            if self._failures == self._after:
                self._open(now)
        elif attempt is self._trial:
            self._why = failure.message
            self._shut_out(now)

    def _given_up(self, attempt: Attempt) -> None:
        """Let the next one be the trial, if `attempt` was it and has learnt nothing."""
        if attempt is self._trial:
            self.state, self._trial = State.OPEN, None

    def _open(self, now: float) -> None:
        self.opened += 1
        self._log.warn(
            "{why} After {failures} attempts in a row, requests are refused until it can be"
            " reached again.",
            why=self._why,
            failures=self._failures,
        )
        self._shut_out(now)

    def _shut_out(self, now: float) -> None:
        self.state, self._trial = State.OPEN, None
        self._not_before = now + self._pause
        self._dismiss(self._refusal)

    def _refuses(self) -> bool:
        if self.state is State.OPEN:
            return self._clock.seconds() < self._not_before
        return self.state is State.TRYING

    def _refusal(self) -> ApiError:
        left = max(1, math.ceil(self._not_before - self._clock.seconds()))
        since = datetime.fromtimestamp(self._since, UTC).isoformat(timespec="seconds")
        return ApiError(
            503,
            f"{self._why} It is out of reach since {since}. Ask again in {left} seconds.",
            type="server_error",
            code="backend_unreachable",
            retry_after=left,
        )


class Attempt:
    """One attempt to ask the backend, which lasts as long as its block."""

    __slots__ = ("_circuit",)

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit

    def __enter__(self) -> None:
        """Begin: what has to be known for that was asked for before."""

    def __exit__(
        self, _: type[BaseException] | None, failure: BaseException | None, __: TracebackType | None
    ) -> None:
        self._circuit.ended(self, failure)
