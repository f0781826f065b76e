"""What the doctor says of the servers that people run, each of them running."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.harness import LONG, ROOT, clean_environ
from tests.live.real_backends import (
    LLAMA_CPP,
    LLAMA_CPP_TOOLS,
    MLX_LM,
    MLX_LM_TOOLS,
    VLLM_MLX,
    RealBackend,
)

#: With this much to remember, the tiny model's answers take llama.cpp long enough.
ROOMY = replace(LLAMA_CPP, line=lambda port: [*LLAMA_CPP.line(port), "131072"])


class Examined(SynchronousTestCase):
    skip = LONG
    timeout = 300

    def examine(
        self, backend: RealBackend, *options: str, endless: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Return the findings by their topics."""
        missing = backend.missing()
        if missing:
            raise SkipTest(missing)
        folder = Path(self.mktemp()).resolve()
        with backend.running(folder, endless=endless) as served:
            asked = ["--json", "--backend", served.url, *options]
            done = subprocess.run(
                [sys.executable, "-m", "blockops.doctor", *asked],
                env=clean_environ(folder),
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
        self.assertEqual(done.returncode, 0, done.stderr)
        told = json.loads(done.stdout)
        self.command = told["command"]
        return {finding["topic"]: finding for finding in told["findings"]}

    def check(self, backend: RealBackend, question: str = "", **verdicts: str) -> None:
        """Compare what is found of `backend` with `verdicts`."""
        options = ["--question", question] if question else []
        found = self.examine(backend, *options)
        told = {topic: found[topic]["verdict"] for topic in verdicts}
        self.assertEqual(told, verdicts, found)

    def test_llama_cpp_without_tools_in_its_template(self) -> None:
        self.check(
            LLAMA_CPP,
            "[[j-weather]]",
            server="llama.cpp",
            context="2048",
            places="4",
            streams="usage",
            tools="not told",
            calls="text",
            tokens="counted",
            cache="stays",
        )
        self.assertIn("--tools=prompt", self.command)
        self.assertIn("--max-concurrent=4", self.command)

    def test_llama_cpp_with_tools_in_its_template(self) -> None:
        self.check(LLAMA_CPP_TOOLS, tools="told", tokens="counted")
        self.assertNotIn("--tools", self.command)
        self.check(LLAMA_CPP_TOOLS, "[[j-weather]]", calls="structured")

    def test_mlx_lm(self) -> None:
        self.check(
            MLX_LM,
            "[[x-weather]]",
            server="mlx-lm",
            context="not told",
            streams="usage",
            tools="not told",
            calls="text",
            tokens="estimated",
            cache="stays",
        )

    def test_mlx_lm_with_a_parser_that_loses_calls(self) -> None:
        self.check(MLX_LM_TOOLS, "[[x-weather]]", calls="lost")
        self.check(MLX_LM_TOOLS, tools="told")

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

    def test_who_notices_that_a_client_has_left(self) -> None:
        for backend, verdict in (
            (ROOMY, "noticed alone"),
            (MLX_LM, "goes on"),
            (VLLM_MLX, "noticed"),
        ):
            found = self.examine(backend, endless=True)["leaving"]
            self.assertEqual((backend.name, found["verdict"]), (backend.name, verdict), found)
