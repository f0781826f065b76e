"""
Writes the answers of the demo backend.

Values in, text out. As local models do, it writes tool calls as text: each call in another of three
dialects.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Pieces as long as real models' tokens: about four characters, including the preceding space.
_TOKEN = re.compile(r"\s?\w{1,5}|\s?[^\w\s]{1,2}|\s")
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,9})?")
_PLACE = re.compile(r"\b(?:in|at|for|of|from|to|near) ([A-Z]\w+)")

# A schema deeper than this is treated as recursive.
_MAX_DEPTH = 6
_MAX_QUOTED = 80
_MAX_NUMBER = 1e15


@dataclass(frozen=True)
class Call:
    """A tool's name and the arguments of a call."""

    name: str
    arguments: dict[str, Any]


def write_hermes(call: Call) -> str:
    """Write `call` in the dialect of Hermes and Qwen 2.5/3."""
    return f"<tool_call>\n{_json_call(call)}\n</tool_call>"


def write_line(call: Call) -> str:
    """Write `call` as a TOOL_CALL: line, the dialect of models that know tools only by prompt."""
    return f"TOOL_CALL: {_json_call(call)}"


def write_qwen_xml(call: Call) -> str:
    """Write `call` in the dialect of Qwen3-Coder and Qwen 3.5."""
    parameters = "".join(
        f"<parameter={key}>\n{_to_text(value)}\n</parameter>\n"
        for key, value in call.arguments.items()
    )
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"


DIALECTS: Sequence[Callable[[Call], str]] = (write_hermes, write_line, write_qwen_xml)


def _json_call(call: Call) -> str:
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def split_tokens(text: str) -> list[str]:
    """Split `text` into pieces of the size of tokens; their concatenation is `text`."""
    return _TOKEN.findall(text)


def reply(request: Mapping[str, Any], answer_number: int) -> str:
    """
    Return the answer to a chat request.

    If the request offers tools and has no tool result yet, the answer is a call.

    :param answer_number: selects the dialect of the call
    """
    messages = _objects(request.get("messages"))
    question = _last_user_text(messages)
    results = _tool_results(messages)
    if results:
        return f"The tool answered: {_shorten(results[-1])}\nThat is all I needed, thank you."
    tool = _chosen_tool(request)
    if tool is not None:
        call = Call(tool["name"], make_arguments(tool.get("parameters"), question))
        return f"I will ask {tool['name']}.\n\n{DIALECTS[answer_number % len(DIALECTS)](call)}"
    return (
        f"You said: {_shorten(question)}\n\nI am the demo backend of blockops, a script instead of "
        "a model. If you offer me tools, I call the first one, each time in another of the "
        "dialects that local models use."
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _chosen_tool(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the function that `tool_choice` names, otherwise the first one on offer, or None."""
    choice = request.get("tool_choice")
    if choice == "none":
        return None
    functions = [
        function
        for tool in _objects(request.get("tools"))
        if isinstance(function := tool.get("function"), dict)
        and isinstance(function.get("name"), str)
    ]
    forced = choice.get("function") if isinstance(choice, dict) else None
    name = forced.get("name") if isinstance(forced, dict) else None
    matching = [function for function in functions if function["name"] == name]
    return next(iter(matching or functions), None)


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message, with the text parts of its content joined by spaces."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"]) for part in _objects(content) if "text" in part)


def _last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    texts = [text_of(message) for message in messages if message.get("role") == "user"]
    return texts[-1].strip() if texts else ""


def _tool_results(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tool results after the last user message."""
    results: list[str] = []
    for message in messages:
        if message.get("role") == "user":
            results.clear()
        elif message.get("role") == "tool":
            results.append(text_of(message))
    return results


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."


def make_arguments(schema: Any, question: str) -> dict[str, Any]:
    """Return arguments that fit a tool's JSON schema, with values from the user's question."""
    root = schema if isinstance(schema, dict) else {}
    example = _ExampleArguments(root, question).value(root | {"type": "object"}, "", 0)
    return example if isinstance(example, dict) else {}


class _ExampleArguments:
    """
    Finds values for one schema.

    :param root: the complete schema, to which `$ref` refers
    :param question: the user's text, the source of the values
    """

    def __init__(self, root: Mapping[str, Any], question: str) -> None:
        self._root = root
        self._question = question
        self._numbers: Iterator[float] = map(float, _NUMBER.findall(question))

    def value(self, schema: Any, key: str, depth: int) -> Any:
        """Return a value for the property `key`; None if its type is null, or nested too deeply."""
        schema = self._resolved(schema) if depth < _MAX_DEPTH else {"type": "null"}
        if "const" in schema:
            return schema["const"]
        if "default" in schema:
            return schema["default"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._mentioned(schema["enum"])
        return self._typed(schema, key, depth)

    def _typed(self, schema: Mapping[str, Any], key: str, depth: int) -> Any:
        type_name = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(type_name, list):
            type_name = next((name for name in type_name if name != "null"), "null")
        match type_name:
            case "integer" | "number":
                number = self._number(schema)
                return int(number) if type_name == "integer" or number == int(number) else number
            case "boolean" | "null":
                return True if type_name == "boolean" else None
            case "array":
                return [self.value(schema.get("items", {}), key, depth + 1)]
            case "object":
                return self._object(schema, depth)
            case _:
                return self._string(key)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """Return an object with the required properties, or with all if none is required."""
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        required = schema.get("required")
        if not isinstance(required, list) or not required:
            required = list(properties)
        keys = [key for key in properties if key in required]
        return {key: self.value(properties[key], key, depth + 1) for key in keys}

    def _number(self, schema: Mapping[str, Any]) -> float:
        minimum = schema.get("minimum")
        if not isinstance(minimum, int | float) or not abs(minimum) < _MAX_NUMBER:
            minimum = 1
        return next(self._numbers, float(minimum))

    def _string(self, key: str) -> str:
        place = _PLACE.search(self._question)
        if place is not None and re.search("city|place|location|town|country", key, re.IGNORECASE):
            return place[1]
        return self._question[:_MAX_QUOTED] or key

    def _mentioned(self, options: Sequence[Any]) -> Any:
        """Return the option that the question mentions, otherwise the first."""
        question = self._question.casefold()
        return next((one for one in options if str(one).casefold() in question), options[0])

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """Follow `$ref`, and select the first member of a union that is not null."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict):
                return {}
            if isinstance(schema.get("$ref"), str):
                schema = self._follow(schema["$ref"])
            elif members := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
                schema = next((one for one in _objects(members) if one.get("type") != "null"), {})
            else:
                return schema
        return {}

    def _follow(self, reference: str) -> Any:
        node: Any = self._root
        for name in reference.removeprefix("#").strip("/").split("/"):
            node = node.get(name, {}) if isinstance(node, dict) else {}
        return node
