"""The tools that the tiny model calls, and the texts that it knows by heart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.live.harness import MODEL

FORMATS = {"j": "<tool_call>{...}", "l": "TOOL_CALL: {...}", "x": "<tool_call><function=...>"}

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
class Text:
    """
    What the tiny model answers to `[[key]]`.

    :param turn: 0 for its first answer, 1 for the one behind a tool's result
    :param calls: the calls in it, by hand, as name and arguments
    """

    key: str
    turn: int
    reply: str
    calls: list[tuple[str, dict[str, Any]]]

    @property
    def content(self) -> str:
        """What stands before the first call: all of it, where there is none."""
        first = min(
            (at for tag in ("<tool_call>", "TOOL_CALL:") if (at := self.reply.find(tag)) >= 0),
            default=len(self.reply),
        )
        return self.reply[:first].rstrip() if self.calls else self.reply


TEXTS = [
    Text(
        one["key"],
        one["turn"],
        one["reply"],
        [(call["name"], call["arguments"]) for call in one["calls"]],
    )
    for one in json.loads((MODEL / "keys.json").read_text())
]

# A think block may come as content or as reasoning_content: that is llama.cpp's choice.
CALLING = [text for text in TEXTS if text.turn == 0 and text.calls and text.key != "j-think"]
PLAIN = [text for text in TEXTS if text.turn == 0 and text.key.startswith(("p-", "default"))]


def messages(key: str) -> list[dict[str, Any]]:
    """Return a conversation whose next answer is the text `key`."""
    return [{"role": "user", "content": f"[[{key}]] please"}]
