"""
The requests for an answer of the model: chats and completions.

Only the fields that blockops decides on are parsed, each at its use. All others are forwarded to
the backend as the bytes that were received.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from blockops.api.chat.tool_choice import ToolChoice
from blockops.api.json_fields import decode_fields, decode_items
from blockops.api.lenient_json import DECODE_ERRORS
from blockops.errors import ApiError
from blockops.toolcalls.grammar.parameter_types import normalize_schema
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.tools import OfferedTools

_T = TypeVar("_T")

#: No model has an alias.
NO_ALIASES: Mapping[str, str] = MappingProxyType({})

_NULL = msgspec.Raw(b"null")
_SPACE = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder()
#: A field's type -> its valid values.
_VALID_VALUES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    str: "a string",
    dict: "an object",
}
#: The first character of JSON text -> its type; all others begin a number.
_JSON_TYPES = {
    "{": "an object",
    "[": "a list",
    '"': "a string",
    "t": "a boolean",
    "f": "a boolean",
    "n": "null",
}
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


class GenerationRequest:
    """
    The body of a request for an answer. For `POST /v1/completions`, only these fields matter.

    :param aliases: alias -> the backend's name for the model
    :raises ApiError: 400, with the field at fault, if no backend could accept the request
    :ivar stream: True if the client requested a stream
    :ivar include_usage: True if the client requested `usage` at the end of that stream
    :ivar model: the model that the client named, or None: many local servers do not need it
    :ivar backend_model: the backend's name for that model
    """

    def __init__(self, body: bytes, aliases: Mapping[str, str] = NO_ALIASES) -> None:
        self._body = body
        self._fields = _decode_body(body)
        self.stream = self._typed("stream", bool) or False
        options = self._typed("stream_options", dict) or {}
        self.include_usage = options.get("include_usage") is True
        choices = self._typed("n", int)
        if choices is not None and choices < 1:
            raise bad_request(f"`n` is {choices}: send 1 or more.", "n", "invalid_value")
        self.model = self._typed("model", str)
        self.backend_model = self.model and aliases.get(self.model, self.model)

    def field(self, name: str) -> Any:
        """Return a field as Python values; None if it is missing, null or not valid JSON."""
        try:
            return json.loads(str(self._fields.get(name, _NULL), "utf-8"))
        except DECODE_ERRORS:
            return None

    def raw_field(self, name: str) -> bytes:
        """Return the JSON text of a field; empty if it is missing or null."""
        raw = self._fields.get(name, _NULL)
        return b"" if raw == _NULL else bytes(raw)

    def items(self, name: str) -> list[msgspec.Raw]:
        """Return the JSON text of each item of a list; empty if it is missing or null."""
        try:
            return decode_items(self._fields.get(name, b"[]"))
        except DECODE_ERRORS:
            return [raw for _, raw in _split(self.raw_field(name).decode() or "[]")]

    def body(
        self, changes: Mapping[str, Any] | None = None, without: Collection[str] = ()
    ) -> bytes:
        """Return the body for the backend: the received bytes if nothing changes."""
        fields: dict[str, Any] = {
            name: raw for name, raw in self._fields.items() if name not in without
        }
        if self.backend_model != self.model:
            fields["model"] = self.backend_model
        fields.update(changes or {})
        return self._body if fields == self._fields else _encode_object(fields)

    def _typed(self, name: str, kind: type[_T]) -> _T | None:
        value = self.field(name)
        if value is None or type(value) is kind:
            return value
        raise wrong_type(name, _VALID_VALUES[kind], self._fields[name])


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
            problem = "`messages` is missing: send a list of messages."
            raise bad_request(problem, "messages", "missing_required_parameter")
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


def change_to_stream(body: bytes) -> bytes:
    """Return a request's body, changed to request a stream with usage."""
    request = GenerationRequest(body)
    options = request.field("stream_options") or {}
    return request.body({"stream": True, "stream_options": {**options, "include_usage": True}})


def bad_request(message: str, param: str | None, code: str | None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def wrong_type(name: str, expected: str, raw: msgspec.Raw) -> ApiError:
    message = f"`{name}` is {json_type(raw)}: it must be {expected}."
    return bad_request(message, name, "invalid_type")


def json_type(raw: msgspec.Raw) -> str:
    """Return the type of a JSON text, as its first character shows it."""
    return _JSON_TYPES.get(chr(memoryview(raw)[0]), "a number")


def _decode_body(body: bytes) -> dict[str, msgspec.Raw]:
    """
    Return the fields of a body, each as its JSON text.

    Python's parser is tried second: as many backends do, it accepts NaN and unpaired surrogates.
    """
    try:
        return decode_fields(body)
    except DECODE_ERRORS:
        pass
    try:
        text = body.decode()
        value = json.loads(text)
        if isinstance(value, dict):
            return dict(_split(text))
    except DECODE_ERRORS as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        message = f"The request body is not valid JSON ({problem}). Send one JSON object."
        raise bad_request(message, None, None) from None
    kind = json_type(msgspec.Raw(text.lstrip().encode()))
    message = f"The request body is {kind}, not a JSON object. Send one JSON object."
    raise bad_request(message, None, None)


def _split(text: str) -> Iterator[tuple[str, msgspec.Raw]]:
    """
    Yield the name and the JSON text of each member of an object, or of each item of a list.

    :param text: JSON that Python's parser accepts; an item has an empty name
    """
    position = text.index("{") if text.lstrip().startswith("{") else text.index("[")
    is_object = text[position] == "{"
    position = _skip_space(text, position + 1)
    while text[position] not in "}]":
        name = ""
        if is_object:
            name, position = _decoder.raw_decode(text, position)
            position = _skip_space(text, text.index(":", position) + 1)
        _, end = _decoder.raw_decode(text, position)
        yield name, msgspec.Raw(text[position:end].encode())
        position = _skip_space(text, end)
        if text[position] == ",":
            position = _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]


def _encode_object(fields: Mapping[str, Any]) -> bytes:
    """Return an object as JSON; an unpaired surrogate in a field's name is escaped."""
    parts: list[bytes | msgspec.Raw] = []
    for name, value in fields.items():
        key = json.dumps(name, ensure_ascii=False).encode("utf-8", "backslashreplace")
        raw = value if isinstance(value, msgspec.Raw) else msgspec.json.encode(value)
        parts += [b"," if parts else b"{", key, b":", raw]
    # One join: each further copy of a long conversation costs memory to allocate and release.
    return b"".join([*parts, b"}"])


def _schemas(tools: Any, functions: Any) -> list[tuple[str, Any]]:
    declared = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
    declared.extend(functions or ())
    return [
        (function["name"], normalize_schema(function.get("parameters")))
        for function in declared
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    ]
