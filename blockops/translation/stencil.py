"""
The shape that the chunks of an answer share: read by comparing, written by filling in.

A backend writes chunk after chunk with the same bytes around another piece of text. Once such a
chunk was read in full, the next one need not be: if it begins and ends with the same bytes, and
what stands between them is one JSON string, then it is the same JSON with another string in that
place. So a chunk costs two comparisons and the reading of one string, a sixth of reading it all;
and a chunk that is to say something else is what stands around the delta, put around another one.

And where it is known what kind of text would only be handed on, the string need not be read either:
see `blockops.toolcalls.verbatim`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from blockops.api.chat.chunks import Fragment, Piece, apart, said_in
from blockops.toolcalls.verbatim import Verbatim

_read_string = msgspec.json.Decoder(str).decode
_write = msgspec.json.Encoder().encode

# A field of a delta that says something piece by piece, and what it says here.
_FIELD = re.compile(rb'"(content|reasoning_content|reasoning)" ?: ?"([^"\\]*(?:\\.[^"\\]*)*)"')
_BEGIN, _END = b"data: ", b"\n\n"
_HERE = msgspec.Raw(b"\0")  # stands in no JSON


class Stencil:
    """
    The shape of chunks that say something in one field of one delta, and nothing else.

    :ivar index: the choice's
    :ivar content: whether that field is the content; else it is thoughts
    """

    __slots__ = (
        "_around",
        "_back",
        "_front",
        "_head",
        "_passage",
        "_rest",
        "_tail",
        "content",
        "index",
    )

    def __init__(self, data: bytes, said: re.Match[bytes]) -> None:
        """
        Take the shape of `data`, the JSON of a chunk, in which the field is `said`.

        :raises ValueError: the chunk has more to it
        :raises LookupError: it is none
        """
        front, back = data[: said.start(2)], data[said.end(2) :]
        field = said[1].decode()
        parts = apart(front + b"?" + back, field, b'"?"')
        self.index = parts.index
        self.content = field == "content"
        self._front = _BEGIN + front
        self._back = back + _END
        self._head = _BEGIN + parts.head
        self._tail = parts.tail + _END
        self._rest = parts.rest
        self._passage: Passage | None = None
        # What stands around the string of a fragment, and for which call's arguments.
        self._around: tuple[int | None, bytes, bytes] | None = None

    def read(self, data: bytes, start: int, end: int) -> str | None:
        """Return what an event says, blank line included; None if it is of another shape."""
        if not data.startswith(self._front, start) or not data.endswith(self._back, start, end):
            return None
        try:
            return _read_string(data[start + len(self._front) - 1 : end - len(self._back) + 1])
        except ValueError:
            return None

    def read_on(self, text: str, data: bytes, position: int) -> tuple[str, int, int]:
        """
        Return `text` and what the events behind it say, as long as they are of this shape.

        :returns: besides, where the last of them ends, and how many say it
        """
        texts = [text]
        while (end := data.find(_END, position) + 2) > 1:
            more = self.read(data, position, end)
            if not more:
                break
            texts.append(more)
            position = end
        return "".join(texts), position, len(texts)

    def passage(self, text: Verbatim, call: int | None) -> Passage:
        """
        Return the way through for what says nothing but such `text`.

        :param call: of which call it is the arguments; None where it is said as it came
        """
        if self._passage is None or self._passage.kind != (text, call):
            around = None if call is None else self._around_fragment(call)
            self._passage = Passage((text, call), self._front, self._back, around)
        return self._passage

    def _around_fragment(self, call: int | None) -> tuple[bytes, bytes]:
        """Return what stands around the string in an event that tells it as a fragment."""
        if self._around is None or self._around[0] != call:
            event = self._written(said_in(call, _HERE))
            before, _, behind = event.partition(_HERE)
            self._around = call, before, behind
        return self._around[1:]

    def write(self, said: Sequence[Piece] | Fragment) -> bytes:
        """Return the events of this shape that say this, in place of one."""
        if isinstance(said, Fragment):
            before, behind = self._around_fragment(said.call)
            return before + _write(said.text) + behind
        if not said:
            return b""
        first, *more = said
        event = self._written(first.delta)
        if not more:
            return event
        return b"".join([event, *(self._head + _write(each.delta) + self._tail for each in more)])

    def _written(self, delta: dict[str, Any]) -> bytes:
        whole = {**self._rest, **delta} if self._rest else delta
        return self._head + _write(whole) + self._tail


class Passage:
    """
    The way through for events of one shape whose text is of one kind: they are not read.

    :ivar kind: such text, and the call of which it is the arguments
    :ivar retells: whether that text is told in another event than the one it came in
    """

    __slots__ = (
        "_around",
        "_back",
        "_behind",
        "_front",
        "_respelled",
        "_spells",
        "_width",
        "kind",
        "retells",
    )

    def __init__(
        self,
        kind: tuple[Verbatim, int | None],
        front: bytes,
        back: bytes,
        around: tuple[bytes, bytes] | None,
    ) -> None:
        self.kind = kind
        self.retells = around is not None
        self._front, self._width = front, len(front)
        self._back, self._behind = back, len(back)
        before, behind = around or (b"", b"")
        self._around = before + b'"', b'"' + behind
        self._spells = kind[0].spelled.fullmatch
        self._respelled = kind[0].respelled

    def takes(self, data: bytes, start: int, end: int) -> bool:
        """Say whether that is an event of this shape with such a text, and nothing else."""
        return (
            data.startswith(self._front, start)
            and data.endswith(self._back, start, end)
            and self._spells(data, start + self._width, end - self._behind) is not None
        )

    def retell(self, data: bytes, start: int, end: int) -> bytes:
        """Return the event that tells the text of the one which `takes` has said yes to."""
        before, behind = self._around
        return before + self._respelled(data[start + self._width : end - self._behind]) + behind


def stencil_of(data: bytes) -> Stencil | None:
    """
    Return the shape of a chunk; None if there is more to it than a stencil holds.

    :param data: the JSON of a chunk that was read
    """
    said = [found for found in _FIELD.finditer(data) if found[2]]
    if len(said) != 1 or b"\n" in data or b"\r" in data:
        return None
    try:
        return Stencil(data, said[0])
    except (ValueError, LookupError):
        return None
