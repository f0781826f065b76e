"""
Decodes chunks and non-streaming responses.

A chunk is decoded into the few fields that blockops decides on, and usually forwarded as the bytes
that were received. Only a chunk whose text changes is decoded further, one level at a time
(`blockops.api.json_fields`), so that the rest of it is forwarded byte for byte.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from blockops.api.chat.chunks import Chunk, ChunkChoice, Delta, Function, ToolCall
from blockops.api.json_fields import decode_fields, value_or_none

#: The fields that every chunk of an answer repeats. All others are sent once.
ENVELOPE = frozenset(
    {"id", "object", "created", "model", "system_fingerprint", "service_tier", "provider"}
)
EMPTY_LIST = msgspec.Raw(b"[]")
_EMPTY_VALUES = tuple(map(msgspec.Raw, (b"null", b"[]", b"{}", b'""')))

_decode_chunk = msgspec.json.Decoder(Chunk).decode


def decode_chunk(data: bytes) -> Chunk:
    """
    Decode a chunk.

    :raises msgspec.ValidationError: a field of `Chunk` has another type
    :raises blockops.api.lenient_json.DECODE_ERRORS: `data` is not strict JSON
    """
    if not data.isascii():
        data.decode()  # msgspec validates only the strings that it returns
    return _decode_chunk(data)


def decode_chunk_leniently(data: bytes) -> Chunk:
    """
    Decode a chunk; a field of an unexpected type counts as missing.

    :param data: strict JSON
    :raises ValueError: it is not an object, or a choice is not an object
    """
    with suppress(msgspec.ValidationError):
        return decode_chunk(data)
    value = msgspec.json.decode(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - the bytes are at fault
    choices = value_or_none(list, value.get("choices"))
    if choices is not None and not _are_objects(choices):
        raise ValueError("a choice is not an object")
    return Chunk(
        None if choices is None else [_lenient_choice(choice) for choice in choices],
        value_or_none(dict, value.get("usage")),
        value.get("error"),
    )


def _lenient_choice(choice: dict[str, Any]) -> ChunkChoice:
    return ChunkChoice(
        value_or_none(int, choice.get("index")),
        _lenient_delta(choice.get("delta")),
        _lenient_delta(choice.get("message")),
        value_or_none(str, choice.get("text")),
        value_or_none(str, choice.get("finish_reason")),
    )


def _lenient_delta(delta: Any) -> Delta | None:
    if not isinstance(delta, dict):
        return None
    calls = value_or_none(list, delta.get("tool_calls"))
    return Delta(
        value_or_none(str, delta.get("role")),
        value_or_none(str, delta.get("content")),
        [_lenient_call(call) for call in calls] if calls and _are_objects(calls) else None,
        Function() if delta.get("function_call") else None,
    )


def _lenient_call(call: dict[str, Any]) -> ToolCall:
    function = value_or_none(dict, call.get("function")) or {}
    name, arguments = function.get("name"), function.get("arguments")
    return ToolCall(
        value_or_none(int, call.get("index")),
        Function(value_or_none(str, name), value_or_none(str, arguments)),
    )


def _are_objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def envelope(data: bytes) -> dict[str, Any]:
    """Return the JSON text of the fields that every chunk of an answer repeats."""
    return {key: raw for key, raw in decode_fields(data).items() if key in ENVELOPE}


def is_empty(value: Any) -> bool:
    """Return True for null, "", [] and {} as JSON text; such a field needs no chunk of its own."""
    return value in _EMPTY_VALUES


class _ContentChoice(msgspec.Struct):
    delta: dict[str, Any] = {}


class _ContentChunk(msgspec.Struct):
    choices: list[_ContentChoice] = []


def has_content(data: bytes) -> bool:
    """
    Return True if a delta of the chunk has a field besides the role: text, reasoning, a call.

    A chunk of an unknown shape counts as one with content.
    """
    try:
        chunk = msgspec.json.decode(data, type=_ContentChunk)
    except msgspec.MsgspecError:
        return True
    return any(
        value for choice in chunk.choices for key, value in choice.delta.items() if key != "role"
    )
