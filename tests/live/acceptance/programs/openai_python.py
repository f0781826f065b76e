"""The official `openai` package: deltas by hand, its streaming helper, whole answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from openai import OpenAI

from .task import TOOL, Task, run

if TYPE_CHECKING:
    from collections.abc import Callable

Message = dict[str, Any]


def loop(task: Task, ask: Callable[[OpenAI, list[Any]], Message]) -> str:
    """Let the model call until it answers in words."""
    client = OpenAI(base_url=task.url, api_key="none", max_retries=0)
    talk: list[Any] = task.messages()
    for _ in range(4):
        message = ask(client, talk)
        if message.get("role") != "assistant":
            raise AssertionError(f"the role is {message.get('role')!r}")
        if not message.get("tool_calls"):
            return str(message["content"])
        talk.append(message)
        for call in message["tool_calls"]:
            result = task.add(**json.loads(call["function"]["arguments"]))
            talk.append({"role": "tool", "tool_call_id": call["id"], "content": str(result)})
    raise AssertionError("it calls for ever")


def deltas(client: OpenAI, talk: list[Any]) -> Message:
    message: Message = {"role": "assistant", "content": ""}
    calls: dict[int, Any] = {}
    asked: Any = {"model": "tiny", "messages": talk, "tools": [TOOL], "stream": True}
    for chunk in client.chat.completions.create(**asked):
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            for part in choice.delta.tool_calls or ():
                new = {"type": "function", "function": {"name": "", "arguments": ""}}
                call = calls.setdefault(part.index, new)
                call["id"] = part.id or call["id"]
                call["function"]["name"] += part.function.name or ""
                call["function"]["arguments"] += part.function.arguments or ""
    return message | ({"tool_calls": list(calls.values())} if calls else {})


def helper(client: OpenAI, talk: list[Any]) -> Message:
    asked: Any = {"model": "tiny", "messages": talk, "tools": [TOOL]}
    with client.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    return dict(message.model_dump(exclude_none=True))


def whole(client: OpenAI, talk: list[Any]) -> Message:
    asked: Any = {"model": "tiny", "messages": talk, "tools": [TOOL]}
    message = client.chat.completions.create(**asked).choices[0].message
    return dict(message.model_dump(exclude_none=True))


if __name__ == "__main__":
    run(
        {
            "deltas": lambda task: loop(task, deltas),
            "helper": lambda task: loop(task, helper),
            "whole": lambda task: loop(task, whole),
        }
    )
