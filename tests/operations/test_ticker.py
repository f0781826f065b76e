"""The ticker, its members, and the memory monitor."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.memory import MemoryMonitor, Tier, available_percent, tier_of
from blockops.operations.ticker import PeriodicCall, Ticker


class Recorder:
    """A member that records its ticks."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self, now: float) -> None:
        self.ticks.append(now)


class Broken:
    def tick(self, now: float) -> None:
        raise ValueError("broken")


class TickerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ticker = Ticker(self.clock, 0.5)
        self.ticker.start()
        self.addCleanup(self.ticker.stop)

    def test_a_tick_at_each_interval(self) -> None:
        recorder = Recorder()
        self.ticker.add(recorder)
        self.clock.pump([0.5] * 3)
        self.assertEqual(recorder.ticks, [0.5, 1.0, 1.5])

    def test_discarded(self) -> None:
        recorder = Recorder()
        self.ticker.add(recorder)
        self.ticker.discard(recorder)
        self.ticker.discard(recorder)
        self.clock.advance(0.5)
        self.assertEqual(recorder.ticks, [])

    def test_a_failing_member_stops_no_other(self) -> None:
        recorder = Recorder()
        self.ticker.add(Broken())
        self.ticker.add(recorder)
        self.clock.pump([0.5] * 2)
        self.assertEqual(recorder.ticks, [0.5, 1.0])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_discarded_during_a_tick(self) -> None:
        recorder = Recorder()

        class Leaver(Recorder):
            def tick(leaver, now: float) -> None:  # noqa: N805
                self.ticker.discard(leaver)
                self.ticker.add(recorder)

        self.ticker.add(Leaver())
        self.clock.pump([0.5] * 2)
        self.assertEqual(recorder.ticks, [1.0])

    def test_stop(self) -> None:
        recorder = Recorder()
        self.ticker.add(recorder)
        self.ticker.stop()
        self.clock.advance(0.5)
        self.assertEqual(recorder.ticks, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_periodic(self) -> None:
        called: list[float] = []
        self.ticker.add(PeriodicCall(2.0, lambda: called.append(self.clock.seconds())))
        self.clock.pump([0.5] * 10)
        self.assertEqual(called, [0.5, 2.5, 4.5])


class MemoryMonitorTests(SynchronousTestCase):
    def test_tiers(self) -> None:
        for percent, tier in (
            (100.0, Tier.NORMAL),
            (20.0, Tier.NORMAL),
            (19.9, Tier.NOTICE),
            (15.0, Tier.NOTICE),
            (14.9, Tier.WARNING),
            (10.0, Tier.WARNING),
            (9.9, Tier.HIGH),
            (5.0, Tier.HIGH),
            (4.9, Tier.CRITICAL),
            (0.0, Tier.CRITICAL),
        ):
            self.assertEqual(tier_of(percent), tier, percent)

    def test_readings(self) -> None:
        available = [50.0]
        monitor = MemoryMonitor(lambda: available[0])
        self.assertEqual(monitor.tier, Tier.NORMAL)
        for percent, tier in ((12.0, Tier.WARNING), (3.0, Tier.CRITICAL), (30.0, Tier.NORMAL)):
            available[0] = percent
            monitor.poll()
            self.assertEqual((monitor.percent, monitor.tier), (percent, tier))

    def test_unreadable_memory(self) -> None:
        def unreadable() -> float:
            raise OSError("no /proc")

        monitor = MemoryMonitor(unreadable)
        monitor.poll()
        monitor.poll()
        self.assertEqual((monitor.percent, monitor.tier), (100.0, Tier.NORMAL))

    def test_this_machine(self) -> None:
        self.assertTrue(0.0 < available_percent() <= 100.0)
