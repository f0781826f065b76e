"""
Decodes a backend's stream of chunks, and its non-streaming responses.

A chunk is decoded into the few fields that blockops decides on, and usually forwarded as the bytes
that were received. Only a chunk whose text changes is decoded further, one level at a time
(`blockops.api.json_fields`), so that the rest of it is forwarded byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET

from blockops.api.backend_errors import (
    invalid_response,
    looks_like_error,
    to_api_error,
    to_error_event,
)
from blockops.api.chat.chunks import (
    NULL,
    Chunk,
    ChunkChoice,
    Function,
    OpenChoice,
    OpenChunk,
    OpenDelta,
    ToolCall,
    messages_to_deltas,
)
from blockops.api.json_fields import decode_fields, value_or_none
from blockops.api.lenient_json import DECODE_ERRORS, JsonRepairer, is_strict
from blockops.api.models import rename_model
from blockops.api.sse import Event, EventDecoder, EventTooLong, encode_event
from blockops.errors import ApiError

#: Upper bound of one event of the backend, in bytes: enough for a complete answer with images.
MAX_EVENT = 8 * 1024 * 1024
#: The fields that every chunk of an answer repeats. All others are sent once.
ENVELOPE = frozenset(
    {"id", "object", "created", "model", "system_fingerprint", "service_tier", "provider"}
)
_EMPTY_VALUES = tuple(map(msgspec.Raw, (b"null", b"[]", b"{}", b'""')))
DONE_EVENT = b"data: [DONE]\n\n"
_DATA, _BLANK_LINE = b"data: ", b"\n\n"
_DATA_LENGTH, _BLANK_LINE_LENGTH = len(_DATA), len(_BLANK_LINE)
_FRAMING_LENGTH = _DATA_LENGTH + _BLANK_LINE_LENGTH

_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_open_chunk = msgspec.json.Decoder(OpenChunk).decode


class ReceivedChunk(msgspec.Struct, frozen=True, gc=False):
    """
    A chunk of the backend.

    :param fields: its decoded fields
    :param event: the event to send if it passes unchanged: one line of data and a blank line
    :param only_part: its only choice, if it has no usage, no error and no message besides
    """

    fields: Chunk
    event: bytes
    only_part: ChunkChoice | None = None

    @property
    def data(self) -> bytes:
        """Its JSON."""
        return self.event[_DATA_LENGTH:-_BLANK_LINE_LENGTH]


class StreamError(msgspec.Struct, frozen=True, gc=False):
    """An error within the backend's stream; `json` has the format of the OpenAI API."""

    message: str
    json: bytes


class StreamDone(msgspec.Struct, frozen=True, gc=False):
    """`[DONE]`, the regular end of a stream."""


BackendEvent = ReceivedChunk | StreamError | StreamDone


class ChunkDecoder:
    """
    Decodes the stream of one response.

    :param max_event: upper bound of one event, in bytes
    :param counters: receives "foreign_event", the number of events in other formats
    :param alias: the model's name for the client, in place of the backend's; None to keep that
    """

    def __init__(self, max_event: int, counters: Counter[str], alias: str | None = None) -> None:
        self._events = EventDecoder(max_event)
        self._max_event = max_event
        self._counters = counters
        self._alias = alias
        self._repairer = JsonRepairer()
        # False within an event, and if the next one needs a repair or another model's name.
        self._expects_usual_event = alias is None

    def receive_data(self, data: bytes) -> Iterable[BackendEvent]:
        """
        Return the events that `data` completes, oldest first.

        If an iteration over them is abandoned early, do not call this again.

        :raises ApiError: 502 for an event that is too long or not of the OpenAI API, after the
            events before it
        """
        # Nearly every read is one event: a line of data and a blank line.
        size = len(data)
        if (
            data.find(b"\n") == size - _BLANK_LINE_LENGTH
            and data.startswith(_DATA)
            and data.endswith(_BLANK_LINE)
            and b"\r" not in data
            and size < self._max_event
            and self._expects_usual_event
        ):
            try:
                if not data.isascii():
                    data.decode()  # msgspec validates only the strings that it returns
                chunk = _decode_chunk(data[_DATA_LENGTH:-_BLANK_LINE_LENGTH])
            except DECODE_ERRORS:
                return (StreamDone(),) if data == DONE_EVENT else self._receive_events(data)
            part = None
            has_usage = chunk.usage is not UNSET and chunk.usage != NULL
            if chunk.choices and not has_usage and chunk.error is UNSET:
                part = chunk.choices[0]
                if len(chunk.choices) > 1 or part.message is not UNSET:
                    part = None
            return (ReceivedChunk(chunk, data, part),)
        return self._receive_events(data)

    def _receive_events(self, data: bytes) -> Iterator[BackendEvent]:
        try:
            for event in self._events.receive_data(data):
                decoded = self.decode(event)
                if decoded is not None:
                    yield decoded
            self._expects_usual_event = (
                self._events.is_between_events
                and self._alias is None
                and not self._repairer.pending
            )
        except EventTooLong:
            problem = f"The backend sent an event of more than {self._max_event} bytes."
            message = f"{problem} Raise --max-event to allow it."
            code = "backend_event_too_large"
            raise ApiError(502, message, type="server_error", code=code) from None

    @property
    def pending(self) -> bytes:
        """The received part of an event that has not ended."""
        return self._events.pending

    @property
    def has_surrogates(self) -> bool:
        """True if there are halves of surrogate pairs without a second half."""
        return bool(self._repairer.pending)

    def flush(self, envelope_fields: dict[str, Any]) -> ReceivedChunk:
        """Return a chunk with U+FFFD for each half of a surrogate pair without a second half."""
        choices = self._repairer.flush()
        return receive_chunk(msgspec.json.encode({**envelope_fields, "choices": choices}))

    def decode(self, event: Event) -> BackendEvent | None:
        """
        Decode one event; return None for one that means nothing to clients.

        :raises ApiError: 502 if it is not an event of the OpenAI API
        """
        data = event.data
        if self._alias is not None:
            data = rename_model(data, self._alias)
        try:
            chunk = decode_chunk(data)
        except DECODE_ERRORS:
            return self._decode_special(event)
        if event.name or self._repairer.pending:
            return self._decode_special(event)
        if len(event.raw) != len(data) + _FRAMING_LENGTH or data is not event.data:
            # Other fields mean nothing here, and some clients need the space after "data:".
            return ReceivedChunk(chunk, encode_event(data))
        return ReceivedChunk(chunk, event.raw)

    def decode_response(self, body: bytes, *, is_chat: bool) -> tuple[bytes, Chunk]:
        """
        Return a non-streaming response as strict JSON, and its fields, with the choices of a chunk.

        :param is_chat: True if each choice has a message; False for `/v1/completions`
        :raises ApiError: 502 if `body` is not a response; the backend's error if it is one
        """
        try:
            data = body if is_strict(body) else self._repairer.repair(body)
            chunk = decode_chunk_leniently(data)
        except ValueError:
            raise invalid_response(body) from None
        if chunk.error or (not isinstance(chunk.choices, list) and looks_like_error(data)):
            raise to_api_error(data)
        if is_chat:
            chunk.choices = messages_to_deltas(chunk.choices or None)
        if not chunk.choices:
            raise invalid_response(body)
        if self._alias is not None:
            data = rename_model(data, self._alias)
        return data, chunk

    def _decode_special(self, event: Event) -> BackendEvent | None:
        """Decode an event that has a name, is not a chunk, or needs repair."""
        data = event.data.strip()
        if event.name == b"error":
            return StreamError(*to_error_event(event.lenient_data()))
        if data == b"[DONE]":
            return StreamDone()
        if not data:
            return None  # some backends send an event without data as a heartbeat
        is_named = event.name not in {b"", b"message"}
        try:
            data = self._repair(event)
            if self._alias is not None:
                data = rename_model(data, self._alias)
            chunk = decode_chunk_leniently(data)
        except ValueError:
            if not is_named:
                raise invalid_response(event.data) from None
            chunk = Chunk()
        if is_named and not chunk.choices and not chunk.error:
            # An event of another format, such as "ping": clients would fail to decode it.
            self._counters["foreign_event"] += 1
            return None
        return ReceivedChunk(chunk, encode_event(data))

    def _repair(self, event: Event) -> bytes:
        if not self._repairer.pending and is_strict(event.data):
            return event.data
        try:
            return self._repairer.repair(event.data)
        except ValueError:
            return self._repairer.repair(event.lenient_data())


def receive_chunk(data: bytes) -> ReceivedChunk:
    """
    Return the chunk for JSON that did not come as an event.

    :raises ValueError: it is not an object, or a choice is not an object
    """
    return ReceivedChunk(decode_chunk_leniently(data), encode_event(data))


def decode_chunk(data: bytes) -> Chunk:
    """
    Decode a chunk.

    :return: an `OpenChunk` if it has a field that `Chunk` does not name
    :raises msgspec.ValidationError: a field of `Chunk` has another type
    :raises blockops.api.lenient_json.DECODE_ERRORS: `data` is not strict JSON
    """
    if not data.isascii():
        data.decode()  # msgspec validates only the strings that it returns
    try:
        return _decode_chunk(data)
    except msgspec.ValidationError:
        return _decode_open_chunk(data)


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
    return OpenChunk(
        choices=None if choices is None else [_lenient_choice(choice) for choice in choices],
        usage=decode_fields(data).get("usage", UNSET),
        error=value.get("error"),
    )


def _lenient_choice(choice: dict[str, Any]) -> OpenChoice:
    return OpenChoice(
        index=value_or_none(int, choice.get("index")),
        delta=_lenient_delta(choice.get("delta")),
        message=_lenient_delta(choice.get("message")),
        text=value_or_none(str, choice.get("text")),
        finish_reason=value_or_none(str, choice.get("finish_reason")),
    )


def _lenient_delta(delta: Any) -> OpenDelta | None:
    if not isinstance(delta, dict):
        return None
    calls = value_or_none(list, delta.get("tool_calls"))
    return OpenDelta(
        role=value_or_none(str, delta.get("role")),
        content=value_or_none(str, delta.get("content")),
        tool_calls=[_lenient_call(call) for call in calls]
        if calls and _are_objects(calls)
        else None,
        function_call=Function() if delta.get("function_call") else None,
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


def has_content(chunk: Chunk) -> bool:
    """Return True if a delta has text, reasoning or a call, or the chunk has unknown fields."""
    return isinstance(chunk, OpenChunk) or any(
        delta.content or delta.reasoning_content or delta.reasoning or delta.has_calls
        for choice in chunk.choices or ()
        if (delta := choice.delta)
    )
