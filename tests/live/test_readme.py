"""README's first command, pasted into a shell in a fresh copy, and the command that it prints."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import LONG, ROOT, clean_environ, free_port, wait_for

LEFTOVERS = shutil.ignore_patterns(
    *(".git", ".venv", "venv", "build", "dist", "*.egg-info", "__pycache__"),
    *("_trial_temp*", "dropin.cache", ".mypy_cache", ".ruff_cache", ".hypothesis"),
)


class FirstCommand(SynchronousTestCase):
    skip = LONG or (None if shutil.which("curl") else "curl is not installed")

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

        def told() -> bool:
            self.assertIsNone(shell.poll(), log.read_text())
            return "curl -gN" in log.read_text()

        wait_for(told, "no command is printed", within=240)
        hint = next(line for line in log.read_text().splitlines() if "curl -gN" in line)
        answer = subprocess.run(["bash", "-c", hint], capture_output=True, timeout=30, check=True)
        self.assertIn(b'"tool_calls"', answer.stdout)
        self.assertTrue(answer.stdout.endswith(b"data: [DONE]\n\n"))
