"""Purges: when the backend is idle, one at a time, and never longer than somebody would wait."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.cache_purge import LONGEST, Purge


class Purges(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.forgetting: list[Deferred[None]] = []
        self.purge = Purge(self.clock, self.forget)

    async def forget(self) -> None:
        self.forgetting.append(Deferred())
        await self.forgetting[-1]

    def work(self) -> tuple[Deferred[None], Deferred[None]]:
        """Begin to work; the first fires when that is allowed, the second lets it end."""
        begun: Deferred[None] = Deferred()
        end: Deferred[None] = Deferred()

        async def working() -> None:
            await self.purge.begin()
            try:
                begun.callback(None)
                await end
            finally:
                self.purge.end()

        self.done = Deferred.fromCoroutine(working())
        return begun, end

    def within(self, patience: float = 5) -> Deferred[None]:
        return Deferred.fromCoroutine(self.purge.within(patience))

    def test_at_once_when_idle(self) -> None:
        self.purge.later("s")
        self.assertEqual(len(self.forgetting), 1)

    def test_when_the_last_one_is_done(self) -> None:
        (_, one), (_, other) = self.work(), self.work()
        self.purge.later("s")
        one.callback(None)
        self.assertEqual(self.forgetting, [])
        other.callback(None)
        self.assertEqual(len(self.forgetting), 1)

    def test_once_for_all_who_want_it(self) -> None:
        _, end = self.work()
        self.purge.later("s")
        self.purge.later("t")
        waiting = self.within()
        end.callback(None)
        self.assertEqual(len(self.forgetting), 1)
        self.forgetting[0].callback(None)
        self.successResultOf(waiting)
        self.assertEqual(len(self.forgetting), 1)
        _, again = self.work()
        again.callback(None)
        self.assertEqual(len(self.forgetting), 1)

    def test_never_mind(self) -> None:
        _, end = self.work()
        self.purge.later("s")
        self.purge.never_mind("s")
        self.purge.never_mind("nobody")
        end.callback(None)
        self.assertEqual(self.forgetting, [])

    def test_who_comes_meanwhile_waits(self) -> None:
        self.purge.later("s")
        begun, _ = self.work()
        self.assertNoResult(begun)
        self.forgetting[0].callback(None)
        self.successResultOf(begun)

    def test_a_purge_that_hangs_ends(self) -> None:
        self.purge.later("s")
        begun, _ = self.work()
        self.clock.advance(LONGEST)
        self.successResultOf(begun)

    def test_one_that_fails_holds_nobody(self) -> None:
        self.purge.later("s")
        begun, _ = self.work()
        self.forgetting[0].errback(ValueError("a fault of ours"))
        self.successResultOf(begun)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_before_anything_else(self) -> None:
        waiting = self.within()
        self.assertNoResult(waiting)
        self.forgetting[0].callback(None)
        self.successResultOf(waiting)

    def test_where_nothing_can_be_purged_nobody_waits(self) -> None:
        self.purge = Purge(self.clock, self.forget, lambda: False)
        self.work()
        self.successResultOf(self.within())
        self.assertEqual((self.forgetting, self.purge.skipped), ([], 0))

    def test_not_in_time(self) -> None:
        self.work()
        waiting = self.within(5)
        self.clock.advance(4.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.successResultOf(waiting)
        self.assertEqual((self.forgetting, self.purge.skipped), ([], 1))

    def test_who_gives_up_waiting_is_forgotten(self) -> None:
        _, end = self.work()
        waiting = self.within()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        end.callback(None)
        self.assertEqual(self.forgetting, [])

    def test_who_gives_up_behind_a_purge(self) -> None:
        self.purge.later("s")
        begun, _ = self.work()
        self.done.cancel()
        self.failureResultOf(self.done, CancelledError)
        self.forgetting[0].callback(None)
        self.assertNoResult(begun)
        self.purge.later("s")
        self.assertEqual(len(self.forgetting), 2)

    def test_a_second_wish_behind_a_purge_that_runs(self) -> None:
        self.purge.later("s")
        self.forgetting[0].callback(None)
        self.purge.later("s")
        self.assertEqual(len(self.forgetting), 2)
