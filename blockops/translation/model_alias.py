"""
Aliases (short names for models) in event streams that are not translated.

The client gets the name that it sent. Streams of chunks are renamed by their decoder.
"""

from __future__ import annotations

import re

import msgspec

from blockops.api.chat.decoder import MAX_EVENT
from blockops.api.json_fields import raw_field, with_field
from blockops.api.models import rename_model
from blockops.api.passthrough import PassThrough
from blockops.api.sse import encode_event

_LINE_END = re.compile(rb"\r\n|\n|\r")
# A CR at the end of the data may be the first half of a CRLF.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n|\Z)){2}")
_MAX_BLANK_LINE = len(b"\r\n\r\n")
#: The objects with the model's name in events of `/v1/responses` and of `/v1/messages`.
_PARENTS = ("response", "message")


class AliasedPassThrough(PassThrough):
    """
    Passes a stream in any format through, with the alias as the model's name.

    Each event is held back until it is complete. One of more than `max_event` bytes passes
    unchanged, as it arrives.
    """

    def __init__(self, alias: str, max_event: int = MAX_EVENT) -> None:
        super().__init__()
        self._alias = alias
        self._max_event = max_event
        self._pending = bytearray()  # the incomplete event
        self._is_passing = False  # a part of the incomplete event has been sent

    def receive_data(self, data: bytes) -> bytes:
        if self.has_ended:
            return b""
        search_from = max(0, len(self._pending) - _MAX_BLANK_LINE)
        self._pending += data
        out: list[bytes] = []
        position = 0
        for blank in _BLANK_LINE.finditer(self._pending, search_from):
            out.append(self._rename(bytes(self._pending[position : blank.end()])))
            position = blank.end()
        del self._pending[:position]
        if len(self._pending) > self._max_event:
            out.append(bytes(self._pending))
            self._pending.clear()
            self._is_passing = True
        return super().receive_data(b"".join(out))

    def _flush(self) -> bytes:
        pending = bytes(self._pending)
        self._pending.clear()
        if pending.endswith((b"\r\r", b"\n\r")):
            pending = self._rename(pending)
        return super().receive_data(pending)

    def _rename(self, event: bytes) -> bytes:
        """Return an event in any format with the alias in it; unchanged if it names no model."""
        is_passing, self._is_passing = self._is_passing, False
        if is_passing or b'"model"' not in event:
            return event
        lines = [line for line in _LINE_END.split(event) if line]
        data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
        renamed = rename_model(data, self._alias)
        for parent in _PARENTS:
            value = raw_field(renamed, parent)
            new_value = rename_model(value, self._alias)
            if new_value != value:
                renamed = with_field(renamed, parent, msgspec.Raw(new_value))
        if renamed == data:
            return event
        others = [line + b"\n" for line in lines if not line.startswith(b"data:")]
        return b"".join([*others, encode_event(renamed)])
