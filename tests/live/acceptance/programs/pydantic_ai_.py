"""pydantic-ai: an `Agent` that runs its tools itself, non-streaming and streaming."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from .task import Task, run


def create_agent(task: Task) -> Any:
    provider = OpenAIProvider(base_url=task.url, api_key="none")
    return Agent(OpenAIChatModel("tiny", provider=provider), tools=[task.add])


def run_agent(task: Task) -> str:
    return str(create_agent(task).run_sync(task.question).output)


def stream_agent(task: Task) -> str:
    async def stream() -> str:
        async with create_agent(task).run_stream(task.question) as result:
            return str(await result.get_output())

    return asyncio.run(stream())


if __name__ == "__main__":
    run({"run": run_agent, "run_stream": stream_agent})
