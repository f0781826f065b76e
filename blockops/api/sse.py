"""
Server-sent events: bytes, cut anywhere, to events.

The rules are WHATWG's (HTML standard, section 9.2): a line ends with LF, CR or CRLF; a line that
begins with a colon is a comment; a field's value loses one leading space; the data lines of an
event are joined by LF; a blank line ends the event, and without it there is none. One rule is
added: a field `error` counts as an event of the type "error", because llama.cpp's server wrote its
errors that way for years.

A whole event that is one `data` line, as nearly all are, is cut out of the packet and never copied
twice. What is unfinished is held in one buffer, of which every byte is searched once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

_BOM = b"\xef\xbb\xbf"
_LF = 0x0A
_MARK = re.compile(rb"\A(?:data|error): ?")


class EventTooLong(Exception):
    """An event outgrew what the decoder may hold of it."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """
    One event, fired when its blank line has come.

    :param data: its data lines, joined by LF
    :param raw: the whole event as it may be sent on: comments left out, ended by its blank line
    :param name: its type, empty for the usual "message"
    """

    data: bytes
    raw: bytes
    name: bytes = b""

    def all_lines(self) -> bytes:
        """
        Return the data as it was meant where a line end stands inside of it unmarked.

        Such a line counts as a field of another name, and is lost to `data`.
        """
        lines = self.raw.removesuffix(b"\n\n").split(b"\n")
        return b"\n".join(
            _MARK.sub(b"", line, count=1)
            for line in lines
            if not line.startswith((b"event:", b"id:", b"retry:"))
        )


class EventDecoder:
    """
    Cut bytes into server-sent events, wherever the network happened to cut the bytes.

    :param max_event: bytes that one event may have, its comments left out
    """

    __slots__ = ("_held", "_last", "_line_start", "_max_event", "_opening")

    def __init__(self, max_event: int) -> None:
        self._max_event = max_event
        self._opening: bytes | None = b""  # what may be a byte order mark; None once decided
        self._held = bytearray()  # the unfinished event: whole lines, then the unfinished one
        self._line_start = 0  # where in it the unfinished line begins
        self._last = b""  # CR if a LF that comes next belongs to it

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """
        Yield the events that `data` completes, oldest first.

        Whoever stops before the end must not come back with more.

        :raises EventTooLong: behind the events before it
        """
        if self._opening is not None:
            data = self._without_mark(data)
        position = 1 if self._last and data.startswith(b"\n") else 0
        end = len(data)
        if end:
            self._last = b""
        newline = data.find(b"\n", position)
        while position < end:
            if -1 < newline < position:
                newline = data.find(b"\n", position)
            if (
                newline > 0
                and data.startswith(b"\n", newline + 1)
                and data.startswith(b"data: ", position)
                and not self._held
                and newline - position < self._max_event
            ):
                value = data[position + 6 : newline]
                if b"\r" not in value:  # nearly every event: one line, and all of it here
                    yield Event(value, data[position : newline + 2])
                    position = newline + 2
                    continue
            position, event = self._take_line(data, position, newline)
            if event is not None:
                yield event

    @property
    def unfinished(self) -> bytes:
        """What has come of an event that has not ended."""
        return bytes(self._held)

    @property
    def between_events(self) -> bool:
        """Whether nothing that has come belongs to an event to come."""
        return not self._held and not self._last and self._opening is None

    def _without_mark(self, data: bytes) -> bytes:
        data = (self._opening or b"") + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._opening = data
            return b""
        self._opening = None
        return data.removeprefix(_BOM)

    def _take_line(self, data: bytes, position: int, newline: int) -> tuple[int, Event | None]:
        """
        Read one line, or the part of one that has come.

        :param newline: where the next LF is, -1 if there is none
        :return: where to go on, and the event that the line ended
        """
        stop = newline if newline >= 0 else len(data)
        carriage_return = data.find(b"\r", position, stop)
        if carriage_return >= 0:
            stop = carriage_return
        self._held += memoryview(data)[position:stop]
        if len(self._held) > self._max_event:
            raise EventTooLong
        if stop == len(data):
            return stop, None
        following = stop + 1
        if carriage_return >= 0:
            if following == len(data):
                self._last = b"\r"
            elif data[following] == _LF:
                following += 1
        return following, self._line_ended()

    def _line_ended(self) -> Event | None:
        held = self._held
        if len(held) == self._line_start:
            block = bytes(held)
            held.clear()
            self._line_start = 0
            return _event(block)
        if held.startswith(b":", self._line_start):
            del held[self._line_start :]
            return None
        held.append(_LF)
        self._line_start = len(held)
        return None


def _event(block: bytes) -> Event | None:
    """Return the event of these lines; None if they hold no data, which makes them no event."""
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
