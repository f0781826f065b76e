"""
What a request demands of calls: `tool_choice`, and `function_call` of before 2023.

    "none", "auto", "required"
    {"type": "function", "function": {"name": NAME}}
    {"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}

The last one leaves all tools in the request and lets the model call only some, which are listed by
name: https://platform.openai.com/docs/guides/function-calling. `/v1/responses` words the last two
without their inner objects, and clients mix the two; both are read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """
    One request's demand.

    :param mode: "auto", "none", "required", or "function" for one of all
    :param name: the one function that has to be called
    :param allowed: the only names that may be called; None for all
    """

    mode: str = "auto"
    name: str | None = None
    allowed: frozenset[str] | None = None

    @classmethod
    def of(cls, tool_choice: Any, function_call: Any) -> ToolChoice:
        """Return what these fields of a request say; what says nothing here is "auto"."""
        chosen = function_call if tool_choice is None else tool_choice
        if isinstance(chosen, str):
            return cls(chosen)
        if not isinstance(chosen, dict):
            return cls()
        if chosen.get("type") == "allowed_tools":
            return cls._of_allowed(chosen.get("allowed_tools", chosen))
        name = name_of(chosen)
        return cls() if name is None else cls("function", name)

    @classmethod
    def _of_allowed(cls, said: Any) -> ToolChoice:
        tools = said.get("tools") if isinstance(said, dict) else None
        if not isinstance(tools, list):
            return cls()
        mode = "required" if said.get("mode") == "required" else "auto"
        return cls(mode, allowed=frozenset(filter(None, map(name_of, tools))))

    def allows(self, name: str | None) -> bool:
        """Say whether the model may call what is called `name`, or has no name."""
        return self.allowed is None or name in self.allowed

    def allowed_of(self, tools: Sequence[Any]) -> list[Any]:
        """Return those of a request's tools that may be called."""
        return [tool for tool in tools if self.allows(name_of(tool))]


def name_of(tool: Any) -> str | None:
    """Return the name of a tool, or of the one that a choice names; None if it has none."""
    if not isinstance(tool, dict):
        return None
    said = tool.get("function", tool.get("custom", tool))
    name = said.get("name") if isinstance(said, dict) else None
    return name if isinstance(name, str) else None
