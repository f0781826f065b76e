"""The request of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self
from weakref import WeakValueDictionary

import msgspec

from blockops.api.chat.tool_choice import ToolChoice
from blockops.api.json_fields import decode_items
from blockops.api.lenient_json import DECODE_ERRORS
from blockops.api.request_fields import (
    NO_ALIASES,
    NULL,
    RequestFields,
    append_fields,
    bad_request,
    first_character,
    model_change,
    replace_fields,
    resolve_alias,
    to_json,
    wrong_type,
)
from blockops.toolcalls.grammar.parameter_types import normalize_schema
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.tools import NO_NAMES, OfferedTools

#: Fields of vLLM, SGLang and llama.cpp that constrain the answer to a grammar.
_CONSTRAINTS = frozenset(
    {
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "json_schema",
        "grammar",
        "regex",
        "ebnf",
    }
)
_TOOL_FIELDS = ("tools", "functions", "tool_choice", "function_call", "parallel_tool_calls")

#: JSON text -> the tools that were read from it, for the requests in progress. Agents send the same
#: tools with each request, and they are longer than the history of a new conversation.
_offered_tools: WeakValueDictionary[tuple[str | bytes, ...], OfferedTools] = WeakValueDictionary()


class _ChatBody(msgspec.Struct):
    """The fields that blockops reads; with the others skipped, a long history is parsed once."""

    messages: list[msgspec.Raw]
    stream: msgspec.Raw = NULL
    stream_options: msgspec.Raw = NULL
    n: msgspec.Raw = NULL
    model: msgspec.Raw = NULL
    tools: msgspec.Raw = NULL
    tool_choice: msgspec.Raw = NULL
    parallel_tool_calls: msgspec.Raw = NULL
    functions: msgspec.Raw = NULL
    function_call: msgspec.Raw = NULL
    metadata: msgspec.Raw = NULL
    prompt_cache_key: msgspec.Raw = NULL
    user: msgspec.Raw = NULL
    response_format: msgspec.Raw = NULL
    structured_outputs: msgspec.Raw = NULL
    guided_json: msgspec.Raw = NULL
    guided_regex: msgspec.Raw = NULL
    guided_choice: msgspec.Raw = NULL
    guided_grammar: msgspec.Raw = NULL
    json_schema: msgspec.Raw = NULL
    grammar: msgspec.Raw = NULL
    regex: msgspec.Raw = NULL
    ebnf: msgspec.Raw = NULL


_USED_FIELDS = frozenset(_ChatBody.__struct_fields__)

_decode_body = msgspec.json.Decoder(_ChatBody).decode


class _ChatFields(RequestFields):
    """
    The fields of a chat request, whose messages are a list of at least one object.

    :param messages: the JSON text of each message; None to read it at its first use
    """

    def __init__(self, raw: Mapping[str, Any], messages: list[bytes] | None = None) -> None:
        super().__init__(raw)
        self._messages = messages

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """
        Read a request's body.

        :raises ApiError: 400, the body is not a JSON object, or its messages are invalid
        """
        try:
            struct = _decode_body(body)
        except DECODE_ERRORS:
            struct = None
        messages = [] if struct is None else list(map(bytes, struct.messages))
        if struct is not None and {message[:1] for message in messages} == {b"{"}:
            values = msgspec.structs.asdict(struct)
            return cls({name: raw for name, raw in values.items() if raw is not NULL}, messages)
        fields = super().decode(body)
        fields.check_messages()
        return fields

    def check_messages(self) -> None:
        """
        Check that the messages are a list of at least one object.

        :raises ApiError: 400, they are not
        """
        if "messages" not in self._raw:
            raise bad_request(
                "`messages` is missing: send a list of messages.",
                "messages",
                "missing_required_parameter",
            )
        raw = self._raw["messages"]
        if first_character(raw) != "[":
            raise wrong_type("messages", "a list of messages", self.value("messages"))
        items = decode_items(raw) if isinstance(raw, msgspec.Raw) else raw
        if not items:
            raise bad_request("`messages` is empty: send at least one.", "messages", "empty_array")
        for position, item in enumerate(items):
            if first_character(item) != "{":
                name = f"messages[{position}]"
                raise bad_request(f"`{name}` must be an object.", name, "invalid_type")

    def messages(self) -> list[bytes]:
        """Return the JSON text of each message."""
        if self._messages is None:
            raw = self._raw["messages"]
            items = decode_items(raw) if isinstance(raw, msgspec.Raw) else raw
            self._messages = list(map(to_json, items))
        return self._messages

    def lacks(self, names: Collection[str]) -> bool:
        """Return True if the body has no field of these names; False if that is not known."""
        return _USED_FIELDS.issuperset(names) and self._raw.keys().isdisjoint(names)


class ChatRequest:
    """
    The body of `POST /v1/chat/completions`.

    :ivar stream: True if the client requested a stream
    :ivar include_usage: True if the client requested `usage` at the end of that stream
    :ivar n: number of choices requested
    :ivar model: the model that the client named, or None: many local servers do not need it
    :ivar backend_model: the backend's name for that model
    :ivar raw: the body as received
    """

    def __init__(self, body: bytes, fields: _ChatFields, aliases: Mapping[str, str]) -> None:
        self.raw = body
        self._fields = fields
        self.stream = fields.boolean("stream", default=False)
        self.include_usage = fields.mapping("stream_options").get("include_usage") is True
        self.n = fields.positive_integer("n")
        self.model = fields.string("model")
        self.backend_model = resolve_alias(self.model, aliases)

    @classmethod
    def parse(cls, body: bytes, aliases: Mapping[str, str] = NO_ALIASES) -> Self:
        """
        Read a request.

        :param aliases: alias -> the backend's name for the model
        :raises ApiError: 400, with the field at fault, if no backend could accept the request
        """
        fields = _ChatFields.decode(body)
        fields.require_list("tools")
        fields.require_list("functions")
        return cls(body, fields, aliases)

    def body(
        self, changes: Mapping[str, Any] | None = None, without: Collection[str] = ()
    ) -> bytes:
        """
        Return the body for the backend: the received bytes if nothing changes.

        :param changes: fields that are added or replaced
        :param without: fields that are removed
        """
        removed = [name for name in without if self._fields.raw_json(name)]
        changed = {**model_change(self.model, self.backend_model), **(changes or {})}
        if changed and not removed and self._fields.lacks(changed):
            # The usual change adds `stream_options`: that needs no parsing of a long conversation.
            return append_fields(self.raw, changed)
        return replace_fields(self.raw, changed, removed)

    def messages(self) -> list[bytes]:
        """Return the JSON text of each message, as received."""
        return self._fields.messages()

    def tools_json(self) -> bytes:
        """Return the JSON text of `tools` and `functions`; empty if both are missing or null."""
        return b"".join(self._fields.raw_json(name) for name in ("tools", "functions"))

    def field(self, name: str) -> Any:
        """Return a field as Python values, or None if it is missing or null."""
        return self._fields.value(name)

    def item_count(self, name: str) -> int:
        """Return the length of a list; 0 if it is missing or null."""
        return self._fields.item_count(name)

    @property
    def is_constrained(self) -> bool:
        """True if the answer must follow a format or a grammar, which a notice would violate."""
        form = self._fields.value("response_format")
        kind = form.get("type") if isinstance(form, dict) else None
        if kind is not None and kind != "text":
            return True
        return self._fields.has_any(_CONSTRAINTS)

    @property
    def tool_choice(self) -> ToolChoice:
        """The tools that the request lets or makes the model call."""
        fields = self._fields
        return ToolChoice.parse(fields.value("tool_choice"), fields.value("function_call"))

    def offered_tools(self, options: TranslationOptions) -> OfferedTools:
        """Return the tools that the request offers; requests with equal tools share one object."""
        key = options.translate, *(self._fields.raw_json(name) for name in _TOOL_FIELDS)
        tools = _offered_tools.get(key)
        if tools is None:
            tools = _offered_tools[key] = self._read_tools(options)
        return tools

    def _read_tools(self, options: TranslationOptions) -> OfferedTools:
        choice = self.tool_choice
        declared = dict(_schemas(self._fields.value("tools"), self._fields.value("functions")))
        schemas = {name: schema for name, schema in declared.items() if choice.allows(name)}
        has_tools = bool(schemas) and choice.mode != "none"
        return OfferedTools(
            schemas=schemas,
            forbidden_tools=frozenset(declared.keys() - schemas.keys()) or NO_NAMES,
            parallel=self._fields.value("parallel_tool_calls") is not False,
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
