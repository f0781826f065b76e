"""`llm` from its command line, with a tool in a file, in a stream and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .task import Task, run

_TOOL = """\
def add(a: int, b: int) -> int:
    "Add two numbers."
    with open({ran!r}, "a") as ran:
        ran.write(f"[{{a}}, {{b}}]\\n")
    return a + b
"""

_MODEL = """\
- model_id: tiny
  model_name: tiny
  api_base: {url}
  supports_tools: true
"""


def answer(task: Task, *options: str) -> str:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "extra-openai-models.yaml").write_text(_MODEL.format(url=task.url))
        (folder / "tools.py").write_text(_TOOL.format(ran=str(folder / "ran")))
        (folder / "ran").touch()
        program = str(Path(sys.executable).parent / "llm")
        asked = [program, "-m", "tiny", "--key", "none", "--functions", str(folder / "tools.py")]
        done = subprocess.run(
            [*asked, *options, task.question],
            env={**os.environ, "LLM_USER_PATH": made},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        task.ran += [json.loads(line) for line in (folder / "ran").read_text().splitlines()]
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


if __name__ == "__main__":
    run({"stream": answer, "whole": lambda task: answer(task, "--no-stream")})
