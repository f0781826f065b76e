"""The official `openai` package: deltas, its streaming helper, non-streaming responses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from openai import OpenAI

from .task import TOOL, Task, run

if TYPE_CHECKING:
    from collections.abc import Callable

Message = dict[str, Any]


def run_loop(task: Task, send: Callable[[OpenAI, list[Any]], Message]) -> str:
    """Run the model's calls until it answers with text; return the text."""
    client = OpenAI(base_url=task.url, api_key="none", max_retries=0)
    history: list[Any] = task.messages()
    for _ in range(4):
        message = send(client, history)
        if message.get("role") != "assistant":
            raise AssertionError(f"the role is {message.get('role')!r}")
        if not message.get("tool_calls"):
            return str(message["content"])
        history.append(message)
        for call in message["tool_calls"]:
            result = task.add(**json.loads(call["function"]["arguments"]))
            history.append({"role": "tool", "tool_call_id": call["id"], "content": str(result)})
    raise AssertionError("the model still calls tools after 4 requests")


def join_deltas(client: OpenAI, history: list[Any]) -> Message:
    message: Message = {"role": "assistant", "content": ""}
    calls: dict[int, Any] = {}
    request: Any = {"model": "tiny", "messages": history, "tools": [TOOL], "stream": True}
    for chunk in client.chat.completions.create(**request):
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            for part in choice.delta.tool_calls or ():
                new_call = {"type": "function", "function": {"name": "", "arguments": ""}}
                call = calls.setdefault(part.index, new_call)
                call["id"] = part.id or call["id"]
                call["function"]["name"] += part.function.name or ""
                call["function"]["arguments"] += part.function.arguments or ""
    return message | ({"tool_calls": list(calls.values())} if calls else {})


def use_helper(client: OpenAI, history: list[Any]) -> Message:
    request: Any = {"model": "tiny", "messages": history, "tools": [TOOL]}
    with client.chat.completions.stream(**request) as stream:
        message = stream.get_final_completion().choices[0].message
    return dict(message.model_dump(exclude_none=True))


def send_non_streaming(client: OpenAI, history: list[Any]) -> Message:
    request: Any = {"model": "tiny", "messages": history, "tools": [TOOL]}
    message = client.chat.completions.create(**request).choices[0].message
    return dict(message.model_dump(exclude_none=True))


if __name__ == "__main__":
    run(
        {
            "deltas": lambda task: run_loop(task, join_deltas),
            "helper": lambda task: run_loop(task, use_helper),
            "non-streaming": lambda task: run_loop(task, send_non_streaming),
        }
    )
