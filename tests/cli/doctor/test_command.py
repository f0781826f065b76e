"""Arguments that the doctor's command rejects."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.__main__ import main


class CommandTests(SynchronousTestCase):
    def error(self, *command_line: str) -> str:
        exit_ = self.assertRaises(SystemExit, main, command_line)
        return str(exit_.code)

    def test_an_invalid_address(self) -> None:
        error = self.error("--backend", "foo")
        self.assertIn("'foo' is not accepted", error)
        self.assertIn("http://HOST:PORT", error)

    def test_the_demo(self) -> None:
        self.assertIn("--backend http://HOST:PORT", self.error("--backend", "demo"))
