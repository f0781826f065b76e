"""What the doctor's command refuses before it asks anybody."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.__main__ import main


class Command(SynchronousTestCase):
    def refusal(self, *command_line: str) -> str:
        refused = self.assertRaises(SystemExit, main, command_line)
        return str(refused.code)

    def test_what_is_no_address(self) -> None:
        said = self.refusal("--backend", "foo")
        self.assertIn("'foo' is not accepted", said)
        self.assertIn("http://HOST:PORT", said)

    def test_the_demo(self) -> None:
        self.assertIn("--backend http://HOST:PORT", self.refusal("--backend", "demo"))
