"""langchain-openai: `ChatOpenAI` with a bound tool, whole and in a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

from .task import Task, run

if TYPE_CHECKING:
    from collections.abc import Callable


def loop(task: Task, ask: Callable[[Any, list[Any]], Any]) -> str:
    tool = StructuredTool.from_function(task.add)
    chat: Any = ChatOpenAI(base_url=task.url, api_key="none", model="tiny", max_retries=0)
    model = chat.bind_tools([tool])
    talk: list[Any] = [HumanMessage(task.question)]
    for _ in range(4):
        message = ask(model, talk)
        if not message.tool_calls:
            return str(message.content)
        talk += [message, *(tool.invoke(call) for call in message.tool_calls)]
    raise AssertionError("it calls for ever")


def streamed(model: Any, talk: list[Any]) -> Any:
    first, *more = model.stream(talk)
    for chunk in more:
        first += chunk
    return first


if __name__ == "__main__":
    run(
        {
            "invoke": lambda task: loop(task, lambda model, talk: model.invoke(talk)),
            "stream": lambda task: loop(task, streamed),
        }
    )
