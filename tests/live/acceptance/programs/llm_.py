"""The command line of `llm` with a tool in a file, streaming and non-streaming."""

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
    with open({calls!r}, "a") as calls:
        calls.write(f"[{{a}}, {{b}}]\\n")
    return a + b
"""

_MODEL = """\
- model_id: tiny
  model_name: tiny
  api_base: {url}
  supports_tools: true
"""


def run_llm(task: Task, *options: str) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "extra-openai-models.yaml").write_text(_MODEL.format(url=task.url))
        (folder / "tools.py").write_text(_TOOL.format(calls=str(folder / "calls")))
        (folder / "calls").touch()
        program = str(Path(sys.executable).parent / "llm")
        command = [program, "-m", "tiny", "--key", "none", "--functions", str(folder / "tools.py")]
        result = subprocess.run(
            [*command, *options, task.question],
            env={**os.environ, "LLM_USER_PATH": temporary},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        task.tool_calls += [
            json.loads(line) for line in (folder / "calls").read_text().splitlines()
        ]
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stdout.strip()


if __name__ == "__main__":
    run({"stream": run_llm, "non-streaming": lambda task: run_llm(task, "--no-stream")})
