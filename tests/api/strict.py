"""
A strict reader of OpenAI's streams, so that no client has to be lenient.

It rejects whatever has broken some client: a late or repeated role, a second finish reason, a
repeated id or name, calls that are out of order or incomplete, anything after the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter", "function_call"}


class InvalidStream(AssertionError):
    """The stream violates the API."""


@dataclass
class ChoiceAnswer:
    """The contents of one choice, its deltas joined."""

    content: str = ""
    reasoning: str = ""
    text: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    function_call: dict[str, str] | None = None
    finish_reason: str | None = None

    def pairs(self) -> list[tuple[str, Any]]:
        """Return the name and the arguments of each call."""
        return [(call["name"], json.loads(call["arguments"])) for call in self.calls]


@dataclass
class StreamAnswer:
    """The contents of a stream."""

    choices: dict[int, ChoiceAnswer] = field(default_factory=dict)
    usage: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None

    @property
    def choice(self) -> ChoiceAnswer:
        """The only choice."""
        require(list(self.choices) == [0], f"choices {list(self.choices)}")
        return self.choices[0]


def require(condition: bool, problem: str) -> None:  # noqa: FBT001
    if not condition:
        raise InvalidStream(problem)


def read_strictly(stream: bytes, *, bare: bool = False) -> StreamAnswer:
    """
    Return the contents of a complete stream.

    :param bare: True if chunks may lack the id, the model and the like, as those of tests do
    :raises InvalidStream: a client might fail on it
    """
    require(stream.endswith(b"\n\n"), "the last event has no blank line")
    answer = StreamAnswer()
    events = [e for e in stream.decode().split("\n\n")[:-1] if not e.startswith(":")]
    require(bool(events), "no event")
    for position, event in enumerate(events):
        require(
            event.startswith("data: ") and "\n" not in event.strip("\n"), f"odd event {event!r}"
        )
        last = position == len(events) - 1
        data = event.strip("\n")[6:]
        if data == "[DONE]":
            require(last, f"after [DONE]: {events[position + 1 :]!r}")
            require(bool(answer.choices), "no choice")
            for index, choice in answer.choices.items():
                require(choice.finish_reason is not None, f"choice {index} has no finish reason")
            return answer
        value = strict_json(data)
        if "error" in value:
            _read_error(value["error"])
            require(last, f"after an error: {events[position + 1 :]!r}")
            answer.error = value["error"]
            return answer
        _read_chunk(answer, value, bare=bare)
    raise InvalidStream("neither [DONE] nor an error at the end")


def strict_json(data: str) -> dict[str, Any]:
    def reject(constant: str) -> None:
        raise InvalidStream(f"{constant} is not JSON")

    value: dict[str, Any] = json.loads(data, parse_constant=reject)
    require(isinstance(value, dict), f"not an object: {data}")
    json.dumps(value, ensure_ascii=False).encode()  # fails for unpaired surrogates
    return value


def _read_error(error: Any) -> None:
    require(isinstance(error, dict), "the error is not an object")
    require(
        isinstance(error.get("message"), str) and error["message"] != "",
        "an error without a message",
    )


def _read_chunk(answer: StreamAnswer, chunk: dict[str, Any], *, bare: bool) -> None:
    if not bare:
        for name, expected in {"id": str, "object": str, "created": int, "model": str}.items():
            require(isinstance(chunk.get(name), expected), f"{name} is {chunk.get(name)!r}")
    require(isinstance(chunk.get("choices"), list), f"choices are {chunk.get('choices')!r}")
    if chunk.get("usage") is not None:
        answer.usage.append(chunk["usage"])
    answer.chunks.append(chunk)
    for choice in chunk["choices"]:
        if "text" in choice:
            _read_completion(answer, choice)
        else:
            _read_choice(answer, choice)


def _open_choice(answer: StreamAnswer, choice: dict[str, Any]) -> ChoiceAnswer:
    """Return the contents of a choice that has not finished."""
    index = choice["index"]
    require(type(index) is int, f"index {index!r}")
    contents = answer.choices.setdefault(index, ChoiceAnswer())
    require(contents.finish_reason is None, f"choice {index} continues after its end: {choice!r}")
    return contents


def _read_completion(answer: StreamAnswer, choice: dict[str, Any]) -> None:
    contents = _open_choice(answer, choice)
    contents.text += choice["text"]
    _read_finish(contents, choice.get("finish_reason"))


def _read_choice(answer: StreamAnswer, choice: dict[str, Any]) -> None:
    first = choice["index"] not in answer.choices
    contents = _open_choice(answer, choice)
    delta: dict[str, Any] = choice.get("delta") or {}
    require(isinstance(choice.get("delta"), dict), f"delta of {choice!r}")
    require(not first or delta.get("role") == "assistant", f"no role in the first delta {delta!r}")
    require(first or not delta.get("role"), f"a repeated role in {delta!r}")
    for name in ("content", "reasoning_content"):
        require(isinstance(delta.get(name), str | None), f"{name} is {delta.get(name)!r}")
    contents.content += delta.get("content") or ""
    contents.reasoning += delta.get("reasoning_content") or ""
    if delta.get("function_call"):
        contents.function_call = contents.function_call or {"name": "", "arguments": ""}
        for name, part in delta["function_call"].items():
            contents.function_call[name] += part
    for call in delta.get("tool_calls") or ():
        _read_call(contents, call)
    _read_finish(contents, choice.get("finish_reason"))


def _read_call(contents: ChoiceAnswer, call: dict[str, Any]) -> None:
    function = call["function"]
    require(isinstance(function.get("arguments", ""), str), f"arguments of {call!r}")
    if call["index"] == len(contents.calls):
        require(isinstance(call.get("id"), str) and call["id"] != "", f"no id in {call!r}")
        require(
            call["id"] not in {other["id"] for other in contents.calls}, f"repeated id: {call!r}"
        )
        require(call.get("type") == "function", f"type of {call!r}")
        require(bool(function.get("name")), f"no name in {call!r}")
        contents.calls.append(
            {
                "id": call["id"],
                "name": function["name"],
                "arguments": function.get("arguments", ""),
            }
        )
        return
    require(call["index"] == len(contents.calls) - 1, f"index out of order: {call!r}")
    require(call.keys() <= {"index", "function"}, f"a repeated field: {call!r}")
    require(function.keys() == {"arguments"}, f"a repeated field: {call!r}")
    contents.calls[-1]["arguments"] += function["arguments"]


def _read_finish(contents: ChoiceAnswer, reason: str | None) -> None:
    if reason is None:
        return
    require(reason in FINISH_REASONS, f"finish reason {reason!r}")
    contents.finish_reason = reason
    require(reason != "tool_calls" or bool(contents.calls), "tool_calls, but no call")
    complete = contents.calls[:-1] if reason in {"length", "content_filter"} else contents.calls
    for call in complete:
        try:
            arguments = json.loads(call["arguments"])
        except ValueError:
            raise InvalidStream(f"truncated arguments: {call!r}") from None
        require(isinstance(arguments, dict), f"arguments are not an object: {call!r}")
