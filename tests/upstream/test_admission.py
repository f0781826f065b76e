"""The queue in front of the backend: first come, first served, bounded, and no place ever lost."""

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


class Guest:
    """Somebody who wants a place, and leaves it when told to."""

    def __init__(self, admission: AdmissionQueue, order: list[int], number: int = 0) -> None:
        self.leave: Deferred[None] = Deferred()
        self.errors: list[BaseException | None] = []
        self.done = Deferred.fromCoroutine(self._visit(admission, order, number))
        self.done.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self.errors.append(failure.value)

    async def _visit(self, admission: AdmissionQueue, order: list[int], number: int) -> None:
        since = await admission.acquire()
        well = False
        try:
            order.append(number)
            await self.leave
            well = True
        finally:
            admission.release(since, completed=well)


class Places(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.order: list[int] = []
        self.came: list[Guest] = []

    def admission(self, places: int = 2, max_queue: int = 3, **more: Any) -> AdmissionQueue:
        return AdmissionQueue(
            self.clock, slots=places, max_queue=max_queue, **{"queue_timeout": 300.0, **more}
        )

    def guests(self, admission: AdmissionQueue, count: int) -> list[Guest]:
        guests = [Guest(admission, self.order, number) for number in range(count)]
        # One that nobody knows any more would be collected, and leave its place.
        self.came += guests
        self.clock.advance(0)
        return guests

    def test_first_come_first_served(self) -> None:
        admission = self.admission()
        guests = self.guests(admission, 5)
        self.assertEqual(self.order, [0, 1])
        self.assertEqual((admission.running, admission.waiting), (2, 3))
        for leaving, entering in ((1, 2), (0, 3), (3, 4)):
            guests[leaving].leave.callback(None)
            self.clock.advance(0)
            self.assertEqual(self.order[-1], entering)
        self.assertEqual((admission.running, admission.waiting), (2, 0))

    def test_the_queue_is_bounded(self) -> None:
        admission = self.admission()
        guests = self.guests(admission, 6)
        (error,) = guests[5].errors
        assert isinstance(error, ApiError)
        self.assertEqual((error.status, error.code), (429, "concurrency_limit"))
        self.assertIn("2 requests are running and 3 waiting", error.message)
        self.assertEqual(admission.refused, 1)

    def test_no_queue_at_all(self) -> None:
        admission = self.admission(places=1, max_queue=0)
        guests = self.guests(admission, 2)
        self.assertEqual([len(guest.errors) for guest in guests], [0, 1])

    def test_waiting_has_an_end(self) -> None:
        admission = self.admission(places=1, queue_timeout=30.0)
        guests = self.guests(admission, 2)
        self.clock.advance(29)
        self.assertEqual(guests[1].errors, [])
        self.clock.advance(1)
        (error,) = guests[1].errors
        assert isinstance(error, ApiError)
        self.assertEqual((error.status, error.code), (429, "concurrency_limit"))
        self.assertEqual(admission.waiting, 0)

    def test_a_place_is_not_bounded_in_time(self) -> None:
        admission = self.admission(places=1, queue_timeout=30.0)
        (guest,) = self.guests(admission, 1)
        self.clock.advance(1000)
        self.assertEqual((guest.errors, admission.running), ([], 1))

    def test_leaving_the_queue(self) -> None:
        admission = self.admission(places=1)
        guests = self.guests(admission, 3)
        guests[1].done.cancel()
        self.assertIsInstance(guests[1].errors[0], CancelledError)
        self.assertEqual(admission.waiting, 1)
        guests[0].leave.callback(None)
        self.clock.advance(0)
        self.assertEqual(self.order, [0, 2])

    def test_leaving_in_the_turn_between(self) -> None:
        admission = self.admission(places=1)
        guests = self.guests(admission, 2)
        guests[0].leave.callback(None)
        self.assertEqual((admission.running, self.order), (1, [0]))
        guests[1].done.cancel()
        self.clock.advance(0)
        self.assertEqual((admission.running, self.order), (0, [0]))

    def test_a_free_place_is_had_at_once(self) -> None:
        admission = self.admission(places=1)
        Guest(admission, self.order)
        self.assertEqual((admission.running, self.order), (1, [0]))

    def test_an_error_gives_the_place_back(self) -> None:
        admission = self.admission(places=1)
        (guest,) = self.guests(admission, 1)
        guest.leave.errback(ValueError())
        self.assertIsInstance(guest.errors[0], ValueError)
        self.assertEqual(admission.running, 0)

    def test_thousands_that_leave_at_once(self) -> None:
        """Twisted's own release() recurses, and loses a place at some 110 of them."""
        admission = self.admission(places=1, max_queue=2_000)
        guests = self.guests(admission, 2_000)
        for guest in guests:
            guest.leave.callback(None)
        self.clock.advance(0)
        self.assertEqual((admission.running, admission.waiting), (0, 0))
        self.assertEqual(len(self.order), 2_000)

    def test_retry_after_learns_how_long_requests_take(self) -> None:
        admission = self.admission(places=1, max_queue=0)
        for _ in range(40):
            (guest,) = self.guests(admission, 1)
            self.clock.advance(20)
            guest.leave.callback(None)
        self.guests(admission, 1)
        (refused,) = self.guests(admission, 1)
        error = refused.errors[0]
        assert isinstance(error, ApiError)
        self.assertEqual(error.retry_after, 20)

    def test_retry_after_is_bounded(self) -> None:
        shortest, longest = AdmissionQueue.RETRY_AFTER
        for seconds, expected in ((0.001, shortest), (10_000.0, longest)):
            admission = self.admission(places=1, max_queue=0)
            for _ in range(40):
                (guest,) = self.guests(admission, 1)
                self.clock.advance(seconds)
                guest.leave.callback(None)
            self.guests(admission, 1)
            (refused,) = self.guests(admission, 1)
            error = refused.errors[0]
            assert isinstance(error, ApiError)
            self.assertEqual(error.retry_after, expected)

    @given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 5))
    def test_whatever_happens_every_place_comes_back(
        self, chance: random.Random, places: int, max_queue: int
    ) -> None:
        clock = self.clock = Clock()
        admission = self.admission(places, max_queue, queue_timeout=5.0)
        guests: list[Guest] = []
        for _ in range(40):
            match chance.randrange(4):
                case 0 | 1:
                    guests.append(Guest(admission, self.order))
                case 2 if guests:
                    guests.pop(chance.randrange(len(guests))).done.cancel()
                case _ if guests:
                    guests.pop(chance.randrange(len(guests))).leave.callback(None)
            clock.advance(chance.choice([0, 0, 1]))
            self.assertLessEqual(admission.running, places)
            self.assertLessEqual(admission.waiting, max_queue)
        for guest in guests:
            guest.done.cancel()
        clock.advance(0)
        self.assertEqual((admission.running, admission.waiting), (0, 0))
