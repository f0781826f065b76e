"""
What every client in Python is told to do, and how it says what came of it.

    python -m programs.CLIENT < {"url": ..., "keys": ["j-add", ...]}

For each key and each way of the client one JSON object a line comes out: which way, the numbers
that the tool was called with, the answer that the user sees in the end, or the error.
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
    One question, and the one tool there is to answer it with.

    :param url: the API, with `/v1`
    :param question: what the user says
    :param ran: what the tool was called with so far
    """

    url: str
    question: str
    ran: list[list[int]] = field(default_factory=list)

    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        self.ran.append([a, b])
        return a + b

    def messages(self) -> list[dict[str, object]]:
        return [{"role": "user", "content": self.question}]


def run(ways: Mapping[str, Callable[[Task], str]]) -> None:
    """Do the task in each of `ways`, which return the final answer, for each key."""
    asked = json.load(sys.stdin)
    for key in asked["keys"]:
        for name, way in ways.items():
            task = Task(f"{asked['url']}/v1", f"[[{key}]] What is 17 + 25?")
            told = {"key": key, "way": name, "ran": task.ran}
            try:
                # Some clients print what they do.
                with contextlib.redirect_stdout(sys.stderr):
                    told["final"] = way(task)
            except Exception:  # noqa: BLE001 - whatever it is, that is the result
                told["error"] = traceback.format_exc()
            print(json.dumps(told), flush=True)  # noqa: T201 - that is its output
