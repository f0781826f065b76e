"""The report counts what it does not keep."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.wire.report import Report


class ReportTests(SynchronousTestCase):
    def test_calls(self) -> None:
        report = Report()
        for number in range(1000):
            report.call_began(f"f{number}")
        self.assertEqual(report.calls, 1000)
        self.assertEqual(report.names, [f"f{number}" for number in range(256)])
