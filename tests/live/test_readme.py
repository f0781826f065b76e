"""README's first command, run by a shell in a fresh copy, and the command that it prints."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import ROOT, SKIP_UNLESS_LIVE, clean_environ, free_port, wait_for

LEFTOVERS = shutil.ignore_patterns(
    *(".git", ".venv", "venv", "build", "dist", "*.egg-info", "__pycache__"),
    *("_trial_temp*", "dropin.cache", ".mypy_cache", ".ruff_cache", ".hypothesis"),
)


class FirstCommandTests(SynchronousTestCase):
    skip = SKIP_UNLESS_LIVE or (None if shutil.which("curl") else "curl is not installed")

    def test_ends_in_tool_calls(self) -> None:
        readme = (ROOT / "README.md").read_text("utf-8")
        command = re.search(r"```sh\n(.* twistd .*|.*/twistd .*)\n```", readme)
        assert command is not None
        folder = Path(self.mktemp()).resolve()
        clone = shutil.copytree(ROOT, folder / "blockops", ignore=LEFTOVERS)
        log = folder / "log"
        environ = clean_environ(folder) | {"PORT": str(free_port())}
        del environ["PYTHONPATH"]
        with log.open("wb") as output:
            shell = subprocess.Popen(
                ["bash", "-c", command[1]],
                cwd=clone,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.addCleanup(shell.wait)
        self.addCleanup(os.killpg, shell.pid, signal.SIGTERM)

        def has_printed_command() -> bool:
            self.assertIsNone(shell.poll(), log.read_text())
            return "curl -gN" in log.read_text()

        wait_for(has_printed_command, "no command is printed", timeout=240)
        printed = next(line for line in log.read_text().splitlines() if "curl -gN" in line)
        result = subprocess.run(
            ["bash", "-c", printed], capture_output=True, timeout=30, check=True
        )
        self.assertIn(b'"tool_calls"', result.stdout)
        self.assertTrue(result.stdout.endswith(b"data: [DONE]\n\n"))
