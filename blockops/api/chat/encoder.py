"""
Encodes chunks for the client, and rewrites the choices of the backend's responses.

All fields that a rewrite does not replace keep their JSON text. If several chunks replace one, they
send each of its other fields once; only those in `REPEATED_FIELDS` and empty ones are repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from blockops.api.chat.chunks import ChoiceRewrite, ChunkChoice, OutgoingDelta
from blockops.api.chat.decoder import EMPTY_LIST, ENVELOPE, envelope, is_empty
from blockops.api.json_fields import decode_fields, decode_objects, string_or_none

#: The fields of a choice that a rewrite replaces.
REPLACED_FIELDS = frozenset({"index", "delta", "finish_reason"})
#: The fields of a chunk that are sent with each of the chunks that replace it.
REPEATED_FIELDS = ENVELOPE | {"choices"}
_CALL_FIELDS = ("tool_calls", "function_call")
_CHUNK_TYPE = msgspec.Raw(b'"chat.completion.chunk"')

_encode = msgspec.json.Encoder().encode


def encode_chunk(fields: Mapping[str, Any], choices: list[dict[str, Any]]) -> bytes:
    """Return the JSON of a chunk with these choices."""
    return _encode({**fields, "choices": choices})


def rewrite_chunk(
    data: bytes, choices: Sequence[ChunkChoice], rewrites: Sequence[ChoiceRewrite | None]
) -> list[bytes]:
    """
    Return the JSON of the chunks that replace one chunk.

    :param data: the chunk
    :param choices: its choices, as decoded
    :param rewrites: the rewrite of each choice, or None if it is unchanged
    """
    fields = decode_fields(data)
    raw_choices = decode_objects(fields["choices"]) if choices else []
    rewritten: list[Mapping[str, Any]] = []
    for raw, choice, rewrite in zip(raw_choices, choices, rewrites, strict=True):
        if rewrite is None:
            rewritten.append(raw)
        elif rewrite.is_kept:
            rewritten.extend(_expand_choice(raw, choice, rewrite))
    if not rewritten:
        fields["choices"] = EMPTY_LIST
        has_more = any(key not in ENVELOPE and not is_empty(raw) for key, raw in fields.items())
        return [_encode(fields)] if has_more else []
    last: dict[str, Any] = {**fields, "choices": rewritten[-1:]}
    if len(rewritten) == 1:
        return [_encode(last)]
    repeated = {key: raw for key, raw in fields.items() if key in REPEATED_FIELDS or is_empty(raw)}
    return [*(_encode({**repeated, "choices": [one]}) for one in rewritten[:-1]), _encode(last)]


def _expand_choice(
    raw: dict[str, msgspec.Raw], choice: ChunkChoice, rewrite: ChoiceRewrite
) -> Iterable[dict[str, Any]]:
    """
    Return the choices that replace one choice.

    Other fields go into the first delta (reasoning precedes content), the backend's own calls into
    the last (calls follow content).
    """
    rest = _rest_of_delta(raw, choice, rewrite.index_offset)
    extra = {key: raw[key] for key in raw if key not in REPLACED_FIELDS}
    calls = {key: rest.pop(key) for key in _CALL_FIELDS if not is_empty(rest.get(key, EMPTY_LIST))}
    deltas = rewrite.deltas
    rest_keys = {key for key, value in rest.items() if not is_empty(value)}
    if not deltas:
        if rest_keys or calls or not all(map(is_empty, extra.values())):
            deltas = [OutgoingDelta({})]
    elif not rest_keys.isdisjoint(deltas[0].fields):
        deltas = [*_split_role(deltas[0]), *deltas[1:]]
    if not calls.keys().isdisjoint(deltas[-1].fields if deltas else ()):
        deltas = [*deltas, OutgoingDelta({})]
    empty_extra = {key: value for key, value in extra.items() if is_empty(value)}
    first, last = 0, len(deltas) - 1
    for position, delta in enumerate([*rewrite.before, *deltas], -len(rewrite.before)):
        fields = {**rest, **delta.fields} if position == first else delta.fields
        yield {
            "index": choice.index or 0,
            "delta": {**fields, **calls} if position == last else fields,
            **(extra if position == first else empty_extra),
            "finish_reason": delta.finish_reason,
        }


def _split_role(delta: OutgoingDelta) -> list[OutgoingDelta]:
    """Return a delta with the role, if there is one, and a delta with all other fields."""
    role, others = dict[str, Any](), dict[str, Any]()
    for key, value in delta.fields.items():
        (role if key == "role" else others)[key] = value
    return [OutgoingDelta(role), OutgoingDelta(others, delta.finish_reason)]


def _rest_of_delta(
    raw: dict[str, msgspec.Raw], choice: ChunkChoice, index_offset: int
) -> dict[str, Any]:
    """Return the fields of a choice's delta besides those that a rewrite replaces."""
    if choice.delta is None:
        return {}
    rest: dict[str, Any] = dict(decode_fields(raw["delta"]))
    rest.pop("role", None)
    if choice.delta.content is not None:
        del rest["content"]
    if index_offset and choice.delta.tool_calls:
        pairs = zip(decode_objects(rest["tool_calls"]), choice.delta.tool_calls, strict=True)
        rest["tool_calls"] = [
            {**fields, "index": index_offset + (position if call.index is None else call.index)}
            for position, (fields, call) in enumerate(pairs)
        ]
    return rest


def rewrite_response(
    data: bytes, choices: Sequence[ChunkChoice], rewrites: Sequence[ChoiceRewrite | None]
) -> bytes:
    """
    Return the JSON of a non-streaming response with rewritten messages.

    :param data: the response
    :param choices: its choices, as decoded
    :param rewrites: the rewrite of each choice, or None if it is unchanged
    """
    fields: dict[str, Any] = dict(decode_fields(data))
    raw_choices = decode_objects(fields["choices"])
    fields["choices"] = [
        raw if rewrite is None else _rewrite_message(raw, choice, rewrite)
        for raw, choice, rewrite in zip(raw_choices, choices, rewrites, strict=True)
    ]
    return _encode(fields)


def _rewrite_message(
    raw: dict[str, msgspec.Raw], choice: ChunkChoice, rewrite: ChoiceRewrite
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", **decode_fields(raw["message"])}
    deltas = [delta.fields for delta in rewrite.deltas]
    texts = [fields["content"] for fields in deltas if "content" in fields]
    before = _reasoning(delta.fields for delta in rewrite.before)
    after = _reasoning(deltas)
    calls = _join_calls(fields["tool_calls"][0] for fields in deltas if "tool_calls" in fields)
    if texts or (choice.delta is not None and choice.delta.content is not None):
        message["content"] = "".join(texts) if texts or not calls else None
    if before or after:
        reasoning = string_or_none(message.get("reasoning_content", b"null"))
        message["reasoning_content"] = before + (reasoning or "") + after
    if calls:
        message["tool_calls"] = calls + _objects(message.get("tool_calls", EMPTY_LIST))
    return {**raw, "message": message, "finish_reason": rewrite.deltas[-1].finish_reason}


def _reasoning(deltas: Iterable[dict[str, Any]]) -> str:
    return "".join(fields.get("reasoning_content", "") for fields in deltas)


def _join_calls(call_deltas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return complete tool calls, joined from the deltas of a stream."""
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []
    for delta in call_deltas:
        if "id" in delta:
            calls.append({key: delta[key] for key in ("id", "type", "function")})
            arguments.append([])
        else:
            arguments[-1].append(delta["function"]["arguments"])
    return [
        {**call, "function": {**call["function"], "arguments": "".join(parts)}}
        for call, parts in zip(calls, arguments, strict=True)
    ]


def response_as_chunk(data: bytes) -> bytes:
    """Return a non-streaming response as one chunk, whose deltas are the complete messages."""
    fields: dict[str, Any] = dict(decode_fields(data))
    fields["choices"] = [_message_to_delta(raw) for raw in decode_objects(fields["choices"])]
    fields["object"] = _CHUNK_TYPE
    return _encode(fields)


def _message_to_delta(choice: dict[str, msgspec.Raw]) -> dict[str, Any]:
    delta: dict[str, Any] = dict(decode_fields(choice["message"]))
    calls = _objects(delta.get("tool_calls", EMPTY_LIST))
    if calls:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    rest = {key: value for key, value in choice.items() if key not in {"message", "delta"}}
    return {**rest, "delta": delta}


def split_usage(data: bytes) -> tuple[bytes, bytes]:
    """Return a chunk without its `usage`, and a chunk for that alone, as OpenAI sends them."""
    fields = decode_fields(data)
    usage = fields.pop("usage", EMPTY_LIST)
    return _encode(fields), _encode({**envelope(data), "choices": [], "usage": usage})


def _objects(raw: msgspec.Raw) -> list[dict[str, msgspec.Raw]]:
    """Return a list of objects, or an empty list for any other value."""
    try:
        return decode_objects(raw)
    except msgspec.ValidationError:
        return []
