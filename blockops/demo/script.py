"""
What the demo backend says: a model's part, written down.

Values in, text out. The text is what local models write, tool calls included: as text, in each of
the three formats that blockops translates, by turns.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# As long as the tokens of real models: about four characters, with the space before them.
_TOKEN = re.compile(r"\s?\w{1,5}|\s?[^\w\s]{1,2}|\s")
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,9})?")
_PLACE = re.compile(r"\b(?:in|at|for|of|from|to|near) ([A-Z]\w+)")

# Deeper than this a schema is taken for one that contains itself.
_MAX_DEPTH = 6
_MAX_WORDS = 80
_MAX_NUMBER = 1e15


@dataclass(frozen=True)
class Call:
    """A tool and the arguments to call it with."""

    name: str
    arguments: dict[str, Any]


def hermes(call: Call) -> str:
    """Write `call` as Hermes and Qwen 2.5/3 do."""
    return f"<tool_call>\n{_object(call)}\n</tool_call>"


def line(call: Call) -> str:
    """Write `call` on a line of its own, as models do that are taught by prompt only."""
    return f"TOOL_CALL: {_object(call)}"


def qwen_xml(call: Call) -> str:
    """Write `call` as Qwen3-Coder and Qwen 3.5 do."""
    parameters = "".join(
        f"<parameter={key}>\n{_plain(value)}\n</parameter>\n"
        for key, value in call.arguments.items()
    )
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"


FORMATS: Sequence[Callable[[Call], str]] = (hermes, line, qwen_xml)


def _object(call: Call) -> str:
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tokens(text: str) -> list[str]:
    """Cut `text` into pieces the size of tokens; joined they are `text` again."""
    return _TOKEN.findall(text)


def reply(asked: Mapping[str, Any], turn: int) -> str:
    """
    Return what the model answers to the chat request `asked`.

    With tools on offer and no result yet, it calls one of them, in format number `turn`.
    """
    messages = _objects(asked.get("messages"))
    words = _words_of_user(messages)
    results = _results(messages)
    if results:
        return f"The tool answered: {_shorten(results[-1])}\nThat is all I needed, thank you."
    tool = _chosen_tool(asked)
    if tool is not None:
        call = Call(tool["name"], arguments(tool.get("parameters"), words))
        return f"I will ask {tool['name']}.\n\n{FORMATS[turn % len(FORMATS)](call)}"
    return (
        f"You said: {_shorten(words)}\n\nI am the demo backend of blockops, a script and no model. "
        "Offer me tools, and I call the first one, each time in another of the formats that local "
        "models use."
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _chosen_tool(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the function that `tool_choice` names, else the first one on offer."""
    choice = asked.get("tool_choice")
    if choice == "none":
        return None
    functions = [
        function
        for tool in _objects(asked.get("tools"))
        if isinstance(function := tool.get("function"), dict)
        and isinstance(function.get("name"), str)
    ]
    forced = choice.get("function") if isinstance(choice, dict) else None
    wanted = forced.get("name") if isinstance(forced, dict) else None
    named = [function for function in functions if function["name"] == wanted]
    return next(iter(named or functions), None)


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's text; of content that comes in parts, the text parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"]) for part in _objects(content) if "text" in part)


def _words_of_user(messages: Sequence[Mapping[str, Any]]) -> str:
    spoken = [text_of(message) for message in messages if message.get("role") == "user"]
    return spoken[-1].strip() if spoken else ""


def _results(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tool results that came since the user last spoke."""
    found: list[str] = []
    for message in messages:
        if message.get("role") == "user":
            found.clear()
        elif message.get("role") == "tool":
            found.append(text_of(message))
    return found


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}..."


def arguments(schema: Any, words: str) -> dict[str, Any]:
    """Return arguments that fit a tool's JSON schema, made of what the user said."""
    root = schema if isinstance(schema, dict) else {}
    made = _Guess(root, words).value(root | {"type": "object"}, "", 0)
    return made if isinstance(made, dict) else {}


class _Guess:
    """
    Values for one schema.

    :param root: the whole schema, which `$ref` points into
    :param words: what the user said
    """

    def __init__(self, root: Mapping[str, Any], words: str) -> None:
        self._root = root
        self._words = words
        self._numbers: Iterator[float] = map(float, _NUMBER.findall(words))

    def value(self, schema: Any, key: str, depth: int) -> Any:
        """Return a value for the property `key`, or None where the schema leaves no other way."""
        schema = self._resolved(schema) if depth < _MAX_DEPTH else {"type": "null"}
        if "const" in schema:
            return schema["const"]
        if "default" in schema:
            return schema["default"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._said(schema["enum"])
        return self._typed(schema, key, depth)

    def _typed(self, schema: Mapping[str, Any], key: str, depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((name for name in kind if name != "null"), "null")
        match kind:
            case "integer" | "number":
                number = self._number(schema)
                return int(number) if kind == "integer" or number == int(number) else number
            case "boolean" | "null":
                return True if kind == "boolean" else None
            case "array":
                return [self.value(schema.get("items", {}), key, depth + 1)]
            case "object":
                return self._object(schema, depth)
            case _:
                return self._string(key)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """Fill in the required properties, or all of them where none is."""
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        required = schema.get("required")
        if not isinstance(required, list) or not required:
            required = list(properties)
        keys = [key for key in properties if key in required]
        return {key: self.value(properties[key], key, depth + 1) for key in keys}

    def _number(self, schema: Mapping[str, Any]) -> float:
        least = schema.get("minimum")
        if not isinstance(least, int | float) or not abs(least) < _MAX_NUMBER:
            least = 1
        return next(self._numbers, float(least))

    def _string(self, key: str) -> str:
        place = _PLACE.search(self._words)
        if place is not None and re.search("city|place|location|town|country", key, re.IGNORECASE):
            return place[1]
        return self._words[:_MAX_WORDS] or key

    def _said(self, options: Sequence[Any]) -> Any:
        """Return the option that the user mentioned, else the first."""
        said = self._words.casefold()
        return next((one for one in options if str(one).casefold() in said), options[0])

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """Follow `$ref` and take the first member of a union that is not null."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict):
                return {}
            if isinstance(schema.get("$ref"), str):
                schema = self._referred(schema["$ref"])
            elif members := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
                schema = next((one for one in _objects(members) if one.get("type") != "null"), {})
            else:
                return schema
        return {}

    def _referred(self, reference: str) -> Any:
        found: Any = self._root
        for step in reference.removeprefix("#").strip("/").split("/"):
            found = found.get(step, {}) if isinstance(found, dict) else {}
        return found
