"""Purges: only when the backend is idle, one at a time, and bounded in time."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.cache_purge import PURGE_TIMEOUT, CachePurge


class CachePurgeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.resets: list[Deferred[None]] = []
        self.purge = CachePurge(self.clock, self.reset)

    async def reset(self) -> None:
        self.resets.append(Deferred())
        await self.resets[-1]

    def request(self) -> tuple[Deferred[None], Deferred[None]]:
        """Start a request: the first result fires when it may start, the second ends it."""
        started: Deferred[None] = Deferred()
        end: Deferred[None] = Deferred()

        async def run() -> None:
            await self.purge.request_started()
            try:
                started.callback(None)
                await end
            finally:
                self.purge.request_finished()

        self.done = Deferred.fromCoroutine(run())
        return started, end

    def purge_within(self, seconds: float = 5) -> Deferred[None]:
        return Deferred.fromCoroutine(self.purge.purge_within(seconds))

    def test_at_once_when_idle(self) -> None:
        self.purge.schedule("s")
        self.assertEqual(len(self.resets), 1)

    def test_when_the_last_request_has_finished(self) -> None:
        (_, one), (_, other) = self.request(), self.request()
        self.purge.schedule("s")
        one.callback(None)
        self.assertEqual(self.resets, [])
        other.callback(None)
        self.assertEqual(len(self.resets), 1)

    def test_one_purge_for_all_that_are_due(self) -> None:
        _, end = self.request()
        self.purge.schedule("s")
        self.purge.schedule("t")
        waiting = self.purge_within()
        end.callback(None)
        self.assertEqual(len(self.resets), 1)
        self.resets[0].callback(None)
        self.successResultOf(waiting)
        self.assertEqual(len(self.resets), 1)
        _, again = self.request()
        again.callback(None)
        self.assertEqual(len(self.resets), 1)

    def test_cancelled_session(self) -> None:
        _, end = self.request()
        self.purge.schedule("s")
        self.purge.cancel("s")
        self.purge.cancel("unknown")
        end.callback(None)
        self.assertEqual(self.resets, [])

    def test_a_request_during_a_purge_waits(self) -> None:
        self.purge.schedule("s")
        started, _ = self.request()
        self.assertNoResult(started)
        self.resets[0].callback(None)
        self.successResultOf(started)

    def test_purge_timeout(self) -> None:
        self.purge.schedule("s")
        started, _ = self.request()
        self.clock.advance(PURGE_TIMEOUT)
        self.successResultOf(started)

    def test_a_failed_purge_releases_waiting_requests(self) -> None:
        self.purge.schedule("s")
        started, _ = self.request()
        self.resets[0].errback(ValueError("internal error"))
        self.successResultOf(started)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_purge_within_waits_for_the_purge(self) -> None:
        waiting = self.purge_within()
        self.assertNoResult(waiting)
        self.resets[0].callback(None)
        self.successResultOf(waiting)

    def test_purge_within_does_not_wait_if_unsupported(self) -> None:
        self.purge = CachePurge(self.clock, self.reset, lambda: False)
        self.request()
        self.successResultOf(self.purge_within())
        self.assertEqual((self.resets, self.purge.purges_skipped), ([], 0))

    def test_purge_within_skips_if_still_busy(self) -> None:
        self.request()
        waiting = self.purge_within(5)
        self.clock.advance(4.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.successResultOf(waiting)
        self.assertEqual((self.resets, self.purge.purges_skipped), ([], 1))

    def test_a_cancelled_wait_causes_no_purge(self) -> None:
        _, end = self.request()
        waiting = self.purge_within()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        end.callback(None)
        self.assertEqual(self.resets, [])

    def test_a_request_cancelled_while_waiting_for_a_purge(self) -> None:
        self.purge.schedule("s")
        started, _ = self.request()
        self.done.cancel()
        self.failureResultOf(self.done, CancelledError)
        self.resets[0].callback(None)
        self.assertNoResult(started)
        self.purge.schedule("s")
        self.assertEqual(len(self.resets), 2)

    def test_a_second_purge_after_the_first(self) -> None:
        self.purge.schedule("s")
        self.resets[0].callback(None)
        self.purge.schedule("s")
        self.assertEqual(len(self.resets), 2)
