"""The one clock that ticks, and what it looks after."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.memory import MemoryGauge, Tier, available_percent, tier_of
from blockops.operations.ticker import Every, Pulse


class Beater:
    def __init__(self) -> None:
        self.beats: list[float] = []

    def beat(self, now: float) -> None:
        self.beats.append(now)


class Broken:
    def beat(self, now: float) -> None:
        raise ValueError("broken")


class Pulses(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pulse = Pulse(self.clock, 0.5)
        self.pulse.start()
        self.addCleanup(self.pulse.stop)

    def test_a_sweep_at_each_interval(self) -> None:
        beater = Beater()
        self.pulse.add(beater)
        self.clock.pump([0.5] * 3)
        self.assertEqual(beater.beats, [0.5, 1.0, 1.5])

    def test_discarded(self) -> None:
        beater = Beater()
        self.pulse.add(beater)
        self.pulse.discard(beater)
        self.pulse.discard(beater)
        self.clock.advance(0.5)
        self.assertEqual((beater.beats, len(self.pulse)), ([], 0))

    def test_one_that_fails_stops_no_other(self) -> None:
        beater = Beater()
        self.pulse.add(Broken())
        self.pulse.add(beater)
        self.clock.pump([0.5] * 2)
        self.assertEqual(beater.beats, [0.5, 1.0])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_one_that_leaves_during_the_sweep(self) -> None:
        beater = Beater()

        class Leaver(Beater):
            def beat(leaver, now: float) -> None:  # noqa: N805
                self.pulse.discard(leaver)
                self.pulse.add(beater)

        self.pulse.add(Leaver())
        self.clock.pump([0.5] * 2)
        self.assertEqual(beater.beats, [1.0])

    def test_stop(self) -> None:
        beater = Beater()
        self.pulse.add(beater)
        self.pulse.stop()
        self.clock.advance(0.5)
        self.assertEqual(beater.beats, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_every(self) -> None:
        called: list[float] = []
        self.pulse.add(Every(2.0, lambda: called.append(self.clock.seconds())))
        self.clock.pump([0.5] * 10)
        self.assertEqual(called, [0.5, 2.5, 4.5])


class Memory(SynchronousTestCase):
    def test_tiers(self) -> None:
        for percent, tier in (
            (100.0, Tier.FINE),
            (20.0, Tier.FINE),
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
        left = [50.0]
        gauge = MemoryGauge(lambda: left[0])
        self.assertEqual(gauge.tier, Tier.FINE)
        for percent, tier in ((12.0, Tier.WARNING), (3.0, Tier.CRITICAL), (30.0, Tier.FINE)):
            left[0] = percent
            gauge.poll()
            self.assertEqual((gauge.percent, gauge.tier), (percent, tier))

    def test_a_system_that_does_not_tell(self) -> None:
        def unreadable() -> float:
            raise OSError("no /proc")

        gauge = MemoryGauge(unreadable)
        gauge.poll()
        gauge.poll()
        self.assertEqual((gauge.percent, gauge.tier), (100.0, Tier.FINE))

    def test_this_machine(self) -> None:
        self.assertTrue(0.0 < available_percent() <= 100.0)
