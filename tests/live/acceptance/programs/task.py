"""
The task of each client in Python, and the format of its results.

    python -m programs.CLIENT < {"url": ..., "keys": ["j-add", ...]}

The program prints one JSON object per line for each key and each way of the client: `key`, `way`,
`tool_calls` (the arguments of the tool's calls), and `final` (the answer that the user sees) or
`error`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Add two numbers.", "parameters": PARAMETERS},
}


@dataclass
class Task:
    """
    One question, and the tool to answer it with.

    :param url: the URL of the API, with `/v1`
    :param question: the user's message
    :param tool_calls: the arguments of the tool's calls so far
    """

    url: str
    question: str
    tool_calls: list[list[int]] = field(default_factory=list)

    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        self.tool_calls.append([a, b])
        return a + b

    def messages(self) -> list[dict[str, object]]:
        return [{"role": "user", "content": self.question}]


def run(ways: Mapping[str, Callable[[Task], str]]) -> None:
    """Run each of `ways`, functions that return the final answer, for each key of the input."""
    request = json.load(sys.stdin)
    for key in request["keys"]:
        for name, way in ways.items():
            task = Task(f"{request['url']}/v1", f"[[{key}]] What is 17 + 25?")
            result = {"key": key, "way": name, "tool_calls": task.tool_calls}
            try:
                # Some clients print their progress.
                with contextlib.redirect_stdout(sys.stderr):
                    result["final"] = way(task)
            except Exception:  # noqa: BLE001 - any error is the result
                result["error"] = traceback.format_exc()
            print(json.dumps(result), flush=True)  # noqa: T201 - the program's output
