"""pydantic-ai: an `Agent` that runs its tools itself, whole and in a stream."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from .task import Task, run


def agent(task: Task) -> Any:
    provider = OpenAIProvider(base_url=task.url, api_key="none")
    return Agent(OpenAIChatModel("tiny", provider=provider), tools=[task.add])


def whole(task: Task) -> str:
    return str(agent(task).run_sync(task.question).output)


def streamed(task: Task) -> str:
    async def talk() -> str:
        async with agent(task).run_stream(task.question) as result:
            return str(await result.get_output())

    return asyncio.run(talk())


if __name__ == "__main__":
    run({"run": whole, "run_stream": streamed})
