"""langchain-openai: `ChatOpenAI` with a bound tool, non-streaming and streaming."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

from .task import Task, run

if TYPE_CHECKING:
    from collections.abc import Callable


def run_loop(task: Task, send: Callable[[Any, list[Any]], Any]) -> str:
    tool = StructuredTool.from_function(task.add)
    chat: Any = ChatOpenAI(base_url=task.url, api_key="none", model="tiny", max_retries=0)
    model = chat.bind_tools([tool])
    history: list[Any] = [HumanMessage(task.question)]
    for _ in range(4):
        message = send(model, history)
        if not message.tool_calls:
            return str(message.content)
        history += [message, *(tool.invoke(call) for call in message.tool_calls)]
    raise AssertionError("the model still calls tools after 4 requests")


def stream(model: Any, history: list[Any]) -> Any:
    first, *others = model.stream(history)
    for chunk in others:
        first += chunk
    return first


if __name__ == "__main__":
    run(
        {
            "invoke": lambda task: run_loop(task, lambda model, history: model.invoke(history)),
            "stream": lambda task: run_loop(task, stream),
        }
    )
