"""
qwen-agent: an `Assistant` that calls by the API's `tools`, or reads calls in text itself.

    python -m programs.qwen_agent_ native|text
"""

from __future__ import annotations

import json
import sys
from typing import Any

from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool

from .task import PARAMETERS, Task, run


def answer(task: Task, *, native: bool) -> str:
    class Add(BaseTool):
        name = "add"
        description = "Add two numbers."
        parameters = PARAMETERS

        def call(self, params: Any, **_: Any) -> str:
            given = json.loads(params) if isinstance(params, str) else params
            return str(task.add(**given))

    model = {
        "model": "tiny",
        "model_server": task.url,
        "api_key": "none",
        "generate_cfg": {"use_raw_api": native, "max_retries": 0},
    }
    *_, said = Assistant(llm=model, function_list=[Add()]).run(task.messages())
    return str(said[-1]["content"])


if __name__ == "__main__":
    native = sys.argv[1] == "native"
    run({sys.argv[1]: lambda task: answer(task, native=native)})
