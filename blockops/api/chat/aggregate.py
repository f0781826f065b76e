"""
Aggregates the chunks of a stream to one non-streaming response.

Texts, arguments and lists of log probabilities are joined. Of the fields in `_FIRST_VALUE_FIELDS`
the first value counts, of all others the last one, unless it is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from blockops.api.backend_errors import response_too_large, to_api_error
from blockops.api.chat.decoder import ReceivedChunk
from blockops.api.chat.encoder import ChunkEncoder, Rewrites, rewrite_chunk
from blockops.api.lenient_json import DECODE_ERRORS, JsonRepairer

_TEXT_FIELDS = frozenset(
    {"content", "reasoning_content", "reasoning", "refusal", "text", "arguments"}
)
#: Texts at the top level, which some backends send in events that are not chunks.
_EVENT_TEXT_FIELDS = _TEXT_FIELDS | {"message"}
#: Fields that a message may have in place of content.
_CONTENT_SUBSTITUTE_FIELDS = ("function_call", "refusal", "audio")
_FIRST_VALUE_FIELDS = frozenset({"id", "type", "name", "role"})


class ChunkAggregator(ChunkEncoder):
    """
    Encodes one answer as a non-streaming response. Its other methods return no bytes.

    :param max_answer: upper bound of the chunks' JSON, in bytes
    """

    forwards_chunks = False

    def __init__(self, *, is_chat: bool, model: str, max_answer: int) -> None:
        super().__init__(is_chat=is_chat, model=model)
        self._max_answer = max_answer
        self._bytes_left = max_answer
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._error: bytes | None = None

    def pass_through(self, chunk: ReceivedChunk) -> bytes:
        self._count(chunk)
        self._add(_decode(chunk.data))
        return b""

    def rewrite(self, chunk: ReceivedChunk, rewrites: Rewrites) -> bytes:
        self._count(chunk)
        return self._encode_chunks(rewrite_chunk(chunk.data, chunk.fields.choices or (), rewrites))

    def error(self, json: bytes) -> bytes:
        self._error = json
        return b""

    def done(self) -> bytes:
        return b""  # the response follows at the end

    def response(self) -> bytes:
        """
        Return the JSON of the response.

        :raises ApiError: the error that ended the stream
        """
        if self._error is not None:
            raise to_api_error(self._error)
        choices = [_make_choice(self._choices[index]) for index in sorted(self._choices)]
        if self._fields.get("object") != "text_completion":
            self._fields["object"] = "chat.completion"
        return msgspec.json.encode({**_join(self._fields), "choices": choices})

    def _count(self, chunk: ReceivedChunk) -> None:
        if self._bytes_left < 0:
            return  # the stream ends with that error
        self._bytes_left -= len(chunk.event)
        if self._bytes_left < 0:
            # Ends the stream, so that the rest is not even read.
            raise response_too_large(self._max_answer)

    def _encode_chunks(self, chunks: Iterable[Mapping[str, Any]]) -> bytes:
        for chunk in chunks:
            self._add(_decode_raw(chunk))
        return b""

    def _add(self, chunk: dict[str, Any]) -> None:
        for choice in chunk.pop("choices"):
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            _merge(self._choices.setdefault(index, {"index": index}), {**choice, "index": index})
        for key, value in chunk.items():
            old = self._fields.get(key)
            if key in _EVENT_TEXT_FIELDS and isinstance(value, str):
                self._fields[key] = old if isinstance(old, _TextParts) else _TextParts()
                self._fields[key].append(value)
            else:
                self._fields[key] = old if value is None else value


def _decode(data: bytes | msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(data)
    except DECODE_ERRORS:  # such as a number that is too large
        return msgspec.json.decode(JsonRepairer().repair(bytes(data)))


def _decode_raw(value: Any) -> Any:
    """Return a chunk's value with all JSON texts in it decoded."""
    if isinstance(value, msgspec.Raw):
        return _decode(value)
    if isinstance(value, Mapping):
        return {key: _decode_raw(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode_raw(item) for item in value]
    return value


class _TextParts(list[str]):
    """The parts of a text."""


class _Calls(list[dict[str, Any]]):
    """The calls of a message, in the order in which they started."""

    def __init__(self) -> None:
        super().__init__()
        self._by_index: dict[int, dict[str, Any]] = {}

    def call_for(self, delta: dict[str, Any]) -> dict[str, Any]:
        """
        Return the call to which a delta belongs; add it if the delta starts one.

        Backends without indexes send a complete call at once, or its name first.
        """
        index, function = delta.get("index"), delta.get("function")
        call: dict[str, Any] | None
        if isinstance(index, int):
            call = self._by_index.get(index)
            if call:
                return call
        else:
            has_name = isinstance(function, dict) and bool(function.get("name"))
            if self and not has_name:
                return self[-1]
            index = len(self)
        call = {}
        self.append(call)
        self._by_index[index] = call
        return call


def _merge(into: dict[str, Any], fields: dict[str, Any]) -> None:
    """Merge the `fields` of a later chunk into `into`."""
    for key, value in fields.items():
        old = into.get(key)
        if value is None or (key in _FIRST_VALUE_FIELDS and old is not None):
            into.setdefault(key, value)
        elif key in _TEXT_FIELDS and isinstance(value, str | list):
            into[key] = _append_text(old, value)
        elif key == "tool_calls" and isinstance(value, list):
            into[key] = old if isinstance(old, _Calls) else _Calls()
            for call in value:
                if isinstance(call, dict):
                    _merge(into[key].call_for(call), call)
        elif isinstance(value, dict):
            into[key] = old if type(old) is dict else {}
            _merge(into[key], value)
        elif isinstance(value, list) and type(old) is list:
            old.extend(value)
        else:
            into[key] = value


def _append_text(old: Any, value: str | list[Any]) -> list[Any]:
    """Append `value` to `old`; the result has content parts (Mistral's) if one of them has."""
    texts = old if isinstance(old, _TextParts) else _TextParts()
    if isinstance(value, str) and type(old) is not list:
        texts.append(value)
        return texts
    parts = old if type(old) is list else [_content_part(text) for text in texts if text]
    parts.extend(value if isinstance(value, list) else [_content_part(value)])
    return parts


def _content_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _make_choice(choice: dict[str, Any]) -> dict[str, Any]:
    """Return the choice of a non-streaming response for the merged choice of a stream."""
    joined: dict[str, Any] = _join(choice)
    if not isinstance(joined.get("delta"), dict):
        return joined
    message = {"role": "assistant", "content": None, **joined.pop("delta")}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        message["content"] = message["content"] or None
    elif message["content"] is None and not any(map(message.get, _CONTENT_SUBSTITUTE_FIELDS)):
        message["content"] = ""
    return {"index": joined.pop("index"), "message": message, **joined}


def _join(value: Any) -> Any:
    """Return `value` with each `_TextParts` joined to a string, and each `_Calls` as a list."""
    if isinstance(value, _TextParts):
        return "".join(value)
    if isinstance(value, _Calls):
        return [_join(call) for call in value]
    if isinstance(value, dict):
        return {key: _join(item) for key, item in value.items()}
    return value
