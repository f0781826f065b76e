"""
Short names for models: the client says one, the backend hears the real one.

In a stream the real name stands in every chunk. It is learnt from the first one, and from then on
exchanged as bytes: in an answer's text the same bytes cannot occur, for there quotes are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from blockops.api.chat import chunks
from blockops.api.lenient_json import UNREADABLE
from blockops.errors import ApiError
from blockops.translation.stream import MAX_EVENT, PassThrough, StreamTranscoder

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_DATA = b"data: "
_LINE_END = re.compile(rb"\r\n|\n|\r")
# A CR that nothing has followed yet may be the first half of CRLF.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n|\Z)){2}")
_LONGEST_BLANK_LINE = len(b"\r\n\r\n")
#: Where events of other protocols have the model's name: those of `/v1/responses`, `/v1/messages`.
_HOLDERS = ("response", "message")


class Renaming:
    """
    Gives the model of one answer the name by which it was asked for.

    :param name: what the client calls the model
    """

    def __init__(self, name: str) -> None:
        self._name = msgspec.json.encode(name)
        # A pattern's replacement, in which a backslash would mean something.
        self._says = b'"model":' + self._name.replace(b"\\", rb"\\")
        self._said: re.Pattern[bytes] | None = None

    def events(self, events: bytes) -> bytes:
        """Return whole events for the client, with the client's name for the model in them."""
        if self._said is None:
            self._said = self._learnt(events)
        return events if self._said is None else self._said.sub(self._says, events)

    def _learnt(self, events: bytes) -> re.Pattern[bytes] | None:
        """
        Return how the first chunk that names another model says so.

        With any white space: where a chunk was written anew it has none, where it passes it may.
        And in our own spelling too, which a chunk has that had to be mended.
        """
        for event in events.split(b"\n\n") if b'"model"' in events else ():
            said = _field(event.removeprefix(_DATA), "model")
            if said.startswith(b'"') and said not in (self._name, b'""'):
                spellings = dict.fromkeys((said, msgspec.json.encode(_text(said))))
                return re.compile(rb'"model"\s*:\s*(?:%s)' % b"|".join(map(re.escape, spellings)))
        return None

    def whole(self, answer: bytes) -> bytes:
        """Return a whole answer's JSON with the client's name in it; other bytes as they are."""
        said = _field(answer, "model")
        if not said.startswith(b'"') or said == self._name:
            return answer
        return msgspec.json.encode({**_decode_fields(answer), "model": msgspec.Raw(self._name)})

    def foreign_event(self, event: bytes) -> bytes:
        """Return an event of another protocol with the client's name in it, or as it came."""
        if b'"model"' not in event:
            return event
        lines = [line for line in _LINE_END.split(event) if line]
        said = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
        renamed = self._within(said)
        if renamed == said:
            return event
        fields = [line + b"\n" for line in lines if not line.startswith(b"data:")]
        return b"".join([*fields, chunks.event(renamed)])

    def _within(self, data: bytes) -> bytes:
        data = self.whole(data)
        for holder in _HOLDERS:
            held = _field(data, holder)
            renamed = self.whole(held)
            if renamed != held:
                data = msgspec.json.encode({**_decode_fields(data), holder: msgspec.Raw(renamed)})
        return data


class RenamedPassThrough(PassThrough):
    """
    Lets events of another protocol through, with the client's name for the model in them.

    For that each of them is held back until it is whole; what outgrows `max_event` bytes goes as
    it comes.
    """

    def __init__(self, renaming: Renaming, max_event: int = MAX_EVENT) -> None:
        super().__init__()
        self._renaming = renaming
        self._max_event = max_event
        self._held = bytearray()  # the unfinished event
        # What is done to it once it is whole.
        self._rename: Callable[[bytes], bytes] = renaming.foreign_event

    def receive_data(self, data: bytes) -> bytes:
        """Return the events that `data` completes."""
        if self.ended:
            return b""
        held = self._held
        position, searched = 0, max(0, len(held) - _LONGEST_BLANK_LINE)
        held += data
        ready: list[bytes] = []
        for blank in _BLANK_LINE.finditer(held, searched):
            ready.append(self._rename(bytes(held[position : blank.end()])))
            position = blank.end()
            self._rename = self._renaming.foreign_event
        del held[:position]
        if len(held) > self._max_event:
            ready.append(self._release())
            self._rename = bytes
        return super().receive_data(b"".join(ready))

    def end(self, *, cut: bool) -> bytes:
        """Return the rest, and an error event if something is missing."""
        if self._held.endswith((b"\r\r", b"\n\r")):
            self._held[:] = self._rename(bytes(self._held))
        return super().receive_data(self._release()) + super().end(cut=cut)

    def fail(self, error: ApiError) -> bytes:
        """Return the rest, and `error` as the last event."""
        return super().receive_data(self._release()) + super().fail(error)

    def _release(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held


class RenamedTranscoder(StreamTranscoder):
    """A transcoder whose client calls the model by a name of its own."""

    def __init__(self, renaming: Renaming, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._renaming = renaming

    def receive_data(self, data: bytes) -> bytes:
        """Return what `data` makes ready for the client."""
        return self._renaming.events(super().receive_data(data))

    def heartbeat(self) -> bytes:
        """Return a sign of life."""
        return self._renaming.events(super().heartbeat())

    def remark(self, text: str) -> bytes:
        """Return `text` as `reasoning_content`, as long as the backend has said nothing."""
        return self._renaming.events(super().remark(text))

    def end(self, *, cut: bool) -> bytes:
        """Return the end of the stream, which is all of it where a whole answer came."""
        return self._renaming.events(super().end(cut=cut))

    def _end_with_error(self, message: str, json: bytes) -> bytes:
        return self._renaming.events(super()._end_with_error(message, json))


def real_name(body: bytes, names: Mapping[str, str]) -> tuple[bytes, str | None]:
    """
    Return a request's body with the real name of its model.

    :param names: short name -> real name
    :returns: the body, and the short name, if it had one; what is no JSON object stays as it is
    """
    name = _text(_field(body, "model")) if names else None
    real = None if name is None else names.get(name)
    if real is None:
        return body, None
    return msgspec.json.encode({**_decode_fields(body), "model": real}), name


def with_short_names(listing: bytes, names: Mapping[str, str]) -> bytes:
    """
    Return the answer to `GET /v1/models` with an entry for each short name.

    It has the fields of the real model's entry, as far as the backend lists that.
    """
    try:
        fields = dict[str, Any](_decode_fields(listing))
        entries = msgspec.json.decode(fields["data"], type=list[dict[str, msgspec.Raw]])
    except (*UNREADABLE, KeyError):
        return listing
    known = {_text(entry.get("id", b"")): entry for entry in entries}
    for short, real in names.items():
        if short not in known:
            entries.append(renamed(known.get(real, _UNKNOWN), short))
    return msgspec.json.encode({**fields, "data": entries})


def renamed(entry: Mapping[str, msgspec.Raw], name: str) -> dict[str, msgspec.Raw]:
    """Return a model's entry with another name."""
    return {**entry, "id": msgspec.Raw(msgspec.json.encode(name))}


def renamed_entry(entry: bytes, name: str) -> bytes:
    """Return the JSON of a model's entry with another name; what is no object as it is."""
    try:
        return msgspec.json.encode(renamed(_decode_fields(entry), name))
    except UNREADABLE:
        return entry


def id_of(entry: bytes | msgspec.Raw) -> str | None:
    """Return what a model's entry says that it is called; None if it says nothing of the kind."""
    return _text(_field(bytes(entry), "id"))


def _text(data: bytes | msgspec.Raw) -> str | None:
    """Return the text that this JSON is; None if it is anything else."""
    try:
        return _decode_text(data)
    except UNREADABLE:
        return None


def _field(data: bytes, name: str) -> bytes:
    """Return the JSON text of a field; empty if there is no such field, or nothing with fields."""
    if b'"' + name.encode() + b'"' not in data:
        return b""
    try:
        return bytes(_decode_fields(data).get(name, b""))
    except UNREADABLE:
        return b""


#: The entry of a model that the backend does not list: mlx-lm lists only those that it has on disk.
_UNKNOWN = {
    "id": msgspec.Raw(b'""'),
    "object": msgspec.Raw(b'"model"'),
    "created": msgspec.Raw(b"0"),
    "owned_by": msgspec.Raw(b'"blockops"'),
}
