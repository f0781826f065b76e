"""
The mock backend's responses, and the check of a response that a client has received.

A request has its script in its last message (`#script plain/4/300/100/7/-/own/1/0#`), so that every
proxy forwards it. The backend and the load generator compute the same text from the script: the
backend splits it into frames, the load generator compares it with the text and the calls that
arrive. The text numbers its own lines, so a frame that is lost, duplicated or out of order changes
it visibly.

A stream has this benchmark's own chunks (`OWN_SHAPE`) with pieces of equal length, or those of a
real server (`shapes.py`) with tokens (`texts.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from benchmarks.shapes import (
    DONE_EVENT,
    REASONING_FIELD,
    SHAPES,
    ends_with_done,
    opening_length,
    reasoning_length,
    shape_events,
)
from benchmarks.texts import ARGUMENTS, token_text

MARKER = b"#script "

#: Values of `Script.pace` that are no rate: as fast as the socket accepts; only the first two
#: frames, then silence.
FAST, IDLE = 0, -1

#: Values of `Script.kind`: a response in one JSON object; a stream of text without calls.
NON_STREAMING = "non-streaming"
PLAIN = "plain"
#: Streams with calls, written in one of these dialects.
DIALECTS = ("hermes", "line", "xml")

#: The value of `Script.shape` for this benchmark's own chunks, instead of one of `SHAPES`.
OWN_SHAPE = "own"

#: Defects that a script can request, to show that the check finds them.
FAULTS = (
    "lost",
    "duplicated",
    "swapped",
    "no_finish_reason",
    "no_done",
    "truncated",
    "wrong_name",
)

#: Characters of the arguments of one call, as for a file of fifty lines.
_CALL_LENGTH = 2000
_MAX_PROSE = 200

WRITE_FILE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "write_file",
        "description": "Write a file.",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "content": {"type": "string"},
                "mode": {"type": "integer"},
            },
            "required": ["path", "content"],
        },
    },
}
ADD_EVENTS: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add_events",
        "description": "Add events to a calendar.",
        "parameters": {
            "type": "object",
            "properties": {
                "calendar": {"type": "string"},
                "events": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["calendar", "events"],
        },
    },
}


class Script(NamedTuple):
    """
    The description of one response.

    :param kind: `PLAIN`, one of `DIALECTS`, or `NON_STREAMING`; in the shape of a server, one of
        `texts.TEXTS`
    :param delta_size: characters per frame of the shape `OWN_SHAPE`
    :param frames: approximate number of frames with text
    :param pace: frames per second, or `FAST`, or `IDLE`
    :param slot: row of `SendTimes` in which the backend stores the send times of a paced response
    :param fault: one of `FAULTS`, or `-`
    :param shape: `OWN_SHAPE` or one of `shapes.SHAPES`
    :param tools: 1 if the request offers a tool, otherwise 0
    :param batched: 1 if all paced streams get their frames at the same times, as from a server that
        decodes them together; 0 if their frames are spread evenly
    """

    kind: str
    delta_size: int = 4
    frames: int = 15
    pace: int = FAST
    slot: int = 0
    fault: str = "-"
    shape: str = OWN_SHAPE
    tools: int = 1
    batched: int = 0

    def as_text(self) -> str:
        return f"{MARKER.decode()}{'/'.join(map(str, self))}#"

    @classmethod
    def find(cls, body: bytes) -> Script | None:
        """Return the last script in a request's body, or None if it has none."""
        start = body.rfind(MARKER)
        if start < 0:
            return None
        start += len(MARKER)
        return cls.parse(body[start : body.index(b"#", start)])

    @classmethod
    @lru_cache(512)
    def parse(cls, text: bytes) -> Script:
        kind, *numbers, fault, shape, tools, batched = text.decode().split("/")
        return cls(kind, *map(int, numbers), fault, shape, int(tools), int(batched))

    def text(self) -> ModelText:
        """Return the text of the response, and its correct translation."""
        if self.shape == OWN_SHAPE:
            return model_text(self.kind, self.delta_size * self.frames)
        return _model_text_of_tokens(self.kind, self.frames, self.shape)


#: Name and arguments.
Call = tuple[str, dict[str, Any]]


class ModelText(NamedTuple):
    """
    A model's text and its correct translation.

    :param content: the text without the calls
    :param deltas: the text of each frame with text; empty for `OWN_SHAPE`
    :param reasoning: the beginning of the text that is sent as reasoning
    """

    text: str
    content: str
    calls: tuple[Call, ...]
    deltas: tuple[str, ...] = ()
    reasoning: str = ""


def _numbered(line: str, length: int) -> str:
    """Return copies of `line` with `@` replaced by a number, `length` characters in all."""
    count = length // len(line) + 1
    return "".join(line.replace("@", str(1000 + number)) for number in range(count))[:length]


def _prose(length: int) -> str:
    # Split into fours, its frames look like tokens: the space precedes the word.
    return _numbered(" the big red fox@ can see our old cat not us.", length)


def _code(length: int) -> str:
    return _numbered('    if total[@] < limit and name != "x":  # it\'s\n', length)


def _json_call(call: Call) -> str:
    return json.dumps({"name": call[0], "arguments": call[1]}, ensure_ascii=False)


def _xml_call(call: Call) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in call[1].items()
    )
    return f"<tool_call>\n<function={call[0]}>\n{parameters}</function>\n</tool_call>"


_CALL_WRITERS = {
    "hermes": lambda call: f"<tool_call>\n{_json_call(call)}\n</tool_call>",
    "line": lambda call: f"TOOL_CALL: {_json_call(call)}",
    "xml": _xml_call,
}


@lru_cache(64)
def model_text(kind: str, length: int) -> ModelText:
    """Return about `length` characters: prose, followed by calls if `kind` is a dialect."""
    if kind not in DIALECTS:
        text = _prose(length)
        return ModelText(text, text, ())
    prose = _prose(min(_MAX_PROSE, length // 4)).rstrip()
    count = max(1, (length - len(prose)) // _CALL_LENGTH)
    size = max(20, (length - len(prose)) // count - 160)
    calls = tuple(
        ("write_file", {"path": f"src/part_{n}.py", "content": _code(size), "mode": 420 + n})
        for n in range(count)
    )
    return ModelText(prose + "\n\n" + "\n".join(map(_CALL_WRITERS[kind], calls)), prose, calls)


@lru_cache(16)
def _model_text_of_tokens(kind: str, length: int, shape: str) -> ModelText:
    text = token_text(kind, length)
    calls = tuple((call["name"], call["arguments"]) for call in map(json.loads, text.calls))
    reasoning = "".join(text.tokens[: reasoning_length(SHAPES[shape], text.tokens)])
    return ModelText(
        "".join(text.tokens)[len(reasoning) :],
        text.content[len(reasoning) :],
        calls,
        tuple(text.tokens),
        reasoning,
    )


_CHUNK: dict[str, Any] = {
    "id": "chatcmpl-5f1d7a0c2b9e4c63",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "bench",
    "system_fingerprint": "fp_0123456789",
}


def _event(fields: dict[str, Any]) -> bytes:
    chunk = json.dumps(_CHUNK | fields, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + chunk.encode() + b"\n\n"


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({"choices": [choice]})


def frames(script: Script, *, usage: bool) -> list[bytes]:
    """
    Return the HTTP body of a stream as a list of HTTP chunks with one event each, as servers send.

    The first has the role, except in shapes of servers that send it with each text. The text
    follows, then the finish reason, the usage if `usage` is true, and `[DONE]`, except from servers
    that do not send it, with the end of the body.
    """
    # The same frames for all streams of a run.
    return _frames(script._replace(slot=0, pace=0, tools=1, batched=0), usage=usage)


@lru_cache(16)
def _frames(script: Script, *, usage: bool) -> list[bytes]:
    text = script.text()
    if script.shape == OWN_SHAPE:
        events = list(_own_events(script, text.text, usage=usage))
    else:
        events = list(shape_events(SHAPES[script.shape], text.deltas, usage=usage))
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in _with_fault(events, script.fault)]
    chunks[-1] += b"" if script.fault == "truncated" else b"0\r\n\r\n"
    return chunks


def _own_events(script: Script, text: str, *, usage: bool) -> Iterator[bytes]:
    if script.fault == "wrong_name":
        text = text.replace("write_file", "wrote_file")
    yield _choice({"role": "assistant", "content": ""})
    size = script.delta_size
    for start in range(0, len(text), size):
        yield _choice({"content": text[start : start + size]})
    yield _choice({}, "stop")
    if usage:
        yield _event({"choices": [], "usage": _usage(len(text) // size)})
    yield DONE_EVENT


@lru_cache(16)
def text_ends(kind: str, delta_size: int, count: int, shape: str) -> list[int]:
    """
    Return, for each frame up to the last one with text, the length of the text to its end.

    White space at the end of a frame's text is left out, because a proxy that translates holds it
    back until the next text: a call may follow it.
    """
    text = Script(kind, delta_size, count, shape=shape).text()
    if shape == OWN_SHAPE:
        starts = range(0, len(text.text), delta_size)
        lengths = [0]
        deltas = [text.text[start : start + delta_size] for start in starts]
    else:
        lengths = [0] * opening_length(SHAPES[shape])
        deltas = list(text.deltas)
    begin = 0
    for delta in deltas:
        end = begin + len(delta.rstrip())
        lengths.append(end if end > begin else lengths[-1])
        begin += len(delta)
    return lengths


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}


def _with_fault(events: list[bytes], fault: str) -> list[bytes]:
    middle = len(events) // 2
    if fault == "lost":
        return events[:middle] + events[middle + 1 :]
    if fault == "duplicated":
        return events[: middle + 1] + events[middle:]
    if fault == "swapped":
        return [*events[:middle], events[middle + 1], events[middle], *events[middle + 2 :]]
    if fault == "no_finish_reason":
        return [event for event in events if b'"stop"' not in event]
    if fault == "no_done":
        return events[:-1]
    return events[:middle] if fault == "truncated" else events


@lru_cache(64)
def completion_body(delta_size: int, count: int) -> bytes:
    """Return the body of a non-streaming response."""
    content = model_text(NON_STREAMING, delta_size * count).text
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    completion = {"object": "chat.completion", "choices": [choice], "usage": _usage(count)}
    return json.dumps(_CHUNK | completion).encode()


def request_body(script: Script, size: int = 0) -> bytes:
    """
    Return the body of a request for `script`.

    :param size: approximate length in bytes, filled with the history of an agent. It begins with
        the same messages for every script, as the requests of one session do.
    """
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a careful assistant. " * 4}
    ]
    for step in range(size // 2400):
        call = {"name": "write_file", "arguments": json.dumps({"path": f"{step}.py"})}
        if not step:
            messages.append({"role": "user", "content": "Do it."})
        messages += [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"call_{step}", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": f"call_{step}", "content": _code(1900)},
        ]
    messages.append({"role": "user", "content": f"Go on. {script.as_text()}"})
    body: dict[str, Any] = {
        "model": "bench",
        "messages": messages,
        "stream": script.kind != NON_STREAMING,
    }
    if script.tools:
        body["tools"] = [ADD_EVENTS if script.kind == ARGUMENTS else WRITE_FILE]
    return json.dumps(body).encode()


@dataclass
class StreamResult:
    """
    The contents of a stream as a client reads them from its events.

    :ivar content: the text of all deltas
    :ivar reasoning: the reasoning of all deltas
    :ivar is_done: True after `[DONE]`
    :ivar names: names of the calls by index
    :ivar arguments: JSON arguments of the calls by index
    :ivar errors: error events, and events after `[DONE]`
    """

    content: str = ""
    reasoning: str = ""
    finish_reasons: list[str] = field(default_factory=list)
    is_done: bool = False
    names: dict[int, str] = field(default_factory=dict)
    arguments: dict[int, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add_event(self, event: bytes) -> None:
        """Read one event, given without the blank line that ends it."""
        if event.startswith(b":"):
            return  # a heartbeat
        if self.is_done:
            self.errors.append("an event after [DONE]")
        elif event == b"data: [DONE]":
            self.is_done = True
        else:
            self._add_chunk(json.loads(event.removeprefix(b"data:")))

    def _add_chunk(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.errors.append(f"an error event: {chunk['error']}"[:200])
        for choice in chunk.get("choices", ()):
            delta = choice["delta"]
            self.content += delta.get("content") or ""
            self.reasoning += delta.get(REASONING_FIELD) or ""
            if choice.get("finish_reason"):
                self.finish_reasons.append(choice["finish_reason"])
            for call in delta.get("tool_calls") or ():
                index, function = call["index"], call["function"]
                name, arguments = function.get("name", ""), function.get("arguments", "")
                self.names[index] = self.names.get(index, "") + name
                self.arguments[index] = self.arguments.get(index, "") + arguments

    def calls(self) -> Iterator[Call]:
        """
        Yield the calls.

        :raises ValueError: the arguments of a call are not JSON
        """
        for index in sorted(self.names):
            yield self.names[index], json.loads(self.arguments[index])


def find_stream_error(script: Script, result: StreamResult, *, is_translated: bool) -> str | None:
    """
    Return a description of the first error in a stream, or None if the stream is correct.

    :param is_translated: whether the calls must have arrived as calls, instead of as text
    """
    expected = script.text()
    calls = expected.calls if is_translated else ()
    has_done = is_translated or script.shape == OWN_SHAPE or ends_with_done(SHAPES[script.shape])
    if result.errors:
        return result.errors[0]
    if has_done and not result.is_done:
        return "no [DONE]"
    if result.finish_reasons != ["tool_calls" if calls else "stop"]:
        return f"finish reasons {result.finish_reasons}"
    content = expected.content if is_translated else expected.text
    if (result.reasoning, result.content) != (expected.reasoning, content):
        return "text is lost, duplicated or out of order"
    try:
        return None if tuple(result.calls()) == calls else "wrong calls"
    except ValueError:
        return "the arguments of a call are not JSON"


def find_body_error(script: Script, body: bytes) -> str | None:
    """Return a description of the error in a non-streaming response, or None if it is correct."""
    text = model_text(NON_STREAMING, script.delta_size * script.frames).text
    try:
        message = json.loads(body)["choices"][0]["message"]
    except (ValueError, LookupError, TypeError):
        return f"not a completion: {body[:200]!r}"
    return None if message["content"] == text else "the content differs"
