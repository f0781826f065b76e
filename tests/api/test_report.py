"""The report counts what it does not keep."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.report import STRUCTURED, Report, tokens_in


class ReportTests(SynchronousTestCase):
    def test_calls(self) -> None:
        report = Report()
        for number in range(1000):
            report.call_began(f"f{number}", "json" if number % 4 else STRUCTURED)
        self.assertEqual(report.calls, 1000)
        self.assertEqual(report.formats, {"json": 750, STRUCTURED: 250})
        self.assertEqual(report.names, [f"f{number}" for number in range(256)])

    def test_tokens(self) -> None:
        self.assertEqual(tokens_in({"prompt_tokens": 7}, "prompt_tokens"), 7)
        self.assertEqual(tokens_in(None, "prompt_tokens"), 0)
        self.assertEqual(tokens_in({}, "prompt_tokens"), 0)

    def test_numbers_that_count_nothing(self) -> None:
        for said in (0, -1, True, None, 1.5, "7", [7], 2**32 - 1, 2**64 - 1, 10**400):
            self.assertEqual(tokens_in({"prompt_tokens": said}, "prompt_tokens"), 0, said)
