"""Writes the answers of the demo backend, with calls as text, as local models write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from blockops.toolcalls.dialects.prompts import HermesPrompt, QwenXmlPrompt, ToolCallLinePrompt

# Pieces as long as real models' tokens: about four characters, including the preceding space.
_TOKEN = re.compile(r"\s?\w{1,5}|\s?[^\w\s]{1,2}|\s")
_NUMBER = re.compile(r"\d{1,15}")
_PLACE = re.compile(r"\b(?:in|at|for|of|from|to|near) ([A-Z]\w+)")
_MAX_QUOTED = 80

#: The dialects of the calls, in turn.
DIALECTS = (HermesPrompt(), ToolCallLinePrompt(), QwenXmlPrompt())


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The content; the texts of its parts, joined by spaces."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(str(part["text"]) for part in self.content or () if "text" in part)


class Parameter(msgspec.Struct):
    type: Any = None
    enum: list[Any] | None = None


class Parameters(msgspec.Struct):
    """The fields of a tool's JSON schema that the demo reads."""

    properties: dict[str, Parameter] | None = None
    required: list[str] | None = None


class Function(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class Tool(msgspec.Struct):
    function: Function


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct):
    """The fields of a chat request that the demo reads."""

    messages: list[Message]
    model: str | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Tool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def split_tokens(text: str) -> list[str]:
    """Split `text` into pieces of the size of tokens; their concatenation is `text`."""
    return _TOKEN.findall(text)


def reply(request: ChatRequest, answer_number: int) -> str:
    """Return the answer: a call if tools are on offer and the request has no tool result yet."""
    question, result = "", None
    for message in request.messages:
        if message.role == "user":
            question, result = message.text.strip(), None
        elif message.role == "tool":
            result = message.text
    if result is not None:
        return f"The tool answered: {_shorten(result)}\nThat is all I needed, thank you."
    function = _chosen_function(request)
    if function is not None:
        arguments = make_arguments(function.parameters or Parameters(), question)
        dialect = DIALECTS[answer_number % len(DIALECTS)]
        return f"I will ask {function.name}.\n\n{dialect.call_text(function.name, arguments)}"
    return (
        f"You said: {_shorten(question)}\n\nI am the demo backend of blockops, a script instead of "
        "a model. If you offer me tools, I call the first one, each time in another of the "
        "dialects that local models use."
    )


def _chosen_function(request: ChatRequest) -> Function | None:
    """Return the function that `tool_choice` names, otherwise the first one on offer, or None."""
    if request.tool_choice == "none" or not request.tools:
        return None
    functions = [tool.function for tool in request.tools]
    if isinstance(request.tool_choice, Tool):
        name = request.tool_choice.function.name
        return next((each for each in functions if each.name == name), functions[0])
    return functions[0]


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."


def make_arguments(parameters: Parameters, question: str) -> dict[str, Any]:
    """Return the required arguments, or all if none is; their values come from `question`."""
    properties = parameters.properties or {}
    required = parameters.required or properties
    numbers = map(int, _NUMBER.findall(question))
    return {
        name: _example(name, parameter, question, numbers)
        for name, parameter in properties.items()
        if name in required
    }


def _example(name: str, parameter: Parameter, question: str, numbers: Iterator[int]) -> Any:
    if parameter.enum:
        return parameter.enum[0]
    match parameter.type:
        case "integer" | "number":
            return next(numbers, 1)
        case "boolean":
            return True
        case "array":
            return []
        case "object":
            return {}
    place = _PLACE.search(question)
    is_place = re.search("city|place|location|town|country", name, re.IGNORECASE)
    return place[1] if place and is_place else question[:_MAX_QUOTED] or name
