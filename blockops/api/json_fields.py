"""
Strict JSON, one level at a time: what is not decoded keeps its JSON text.

So a field of which blockops knows nothing is forwarded byte for byte, with the spelling of its
numbers and the order of its keys.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from blockops.api.lenient_json import DECODE_ERRORS

_T = TypeVar("_T")

#: An object -> its fields.
decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
#: A list of objects -> their fields.
decode_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
#: A list -> its items.
decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode


def raw_field(data: bytes, name: str) -> bytes:
    """Return the JSON text of a field of an object; empty if there is no such field or object."""
    if b'"' + name.encode() + b'"' not in data:
        return b""
    try:
        return bytes(decode_fields(data).get(name, b""))
    except DECODE_ERRORS:
        return b""


def with_field(data: bytes, name: str, value: Any) -> bytes:
    """Return the JSON text of an object with one field added or replaced."""
    return msgspec.json.encode({**decode_fields(data), name: value})


def string_or_none(data: bytes | msgspec.Raw) -> str | None:
    """Return the string whose JSON text is `data`; None if it is the text of anything else."""
    try:
        return _decode_string(data)
    except DECODE_ERRORS:
        return None


def value_or_none(kind: type[_T], value: Any) -> _T | None:
    """Return `value` if it is of the type `kind`, else None."""
    return value if isinstance(value, kind) else None
