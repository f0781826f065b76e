"""
Encodes the events of an answer as chunks, and rewrites the backend's responses.

All fields that the events do not replace keep their JSON text. If several chunks replace one, they
send each of its other fields once; only those in `REPEATED_FIELDS` and empty ones are repeated.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from blockops.api.answer import (
    AnswerEvent,
    BackendCalls,
    CallArguments,
    CallFinished,
    CallStarted,
    ContentDelta,
    Finished,
    PartDropped,
    ReasoningDelta,
    RoleStarted,
)
from blockops.api.chat.chunks import Chunk, ChunkChoice, Delta, OpenChunk, ToolCall
from blockops.api.chat.decoder import DONE_EVENT, ENVELOPE, ReceivedChunk, envelope, is_empty
from blockops.api.json_fields import decode_fields, decode_objects, string_or_none
from blockops.api.sse import encode_event

#: The fields of a choice that its events replace.
REPLACED_FIELDS = frozenset({"index", "delta", "finish_reason"})
#: The fields of a chunk that are sent with each of the chunks that replace it.
REPEATED_FIELDS = ENVELOPE | {"choices"}
_CALL_FIELDS = ("tool_calls", "function_call")
_EMPTY_LIST = msgspec.Raw(b"[]")
_NOT_DELTAS = (CallFinished, BackendCalls, PartDropped)

#: For each choice of a chunk, the events that replace its part, or None if it is unchanged.
Rewrites = Sequence[Sequence[AnswerEvent] | None]

_encode = msgspec.json.Encoder().encode


class ChunkEncoder:
    """
    Encodes one answer as a stream of chunks.

    :param is_chat: True for chunks of a chat, False for those of `/v1/completions`
    :param model: the model's name in chunks that precede the backend's first one
    :cvar forwards_chunks: True if `pass_through` returns the chunk's own event
    :ivar source: the backend's first chunk with choices, whose envelope all chunks of blockops have
    """

    forwards_chunks = True

    def __init__(self, *, is_chat: bool, model: str) -> None:
        self.source: ReceivedChunk | None = None
        self._is_chat = is_chat
        self._model = model
        self._envelope: dict[str, Any] = {}
        self._has_envelope = False  # that of the backend

    def pass_through(self, chunk: ReceivedChunk) -> bytes:
        """Return the events for a chunk that does not change."""
        return chunk.event

    def rewrite(self, chunk: ReceivedChunk, rewrites: Rewrites) -> bytes:
        """Return the events for a chunk that changes."""
        if len(rewrites) == 1:
            events = _rewrite_known_chunk(chunk.fields, rewrites[0])
            if events is not None:
                return events
        return self._encode_chunks(rewrite_chunk(chunk.data, chunk.fields.choices or (), rewrites))

    def encode(self, events: Sequence[AnswerEvent]) -> bytes:
        """Return the events that belong to none of the backend's chunks."""
        if not events:
            return b""
        fields = self.envelope()
        choices = [self._make_choice(events[0].choice, *delta) for delta in to_deltas(events)]
        return self._encode_chunks([{**fields, "choices": [choice]} for choice in choices])

    def heartbeat(self, *, has_choice: bool) -> bytes:
        """Return a chunk without content; its choice is the first one, or missing."""
        choices = [self._make_choice(0, {}, None)] if has_choice else []
        return self._encode_chunks([{**self.envelope(), "choices": choices}])

    def envelope(self) -> dict[str, Any]:
        """Return the fields that all chunks share; those that the backend lacks are made up."""
        if not self._envelope:
            self._envelope = {
                "id": ("chatcmpl-" if self._is_chat else "cmpl-") + secrets.token_hex(12),
                "object": "chat.completion.chunk" if self._is_chat else "text_completion",
                "created": 0,  # this package has no clock, and no client is known to read the time
                "model": self._model,
            }
        if self.source is not None and not self._has_envelope:
            self._envelope.update(envelope(self.source.data))
            self._has_envelope = True
        return self._envelope

    def error(self, json: bytes) -> bytes:
        """Return the event that ends the stream with an error."""
        return encode_event(json)

    def done(self) -> bytes:
        """Return the event that ends the stream regularly."""
        return DONE_EVENT

    def _encode_chunks(self, chunks: Iterable[Mapping[str, Any]]) -> bytes:
        return b"".join([encode_event(_encode(chunk)) for chunk in chunks])

    def _make_choice(
        self, index: int, fields: dict[str, Any], finish_reason: str | None
    ) -> dict[str, Any]:
        if self._is_chat:
            return {"index": index, "delta": fields, "finish_reason": finish_reason}
        return {"index": index, "text": "", "logprobs": None, "finish_reason": finish_reason}


def _rewrite_known_chunk(chunk: Chunk, events: Sequence[AnswerEvent] | None) -> bytes | None:
    """
    Return the events that replace a chunk of the usual kind; None for any other chunk.

    That is a chunk with one choice, only fields that `Chunk` names, and no content but its text.
    Most chunks are such. The result is that of `rewrite_chunk`.

    :param events: the events that replace the part of its choice
    """
    part = chunk.choices[0] if chunk.choices else ChunkChoice()
    delta = part.delta
    if isinstance(chunk, OpenChunk) or events is None or not delta:
        return None
    if not (part.text is part.message is chunk.error is UNSET):
        return None
    if delta.reasoning_content or delta.reasoning or delta.refusal or delta.has_calls:
        return None
    deltas = to_deltas(events)
    # They are sent once, and in the order in which they were received.
    if chunk.unrepeated_fields() > (len(deltas) == 1):
        return None
    if not deltas:
        return b"" if isinstance(delta.content, str) else None
    part.index = part.index or 0
    delta.role = delta.content = UNSET
    out = []
    for fields, part.finish_reason in deltas:
        for name, value in fields.items():
            setattr(delta, name, value)
        out.append(b"data: %b\n\n" % _encode(chunk))
        part.delta = delta = Delta()
    return b"".join(out)


def rewrite_chunk(
    data: bytes, choices: Sequence[ChunkChoice], rewrites: Rewrites
) -> list[Mapping[str, Any]]:
    """Return the fields of the chunks that replace one chunk, as JSON text or values."""
    fields = decode_fields(data)
    raw_choices = decode_objects(fields["choices"]) if choices else []
    rewritten: list[Mapping[str, Any]] = []
    for raw, choice, events in zip(raw_choices, choices, rewrites, strict=True):
        if events is None:
            rewritten.append(raw)
        elif not (events and isinstance(events[0], PartDropped)):
            rewritten += _expand_choice(raw, choice, events)
    if not rewritten:
        fields["choices"] = _EMPTY_LIST
        has_more = any(key not in ENVELOPE and not is_empty(raw) for key, raw in fields.items())
        return [fields] if has_more else []
    last: dict[str, Any] = {**fields, "choices": rewritten[-1:]}
    if len(rewritten) == 1:
        return [last]
    repeated = {key: raw for key, raw in fields.items() if key in REPEATED_FIELDS or is_empty(raw)}
    return [*({**repeated, "choices": [one]} for one in rewritten[:-1]), last]


#: The fields of a delta, and its finish reason.
OutgoingDelta = tuple[dict[str, Any], str | None]


def to_deltas(events: Iterable[AnswerEvent]) -> list[OutgoingDelta]:
    """
    Return the deltas for events of one choice.

    The role is sent with the content or call that follows it. The finish reason has a delta of its
    own, unless it follows an empty one. Events that are no delta are left out.
    """
    deltas: list[OutgoingDelta] = []
    for event in events:
        if isinstance(event, _NOT_DELTAS):
            continue
        last = deltas[-1][0] if deltas else None
        if isinstance(event, Finished):
            if last is not None and (last.keys() == {"role"} or not any(last.values())):
                deltas.pop()
            else:
                last = {}
            deltas.append((last, event.reason))
        elif last is not None and last.keys() == {"role"} and not isinstance(event, ReasoningDelta):
            last.update(_fields(event))
        else:
            deltas.append((_fields(event), None))
    return deltas


def _fields(event: AnswerEvent) -> dict[str, Any]:
    if isinstance(event, CallArguments):
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
    if isinstance(event, ContentDelta):
        return {"content": event.text}
    if isinstance(event, ReasoningDelta):
        return {"reasoning_content": event.text}
    if isinstance(event, RoleStarted):
        return {"role": event.role}
    return {"tool_calls": [_call_fields(event)]} if isinstance(event, CallStarted) else {}


def _call_fields(call: CallStarted) -> dict[str, Any]:
    function = {"name": call.name, "arguments": ""}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _expand_choice(
    raw: dict[str, msgspec.Raw], choice: ChunkChoice, events: Sequence[AnswerEvent]
) -> list[dict[str, Any]]:
    """
    Return the choices that replace one choice.

    Other fields go into the first delta (reasoning precedes content), the backend's own calls into
    the last (calls follow content).
    """
    deltas = to_deltas(events)
    known = choice.delta or Delta()
    rest: dict[str, Any] = dict(decode_fields(raw["delta"])) if choice.delta else {}
    rest.pop("role", None)
    if isinstance(known.content, str):
        del rest["content"]
    calls = {key: rest.pop(key) for key in _CALL_FIELDS if not is_empty(rest.get(key, _EMPTY_LIST))}
    extra = {key: raw[key] for key in raw if key not in REPLACED_FIELDS}
    index = choice.index or 0
    if len(deltas) == 1 and not rest and not calls:
        fields, reason = deltas[0]
        return [{"index": index, "delta": fields, **extra, "finish_reason": reason}]
    if calls and known.tool_calls:
        calls["tool_calls"] = _move_calls(calls["tool_calls"], known.tool_calls, events)
    rest_keys = {key for key, value in rest.items() if not is_empty(value)}
    if not deltas:
        # All of the content is held back: only a part with something else is sent now.
        has_content = isinstance(known.content, str)
        if not has_content or rest_keys or calls or not all(map(is_empty, extra.values())):
            deltas = [({}, None)]
    elif not rest_keys.isdisjoint(deltas[0][0]):
        first, reason = deltas[0]
        role = {"role": first.pop("role")} if "role" in first else {}
        deltas = [(role, None), (first, reason), *deltas[1:]]
    if not calls.keys().isdisjoint(deltas[-1][0] if deltas else ()):
        deltas.append(({}, None))
    empty_extra = {key: value for key, value in extra.items() if is_empty(value)}
    expanded = []
    for position, (fields, reason) in enumerate(deltas):
        delta = {**rest, **fields} if position == 0 else fields
        if position == len(deltas) - 1:
            delta = {**delta, **calls}
        more = extra if position == 0 else empty_extra
        expanded.append({"index": index, "delta": delta, **more, "finish_reason": reason})
    return expanded


def _move_calls(raw: msgspec.Raw, calls: Sequence[ToolCall], events: Iterable[AnswerEvent]) -> Any:
    """Return the backend's calls with the indexes that follow those of the translated calls."""
    offset = next((event.index_offset for event in events if isinstance(event, BackendCalls)), 0)
    if not offset:
        return raw
    pairs = zip(decode_objects(raw), calls, strict=True)
    return [
        {**fields, "index": offset + (position if call.index is None else call.index)}
        for position, (fields, call) in enumerate(pairs)
    ]


def rewrite_response(data: bytes, choices: Sequence[ChunkChoice], rewrites: Rewrites) -> bytes:
    """Return the JSON of a non-streaming response with rewritten messages."""
    fields: dict[str, Any] = dict(decode_fields(data))
    raw_choices = decode_objects(fields["choices"])
    fields["choices"] = [
        raw if events is None else _rewrite_message(raw, choice, events)
        for raw, choice, events in zip(raw_choices, choices, rewrites, strict=True)
    ]
    return _encode(fields)


def _rewrite_message(
    raw: dict[str, msgspec.Raw], choice: ChunkChoice, events: Sequence[AnswerEvent]
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", **decode_fields(raw["message"])}
    texts = [event.text for event in events if isinstance(event, ContentDelta)]
    reasoning = [event.text for event in events if isinstance(event, ReasoningDelta)]
    calls = _join_calls(events)
    if texts or (choice.delta and isinstance(choice.delta.content, str)):
        message["content"] = "".join(texts) if texts or not calls else None
    if reasoning:
        own = string_or_none(message.get("reasoning_content", b"null")) or ""
        # Reasoning before the role is a notice, which precedes that of the backend.
        reasoning.insert(1 if isinstance(events[0], ReasoningDelta) else 0, own)
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls + _objects(message.get("tool_calls", _EMPTY_LIST))
    last = events[-1]
    reason = last.reason if isinstance(last, Finished) else None
    return {**raw, "message": message, "finish_reason": reason}


def _join_calls(events: Iterable[AnswerEvent]) -> list[dict[str, Any]]:
    """Return the complete tool calls, as a message has them."""
    calls: dict[int, dict[str, Any]] = {}
    arguments: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, CallStarted):
            calls[event.index] = _call_fields(event)
            arguments[event.index] = []
        elif isinstance(event, CallArguments):
            arguments[event.index].append(event.text)
    for index, call in calls.items():
        del call["index"]
        call["function"]["arguments"] = "".join(arguments[index])
    return list(calls.values())


def response_as_chunk(data: bytes) -> bytes:
    """Return a non-streaming response as one chunk, whose deltas are the complete messages."""
    fields: dict[str, Any] = dict(decode_fields(data))
    fields["choices"] = [_message_to_delta(raw) for raw in decode_objects(fields["choices"])]
    fields["object"] = "chat.completion.chunk"
    return _encode(fields)


def _message_to_delta(choice: dict[str, msgspec.Raw]) -> dict[str, Any]:
    delta: dict[str, Any] = dict(decode_fields(choice["message"]))
    calls = _objects(delta.get("tool_calls", _EMPTY_LIST))
    if calls:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    rest = {key: value for key, value in choice.items() if key not in {"message", "delta"}}
    return {**rest, "delta": delta}


def without_usage(data: bytes) -> bytes:
    """Return a chunk without its `usage`."""
    return _encode({key: raw for key, raw in decode_fields(data).items() if key != "usage"})


def only_usage(data: bytes) -> bytes:
    """Return a chunk with nothing but the `usage` of another one, as OpenAI sends it."""
    usage = decode_fields(data).get("usage", _EMPTY_LIST)
    return _encode({**envelope(data), "choices": [], "usage": usage})


def _objects(raw: msgspec.Raw) -> list[dict[str, msgspec.Raw]]:
    try:
        return decode_objects(raw)
    except msgspec.ValidationError:
        return []
