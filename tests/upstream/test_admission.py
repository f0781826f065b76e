"""The admission queue: FIFO, bounded, and no slot is ever lost."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.upstream.admission import AdmissionQueue


class QueuedRequest:
    """Acquires a slot, and releases it when `finish` fires."""

    def __init__(self, admission: AdmissionQueue, order: list[int], number: int = 0) -> None:
        self.finish: Deferred[None] = Deferred()
        self.errors: list[BaseException | None] = []
        self.done = Deferred.fromCoroutine(self._run(admission, order, number))
        self.done.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self.errors.append(failure.value)

    async def _run(self, admission: AdmissionQueue, order: list[int], number: int) -> None:
        acquired_at = await admission.acquire()
        completed = False
        try:
            order.append(number)
            await self.finish
            completed = True
        finally:
            admission.release(acquired_at, completed=completed)


class AdmissionQueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.order: list[int] = []
        self.requests: list[QueuedRequest] = []

    def admission(self, slots: int = 2, max_queue: int = 3, **more: Any) -> AdmissionQueue:
        return AdmissionQueue(
            self.clock, slots=slots, max_queue=max_queue, **{"queue_timeout": 300.0, **more}
        )

    def start(self, admission: AdmissionQueue, count: int) -> list[QueuedRequest]:
        requests = [QueuedRequest(admission, self.order, number) for number in range(count)]
        # Keep a reference: an unreferenced request is garbage-collected, which releases its slot.
        self.requests += requests
        self.clock.advance(0)
        return requests

    def test_first_come_first_served(self) -> None:
        admission = self.admission()
        requests = self.start(admission, 5)
        self.assertEqual(self.order, [0, 1])
        self.assertEqual((admission.active, admission.waiting), (2, 3))
        for finished, started in ((1, 2), (0, 3), (3, 4)):
            requests[finished].finish.callback(None)
            self.clock.advance(0)
            self.assertEqual(self.order[-1], started)
        self.assertEqual((admission.active, admission.waiting), (2, 0))

    def test_the_queue_is_bounded(self) -> None:
        admission = self.admission()
        requests = self.start(admission, 6)
        (error,) = requests[5].errors
        assert isinstance(error, ApiError)
        self.assertEqual((error.status, error.code), (429, "concurrency_limit"))
        self.assertIn("2 requests are active and 3 are waiting", error.message)

    def test_no_queue_at_all(self) -> None:
        admission = self.admission(slots=1, max_queue=0)
        requests = self.start(admission, 2)
        self.assertEqual([len(request.errors) for request in requests], [0, 1])

    def test_queue_timeout(self) -> None:
        admission = self.admission(slots=1, queue_timeout=30.0)
        requests = self.start(admission, 2)
        self.clock.advance(29)
        self.assertEqual(requests[1].errors, [])
        self.clock.advance(1)
        (error,) = requests[1].errors
        assert isinstance(error, ApiError)
        self.assertEqual((error.status, error.code), (429, "concurrency_limit"))
        self.assertEqual(admission.waiting, 0)

    def test_a_slot_is_held_without_a_time_limit(self) -> None:
        admission = self.admission(slots=1, queue_timeout=30.0)
        (request,) = self.start(admission, 1)
        self.clock.advance(1000)
        self.assertEqual((request.errors, admission.active), ([], 1))

    def test_cancelled_while_waiting(self) -> None:
        admission = self.admission(slots=1)
        requests = self.start(admission, 3)
        requests[1].done.cancel()
        self.assertIsInstance(requests[1].errors[0], CancelledError)
        self.assertEqual(admission.waiting, 1)
        requests[0].finish.callback(None)
        self.clock.advance(0)
        self.assertEqual(self.order, [0, 2])

    def test_cancelled_between_release_and_acquisition(self) -> None:
        admission = self.admission(slots=1)
        requests = self.start(admission, 2)
        requests[0].finish.callback(None)
        self.assertEqual((admission.active, self.order), (1, [0]))
        requests[1].done.cancel()
        self.clock.advance(0)
        self.assertEqual((admission.active, self.order), (0, [0]))

    def test_a_free_slot_is_acquired_without_a_reactor_turn(self) -> None:
        admission = self.admission(slots=1)
        QueuedRequest(admission, self.order)
        self.assertEqual((admission.active, self.order), (1, [0]))

    def test_an_error_releases_the_slot(self) -> None:
        admission = self.admission(slots=1)
        (request,) = self.start(admission, 1)
        request.finish.errback(ValueError())
        self.assertIsInstance(request.errors[0], ValueError)
        self.assertEqual(admission.active, 0)

    def test_thousands_that_finish_at_once(self) -> None:
        """Twisted's own `release()` recurses, and loses a slot at about 110 of them."""
        admission = self.admission(slots=1, max_queue=2_000)
        requests = self.start(admission, 2_000)
        for request in requests:
            request.finish.callback(None)
        self.clock.advance(0)
        self.assertEqual((admission.active, admission.waiting), (0, 0))
        self.assertEqual(len(self.order), 2_000)

    def test_retry_after_follows_the_duration_of_requests(self) -> None:
        admission = self.admission(slots=1, max_queue=0)
        for _ in range(40):
            (request,) = self.start(admission, 1)
            self.clock.advance(20)
            request.finish.callback(None)
        self.start(admission, 1)
        (rejected,) = self.start(admission, 1)
        error = rejected.errors[0]
        assert isinstance(error, ApiError)
        self.assertEqual(error.retry_after, 20)

    def test_retry_after_is_bounded(self) -> None:
        shortest, longest = AdmissionQueue.RETRY_AFTER_BOUNDS
        for seconds, expected in ((0.001, shortest), (10_000.0, longest)):
            admission = self.admission(slots=1, max_queue=0)
            for _ in range(40):
                (request,) = self.start(admission, 1)
                self.clock.advance(seconds)
                request.finish.callback(None)
            self.start(admission, 1)
            (rejected,) = self.start(admission, 1)
            error = rejected.errors[0]
            assert isinstance(error, ApiError)
            self.assertEqual(error.retry_after, expected)

    @given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 5))
    def test_every_slot_is_released_in_any_order_of_events(
        self, chance: random.Random, slots: int, max_queue: int
    ) -> None:
        clock = self.clock = Clock()
        admission = self.admission(slots, max_queue, queue_timeout=5.0)
        requests: list[QueuedRequest] = []
        for _ in range(40):
            match chance.randrange(4):
                case 0 | 1:
                    requests.append(QueuedRequest(admission, self.order))
                case 2 if requests:
                    requests.pop(chance.randrange(len(requests))).done.cancel()
                case _ if requests:
                    requests.pop(chance.randrange(len(requests))).finish.callback(None)
            clock.advance(chance.choice([0, 0, 1]))
            self.assertLessEqual(admission.active, slots)
            self.assertLessEqual(admission.waiting, max_queue)
        for request in requests:
            request.done.cancel()
        clock.advance(0)
        self.assertEqual((admission.active, admission.waiting), (0, 0))
