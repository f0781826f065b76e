"""
The top level of a request's body: its fields, each parsed at most once, and changed copies of it.

Only the fields that blockops decides on are parsed. All others are forwarded to the backend as the
bytes that were received.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Self

import msgspec

from blockops.api.json_fields import decode_fields, decode_items
from blockops.api.lenient_json import DECODE_ERRORS
from blockops.errors import ApiError

NULL = msgspec.Raw(b"null")

#: No model has an alias.
NO_ALIASES: Mapping[str, str] = MappingProxyType({})


class RequestFields:
    """
    The fields of a request's JSON object. Each is parsed at its first use, and only once.

    :param raw: field -> its JSON text, or its value if the body had to be read leniently
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw
        self._values: dict[str, Any] = {}

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """
        Read a request's body.

        :raises ApiError: 400, the body is not a JSON object
        """
        try:
            return cls(decode_fields(body))
        except DECODE_ERRORS:
            return cls(_decode_leniently(body))

    def value(self, name: str) -> Any:
        """Return the field as Python values, or None if it is missing or null."""
        raw = self._raw.get(name)
        if not isinstance(raw, msgspec.Raw):
            return raw
        if name not in self._values:
            self._values[name] = _decode_value(raw)
        return self._values[name]

    def has_any(self, names: Collection[str]) -> bool:
        """Return True if at least one of the fields is neither missing nor null."""
        return any(self.value(name) is not None for name in self._raw.keys() & names)

    def raw_json(self, name: str) -> bytes:
        """Return the JSON text of a field; empty if it is missing or null."""
        raw = self._raw.get(name)
        return b"" if raw in (None, NULL) else to_json(raw)

    def item_count(self, name: str) -> int:
        """Return the length of a list without parsing its items; 0 if it is missing or null."""
        raw = self._raw.get(name)
        if isinstance(raw, msgspec.Raw) and first_character(raw) == "[":
            with suppress(*DECODE_ERRORS):
                return len(decode_items(raw))
        return len(self.value(name) or ())

    def boolean(self, name: str, *, default: bool) -> bool:
        """
        Return a field that is true or false.

        :raises ApiError: 400, it has another type
        """
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong_type(name, "true or false", value)
        return value

    def positive_integer(self, name: str) -> int:
        """
        Return a whole number; 1 if the field is missing or null.

        :raises ApiError: 400, it has another type or is below 1
        """
        value = self.value(name)
        if value is None:
            return 1
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(name, "a whole number", value)
        if value < 1:
            raise bad_request(f"`{name}` is {value}: send 1 or more.", name, "invalid_value")
        return value

    def string(self, name: str) -> str | None:
        """
        Return a string, or None if the field is missing or null.

        :raises ApiError: 400, it has another type
        """
        value = self.value(name)
        if value is not None and not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """
        Return an object; empty if the field is missing or null.

        :raises ApiError: 400, it has another type
        """
        value = self.value(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise wrong_type(name, "an object", value)
        return value

    def require_list(self, name: str) -> None:
        """
        Check that a field is a list, null or missing.

        :raises ApiError: 400, it has another type
        """
        raw = self._raw.get(name)
        if raw is not None and first_character(raw) not in "[n":
            raise wrong_type(name, "a list", self.value(name))


def change_to_stream(body: bytes) -> bytes | None:
    """Return a request's body, changed to request a stream with usage; None if not strict JSON."""
    try:
        fields: dict[str, Any] = dict(decode_fields(body))
    except DECODE_ERRORS:
        return None
    options = RequestFields(fields).mapping("stream_options")
    fields["stream"] = True
    fields["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode(fields)


def resolve_alias(model: str | None, aliases: Mapping[str, str]) -> str | None:
    """Return the backend's name for a model; `model` itself if it is not an alias."""
    return None if model is None else aliases.get(model, model)


def model_change(model: str | None, backend_model: str | None) -> dict[str, Any]:
    """Return the field that replaces an alias in a request's body; empty if `model` is not one."""
    return {} if model == backend_model else {"model": backend_model}


def append_fields(body: bytes, fields: Mapping[str, Any]) -> bytes:
    """Return a request's body with `fields` appended, none of which it may have already."""
    end = body.rindex(b"}")
    members = msgspec.json.encode(fields)[1:]
    # One join: each further copy of a long conversation costs memory to allocate and release.
    return b"".join((memoryview(body)[:end], b",", members, body[end + 1 :]))


def replace_fields(body: bytes, changes: Mapping[str, Any], without: Collection[str] = ()) -> bytes:
    """Return a request's body with some fields changed and others removed."""
    if not changes and not without:
        return body
    try:
        fields: dict[str, Any] = dict(decode_fields(body))
    except DECODE_ERRORS:
        lenient = _decode_leniently(body)
        fields = {name: msgspec.Raw(to_json(value)) for name, value in lenient.items()}
    for name in without:
        fields.pop(name, None)
    fields.update(changes)
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        # A field's name may contain an escaped half of a surrogate pair, which msgspec rejects.
        members = (
            json.dumps(name).encode() + b":" + msgspec.json.encode(value)
            for name, value in fields.items()
        )
        return b"{" + b",".join(members) + b"}"


def first_character(value: Any) -> str:
    """
    Return the first character of a value's JSON text, which shows its type.

    A value of Python (of a body that was read leniently) gives `"` for all strings, numbers and
    booleans.
    """
    if isinstance(value, msgspec.Raw):
        return chr(memoryview(value)[0])
    return {list: "[", dict: "{", type(None): "n"}.get(type(value), '"')


def to_json(value: Any) -> bytes:
    """Return the received JSON text of a value, or the value encoded if it was read leniently."""
    if isinstance(value, msgspec.Raw):
        return memoryview(value).tobytes()
    return json.dumps(value).encode()


def _decode_value(raw: msgspec.Raw) -> Any:
    """
    Return a value, or None if it cannot be decoded.

    Python's parser is tried second: it accepts numbers that msgspec rejects (1e400).
    """
    try:
        return msgspec.json.decode(raw)
    except DECODE_ERRORS:
        pass
    try:
        return json.loads(bytes(raw).decode())
    except (ValueError, RecursionError):
        return None


def _decode_leniently(body: bytes) -> dict[str, Any]:
    """
    Return the fields of a body that msgspec rejects and backends may accept: NaN, lone surrogates.

    :raises ApiError: 400, the body is not a JSON object
    """
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad_request(
            f"The request body is not valid JSON ({detail}). Send one JSON object.", None, None
        ) from None
    if not isinstance(value, dict):
        raise bad_request(
            f"The request body is {_type_name(value)}, not a JSON object. Send one JSON object.",
            None,
            None,
        )
    return value


def bad_request(message: str, param: str | None, code: str | None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def wrong_type(name: str, expected: str, value: Any) -> ApiError:
    return bad_request(
        f"`{name}` is {_type_name(value)}: it must be {expected}.", name, "invalid_type"
    )


def _type_name(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
    }
    return names.get(type(value), "an object")
