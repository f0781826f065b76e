"""
Server-sent events: decodes a backend's stream, and encodes events for clients.

The rules of the decoder are WHATWG's (HTML standard, section 9.2): a line ends with LF, CR or CRLF;
a line that begins with a colon is a comment; one leading space of a field's value is removed; the
data lines of an event are joined by LF; a blank line ends the event; an event without a data line
or without its blank line is dropped. One rule is added: a field `error` counts as the data of an
event with the name "error", because llama.cpp's server wrote its errors that way for years.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

#: A comment, which clients ignore (HTML standard, section 9.2).
HEARTBEAT = b": heartbeat\n\n"

_BOM = b"\xef\xbb\xbf"
_DATA_FIELD = re.compile(rb"\A(?:data|error): ?")

#: Upper bound of the lines of one event: a line takes some 40 bytes of memory besides its own.
MAX_LINES = 65_536


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

    def __init__(self, max_event: int) -> None:
        self._max_event = max_event
        self._lines: list[bytes] = []  # of the incomplete event, without comments
        self._size = 0  # bytes of these lines, with their ends
        self._line = bytearray()  # the incomplete line
        self._is_first_line = True
        self._is_after_cr = False  # a LF would belong to the same line end

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """
        Yield the events that `data` completes, oldest first.

        If the iteration is abandoned early, do not call this again.

        :raises EventTooLong: after the events before the long one were yielded
        """
        for line in self._complete_lines(data):
            if not line:
                event = _parse_event(self._lines)
                self._lines.clear()
                self._size = 0
                if event is not None:
                    yield event
            elif self._size + len(line) >= self._max_event or len(self._lines) == MAX_LINES:
                raise EventTooLong
            elif not line.startswith(b":"):
                self._lines.append(line)
                self._size += len(line) + 1
        if self._size + len(self._line) > self._max_event:
            raise EventTooLong

    def _complete_lines(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their ends."""
        if self._is_after_cr and data:
            data = data.removeprefix(b"\n")
            self._is_after_cr = False
        if b"\r" in data:
            self._is_after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        incomplete = lines.pop()
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        if lines and self._is_first_line:
            lines[0] = lines[0].removeprefix(_BOM)
            self._is_first_line = False
        self._line += incomplete
        return lines

    @property
    def pending(self) -> bytes:
        """The received part of an event that has not ended."""
        return b"\n".join([*self._lines, self._line]).removeprefix(_BOM)

    @property
    def is_between_events(self) -> bool:
        """True if none of the received bytes belong to the next event."""
        return not (self._lines or self._line or self._is_after_cr or self._is_first_line)


def encode_event(json: bytes) -> bytes:
    """Return an event with this JSON as its data, on one line."""
    if b"\n" in json or b"\r" in json:
        json = msgspec.json.format(json, indent=-1)
    return b"data: " + json + b"\n\n"


def _parse_event(lines: list[bytes]) -> Event | None:
    """Return the event in these lines; None if it has no data line, as the standard drops it."""
    values: list[bytes] = []
    name = b""
    for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field in (b"data", b"error"):
            values.append(value)
            if field == b"error":
                name = field
    if not values:
        return None
    return Event(b"\n".join(values), b"\n".join([*lines, b"", b""]), name)
