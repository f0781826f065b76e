"""The tools that the tiny model calls, and the answers that it has memorized."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.live.harness import MODEL

DIALECTS = {"j": "<tool_call>{...}", "l": "TOOL_CALL: {...}", "x": "<tool_call><function=...>"}

_STRING = {"type": "string"}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "search": {"query": _STRING},
    "get_weather": {"city": _STRING, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "add": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "create_event": {
        "title": _STRING,
        "when": {"type": "object"},
        "all_day": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
    },
    "list_tools": {},
    "run": {"code": _STRING},
    "write_file": {"path": _STRING, "content": _STRING},
    "list_directory": {"path": _STRING},
    "run_shell_command": {"command": _STRING, "is_background": {"type": "boolean"}},
    "bash": {"command": _STRING, "description": _STRING},
    "Bash": {"command": _STRING, "description": _STRING},
    "exec_command": {"cmd": _STRING},
    "run_commands": {"commands": {"type": "array", "items": _STRING}},
    "final_answer": {"answer": _STRING},
}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": name.replace("_", " "),
            "parameters": {"type": "object", "properties": properties},
        },
    }
    for name, properties in _PARAMETERS.items()
]


@dataclass(frozen=True)
class KnownText:
    """
    The tiny model's answer to a user message with `[[key]]`.

    :param turn: 0 for the first answer, 1 for the answer after a tool result
    :param answer: the text, with the calls as the model writes them
    :param calls: the calls in it, as (name, arguments), written by hand
    """

    key: str
    turn: int
    answer: str
    calls: list[tuple[str, dict[str, Any]]]

    @property
    def content(self) -> str:
        """The text before the first call, or all of it if there is no call."""
        first = min(
            (at for tag in ("<tool_call>", "TOOL_CALL:") if (at := self.answer.find(tag)) >= 0),
            default=len(self.answer),
        )
        return self.answer[:first].rstrip() if self.calls else self.answer


TEXTS = [
    KnownText(
        entry["key"],
        entry["turn"],
        entry["reply"],
        [(call["name"], call["arguments"]) for call in entry["calls"]],
    )
    for entry in json.loads((MODEL / "keys.json").read_text())
]

# Without `j-think`: llama.cpp may send a think block as content or as reasoning_content.
CALL_TEXTS = [text for text in TEXTS if text.turn == 0 and text.calls and text.key != "j-think"]
PLAIN_TEXTS = [text for text in TEXTS if text.turn == 0 and text.key.startswith(("p-", "default"))]


def messages(key: str) -> list[dict[str, Any]]:
    """Return a history to which the model answers with the text `key`."""
    return [{"role": "user", "content": f"[[{key}]] please"}]
