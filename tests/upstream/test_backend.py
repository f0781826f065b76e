"""`Backend.lease`: whatever ends a lease, its slot is released once, and cache purges may run."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.upstream.admission import AdmissionQueue
from blockops.upstream.backend import Backend
from blockops.upstream.cache_purge import CachePurge
from blockops.upstream.circuit_breaker import CircuitBreaker
from blockops.upstream.client import BackendClient, ConnectError


class LeaseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.admission = AdmissionQueue(self.clock, slots=1, max_queue=2, queue_timeout=300.0)
        self.breaker = CircuitBreaker(
            self.clock,
            failure_threshold=1,
            reset_timeout=10.0,
            reject_waiting=self.admission.reject_waiting,
        )
        self.purged: list[Deferred[None]] = []
        self.purge = CachePurge(self.clock, self.reset_cache)
        self.backend = Backend(
            self.clock,
            cast("BackendClient", None),
            self.admission,
            circuit_breaker=self.breaker,
            retries=0,
            cache_purge=self.purge,
        )
        self.started: list[Deferred[None]] = []

    async def reset_cache(self) -> None:
        self.purged.append(Deferred())
        await self.purged[-1]

    def request(self) -> Deferred[None]:
        """Start a request whose block runs until its Deferred in `started` fires."""

        async def run() -> None:
            async with self.backend.lease():
                self.started.append(Deferred())
                await self.started[-1]

        running = Deferred.fromCoroutine(run())
        self.clock.advance(0)
        return running

    def assert_failed(self, running: Deferred[Any], error: type[Exception]) -> None:
        """Check that `running` failed with `error`, and that nothing is held any more."""
        self.failureResultOf(running, error)
        self.assert_idle()

    def assert_idle(self) -> None:
        self.assertEqual((self.admission.active, self.admission.waiting), (0, 0))
        purges = len(self.purged)
        self.purge.schedule("a session")
        self.assertEqual(len(self.purged), purges + 1)
        self.purged[-1].callback(None)

    def test_completed(self) -> None:
        running = self.request()
        self.assertEqual(self.admission.active, 1)
        self.purge.schedule("a session")
        self.assertEqual(self.purged, [])
        self.started[0].callback(None)
        self.successResultOf(running)
        self.assertEqual(self.admission.active, 0)
        self.purged[0].callback(None)
        self.assert_idle()

    def test_an_error(self) -> None:
        running = self.request()
        self.started[0].errback(ZeroDivisionError())
        self.assert_failed(running, ZeroDivisionError)

    def test_cancelled_while_active(self) -> None:
        running = self.request()
        running.cancel()
        self.assert_failed(running, CancelledError)

    def test_cancelled_in_the_queue(self) -> None:
        first, second = self.request(), self.request()
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual((self.admission.active, self.admission.waiting), (1, 0))
        self.started[0].callback(None)
        self.successResultOf(first)
        self.assert_idle()

    def test_cancelled_between_release_and_acquisition(self) -> None:
        _, second = self.request(), self.request()
        self.started[0].callback(None)
        second.cancel()
        self.assert_failed(second, CancelledError)

    def test_cancelled_during_a_purge(self) -> None:
        self.purge.schedule("a session")
        running = self.request()
        self.assertEqual((self.admission.active, self.started), (1, []))
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertEqual(self.admission.active, 0)
        self.purged[0].callback(None)
        self.assert_idle()

    def test_the_block_waits_for_a_purge(self) -> None:
        self.purge.schedule("a session")
        running = self.request()
        self.purged[0].callback(None)
        self.started[0].callback(None)
        self.successResultOf(running)
        self.assert_idle()

    def test_unreachable(self) -> None:
        _, queued = self.request(), self.request()
        with self.assertRaises(ConnectError), self.breaker.guard():
            raise ConnectError(502, "The backend cannot be reached.")
        for rejected in (queued, self.request()):
            error = self.failureResultOf(rejected, ApiError).value
            self.assertEqual((error.status, error.code), (503, "backend_unreachable"))
        self.assertEqual((self.admission.active, self.admission.waiting), (1, 0))
        self.started[0].callback(None)
        self.assert_idle()
