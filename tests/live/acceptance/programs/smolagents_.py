"""smolagents: a `ToolCallingAgent`, which ends by calling `final_answer`, whole and in a stream."""

from __future__ import annotations

from typing import Any

from smolagents import OpenAIModel, Tool, ToolCallingAgent

from .task import Task, run


class Add(Tool):
    name = "add"
    description = "Add two numbers."
    inputs = {  # noqa: RUF012 - as smolagents wants it
        "a": {"type": "integer", "description": "one"},
        "b": {"type": "integer", "description": "the other"},
    }
    output_type = "integer"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, a: int, b: int) -> int:
        return self.task.add(a, b)


def answer(task: Task, *, stream: bool) -> str:
    model = OpenAIModel(model_id="tiny", api_base=task.url, api_key="none")
    agent: Any = ToolCallingAgent(
        tools=[Add(task)], model=model, stream_outputs=stream, max_steps=4, verbosity_level=0
    )
    return str(agent.run(task.question))


if __name__ == "__main__":
    run(
        {
            "whole": lambda task: answer(task, stream=False),
            "stream": lambda task: answer(task, stream=True),
        }
    )
