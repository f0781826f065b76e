"""
Server-sent events: decodes a backend's stream, and encodes events for clients.

The rules of the decoder are WHATWG's (HTML standard, section 9.2): a line ends with LF, CR or CRLF;
a line that begins with a colon is a comment; one leading space of a field's value is removed; the
data lines of an event are joined by LF; a blank line ends the event; an event without a data line
or without its blank line is dropped. One rule is added: a field `error` counts as the data of an
event with the name "error", because llama.cpp's server wrote its errors that way for years.

Nearly every event is one complete `data` line. Such an event is sliced from the received bytes and
never copied twice. An incomplete event is kept in one buffer, each byte of which is searched once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

#: A comment, which clients ignore (HTML standard, section 9.2).
HEARTBEAT = b": heartbeat\n\n"

_BOM = b"\xef\xbb\xbf"
_LF = 0x0A
_DATA_FIELD = re.compile(rb"\A(?:data|error): ?")


class EventTooLong(Exception):
    """An event is longer than the decoder's limit."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """
    One event, complete with its blank line.

    :param data: its data lines, joined by LF
    :param raw: the whole event, ready to be forwarded: without comments, with LF as line end, and
        with its blank line
    :param name: the value of its field `event`; empty without one, which means "message"
    """

    data: bytes
    raw: bytes
    name: bytes = b""

    def lenient_data(self) -> bytes:
        """
        Return the data, including lines that lack a field name.

        Such lines come from a raw line end inside a JSON string. The standard reads them as fields
        with unknown names, so `data` lacks them.
        """
        lines = self.raw.removesuffix(b"\n\n").split(b"\n")
        return b"\n".join(
            _DATA_FIELD.sub(b"", line, count=1)
            for line in lines
            if not line.startswith((b"event:", b"id:", b"retry:"))
        )


class EventDecoder:
    """
    Splits the received bytes into events, wherever one read ends and the next begins.

    :param max_event: maximum bytes of one event, without its comments
    """

    __slots__ = ("_bom_prefix", "_buffer", "_is_after_cr", "_line_start", "_max_event")

    def __init__(self, max_event: int) -> None:
        self._max_event = max_event
        self._bom_prefix: bytes | None = b""  # may become a byte order mark; None once decided
        self._buffer = bytearray()  # the incomplete event: complete lines, then the incomplete one
        self._line_start = 0  # index of the incomplete line in the buffer
        self._is_after_cr = False  # a LF would belong to the same line end

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """
        Yield the events that `data` completes, oldest first.

        If the iteration is abandoned early, do not call this again.

        :raises EventTooLong: after the events before the long one were yielded
        """
        if self._bom_prefix is not None:
            data = self._strip_bom(data)
        position = 1 if self._is_after_cr and data.startswith(b"\n") else 0
        end = len(data)
        if end:
            self._is_after_cr = False
        newline = data.find(b"\n", position)
        while position < end:
            if -1 < newline < position:
                newline = data.find(b"\n", position)
            if (
                newline > 0
                and data.startswith(b"\n", newline + 1)
                and data.startswith(b"data: ", position)
                and not self._buffer
                and newline - position < self._max_event
            ):
                value = data[position + 6 : newline]
                if b"\r" not in value:  # nearly every event: one line, and received completely
                    yield Event(value, data[position : newline + 2])
                    position = newline + 2
                    continue
            position, event = self._read_line(data, position, newline)
            if event is not None:
                yield event

    @property
    def pending(self) -> bytes:
        """The received part of an event that has not ended."""
        return bytes(self._buffer)

    @property
    def is_between_events(self) -> bool:
        """True if none of the received bytes belong to the next event."""
        return not self._buffer and not self._is_after_cr and self._bom_prefix is None

    def _strip_bom(self, data: bytes) -> bytes:
        data = (self._bom_prefix or b"") + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._bom_prefix = data
            return b""
        self._bom_prefix = None
        return data.removeprefix(_BOM)

    def _read_line(self, data: bytes, position: int, newline: int) -> tuple[int, Event | None]:
        """
        Read one line, or the received part of it.

        :param newline: index of the next LF, or -1
        :return: the index of the next line, and the event that this line ended, or None
        """
        stop = newline if newline >= 0 else len(data)
        carriage_return = data.find(b"\r", position, stop)
        if carriage_return >= 0:
            stop = carriage_return
        self._buffer += memoryview(data)[position:stop]
        if len(self._buffer) > self._max_event:
            raise EventTooLong
        if stop == len(data):
            return stop, None
        following = stop + 1
        if carriage_return >= 0:
            if following == len(data):
                self._is_after_cr = True
            elif data[following] == _LF:
                following += 1
        return following, self._end_line()

    def _end_line(self) -> Event | None:
        buffer = self._buffer
        if len(buffer) == self._line_start:
            block = bytes(buffer)
            buffer.clear()
            self._line_start = 0
            return _parse_event(block)
        if buffer.startswith(b":", self._line_start):
            del buffer[self._line_start :]
            return None
        buffer.append(_LF)
        self._line_start = len(buffer)
        return None


def encode_event(json: bytes) -> bytes:
    """Return an event with this JSON as its data, on one line."""
    if b"\n" in json or b"\r" in json:
        json = msgspec.json.format(json, indent=-1)
    return b"data: " + json + b"\n\n"


def _parse_event(block: bytes) -> Event | None:
    """Return the event in these lines; None if it has no data line, as the standard drops it."""
    values: list[bytes] = []
    name = b""
    for line in block.split(b"\n")[:-1]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            values.append(value)
        elif field == b"event":
            name = value
        elif field == b"error":
            name = field
            values.append(value)
    if not values:
        return None
    return Event(b"\n".join(values), block + b"\n", name)
