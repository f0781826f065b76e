"""
`tool_choice` of a request, and `function_call`, which it replaced in 2023.

    "none", "auto", "required"
    {"type": "function", "function": {"name": NAME}}
    {"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}

The last one keeps all tools in the request, and lets the model call only those that it lists by
name: https://platform.openai.com/docs/guides/function-calling. `/v1/responses` writes the last two
without their inner objects, and clients mix both shapes; both are accepted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolChoice:
    """
    The tools that a request lets or makes the model call.

    :param mode: "auto", "none", "required", or "function" for one particular function
    :param name: the function that must be called, or None
    :param allowed_names: the only names that may be called; None for all
    """

    mode: str = "auto"
    name: str | None = None
    allowed_names: frozenset[str] | None = None

    @classmethod
    def parse(cls, tool_choice: Any, function_call: Any) -> ToolChoice:
        """Return the choice in these two fields; "auto" if they are missing or invalid."""
        chosen = function_call if tool_choice is None else tool_choice
        if isinstance(chosen, str):
            return cls(chosen)
        if isinstance(chosen, dict) and chosen.get("type") == "allowed_tools":
            return cls._parse_allowed(chosen.get("allowed_tools", chosen))
        name = tool_name(chosen)
        return cls() if name is None else cls("function", name)

    @classmethod
    def _parse_allowed(cls, fields: Any) -> ToolChoice:
        tools = fields.get("tools") if isinstance(fields, dict) else None
        if not isinstance(tools, list):
            return cls()
        mode = "required" if fields.get("mode") == "required" else "auto"
        return cls(mode, allowed_names=frozenset(filter(None, map(tool_name, tools))))

    def allows(self, name: str | None) -> bool:
        """Return True if the model may call a tool of this name; None for a tool without a name."""
        return self.allowed_names is None or name in self.allowed_names

    def filter_tools(self, tools: Sequence[Any]) -> list[Any]:
        """Return those of a request's tools that may be called."""
        return [tool for tool in tools if self.allows(tool_name(tool))]


def tool_name(tool: Any) -> str | None:
    """Return the name in an entry of `tools` or in a `tool_choice`, or None if it has none."""
    if not isinstance(tool, dict):
        return None
    definition = tool.get("function", tool.get("custom", tool))
    name = definition.get("name") if isinstance(definition, dict) else None
    return name if isinstance(name, str) else None
