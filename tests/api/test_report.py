"""The report on one answer: calls, names and numbers of tokens."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.report import STRUCTURED, AnswerReport, token_count


class AnswerReportTests(SynchronousTestCase):
    def test_calls(self) -> None:
        report = AnswerReport()
        for number in range(1000):
            report.add_call(f"f{number}", "json" if number % 4 else STRUCTURED)
        self.assertEqual(report.calls, 1000)
        self.assertEqual(report.calls_by_dialect, {"json": 750, STRUCTURED: 250})
        self.assertEqual(report.tool_names, [f"f{number}" for number in range(256)])

    def test_tokens(self) -> None:
        self.assertEqual(token_count({"prompt_tokens": 7}, "prompt_tokens"), 7)
        self.assertEqual(token_count(None, "prompt_tokens"), 0)
        self.assertEqual(token_count({}, "prompt_tokens"), 0)

    def test_implausible_numbers_of_tokens(self) -> None:
        for number in (0, -1, True, None, 1.5, "7", [7], 2**32 - 1, 2**64 - 1, 10**400):
            self.assertEqual(token_count({"prompt_tokens": number}, "prompt_tokens"), 0, number)
