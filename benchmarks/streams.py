"""
What the mock backend says, and what must have arrived in the end.

A request carries its script in its last message (`#script plain/4/300/100/7/-#`), so that every
proxy passes it on. Both sides make the same text from it: the backend cuts it into frames, the load
generator knows the text and the calls that have to come out. The text counts its own lines; so a
frame that is lost, doubled or out of order is seen in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

MARK = b"#script "

#: Paces of a script besides frames a second: as the sockets take them, and two frames only.
FAST, IDLE = 0, -1

#: Whether the answer is one JSON object instead of a stream.
WHOLE = "whole"
PLAIN = "plain"
#: Forms in which the text holds calls.
FORMATS = ("hermes", "line", "xml")

#: What the backend does wrong on demand, so that it can be shown that this is noticed.
FAULTS = ("lost", "doubled", "swapped", "unfinished", "undone", "cut", "miscalled")

#: Characters of the arguments of one call: a file of fifty lines.
_CALL = 2000
_PROSE = 200

TOOLS: list[dict[str, Any]] = [
    {
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
]


class Script(NamedTuple):
    """
    What one answer is to be.

    :param kind: `plain`, one of `FORMATS`, or `whole`
    :param cut: characters a frame
    :param frames: how many frames with text, about
    :param pace: frames a second, or `FAST`, or `IDLE`
    :param slot: where the backend writes down when it sent each frame of a paced answer
    :param fault: one of `FAULTS`, or `-`
    """

    kind: str
    cut: int = 4
    frames: int = 15
    pace: int = FAST
    slot: int = 0
    fault: str = "-"

    def written(self) -> str:
        return f"{MARK.decode()}{'/'.join(map(str, self))}#"

    @classmethod
    def find(cls, body: bytes) -> Script | None:
        """Return the script that a request's body ends with."""
        begin = body.rfind(MARK)
        if begin < 0:
            return None
        begin += len(MARK)
        return cls.read(body[begin : body.index(b"#", begin)])

    @classmethod
    @lru_cache(512)
    def read(cls, text: bytes) -> Script:
        kind, cut, frames, pace, slot, fault = text.decode().split("/")
        return cls(kind, int(cut), int(frames), int(pace), int(slot), fault)


Call = tuple[str, dict[str, Any]]


class Said(NamedTuple):
    """A text of the model, and what it means: the text around its calls, and the calls."""

    text: str
    content: str
    calls: tuple[Call, ...]


def _lines(line: str, length: int) -> str:
    """Return numbered lines of `length` characters in all."""
    count = length // len(line) + 1
    return "".join(line.replace("@", str(1000 + n)) for n in range(count))[:length]


def _prose(length: int) -> str:
    # Cut by four its frames are as tokens are: the space stands before the word.
    return _lines(" the big red fox@ can see our old cat not us.", length)


def _code(length: int) -> str:
    return _lines('    if total[@] < limit and name != "x":  # it\'s\n', length)


def _as_json(call: Call) -> str:
    return json.dumps({"name": call[0], "arguments": call[1]}, ensure_ascii=False)


def _as_xml(call: Call) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in call[1].items()
    )
    return f"<tool_call>\n<function={call[0]}>\n{parameters}</function>\n</tool_call>"


_WRITTEN = {
    "hermes": lambda call: f"<tool_call>\n{_as_json(call)}\n</tool_call>",
    "line": lambda call: f"TOOL_CALL: {_as_json(call)}",
    "xml": _as_xml,
}


@lru_cache(64)
def said(kind: str, length: int) -> Said:
    """Return a text of about `length` characters: prose, and then calls if `kind` is a format."""
    if kind not in FORMATS:
        text = _prose(length)
        return Said(text, text, ())
    prose = _prose(min(_PROSE, length // 4)).rstrip()
    count = max(1, (length - len(prose)) // _CALL)
    size = max(20, (length - len(prose)) // count - 160)
    calls = tuple(
        ("write_file", {"path": f"src/part_{n}.py", "content": _code(size), "mode": 420 + n})
        for n in range(count)
    )
    return Said(prose + "\n\n" + "\n".join(map(_WRITTEN[kind], calls)), prose, calls)


_CHUNK: dict[str, Any] = {
    "id": "chatcmpl-5f1d7a0c2b9e4c63",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "bench",
    "system_fingerprint": "fp_0123456789",
}


def _event(chunk: dict[str, Any]) -> bytes:
    written = json.dumps(_CHUNK | chunk, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + written.encode() + b"\n\n"


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({"choices": [choice]})


def _sent(event: bytes) -> bytes:
    """Return the event as one chunk of an HTTP body, which is how servers send them."""
    return b"%x\r\n%b\r\n" % (len(event), event)


@lru_cache(64)
def frames(kind: str, cut: int, count: int, fault: str, *, usage: bool) -> list[bytes]:
    """
    Return the parts of a stream's HTTP body, an event in each.

    The first has the role, the next ones the text, then come the finish reason, the usage if it is
    asked for, and `[DONE]` with the end of the body.
    """
    text = said(kind, cut * count).text
    if fault == "miscalled":
        text = text.replace("write_file", "wrote_file")
    parts = [_choice({"content": text[at : at + cut]}) for at in range(0, len(text), cut)]
    parts = [_choice({"role": "assistant", "content": ""}), *parts, _choice({}, "stop")]
    if usage:
        parts.append(_event({"choices": [], "usage": _usage(len(parts))}))
    parts.append(b"data: [DONE]\n\n")
    made = list(map(_sent, _spoiled(parts, fault)))
    made[-1] += b"" if fault == "cut" else b"0\r\n\r\n"
    return made


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}


def _spoiled(parts: list[bytes], fault: str) -> list[bytes]:
    middle = len(parts) // 2
    if fault == "lost":
        return parts[:middle] + parts[middle + 1 :]
    if fault == "doubled":
        return parts[: middle + 1] + parts[middle:]
    if fault == "swapped":
        return [*parts[:middle], parts[middle + 1], parts[middle], *parts[middle + 2 :]]
    if fault == "unfinished":
        return [each for each in parts if b'"stop"' not in each]
    if fault == "undone":
        return parts[:-1]
    return parts[:middle] if fault == "cut" else parts


@lru_cache(64)
def whole(cut: int, count: int) -> bytes:
    """Return the body of an answer that is no stream."""
    message = {"role": "assistant", "content": said(WHOLE, cut * count).text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    answer = {"object": "chat.completion", "choices": [choice], "usage": _usage(count)}
    return json.dumps(_CHUNK | answer).encode()


def request(script: Script, size: int = 0) -> bytes:
    """
    Return the body of a request that asks for `script`.

    :param size: about how many bytes; an agent's history fills them. What it begins with is the
        same for every script, as in a session that goes on.
    """
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a careful assistant. " * 4}
    ]
    for step in range(size // 2400):
        call = {"name": "write_file", "arguments": json.dumps({"path": f"{step}.py"})}
        messages += [
            {"role": "user", "content": "Do it."} if not step else None,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"call_{step}", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": f"call_{step}", "content": _code(1900)},
        ]
    messages.append({"role": "user", "content": f"Go on. {script.written()}"})
    asked = {
        "model": "bench",
        "messages": [each for each in messages if each],
        "tools": TOOLS,
        "stream": script.kind != WHOLE,
    }
    return json.dumps(asked).encode()


@dataclass
class Heard:
    """
    What a client makes of the events of one stream.

    :ivar content: the text of all deltas, joined
    """

    content: str = ""
    finish_reasons: list[str] = field(default_factory=list)
    done: bool = False
    names: dict[int, str] = field(default_factory=dict)
    arguments: dict[int, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def event(self, event: bytes) -> None:
        """Take one event, without the blank line behind it."""
        if event.startswith(b":"):
            return  # a heartbeat
        if self.done:
            self.failures.append("something behind [DONE]")
        elif event == b"data: [DONE]":
            self.done = True
        else:
            self._chunk(json.loads(event.removeprefix(b"data:")))

    def _chunk(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.failures.append(f"an error: {chunk['error']}"[:200])
        for choice in chunk.get("choices", ()):
            delta = choice["delta"]
            self.content += delta.get("content") or ""
            if choice.get("finish_reason"):
                self.finish_reasons.append(choice["finish_reason"])
            for call in delta.get("tool_calls") or ():
                self._call(call["index"], call["function"])

    def _call(self, index: int, function: dict[str, str]) -> None:
        self.names[index] = self.names.get(index, "") + function.get("name", "")
        self.arguments[index] = self.arguments.get(index, "") + function.get("arguments", "")

    def calls(self) -> Iterator[Call]:
        for index in sorted(self.names):
            yield self.names[index], json.loads(self.arguments[index])


def complaint(script: Script, heard: Heard, *, translated: bool) -> str | None:
    """
    Return what is wrong with a stream, None if nothing is.

    :param translated: whether calls have to come as calls, instead of as text
    """
    expected = said(script.kind, script.cut * script.frames)
    calls = expected.calls if translated else ()
    if heard.failures:
        return heard.failures[0]
    if not heard.done:
        return "no [DONE]"
    if heard.finish_reasons != ["tool_calls" if calls else "stop"]:
        return f"finish reasons {heard.finish_reasons}"
    if heard.content != (expected.content if translated else expected.text):
        return "text is lost, doubled or out of order"
    try:
        return None if tuple(heard.calls()) == calls else "wrong calls"
    except ValueError:
        return "arguments that are no JSON"


def complaint_of_whole(script: Script, body: bytes) -> str | None:
    """Return what is wrong with an answer that is no stream, None if nothing is."""
    text = said(WHOLE, script.cut * script.frames).text
    try:
        message = json.loads(body)["choices"][0]["message"]
    except (ValueError, LookupError, TypeError):
        return f"no answer: {body[:200]!r}"
    return None if message["content"] == text else "another text"
