"""
A reader of OpenAI's streams that forgives nothing, so that no client is asked to.

It refuses what has broken one client or another: a late role or a second one, a second finish
reason, an id or a name said twice, calls that are out of order or not whole, anything behind
the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter", "function_call"}


class StreamRefused(AssertionError):
    """The stream is not what the API promises."""


@dataclass
class Said:
    """What one choice said, its deltas joined."""

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
class Answer:
    """What a stream said."""

    choices: dict[int, Said] = field(default_factory=dict)
    usage: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None

    @property
    def said(self) -> Said:
        """What the only choice said."""
        demand(list(self.choices) == [0], f"choices {list(self.choices)}")
        return self.choices[0]


def demand(condition: bool, complaint: str) -> None:  # noqa: FBT001
    if not condition:
        raise StreamRefused(complaint)


def read_strictly(stream: bytes, *, bare: bool = False) -> Answer:
    """
    Return what a complete stream said.

    :param bare: whether chunks may lack the id, the model and the like, as those of tests do
    :raises StreamRefused: a client might trip over it
    """
    demand(stream.endswith(b"\n\n"), "the last event is not ended")
    answer = Answer()
    events = [e for e in stream.decode().split("\n\n")[:-1] if not e.startswith(":")]
    demand(bool(events), "nothing was said")
    for place, event in enumerate(events):
        demand(event.startswith("data: ") and "\n" not in event.strip("\n"), f"odd event {event!r}")
        last = place == len(events) - 1
        data = event.strip("\n")[6:]
        if data == "[DONE]":
            demand(last, f"behind [DONE]: {events[place + 1 :]!r}")
            demand(bool(answer.choices), "no choice")
            for index, said in answer.choices.items():
                demand(said.finish_reason is not None, f"choice {index} has no finish reason")
            return answer
        value = strict_json(data)
        if "error" in value:
            _read_error(value["error"])
            demand(last, f"behind an error: {events[place + 1 :]!r}")
            answer.error = value["error"]
            return answer
        _read_chunk(answer, value, bare=bare)
    raise StreamRefused("neither [DONE] nor an error at the end")


def strict_json(data: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise StreamRefused(f"{constant} is not JSON")

    value: dict[str, Any] = json.loads(data, parse_constant=refuse)
    demand(isinstance(value, dict), f"not an object: {data}")
    json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs fail here
    return value


def _read_error(error: Any) -> None:
    demand(isinstance(error, dict), "the error is not an object")
    demand(
        isinstance(error.get("message"), str) and error["message"] != "", "an error says nothing"
    )


def _read_chunk(answer: Answer, chunk: dict[str, Any], *, bare: bool) -> None:
    if not bare:
        for name, kind in {"id": str, "object": str, "created": int, "model": str}.items():
            demand(isinstance(chunk.get(name), kind), f"{name} is {chunk.get(name)!r}")
    demand(isinstance(chunk.get("choices"), list), f"choices are {chunk.get('choices')!r}")
    if chunk.get("usage") is not None:
        answer.usage.append(chunk["usage"])
    answer.chunks.append(chunk)
    for choice in chunk["choices"]:
        if "text" in choice:
            _read_completion(answer, choice)
        else:
            _read_choice(answer, choice)


def _begun(answer: Answer, choice: dict[str, Any]) -> Said:
    index = choice["index"]
    demand(type(index) is int, f"index {index!r}")
    said = answer.choices.setdefault(index, Said())
    demand(said.finish_reason is None, f"choice {index} goes on behind its end: {choice!r}")
    return said


def _read_completion(answer: Answer, choice: dict[str, Any]) -> None:
    said = _begun(answer, choice)
    said.text += choice["text"]
    _read_finish(said, choice.get("finish_reason"))


def _read_choice(answer: Answer, choice: dict[str, Any]) -> None:
    first = choice["index"] not in answer.choices
    said = _begun(answer, choice)
    delta: dict[str, Any] = choice.get("delta") or {}
    demand(isinstance(choice.get("delta"), dict), f"delta of {choice!r}")
    demand(not first or delta.get("role") == "assistant", f"no role in the first delta {delta!r}")
    demand(first or not delta.get("role"), f"a role once more in {delta!r}")
    for name in ("content", "reasoning_content"):
        demand(isinstance(delta.get(name), str | None), f"{name} is {delta.get(name)!r}")
    said.content += delta.get("content") or ""
    said.reasoning += delta.get("reasoning_content") or ""
    if delta.get("function_call"):
        said.function_call = said.function_call or {"name": "", "arguments": ""}
        for name, part in delta["function_call"].items():
            said.function_call[name] += part
    for call in delta.get("tool_calls") or ():
        _read_call(said, call)
    _read_finish(said, choice.get("finish_reason"))


def _read_call(said: Said, call: dict[str, Any]) -> None:
    function = call["function"]
    demand(isinstance(function.get("arguments", ""), str), f"arguments of {call!r}")
    if call["index"] == len(said.calls):
        demand(isinstance(call.get("id"), str) and call["id"] != "", f"no id in {call!r}")
        demand(call["id"] not in {other["id"] for other in said.calls}, f"id twice: {call!r}")
        demand(call.get("type") == "function", f"type of {call!r}")
        demand(bool(function.get("name")), f"no name in {call!r}")
        said.calls.append(
            {
                "id": call["id"],
                "name": function["name"],
                "arguments": function.get("arguments", ""),
            }
        )
        return
    demand(call["index"] == len(said.calls) - 1, f"index out of order: {call!r}")
    demand(call.keys() <= {"index", "function"}, f"said twice: {call!r}")
    demand(function.keys() == {"arguments"}, f"said twice: {call!r}")
    said.calls[-1]["arguments"] += function["arguments"]


def _read_finish(said: Said, reason: str | None) -> None:
    if reason is None:
        return
    demand(reason in FINISH_REASONS, f"finish reason {reason!r}")
    said.finish_reason = reason
    demand(reason != "tool_calls" or bool(said.calls), "tool_calls, but no call")
    whole = said.calls[:-1] if reason in {"length", "content_filter"} else said.calls
    for call in whole:
        try:
            arguments = json.loads(call["arguments"])
        except ValueError:
            raise StreamRefused(f"arguments cut off: {call!r}") from None
        demand(isinstance(arguments, dict), f"arguments are no object: {call!r}")
