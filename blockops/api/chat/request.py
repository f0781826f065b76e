"""The request of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from blockops.api.chat.tool_choice import ToolChoice
from blockops.api.request import (
    NO_ALIASES,
    GenerationRequest,
    bad_request,
    json_type,
    wrong_type,
)
from blockops.toolcalls.grammar.parameter_types import normalize_schema
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.tools import OfferedTools

#: Fields of vLLM, SGLang and llama.cpp that constrain the answer to a grammar.
_CONSTRAINTS = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "json_schema",
    "grammar",
    "regex",
    "ebnf",
)
_TOOL_FIELDS = ("tools", "functions", "tool_choice", "function_call", "parallel_tool_calls")

#: JSON text -> the tools that were read from it, for the requests in progress. Agents send the same
#: tools with each request, and they are longer than the history of a new conversation.
_offered_tools: WeakValueDictionary[tuple[str | bytes, ...], OfferedTools] = WeakValueDictionary()


class ChatRequest(GenerationRequest):
    """The body of `POST /v1/chat/completions`, whose messages are a list of at least one object."""

    def __init__(self, body: bytes, aliases: Mapping[str, str] = NO_ALIASES) -> None:
        super().__init__(body, aliases)
        self._messages = self._read_messages()
        for name in ("tools", "functions"):
            raw = self._fields.get(name)
            if raw is not None and json_type(raw) not in {"a list", "null"}:
                raise wrong_type(name, "a list", raw)

    def _read_messages(self) -> list[msgspec.Raw]:
        raw = self._fields.get("messages")
        if raw is None:
            raise bad_request(
                "`messages` is missing: send a list of messages.",
                "messages",
                "missing_required_parameter",
            )
        if json_type(raw) != "a list":
            raise wrong_type("messages", "a list of messages", raw)
        messages = self.items("messages")
        if not messages:
            raise bad_request("`messages` is empty: send at least one.", "messages", "empty_array")
        for position, message in enumerate(messages):
            if json_type(message) != "an object":
                name = f"messages[{position}]"
                raise bad_request(f"`{name}` must be an object.", name, "invalid_type")
        return messages

    def messages(self) -> list[bytes]:
        """Return the JSON text of each message, as received."""
        return list(map(bytes, self._messages))

    def tools_json(self) -> bytes:
        """Return the JSON text of `tools` and `functions`; empty if both are missing or null."""
        return self.raw_field("tools") + self.raw_field("functions")

    def item_count(self, name: str) -> int:
        """Return the length of a list; 0 if it is missing or null."""
        return len(self.items(name))

    @property
    def is_constrained(self) -> bool:
        """True if the answer must follow a format or a grammar, which a notice would violate."""
        form = self.field("response_format")
        kind = form.get("type") if isinstance(form, dict) else None
        return kind not in (None, "text") or any(map(self.raw_field, _CONSTRAINTS))

    @property
    def tool_choice(self) -> ToolChoice:
        """The tools that the request lets or makes the model call."""
        return ToolChoice.parse(self.field("tool_choice"), self.field("function_call"))

    def offered_tools(self, options: TranslationOptions) -> OfferedTools:
        """Return the tools that the request offers; requests with equal tools share one object."""
        key = options.translate, *map(self.raw_field, _TOOL_FIELDS)
        tools = _offered_tools.get(key)
        if tools is None:
            tools = _offered_tools[key] = self._read_tools(options)
        return tools

    def _read_tools(self, options: TranslationOptions) -> OfferedTools:
        choice = self.tool_choice
        declared = dict(_schemas(self.field("tools"), self.field("functions")))
        schemas = {name: schema for name, schema in declared.items() if choice.allows(name)}
        has_tools = bool(schemas) and choice.mode != "none"
        return OfferedTools(
            schemas=schemas,
            forbidden_tools=frozenset(declared.keys() - schemas.keys()),
            parallel=self.field("parallel_tool_calls") is not False,
            forced_tool=choice.name,
            may_translate=options.translate == "always" or has_tools,
        )


def _schemas(tools: Any, functions: Any) -> list[tuple[str, Any]]:
    """Return the name and the schema of each function, without invalid entries."""
    declared = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
    declared.extend(functions or ())
    return [
        (function["name"], normalize_schema(function.get("parameters")))
        for function in declared
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    ]
