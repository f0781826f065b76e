"""Arguments that the doctor's command rejects."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor import __main__ as command
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

    def test_an_invalid_certificate(self) -> None:
        path = Path(self.mktemp()).absolute()
        path.write_text("-----BEGIN CERTIFICATE-----\nMII!!\n-----END CERTIFICATE-----\n")

        def react(start: Any) -> None:
            diagnosis: Deferred[None] = start(mock.Mock())
            raise self.failureResultOf(diagnosis).value

        self.patch(command, "react", react)
        self.assertEqual(
            self.error("--backend=https://llm.lan", f"--backend-ca={path}"),
            f"blockops: backend-ca: {path} contains an invalid certificate; give a PEM file",
        )

    def test_an_invalid_patience(self) -> None:
        self.patch(command, "react", lambda _: self.fail("the diagnosis began"))
        for text in ("0", "-1", "nan", "inf", "1e9", "", "soon"):
            self.assertEqual(
                self.error("--patience", text),
                f"blockops: --patience: {text!r} is not accepted; give 0.001 or more seconds, as a"
                " number or with ms, s, m, h or d, up to 30d",
            )
