"""The doctor's findings about real backends."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.harness import ROOT, SKIP_UNLESS_LIVE, clean_environ
from tests.live.real_backends import (
    LLAMA_CPP,
    LLAMA_CPP_TOOLS,
    MLX_LM,
    MLX_LM_TOOLS,
    VLLM_MLX,
    RealBackend,
)

#: With this context an answer of the tiny model takes llama.cpp long enough to be cancelled.
ROOMY = replace(LLAMA_CPP, command_line=lambda port: [*LLAMA_CPP.command_line(port), "131072"])


class DiagnosisTests(SynchronousTestCase):
    skip = SKIP_UNLESS_LIVE
    timeout = 300

    def run_doctor(
        self, backend: RealBackend, *options: str, endless: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Return the findings by their topics."""
        if reason := backend.skip_reason():
            raise SkipTest(reason)
        folder = Path(self.mktemp()).resolve()
        with backend.running(folder, endless=endless) as running:
            arguments = ["--json", "--backend", running.url, *options]
            done = subprocess.run(
                [sys.executable, "-m", "blockops.doctor", *arguments],
                env=clean_environ(folder),
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        self.command = report["command"]
        return {finding["topic"]: finding for finding in report["findings"]}

    def check(self, backend: RealBackend, question: str = "", **verdicts: str) -> None:
        """Assert that the doctor's verdicts about `backend` contain `verdicts`, by topic."""
        options = ["--question", question] if question else []
        findings = self.run_doctor(backend, *options)
        actual = {topic: findings[topic]["verdict"] for topic in verdicts}
        self.assertEqual(actual, verdicts, findings)

    def test_llama_cpp_without_tools_in_its_template(self) -> None:
        self.check(
            LLAMA_CPP,
            "[[j-weather]]",
            server="llama.cpp",
            context="2048",
            slots="4",
            streams="usage",
            tools="ignored",
            calls="text",
            tokens="counted",
            cache="not supported",
        )
        self.assertIn("--tools=prompt", self.command)
        self.assertIn("--max-concurrent=4", self.command)

    def test_llama_cpp_with_tools_in_its_template(self) -> None:
        self.check(LLAMA_CPP_TOOLS, tools="in prompt", tokens="counted")
        self.assertNotIn("--tools", self.command)
        self.check(LLAMA_CPP_TOOLS, "[[j-weather]]", calls="structured")

    def test_mlx_lm(self) -> None:
        self.check(
            MLX_LM,
            "[[x-weather]]",
            server="mlx-lm",
            context="not reported",
            streams="usage",
            tools="ignored",
            calls="text",
            tokens="estimated",
            cache="not supported",
        )

    def test_mlx_lm_with_a_parser_that_loses_calls(self) -> None:
        self.check(MLX_LM_TOOLS, "[[x-weather]]", calls="lost")
        self.check(MLX_LM_TOOLS, tools="in prompt")

    def test_vllm_mlx(self) -> None:
        self.check(
            VLLM_MLX,
            "[[j-weather]]",
            server="vllm-mlx",
            streams="usage",
            tokens="estimated",
            cache="emptied",
            calls="structured",
        )

    def test_backends_that_notice_a_disconnect(self) -> None:
        for backend, verdict, options in (
            (ROOMY, "noticed when idle", ["--whole-as-stream"]),
            # It reports no load and processes requests in parallel.
            (MLX_LM, "unknown", ["--whole-as-stream"]),
            (VLLM_MLX, "noticed", []),
        ):
            finding = self.run_doctor(backend, endless=True)["disconnect"]
            actual = (backend.name, finding["verdict"], finding["options"])
            self.assertEqual(actual, (backend.name, verdict, options), finding)
