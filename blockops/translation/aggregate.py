"""
Aggregates a backend's stream to the non-streaming response that the client requested.

Some backends notice a disconnected client only while they stream, so blockops may request a stream
where the client did not. Texts, arguments and lists of log probabilities are joined. Of the fields
in `_FIRST_VALUE_FIELDS` the first value counts, of all others the last one, unless it is null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from blockops.api.backend_errors import response_too_large, to_api_error
from blockops.api.chat.request import ChatRequest
from blockops.api.completions import CompletionRequest
from blockops.api.lenient_json import JsonRepairer, is_strict
from blockops.api.notice import Notice
from blockops.api.report import AnswerReport
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choice_factory import random_call_id
from blockops.translation.stream import MAX_EVENT, StreamTranslator

#: Upper bound of a translated stream, in bytes, including the JSON and the framing around the text.
MAX_ANSWER = 64 * 1024 * 1024

_TEXT_FIELDS = frozenset(
    {"content", "reasoning_content", "reasoning", "refusal", "text", "arguments"}
)
#: Texts at the top level, which some backends send in events that are not chunks.
_EVENT_TEXT_FIELDS = _TEXT_FIELDS | {"message"}
#: Fields that a message may have in place of content.
_CONTENT_SUBSTITUTE_FIELDS = ("function_call", "refusal", "audio")
#: Fields whose first value counts.
_FIRST_VALUE_FIELDS = frozenset({"id", "type", "name", "role"})
_DATA = b"data: "


class ChunkAggregator:
    """
    Receives the stream of one response, and returns it as one JSON body.

    :param request: the client's request
    :param max_event: upper bound of one event of the backend, in bytes
    :param max_answer: upper bound of the translated stream, in bytes
    :param notice: inserted into the first choice
    :param new_id: returns a new id for a call
    """

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        options: TranslationOptions,
        *,
        max_event: int = MAX_EVENT,
        max_answer: int = MAX_ANSWER,
        notice: Notice | None = None,
        new_id: Callable[[], str] = random_call_id,
    ) -> None:
        self._stream = StreamTranslator(
            request, options, max_event=max_event, notice=notice, new_id=new_id
        )
        self._response = _Response()
        self._max_answer = max_answer
        self._bytes_left = max_answer

    @property
    def report(self) -> AnswerReport:
        """The contents of the answer so far."""
        return self._stream.report

    @property
    def has_ended(self) -> bool:
        """True once the stream has ended, so that further data is ignored."""
        return self._stream.has_ended

    def receive_data(self, data: bytes) -> bytes:
        """Aggregate `data`; return no bytes, because the client gets its response at the end."""
        self._add_events(self._stream.receive_data(data))
        return b""

    def end(self, *, is_truncated: bool) -> bytes:
        """
        Return the JSON of the response, after the backend has closed or its stream has ended.

        :param is_truncated: True if the transport reports that bytes are missing
        :raises ApiError: 502 if the response is incomplete or too large; the backend's own error
        """
        self._add_events(self._stream.end(is_truncated=is_truncated))
        if self._bytes_left < 0:
            raise response_too_large(self._max_answer)
        if self._response.error is not None:
            raise to_api_error(msgspec.json.encode({"error": self._response.error}))
        return self._response.to_json()

    def _add_events(self, events: bytes) -> None:
        self._bytes_left -= len(events)
        if self._bytes_left < 0:
            # Ends the stream, so that the rest is not even read.
            self._stream.fail(response_too_large(self._max_answer))
            return
        for event in events.split(b"\n\n"):
            if event.startswith(_DATA) and event != b"data: [DONE]":
                data = event[len(_DATA) :]
                strict = data if is_strict(data) else JsonRepairer().repair(data)
                self._response.add(msgspec.json.decode(strict))


class _Response:
    """
    The non-streaming response, as received so far.

    :ivar error: the error that ended the stream, or None
    """

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.error: dict[str, Any] | None = None

    def add(self, chunk: dict[str, Any]) -> None:
        """Add a chunk, or the error that ends the stream."""
        if "error" in chunk and "choices" not in chunk:
            self.error = chunk["error"]
            return
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

    def to_json(self) -> bytes:
        choices = [_make_choice(self._choices[index]) for index in sorted(self._choices)]
        if self._fields.get("object") != "text_completion":
            self._fields["object"] = "chat.completion"
        return msgspec.json.encode({**_join(self._fields), "choices": choices})


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
    """
    Append a text to the texts so far.

    :return: `_TextParts`; a list of content parts (Mistral's) if one of the two is such a list
    """
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
