"""
qwen-agent: an `Assistant` that uses the API's `tools`, or parses calls in text itself.

    python -m programs.qwen_agent_ native|text
"""

from __future__ import annotations

import json
import sys
from typing import Any

from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool

from .task import PARAMETERS, Task, run


def run_assistant(task: Task, *, is_native: bool) -> str:
    class Add(BaseTool):
        name = "add"
        description = "Add two numbers."
        parameters = PARAMETERS

        def call(self, params: Any, **_: Any) -> str:
            arguments = json.loads(params) if isinstance(params, str) else params
            return str(task.add(**arguments))

    model = {
        "model": "tiny",
        "model_server": task.url,
        "api_key": "none",
        "generate_cfg": {"use_raw_api": is_native, "max_retries": 0},
    }
    *_, messages = Assistant(llm=model, function_list=[Add()]).run(task.messages())
    return str(messages[-1]["content"])


if __name__ == "__main__":
    is_native = sys.argv[1] == "native"
    run({sys.argv[1]: lambda task: run_assistant(task, is_native=is_native)})
