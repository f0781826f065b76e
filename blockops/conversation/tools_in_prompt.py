"""
Writes tools into the prompt, for backends whose chat template does not support tools.

The description of the tools goes into the first system message. The calls of the history become
text of the assistant, and their results become user messages, in the words of a `ToolPrompt`.

The backend's prefix cache must keep hitting. Therefore the text depends only on the request, and
each message's text only on that message, or on the results next to it. Instructions for this one
answer are placed where they cost the least:

- At the end of the system prompt: at most one call, or at least one. Clients that set this mostly
  set it in every request.
- In the last user message: no call. Agents send this at the end of a long history, so the prompt
  before it stays unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from blockops.api.json_fields import decode_fields
from blockops.api.lenient_json import DECODE_ERRORS
from blockops.api.request import ChatRequest
from blockops.conversation.messages import ROLES, Message
from blockops.toolcalls.dialects.prompts import ToolPrompt

#: The request fields that the text in the prompt replaces.
TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")

ONE_CALL = "Make at most one call in an answer."
MUST_CALL = "Your answer has to be a call of one of these functions."
MUST_CALL_ONE = "Your answer has to be a call of the function {name}."
NO_CALL = "Make no call in this answer: use what you know by now."

#: Fields of tool results that a user message must not have.
_RESULT_FIELDS = frozenset({"role", "content", "tool_call_id", "name"})


class ToolsInPrompt:
    """
    Rewrites the messages of one request as text without tools.

    :ivar system_text: the text for the system prompt; empty if the request offers no tools
    :raises RecursionError: the tools are nested too deeply
    """

    def __init__(self, request: ChatRequest, prompt: ToolPrompt) -> None:
        choice = request.tool_choice
        functions = request.field("functions") or ()
        legacy_tools = [{"type": "function", "function": function} for function in functions]
        tools = choice.filter_tools([*(request.field("tools") or ()), *legacy_tools])
        paragraphs = [prompt.tools_text(tools)] if tools else []
        if tools and request.field("parallel_tool_calls") is False:
            paragraphs.append(ONE_CALL)
        if tools and choice.mode == "required":
            paragraphs.append(MUST_CALL)
        elif tools and choice.mode == "function":
            paragraphs.append(MUST_CALL_ONE.format(name=choice.name))
        self.system_text = "\n\n".join(paragraphs)
        self._prompt = prompt
        self._forbids_calls = choice.mode == "none"

    def rewrite_messages(self, messages: Sequence[Message]) -> list[bytes]:
        """Return the JSON of the messages; RecursionError for one that is nested too deeply."""
        rewritten: list[bytes] = []
        last_user = None  # the index of the last user message in `rewritten`
        for is_result, group in groupby(messages, lambda message: _role(message) == "tool"):
            if is_result:
                last_user = len(rewritten)
                results = [message.raw for message in group]
                rewritten.append(_results_as_user(results, self._prompt))
                continue
            for message in group:
                if message.info.role == "user":
                    last_user = len(rewritten)
                raw = message.raw
                rewritten.append(_calls_as_text(raw, self._prompt) if _has_calls(message) else raw)
        if self.system_text and self._forbids_calls and last_user is not None:
            rewritten[last_user] = _append_paragraph(rewritten[last_user], NO_CALL, role="user")
        if self.system_text and messages and messages[0].info.role == "system":
            # A template without tools has no role "developer" either.
            rewritten[0] = _append_paragraph(rewritten[0], self.system_text, role="system")
        elif self.system_text:
            rewritten.insert(0, _to_json({"role": "system", "content": self.system_text}))
        return rewritten


def _role(message: Message) -> str:
    """Return the role of a message, also if its other fields are invalid."""
    if message.info.is_valid:
        return message.info.role
    role = _value(_fields(message.raw).get("role"))
    return ROLES.get(role, "other") if isinstance(role, str) else "other"


def _has_calls(message: Message) -> bool:
    """Return True for an assistant message with calls, also if its other fields are invalid."""
    if message.info.is_valid:
        return bool(message.info.call_ids)
    return _role(message) == "assistant" and bool(_calls(_fields(message.raw)))


def _calls(fields: dict[str, Any]) -> list[dict[str, Any]]:
    calls = _value(fields.get("tool_calls"))
    candidates = [*(calls if isinstance(calls, list) else ()), _value(fields.get("function_call"))]
    return [call for call in candidates if isinstance(call, dict)]


def _calls_as_text(raw: bytes, prompt: ToolPrompt) -> bytes:
    fields = _fields(raw)
    calls = [_call_text(call, prompt) for call in _calls(fields)]
    for name in ("tool_calls", "function_call"):
        fields.pop(name, None)
    content = _value(fields.get("content"))
    if isinstance(content, list):
        text = prompt.assistant_text("", calls)
        return _to_json({**fields, "content": _append_text(content, f"\n{text}")})
    text = content if isinstance(content, str) else ""
    return _to_json({**fields, "content": prompt.assistant_text(text, calls)})


def _call_text(call: dict[str, Any], prompt: ToolPrompt) -> str:
    function = call.get("function", call.get("custom", call))
    if not isinstance(function, dict):
        function = {}
    return prompt.call_text(str(function.get("name") or ""), _arguments(function))


def _arguments(function: dict[str, Any]) -> dict[str, Any] | str:
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


def _results_as_user(results: Sequence[bytes], prompt: ToolPrompt) -> bytes:
    frame = prompt.result_frame
    parts: list[Any] = []
    other_fields: dict[str, Any] = {}
    for index, raw in enumerate(results):
        fields = _fields(raw)
        other_fields.update(
            {name: value for name, value in fields.items() if name not in _RESULT_FIELDS}
        )
        before = frame.between + frame.before if index else frame.before
        new_parts = [_text_part(before), *_result_parts(fields), _text_part(frame.after)]
        parts = _join_texts([*parts, *new_parts])
    content = parts[0]["text"] if len(parts) == 1 else parts
    return _to_json({"role": "user", "content": content, **other_fields})


def _result_parts(fields: dict[str, Any]) -> list[Any]:
    """Return a result's content as parts: one text part if there is nothing but text."""
    content = _value(fields.get("content"))
    if content is None:
        return []
    if not isinstance(content, list):
        return [_text_part(content if isinstance(content, str) else json.dumps(content))]
    texts = [part["text"] for part in content if _is_text(part)]
    return [_text_part("\n".join(texts))] if len(texts) == len(content) else content


def _join_texts(parts: Sequence[Any]) -> list[Any]:
    joined: list[Any] = []
    for part in parts:
        if joined and _is_text(part) and _is_text(joined[-1]):
            joined[-1] = {**joined[-1], **part, "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _append_paragraph(raw: bytes, text: str, *, role: str) -> bytes:
    fields = _fields(raw)
    content = _value(fields.get("content"))
    if isinstance(content, list):
        new_content: Any = _append_text(content, f"\n\n{text}")
    else:
        new_content = f"{content}\n\n{text}" if content and isinstance(content, str) else text
    return _to_json({**fields, "role": role, "content": new_content})


def _append_text(content: list[Any], text: str) -> list[Any]:
    if content and _is_text(content[-1]):
        return [*content[:-1], {**content[-1], "text": content[-1]["text"] + text}]
    return [*content, _text_part(text.lstrip("\n"))]


def _fields(raw: bytes) -> dict[str, Any]:
    """Return the fields of a message that is a JSON object, as raw JSON or as values."""
    try:
        return dict(decode_fields(raw))
    except DECODE_ERRORS:
        # msgspec rejects lone surrogates, NaN, and keys that are not UTF-8.
        return dict(json.loads(raw.decode("utf-8", "replace")))


def _value(field: Any) -> Any:
    return json.loads(bytes(field)) if isinstance(field, msgspec.Raw) else field


def _to_json(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        # msgspec does not encode lone surrogates; `json` writes them as escapes.
        return json.dumps({name: _value(field) for name, field in fields.items()}).encode()
