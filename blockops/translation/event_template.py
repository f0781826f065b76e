"""
Templates of events: the bytes that the chunks of an answer share.

A backend sends chunk after chunk with the same bytes around another text. If an event begins and
ends with the bytes of a chunk that was decoded, and one JSON string is between them, it is the same
JSON with another string. Two comparisons and decoding one string take a sixth of the time of
decoding the chunk. A changed delta is sent within the same bytes.

Text that the parser would pass through (`blockops.toolcalls.verbatim`) is not decoded at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from blockops.api.chat.chunk_template import split_template
from blockops.api.chat.chunks import OutgoingDelta, TextFragment, make_delta
from blockops.toolcalls.verbatim import Verbatim

_decode_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode

# The field of a delta that carries its text, and the text.
_FIELD = re.compile(rb'"(content|reasoning_content|reasoning)" ?: ?"([^"\\]*(?:\\.[^"\\]*)*)"')
_DATA, _BLANK_LINE = b"data: ", b"\n\n"
_PLACEHOLDER = msgspec.Raw(b"\0")  # occurs in no JSON


class EventTemplate:
    """
    The template of events whose only content is one text field of one delta.

    :ivar index: the choice's index
    :ivar is_content: True if the field is `content`; False for reasoning
    """

    __slots__ = (
        "_fragment",
        "_head",
        "_matcher",
        "_prefix",
        "_rest",
        "_suffix",
        "_tail",
        "index",
        "is_content",
    )

    def __init__(self, data: bytes, field: re.Match[bytes]) -> None:
        """
        Learn the template of a chunk.

        :param data: its JSON
        :param field: the match of `_FIELD` in it
        :raises ValueError: if the chunk has other content
        :raises LookupError: if it has no such field
        """
        prefix, suffix = data[: field.start(2)], data[field.end(2) :]
        name = field[1].decode()
        template = split_template(prefix + b"?" + suffix, name, b'"?"')
        self.index = template.index
        self.is_content = name == "content"
        self._prefix = _DATA + prefix
        self._suffix = suffix + _BLANK_LINE
        self._head = _DATA + template.head
        self._tail = template.tail + _BLANK_LINE
        self._rest = template.rest
        self._matcher: TextMatcher | None = None
        # The last call index, and the bytes around the string in an event for a `TextFragment`.
        self._fragment: tuple[int | None, bytes, bytes] | None = None

    def read_text(self, data: bytes, start: int, end: int) -> str | None:
        """Return the text of an event, its blank line included; None if it does not fit."""
        if not data.startswith(self._prefix, start) or not data.endswith(self._suffix, start, end):
            return None
        try:
            return _decode_string(data[start + len(self._prefix) - 1 : end - len(self._suffix) + 1])
        except ValueError:
            return None

    def read_following(self, text: str, data: bytes, position: int) -> tuple[str, int, int]:
        """
        Return `text` joined with the texts of the following events that fit.

        :returns: the text; the end of the last of these events; their number, the first included
        """
        texts = [text]
        while (blank := data.find(_BLANK_LINE, position)) >= 0:
            end = blank + len(_BLANK_LINE)
            following = self.read_text(data, position, end)
            if not following:
                break
            texts.append(following)
            position = end
        return "".join(texts), position, len(texts)

    def matcher(self, verbatim: Verbatim, call_index: int | None) -> TextMatcher:
        """
        Return a matcher for events with such text.

        :param call_index: the call whose arguments the text becomes; None if it stays unchanged
        """
        key = verbatim, call_index
        if self._matcher is None or self._matcher.key != key:
            around = None if call_index is None else self._around_fragment(call_index)
            self._matcher = TextMatcher(key, self._prefix, self._suffix, around)
        return self._matcher

    def render(self, rewrite: Sequence[OutgoingDelta] | TextFragment) -> bytes:
        """Return the events for these deltas."""
        if isinstance(rewrite, TextFragment):
            before, after = self._around_fragment(rewrite.call_index)
            return before + _encode(rewrite.text) + after
        if not rewrite:
            return b""
        first, *others = rewrite
        event = self._render_first(first.fields)
        if not others:
            return event
        return b"".join(
            [event, *(self._head + _encode(delta.fields) + self._tail for delta in others)]
        )

    def _render_first(self, fields: dict[str, Any]) -> bytes:
        delta = {**self._rest, **fields} if self._rest else fields
        return self._head + _encode(delta) + self._tail

    def _around_fragment(self, call_index: int | None) -> tuple[bytes, bytes]:
        """Return the bytes before and after the string in an event for a `TextFragment`."""
        if self._fragment is None or self._fragment[0] != call_index:
            event = self._render_first(make_delta(call_index, _PLACEHOLDER))
            before, _, after = event.partition(_PLACEHOLDER)
            self._fragment = call_index, before, after
        return self._fragment[1:]


class TextMatcher:
    """
    Matches events of one template whose text needs no decoding.

    :ivar key: the kind of text, and the index of the call whose arguments it becomes
    :ivar rewrites: True if the text is sent in another event than the one received
    """

    __slots__ = (
        "_around",
        "_matches_text",
        "_output_json",
        "_prefix",
        "_prefix_length",
        "_suffix",
        "_suffix_length",
        "key",
        "rewrites",
    )

    def __init__(
        self,
        key: tuple[Verbatim, int | None],
        prefix: bytes,
        suffix: bytes,
        around: tuple[bytes, bytes] | None,
    ) -> None:
        self.key = key
        self.rewrites = around is not None
        self._prefix, self._prefix_length = prefix, len(prefix)
        self._suffix, self._suffix_length = suffix, len(suffix)
        before, after = around or (b"", b"")
        self._around = before + b'"', b'"' + after
        self._matches_text = key[0].json_pattern.fullmatch
        self._output_json = key[0].output_json

    def matches(self, data: bytes, start: int, end: int) -> bool:
        """Return True if this is one event of the template with such text."""
        return (
            data.startswith(self._prefix, start)
            and data.endswith(self._suffix, start, end)
            and self._matches_text(data, start + self._prefix_length, end - self._suffix_length)
            is not None
        )

    def rewrite(self, data: bytes, start: int, end: int) -> bytes:
        """Return the event to send for one that matches."""
        before, after = self._around
        text = data[start + self._prefix_length : end - self._suffix_length]
        return before + self._output_json(text) + after


def learn_template(data: bytes) -> EventTemplate | None:
    """
    Return the template of a chunk, or None if the chunk has other content than one text.

    :param data: the JSON of a chunk that was decoded
    """
    fields = [match for match in _FIELD.finditer(data) if match[2]]
    if len(fields) != 1 or b"\n" in data or b"\r" in data:
        return None
    try:
        return EventTemplate(data, fields[0])
    except (ValueError, LookupError):
        return None
