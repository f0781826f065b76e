"""
A conversation without tools that says the same: all that was done with them is text in it.

For backends whose template knows no tools. The tools go into the first system message, the calls of
the history become what the model wrote, and their results a user's text, in a format's own wording.

The backend's prefix cache has to keep hitting, so the text depends on the request alone, and each
message's on that message, or on the results beside it. What a request demands of this one answer is
said where it costs least: that one call is enough, or that there has to be one, at the end of the
system prompt, for clients mostly demand that always; that there must be none, behind everything,
for agents demand that at the end of long histories, and the tools stay where they were.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from blockops.api.chat.request import ChatRequest
from blockops.api.lenient_json import UNREADABLE
from blockops.conversation.messages import ROLES, Line
from blockops.toolcalls.dialects.prompts import Wording

#: The fields of a request that say what is then said in words.
FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")

ONE_CALL = "Make at most one call in an answer."
MUST_CALL = "Your answer has to be a call of one of these functions."
MUST_CALL_ONE = "Your answer has to be a call of the function {name}."
NO_CALL = "Make no call in this answer: use what you know by now."

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

#: Fields of a result that mean nothing in a user's message.
_OF_RESULTS = frozenset({"role", "content", "tool_call_id", "name"})


class Prompting:
    """
    What one request says of tools, in words.

    :ivar told: what stands in its system prompt; empty if it offers no tools
    """

    def __init__(self, asked: ChatRequest, wording: Wording) -> None:
        self._wording = wording
        self._forbids = asked.tool_choice.mode == "none"
        self.told = _told(asked, wording)

    def messages(self, lines: Sequence[Line]) -> list[bytes]:
        """Return the JSON of each message for the backend."""
        written: list[bytes] = []
        asks = None  # where the last message of a user stands
        for is_result, group in groupby(lines, lambda line: _role(line) == "result"):
            if is_result:
                asks = len(written)
                written.append(_from_results([line.raw for line in group], self._wording))
                continue
            for line in group:
                asks = len(written) if line.facts.role == "user" else asks
                written.append(_with_calls(line.raw, self._wording) if _calls(line) else line.raw)
        if self.told and self._forbids and asks is not None:
            written[asks] = _with_text(written[asks], NO_CALL, role="user")
        if self.told and lines and lines[0].facts.role == "system":
            # A template that knows no tools knows no "developer" either.
            written[0] = _with_text(written[0], self.told, role="system")
        elif self.told:
            written.insert(0, _to_json({"role": "system", "content": self.told}))
        return written


def _told(asked: ChatRequest, wording: Wording) -> str:
    """Return what the model is told of the tools that it is offered; empty if there are none."""
    choice = asked.tool_choice
    tools = [*(asked.field("tools") or ()), *map(_as_tool, asked.field("functions") or ())]
    tools = choice.allowed_of(tools)
    if not tools:
        return ""
    said = [wording.offer(tools)]
    if asked.field("parallel_tool_calls") is False:
        said.append(ONE_CALL)
    if choice.mode == "required":
        said.append(MUST_CALL)
    elif choice.mode == "function":
        said.append(MUST_CALL_ONE.format(name=choice.name))
    return "\n\n".join(said)


def _as_tool(function: Any) -> dict[str, Any]:
    """Return one of the legacy `functions` as a tool."""
    return {"type": "function", "function": function}


def _role(line: Line) -> str:
    """Return whose message it is, also where its other fields are not as the API has them."""
    if line.facts.readable:
        return line.facts.role
    said = _value(_fields(line.raw).get("role"))
    return ROLES.get(said, "other") if isinstance(said, str) else "other"


def _calls(line: Line) -> bool:
    """Say whether it is a message of an assistant that makes calls."""
    if line.facts.readable:
        return bool(line.facts.calls)
    return _role(line) == "assistant" and bool(_called(_fields(line.raw)))


def _called(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls that a message makes."""
    calls = _value(fields.get("tool_calls"))
    said = [*(calls if isinstance(calls, list) else ()), _value(fields.get("function_call"))]
    return [call for call in said if isinstance(call, dict)]


def _with_calls(raw: bytes, wording: Wording) -> bytes:
    """Return an assistant's message with its calls as the text that they were."""
    fields = _fields(raw)
    functions = [_function(call) for call in _called(fields)]
    for name in ("tool_calls", "function_call"):
        fields.pop(name, None)
    calls = [wording.call(_name(each), _arguments(each)) for each in functions]
    content = _value(fields.get("content"))
    if isinstance(content, list):
        text = wording.answer("", calls)
        return _to_json({**fields, "content": _added(content, f"\n{text}")})
    said = content if isinstance(content, str) else ""
    return _to_json({**fields, "content": wording.answer(said, calls)})


def _function(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call.get("custom", call))
    return function if isinstance(function, dict) else {}


def _name(function: dict[str, Any]) -> str:
    return str(function.get("name") or "")


def _arguments(function: dict[str, Any]) -> dict[str, Any] | str:
    """Return the arguments of a call; as they are, where they are no object or free text."""
    arguments = function.get("arguments", function.get("input"))
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    if isinstance(arguments, dict):
        return arguments
    return "" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _from_results(results: Sequence[bytes], wording: Wording) -> bytes:
    """Return results that stand behind one another as one message of a user."""
    frame = wording.frame
    parts: list[Any] = []
    others: dict[str, Any] = {}
    for place, raw in enumerate(results):
        fields = _fields(raw)
        others.update({key: value for key, value in fields.items() if key not in _OF_RESULTS})
        before = frame.between + frame.before if place else frame.before
        parts = _joined([*parts, _text(before), *_parts(fields), _text(frame.behind)])
    content = parts[0]["text"] if len(parts) == 1 else parts
    return _to_json({"role": "user", "content": content, **others})


def _parts(fields: dict[str, Any]) -> list[Any]:
    """Return the parts of a result's content: one text, unless there is more in it than text."""
    content = _value(fields.get("content"))
    if content is None:
        return []
    if not isinstance(content, list):
        return [_text(content if isinstance(content, str) else json.dumps(content))]
    texts = [part["text"] for part in content if _is_text(part)]
    return [_text("\n".join(texts))] if len(texts) == len(content) else content


def _joined(parts: Sequence[Any]) -> list[Any]:
    """Return `parts` with texts that stand behind one another as one."""
    joined: list[Any] = []
    for part in parts:
        if joined and _is_text(part) and _is_text(joined[-1]):
            joined[-1] = {**joined[-1], **part, "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _with_text(raw: bytes, text: str, *, role: str) -> bytes:
    """Return a message with `text` as another paragraph of it."""
    fields = _fields(raw)
    content = _value(fields.get("content"))
    if isinstance(content, list):
        more: Any = _added(content, f"\n\n{text}")
    else:
        more = f"{content}\n\n{text}" if content and isinstance(content, str) else text
    return _to_json({**fields, "role": role, "content": more})


def _added(content: list[Any], text: str) -> list[Any]:
    """Return the parts of a message with `text` behind its last text, or as one more."""
    if content and _is_text(content[-1]):
        return [*content[:-1], {**content[-1], "text": content[-1]["text"] + text}]
    return [*content, _text(text.lstrip("\n"))]


def _fields(raw: bytes) -> dict[str, Any]:
    """Return the fields of a message that was read before, as JSON or as values."""
    try:
        return dict(_decode(raw))
    except UNREADABLE:
        # Halves of surrogate pairs, NaN, keys in no encoding.
        return dict(json.loads(raw.decode("utf-8", "replace")))


def _value(field: Any) -> Any:
    return json.loads(bytes(field)) if isinstance(field, msgspec.Raw) else field


def _to_json(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        # Halves of surrogate pairs, which json writes as it has read them.
        return json.dumps({key: _value(field) for key, field in fields.items()}).encode()
