"""smolagents: a `ToolCallingAgent`, which calls `final_answer`, non-streaming and streaming."""

from __future__ import annotations

from typing import Any

from smolagents import OpenAIModel, Tool, ToolCallingAgent

from .task import Task, run


class Add(Tool):
    name = "add"
    description = "Add two numbers."
    inputs = {  # noqa: RUF012 - required by smolagents
        "a": {"type": "integer", "description": "one"},
        "b": {"type": "integer", "description": "the other"},
    }
    output_type = "integer"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, a: int, b: int) -> int:
        return self.task.add(a, b)


def run_agent(task: Task, *, stream: bool) -> str:
    model = OpenAIModel(model_id="tiny", api_base=task.url, api_key="none")
    agent: Any = ToolCallingAgent(
        tools=[Add(task)], model=model, stream_outputs=stream, max_steps=4, verbosity_level=0
    )
    return str(agent.run(task.question))


if __name__ == "__main__":
    run(
        {
            "non-streaming": lambda task: run_agent(task, stream=False),
            "stream": lambda task: run_agent(task, stream=True),
        }
    )
