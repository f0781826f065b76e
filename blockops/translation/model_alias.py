"""
Aliases (short names for models) in responses: the client gets the name that it sent.

In a stream, every chunk contains the backend's name. It is learnt from the first chunk and then
replaced as bytes. A model's text cannot contain these bytes, because quotes in it are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from blockops.api.json_fields import decode_fields, raw_field, string_or_none
from blockops.api.passthrough import PassThrough
from blockops.api.sse import encode_event
from blockops.errors import ApiError
from blockops.translation.stream import MAX_EVENT, StreamTranslator

_DATA = b"data: "
_LINE_END = re.compile(rb"\r\n|\n|\r")
# A CR at the end of the data may be the first half of a CRLF.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n|\Z)){2}")
_MAX_BLANK_LINE = len(b"\r\n\r\n")
#: The objects with the model's name in events of `/v1/responses` and of `/v1/messages`.
_PARENTS = ("response", "message")


class ModelAlias:
    """
    Replaces the backend's name for a model in one response.

    :param name: the alias, as the client sent it
    """

    def __init__(self, name: str) -> None:
        self._name = msgspec.json.encode(name)
        # Escaped, because a backslash has a meaning in a pattern's replacement.
        self._replacement = b'"model":' + self._name.replace(b"\\", rb"\\")
        self._pattern: re.Pattern[bytes] | None = None

    def rename_events(self, events: bytes) -> bytes:
        """Return complete events of a translated stream with the alias as the model's name."""
        if self._pattern is None:
            self._pattern = self._learn_pattern(events)
        return events if self._pattern is None else self._pattern.sub(self._replacement, events)

    def _learn_pattern(self, events: bytes) -> re.Pattern[bytes] | None:
        """
        Return a pattern for the backend's `"model"` field, from the first chunk with another name.

        It matches the name as the chunk spells it and as msgspec spells it (in repaired chunks),
        with any white space (a rewritten chunk has none, an unchanged one may have some).
        """
        for event in events.split(b"\n\n") if b'"model"' in events else ():
            name = raw_field(event.removeprefix(_DATA), "model")
            if name.startswith(b'"') and name not in (self._name, b'""'):
                spellings = dict.fromkeys((name, msgspec.json.encode(string_or_none(name))))
                return re.compile(rb'"model"\s*:\s*(?:%s)' % b"|".join(map(re.escape, spellings)))
        return None

    def rename_response(self, body: bytes) -> bytes:
        """Return the JSON of a response with the alias in it; unchanged if it names no model."""
        name = raw_field(body, "model")
        if not name.startswith(b'"') or name == self._name:
            return body
        return msgspec.json.encode({**decode_fields(body), "model": msgspec.Raw(self._name)})

    def rename_event(self, event: bytes) -> bytes:
        """Return an event in any format with the alias in it; unchanged if it names no model."""
        if b'"model"' not in event:
            return event
        lines = [line for line in _LINE_END.split(event) if line]
        data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
        renamed = self.rename_response(data)
        for parent in _PARENTS:
            value = raw_field(renamed, parent)
            new_value = self.rename_response(value)
            if new_value != value:
                fields = {**decode_fields(renamed), parent: msgspec.Raw(new_value)}
                renamed = msgspec.json.encode(fields)
        if renamed == data:
            return event
        others = [line + b"\n" for line in lines if not line.startswith(b"data:")]
        return b"".join([*others, encode_event(renamed)])


class AliasedPassThrough(PassThrough):
    """
    Passes a stream in any format through, with the alias as the model's name.

    Each event is held back until it is complete. One of more than `max_event` bytes passes
    unchanged, as it arrives.
    """

    def __init__(self, alias: ModelAlias, max_event: int = MAX_EVENT) -> None:
        super().__init__()
        self._alias = alias
        self._max_event = max_event
        self._pending = bytearray()  # the incomplete event
        # For that event: `bytes`, which changes nothing, if a part of it has been sent.
        self._rename: Callable[[bytes], bytes] = alias.rename_event

    def receive_data(self, data: bytes) -> bytes:
        """Return the events that `data` completes."""
        if self.has_ended:
            return b""
        pending = self._pending
        position, search_from = 0, max(0, len(pending) - _MAX_BLANK_LINE)
        pending += data
        out: list[bytes] = []
        for blank in _BLANK_LINE.finditer(pending, search_from):
            out.append(self._rename(bytes(pending[position : blank.end()])))
            position = blank.end()
            self._rename = self._alias.rename_event
        del pending[:position]
        if len(pending) > self._max_event:
            out.append(self._flush())
            self._rename = bytes
        return super().receive_data(b"".join(out))

    def end(self, *, is_truncated: bool) -> bytes:
        """Return the bytes held back, and an error event if the response was truncated."""
        if self._pending.endswith((b"\r\r", b"\n\r")):
            self._pending[:] = self._rename(bytes(self._pending))
        return super().receive_data(self._flush()) + super().end(is_truncated=is_truncated)

    def fail(self, error: ApiError) -> bytes:
        """Return the bytes held back, and `error` as the last event."""
        return super().receive_data(self._flush()) + super().fail(error)

    def _flush(self) -> bytes:
        pending = bytes(self._pending)
        self._pending.clear()
        return pending


class AliasedStreamTranslator(StreamTranslator):
    """A `StreamTranslator` that sends the alias as the model's name."""

    def __init__(self, alias: ModelAlias, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._alias = alias

    def receive_data(self, data: bytes) -> bytes:
        """See `StreamTranslator.receive_data`."""
        return self._alias.rename_events(super().receive_data(data))

    def heartbeat(self) -> bytes:
        """See `StreamTranslator.heartbeat`."""
        return self._alias.rename_events(super().heartbeat())

    def prefill_notice(self, text: str) -> bytes:
        """See `StreamTranslator.prefill_notice`."""
        return self._alias.rename_events(super().prefill_notice(text))

    def end(self, *, is_truncated: bool) -> bytes:
        """See `StreamTranslator.end`. It is the whole stream if the backend sent a JSON body."""
        return self._alias.rename_events(super().end(is_truncated=is_truncated))

    def _end_with_error(self, message: str, json: bytes) -> bytes:
        return self._alias.rename_events(super()._end_with_error(message, json))
