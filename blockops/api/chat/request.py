"""
The client's requests: read as far as blockops needs to, and sent on as they came.

Only the fields that decide something here are read; all others are the backend's business, and
none of them is parsed and written again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Self
from weakref import WeakValueDictionary

import msgspec

from blockops.api.chat.tool_choice import ToolChoice
from blockops.api.lenient_json import UNREADABLE
from blockops.errors import ApiError
from blockops.toolcalls.grammar.parameter_types import of_parameters
from blockops.toolcalls.options import Rules
from blockops.toolcalls.tools import NOTHING, Offer

# Fields of vLLM, SGLang and llama.cpp that bind the answer to a grammar.
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
_NULL = msgspec.Raw(b"null")

#: Models have no other names than their own.
NO_NAMES: Mapping[str, str] = MappingProxyType({})


class _ChatFields(msgspec.Struct):
    """The fields that are read, so that a long conversation is gone through only once."""

    messages: list[msgspec.Raw]
    stream: msgspec.Raw = _NULL
    stream_options: msgspec.Raw = _NULL
    n: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL
    tools: msgspec.Raw = _NULL
    tool_choice: msgspec.Raw = _NULL
    parallel_tool_calls: msgspec.Raw = _NULL
    functions: msgspec.Raw = _NULL
    function_call: msgspec.Raw = _NULL
    metadata: msgspec.Raw = _NULL
    prompt_cache_key: msgspec.Raw = _NULL
    user: msgspec.Raw = _NULL
    response_format: msgspec.Raw = _NULL
    structured_outputs: msgspec.Raw = _NULL
    guided_json: msgspec.Raw = _NULL
    guided_regex: msgspec.Raw = _NULL
    guided_choice: msgspec.Raw = _NULL
    guided_grammar: msgspec.Raw = _NULL
    json_schema: msgspec.Raw = _NULL
    grammar: msgspec.Raw = _NULL
    regex: msgspec.Raw = _NULL
    ebnf: msgspec.Raw = _NULL


_READ = frozenset(_ChatFields.__struct_fields__)
#: What a request says of calls.
_OF_CALLS = ("tools", "functions", "tool_choice", "function_call", "parallel_tool_calls")
#: What those offer that are being answered. Agents send the same tools with each request, and more
#: of them than a conversation has text at first.
_offers: WeakValueDictionary[tuple[str | bytes, ...], Offer] = WeakValueDictionary()

_chat_fields = msgspec.json.Decoder(_ChatFields)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])


class ChatRequest:
    """
    The body of `POST /v1/chat/completions`.

    :ivar stream: whether the client asked for a stream
    :ivar include_usage: whether it asked for `usage` at the end of that stream
    :ivar n: how many choices it asked for
    :ivar model: the model it named, if it named one: many local servers do not care
    :ivar real_model: what the backend calls that
    :ivar came: the body as it came
    """

    def __init__(self, body: bytes, fields: _Fields, names: Mapping[str, str]) -> None:
        self.came = body
        self._fields = fields
        self.stream = fields.boolean("stream", default=False)
        self.include_usage = fields.options("stream_options").get("include_usage") is True
        self.n = fields.count("n")
        self.model = fields.text("model")
        self.real_model = _real(self.model, names)

    @classmethod
    def parse(cls, body: bytes, names: Mapping[str, str] = NO_NAMES) -> Self:
        """
        Read a request.

        :param names: short names of models -> real ones
        :raises ApiError: 400, with the field at fault, if no backend could answer it
        """
        fields = _Fields.of_chat(body)
        fields.require_list("tools")
        fields.require_list("functions")
        return cls(body, fields, names)

    def body(
        self, changes: Mapping[str, Any] | None = None, without: Collection[str] = ()
    ) -> bytes:
        """
        Return the body for the backend: the very bytes that came, if nothing changes.

        :param changes: fields that are put in the place of those that came
        :param without: fields that are taken out
        """
        gone = [name for name in without if self._fields.text_of(name)]
        changed = {**_renamed(self), **(changes or {})}
        if changed and not gone and self._fields.misses(changed):
            # As most streams are asked for their usage: it costs no reading of a long conversation.
            return _with_more(self.came, changed)
        return _changed(self.came, changed, gone)

    def messages(self) -> list[bytes]:
        """Return the JSON text of each message, as it came."""
        return self._fields.messages()

    def tools(self) -> bytes:
        """Return the JSON text of all that is said of tools; empty if nothing is."""
        return b"".join(self._fields.text_of(name) for name in ("tools", "functions"))

    def field(self, name: str) -> Any:
        """Return a field as Python values; None if it is missing or null."""
        return self._fields.value(name)

    def number_of(self, name: str) -> int:
        """Return how many items a list has; 0 if it is missing or null."""
        return self._fields.number_of(name)

    @property
    def wants_json(self) -> bool:
        """Whether the answer has to be of a form that leaves no room for anything else."""
        form = self._fields.value("response_format")
        kind = form.get("type") if isinstance(form, dict) else None
        if kind is not None and kind != "text":
            return True
        return self._fields.any_of(_CONSTRAINTS)

    def streamed(self) -> bytes | None:
        """Return the body changed to ask for a stream with its usage; None if it cannot be."""
        return streamed(self.body())

    @property
    def tool_choice(self) -> ToolChoice:
        """What the request demands of calls."""
        fields = self._fields
        return ToolChoice.of(fields.value("tool_choice"), fields.value("function_call"))

    def offer(self, rules: Rules) -> Offer:
        """Return what this request offers to the model, and whether its text may become calls."""
        said = rules.translate, *(self._fields.text_of(name) for name in _OF_CALLS)
        offer = _offers.get(said)
        if offer is None:
            offer = _offers[said] = self._make_offer(rules)
        return offer

    def _make_offer(self, rules: Rules) -> Offer:
        choice = self.tool_choice
        declared = dict(_schemas(self._fields.value("tools"), self._fields.value("functions")))
        schemas = {name: schema for name, schema in declared.items() if choice.allows(name)}
        return Offer(
            schemas=schemas,
            forbidden=frozenset(declared.keys() - schemas.keys()) or NOTHING,
            parallel=self._fields.value("parallel_tool_calls") is not False,
            forced=choice.name,
            translate=rules.translate == "always" or (bool(schemas) and choice.mode != "none"),
        )


class CompletionRequest:
    """
    The body of `POST /v1/completions`, whose text is never translated.

    :ivar stream: whether the client asked for a stream
    :ivar include_usage: whether it asked for `usage` at the end of that stream
    :ivar n: how many choices it asked for, for each of its prompts
    :ivar model: the model it named, if it named one
    :ivar real_model: what the backend calls that
    :ivar came: the body as it came
    """

    def __init__(self, body: bytes, fields: _Fields, names: Mapping[str, str]) -> None:
        self.came = body
        self.stream = fields.boolean("stream", default=False)
        self.include_usage = fields.options("stream_options").get("include_usage") is True
        self.n = fields.count("n")
        self.model = fields.text("model")
        self.real_model = _real(self.model, names)

    @classmethod
    def parse(cls, body: bytes, names: Mapping[str, str] = NO_NAMES) -> Self:
        """
        Read a request.

        :param names: short names of models -> real ones
        :raises ApiError: 400, with the field at fault
        """
        return cls(body, _Fields.of(body), names)

    def body(self) -> bytes:
        """Return the body for the backend: the very bytes that came, if the model's name stays."""
        return _changed(self.came, _renamed(self))

    def streamed(self) -> bytes | None:
        """Return the body changed to ask for a stream with its usage; None if it cannot be."""
        return streamed(self.body())


class _Fields:
    """
    The top level of a request's JSON object, each field read when it is asked for, and once.

    :param raw: field -> its JSON text, or its value where `of` had to read leniently
    :param messages: the JSON text of each of a chat's, where that is known already
    """

    def __init__(self, raw: Mapping[str, Any], messages: list[bytes] | None = None) -> None:
        self._raw = raw
        self._values: dict[str, Any] = {}
        self._messages = messages

    @classmethod
    def of(cls, body: bytes) -> Self:
        try:
            return cls(_fields.decode(body))
        except UNREADABLE:
            return cls(_leniently(body))

    @classmethod
    def of_chat(cls, body: bytes) -> Self:
        """Return the fields of a chat, whose messages are a list of at least one object."""
        try:
            read = _chat_fields.decode(body)
        except UNREADABLE:
            read = None
        messages = [] if read is None else list(map(bytes, read.messages))
        if read is not None and {message[:1] for message in messages} == {b"{"}:
            said = msgspec.structs.asdict(read)
            return cls({name: raw for name, raw in said.items() if raw is not _NULL}, messages)
        fields = cls.of(body)
        fields.require_objects("messages")
        return fields

    def value(self, name: str) -> Any:
        """Return the field as Python values; None if it is missing or null."""
        raw = self._raw.get(name)
        if not isinstance(raw, msgspec.Raw):
            return raw
        if name not in self._values:
            self._values[name] = _value(raw)
        return self._values[name]

    def any_of(self, names: Collection[str]) -> bool:
        """Say whether one of the fields is neither missing nor null."""
        return any(self.value(name) is not None for name in self._raw.keys() & names)

    def text_of(self, name: str) -> bytes:
        """Return the JSON text of a field; empty if it is missing."""
        raw = self._raw.get(name)
        return b"" if raw in (None, _NULL) else _text(raw)

    def messages(self) -> list[bytes]:
        """Return the JSON text of each message of a chat."""
        if self._messages is None:
            raw = self._raw["messages"]
            every = _items.decode(raw) if isinstance(raw, msgspec.Raw) else raw
            self._messages = list(map(_text, every))
        return self._messages

    def misses(self, names: Collection[str]) -> bool:
        """Say whether none of the fields is there, not even as null; False of those not read."""
        return _READ.issuperset(names) and self._raw.keys().isdisjoint(names)

    def number_of(self, name: str) -> int:
        """Return how many items a list has, without reading them; 0 if there is none."""
        raw = self._raw.get(name)
        if isinstance(raw, msgspec.Raw) and _opening(raw) == "[":
            with suppress(*UNREADABLE):
                return len(_items.decode(raw))
        return len(self.value(name) or ())

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong_type(name, "true or false", value)
        return value

    def count(self, name: str) -> int:
        value = self.value(name)
        if value is None:
            return 1
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, "a whole number", value)
        if value < 1:
            raise _refusal(f"`{name}` is {value}: send 1 or more.", name, "invalid_value")
        return value

    def text(self, name: str) -> str | None:
        value = self.value(name)
        if value is not None and not isinstance(value, str):
            raise _wrong_type(name, "a string", value)
        return value

    def options(self, name: str) -> dict[str, Any]:
        value = self.value(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _wrong_type(name, "an object", value)
        return value

    def require_list(self, name: str) -> None:
        raw = self._raw.get(name)
        if raw is not None and _opening(raw) not in "[n":
            raise _wrong_type(name, "a list", self.value(name))

    def require_objects(self, name: str) -> None:
        """Refuse the request unless the field is a list of at least one object, and only those."""
        if name not in self._raw:
            raise _refusal(
                f"`{name}` is missing: send a list of messages.", name, "missing_required_parameter"
            )
        raw = self._raw[name]
        if _opening(raw) != "[":
            raise _wrong_type(name, "a list of messages", self.value(name))
        items = _items.decode(raw) if isinstance(raw, msgspec.Raw) else raw
        if not items:
            raise _refusal(f"`{name}` is empty: send at least one.", name, "empty_array")
        for place, item in enumerate(items):
            if _opening(item) != "{":
                raise _refusal(
                    f"`{name}[{place}]` must be an object.", f"{name}[{place}]", "invalid_type"
                )


def streamed(body: bytes) -> bytes | None:
    """Return a request's body changed to ask for a stream with its usage; None if it cannot be."""
    try:
        fields: dict[str, Any] = dict(_fields.decode(body))
    except UNREADABLE:
        return None
    options = _Fields(fields).options("stream_options")
    fields["stream"] = True
    fields["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode(fields)


def _real(model: str | None, names: Mapping[str, str]) -> str | None:
    """Return the real name of a model."""
    return model if model is None else names.get(model, model)


def _renamed(asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """Return what a model's real name changes in a body."""
    return {} if asked.model == asked.real_model else {"model": asked.real_model}


def _with_more(body: bytes, more: Mapping[str, Any]) -> bytes:
    """Return a request's body with fields behind those that it has."""
    end = body.rindex(b"}")
    # In one step: each copy of a long conversation is memory that the system has to give and take.
    return b"".join((memoryview(body)[:end], b",", msgspec.json.encode(more)[1:], body[end + 1 :]))


def _changed(body: bytes, changes: Mapping[str, Any], without: Collection[str] = ()) -> bytes:
    """Return a request's body with some fields changed and others taken out."""
    if not changes and not without:
        return body
    try:
        fields: dict[str, Any] = dict(_fields.decode(body))
    except UNREADABLE:
        read = _leniently(body)
        fields = {name: msgspec.Raw(_text(value)) for name, value in read.items()}
    for name in without:
        fields.pop(name, None)
    fields.update(changes)
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        # The name of a field may hold half a surrogate pair, in JSON.
        members = (
            json.dumps(name).encode() + b":" + msgspec.json.encode(value)
            for name, value in fields.items()
        )
        return b"{" + b",".join(members) + b"}"


def _opening(value: Any) -> str:
    """Return the first character of a value's JSON text, or one of its kind."""
    if isinstance(value, msgspec.Raw):
        return chr(memoryview(value)[0])
    return {list: "[", dict: "{", type(None): "n"}.get(type(value), '"')


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except UNREADABLE:
        return _otherwise(raw)


def _text(value: Any) -> bytes:
    """Return the JSON text of a value; of what was read leniently, anew."""
    if isinstance(value, msgspec.Raw):
        return memoryview(value).tobytes()
    return json.dumps(value).encode()


def _otherwise(raw: msgspec.Raw) -> Any:
    """Return a value that the faster decoder refuses, as 1e400; None if there is no reading it."""
    try:
        return json.loads(bytes(raw).decode())
    except (ValueError, RecursionError):
        return None


def _leniently(body: bytes) -> dict[str, Any]:
    """Read what the faster decoder refuses and backends may still accept: NaN, lone surrogates."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _refusal(
            f"The request body is not valid JSON ({detail}). Send one JSON object.", None, None
        ) from None
    if not isinstance(value, dict):
        raise _refusal(
            f"The request body is {_kind(value)}, not a JSON object. Send one JSON object.",
            None,
            None,
        )
    return value


def _schemas(tools: Any, functions: Any) -> list[tuple[str, Any]]:
    """Return name and schema of each function; odd entries are the backend's to judge."""
    declared = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
    declared.extend(functions or ())
    return [
        (function["name"], of_parameters(function.get("parameters")))
        for function in declared
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    ]


def _refusal(message: str, param: str | None, code: str | None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def _wrong_type(name: str, wanted: str, value: Any) -> ApiError:
    return _refusal(f"`{name}` is {_kind(value)}: it must be {wanted}.", name, "invalid_type")


def _kind(value: Any) -> str:
    kinds = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
    }
    return kinds.get(type(value), "an object")
