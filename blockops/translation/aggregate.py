"""
A backend's stream, joined into the whole answer that the client has asked for.

Some backends notice that a client has left only while they stream, so blockops may ask them for a
stream where the client did not. Everything that a stream says comes to stand where a whole answer
has it: texts and arguments are joined, lists of log probabilities too, and of any other field the
last value counts that is not null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from blockops.api.chat.request import ChatRequest, CompletionRequest
from blockops.api.lenient_json import Mender, is_strict
from blockops.api.report import Report
from blockops.errors import ApiError, from_answer
from blockops.toolcalls.options import Rules
from blockops.translation.notice_insertion import Aside
from blockops.translation.stream import MAX_EVENT, StreamTranscoder, random_id

MAX_ANSWER = 64 * 1024 * 1024  # bytes, the frames around the text included
_TEXTS = frozenset({"content", "reasoning_content", "reasoning", "refusal", "text", "arguments"})
_BESIDE = _TEXTS | {"message"}  # texts that some backend says in events that are no chunks
_INSTEAD = ("function_call", "refusal", "audio")  # what an answer may say in place of its content
_ONCE = frozenset({"id", "type", "name", "role"})  # the first value counts
_DATA = b"data: "


class StreamJoiner:
    """
    Take the backend's stream for one response, and give it out whole.

    :param asked: the request that is answered
    :param max_answer: bytes of the stream, as a client would get it, that are taken
    :param aside: what blockops says itself, in the first choice
    """

    def __init__(
        self,
        asked: ChatRequest | CompletionRequest,
        rules: Rules,
        *,
        max_event: int = MAX_EVENT,
        max_answer: int = MAX_ANSWER,
        aside: Aside | None = None,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self._stream = StreamTranscoder(
            asked, rules, max_event=max_event, aside=aside, new_id=new_id
        )
        self._answer = _Answer()
        self._left = max_answer

    @property
    def report(self) -> Report:
        """What the answer held so far."""
        return self._stream.report

    @property
    def ended(self) -> bool:
        """Whether the stream has had its last word: more of it counts for nothing."""
        return self._stream.ended

    def receive_data(self, data: bytes) -> bytes:
        """Take what the backend sent; nothing of it is for the client yet, so it returns b""."""
        self._take(self._stream.receive_data(data))
        return b""

    def whole(self, *, cut: bool) -> bytes:
        """
        Return the JSON of the whole answer, the backend having closed or its stream having ended.

        :param cut: the transport says that something is missing
        :raises ApiError: 502, if the answer is not whole, or the backend reported an error
        """
        self._take(self._stream.end(cut=cut))
        if self._answer.error is not None:
            raise _failure(self._answer.error)
        return self._answer.json()

    def _take(self, events: bytes) -> None:
        self._left -= len(events)
        if self._left < 0:
            events = self._stream.fail(_too_long())
        for event in events.split(b"\n\n"):
            if event.startswith(_DATA) and event != b"data: [DONE]":
                self._answer.add(_value(event[len(_DATA) :]))


class _Answer:
    """
    The answer so far.

    :ivar error: the error that ended the stream
    """

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.error: dict[str, Any] | None = None

    def add(self, chunk: dict[str, Any]) -> None:
        """Take a chunk, or the error that ends the stream."""
        if "error" in chunk and "choices" not in chunk:
            self.error = chunk["error"]
            return
        for choice in chunk.pop("choices"):
            index = _index(choice)
            _merge(self._choices.setdefault(index, {"index": index}), {**choice, "index": index})
        for key, value in chunk.items():
            known = self._fields.get(key)
            if key in _BESIDE and isinstance(value, str):
                self._fields[key] = known if isinstance(known, _Parts) else _Parts()
                self._fields[key].append(value)
            else:
                self._fields[key] = known if value is None else value

    def json(self) -> bytes:
        """Return the answer in the shape of one that is no stream."""
        choices = [_whole(self._choices[index]) for index in sorted(self._choices)]
        if self._fields.get("object") != "text_completion":
            self._fields["object"] = "chat.completion"
        return msgspec.json.encode({**_joined(self._fields), "choices": choices})


class _Parts(list[str]):
    """The parts of a text."""


class _Calls(list[dict[str, Any]]):
    """The calls of a message, as they began."""

    def __init__(self) -> None:
        super().__init__()
        self._by_index: dict[int, dict[str, Any]] = {}

    def of(self, delta: dict[str, Any]) -> dict[str, Any]:
        """
        Return the call that a delta is a part of.

        Backends that give no index send a call at once, or its name first: a name begins a call.
        """
        index, function = delta.get("index"), delta.get("function")
        if isinstance(index, int):
            return self._by_index.get(index) or self._begun(index)
        names = isinstance(function, dict) and bool(function.get("name"))
        return self[-1] if self and not names else self._begun(len(self))

    def _begun(self, index: int) -> dict[str, Any]:
        call: dict[str, Any] = {}
        self.append(call)
        self._by_index[index] = call
        return call


def _merge(into: dict[str, Any], fields: dict[str, Any]) -> None:
    """Add to `into` what `fields`, of a later chunk, say besides."""
    for key, value in fields.items():
        known = into.get(key)
        if value is None or (key in _ONCE and known is not None):
            into.setdefault(key, value)
        elif key in _TEXTS and isinstance(value, str | list):
            into[key] = _said(known, value)
        elif key == "tool_calls" and isinstance(value, list):
            into[key] = known if isinstance(known, _Calls) else _Calls()
            for call in value:
                if isinstance(call, dict):
                    _merge(into[key].of(call), call)
        elif isinstance(value, dict):
            into[key] = known if type(known) is dict else {}
            _merge(into[key], value)
        elif isinstance(value, list) and type(known) is list:
            known.extend(value)
        else:
            into[key] = value


def _said(known: Any, value: str | list[Any]) -> list[Any]:
    """Return texts, or a list of parts (Mistral's) where one of the two is such a list."""
    texts = known if isinstance(known, _Parts) else _Parts()
    if isinstance(value, str) and type(known) is not list:
        texts.append(value)
        return texts
    parts = known if type(known) is list else [_part(text) for text in texts if text]
    parts.extend(value if isinstance(value, list) else [_part(value)])
    return parts


def _part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice as a whole answer has it."""
    joined: dict[str, Any] = _joined(choice)
    if not isinstance(joined.get("delta"), dict):
        return joined
    message = {"role": "assistant", "content": None, **joined.pop("delta")}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        message["content"] = message["content"] or None
    elif message["content"] is None and not any(map(message.get, _INSTEAD)):
        message["content"] = ""
    return {"index": joined.pop("index"), "message": message, **joined}


def _joined(value: Any) -> Any:
    if isinstance(value, _Parts):
        return "".join(value)
    if isinstance(value, _Calls):
        return [_joined(call) for call in value]
    if isinstance(value, dict):
        return {key: _joined(item) for key, item in value.items()}
    return value


def _value(data: bytes) -> Any:
    """Return the value of an event that left the transcoder."""
    return msgspec.json.decode(data if is_strict(data) else Mender().mend(data))


def _too_long() -> ApiError:
    return ApiError(
        502, "The backend's answer is too long.", type="server_error", code="backend_response_too_large"
    )


def _failure(error: dict[str, Any]) -> ApiError:
    """Return the error that a stream has ended with."""
    return from_answer(msgspec.json.encode({"error": error}))
