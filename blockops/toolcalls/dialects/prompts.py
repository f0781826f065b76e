"""
How a model is told of its tools, in the words of each format's own chat template.

A backend whose template knows no tools gets them in the system prompt, and the calls and results of
the history as the text that they are to the model. What a model was trained to read is best: so the
first and the third format say what the templates of their models say, to the byte.

Read in: the templates that Qwen 2.5, Qwen 3 and Qwen3-Coder were published with, as
`tests/toolcalls/dialects/test_prompts.py` names them. Templates write JSON as Python's `json.dumps`
does, spaces and all, and other characters than ASCII as they are; and values that are neither text
nor JSON as Python's `str` does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blockops.toolcalls.grammar.parameter_types import of_parameters

_HERMES_BEFORE = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""

_HERMES_BEHIND = """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

_CODER_BEFORE = """\
# Tools

You have access to the following functions:

<tools>"""

_CODER_BEHIND = """
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must \
be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the \
function call, but NOT after
- If there is no function call available, answer the question like normal with your current \
knowledge and do not tell the user about function calls
</IMPORTANT>"""

_LINE_BEFORE = """\
# Tools

You can call tools. Each of these lines describes one of them, as JSON:
"""

_LINE_BEHIND = """

To call a tool, begin a line with TOOL_CALL: and write one JSON object behind it, with the tool's \
name and its arguments:
TOOL_CALL: {"name": "name_of_the_tool", "arguments": {"name_of_an_argument": "value"}}

Write one such line for each call and nothing behind the last one. What a tool answers comes in \
the next message, behind TOOL_RESULT:"""

# What a function's description has besides its schema, and a schema besides its properties, is
# listed by its own name.
_OF_FUNCTION = frozenset({"type", "name", "description", "parameters"})
_OF_PARAMETERS = frozenset({"type", "properties"})
_OF_PARAMETER = frozenset({"name", "type", "description"})


@dataclass(frozen=True, slots=True)
class Frame:
    """
    What stands around the results of calls, which a template gives to the model as a user's text.

    :param before: in front of each result
    :param behind: behind each result
    :param between: between one result with its frame and the next one
    """

    before: str
    behind: str
    between: str = ""


class Wording(Protocol):
    """How one format is spoken; a format has it as its `wording`, if it has any."""

    @property
    def frame(self) -> Frame:
        """What stands around results."""
        ...

    def offer(self, tools: Sequence[Any]) -> str:
        """
        Return what stands in the system prompt.

        :param tools: as the client has sent them, at least one
        """
        ...

    def call(self, name: str, arguments: dict[str, Any] | str) -> str:
        """
        Return the text of a call.

        :param arguments: as text where they are no JSON object
        """
        ...

    def answer(self, text: str, calls: Sequence[str]) -> str:
        """Return the text of an answer that said `text` and made `calls`, at least one."""
        ...


class HermesWording:
    """JSON in `<tool_call>`: the words of Qwen 2.5 and Qwen 3, which are those of Hermes."""

    frame = Frame("<tool_response>\n", "\n</tool_response>", "\n")

    def offer(self, tools: Sequence[Any]) -> str:
        """Return one line of JSON for each tool, and how to call them."""
        return "".join([_HERMES_BEFORE, *(f"\n{to_json(tool)}" for tool in tools), _HERMES_BEHIND])

    def call(self, name: str, arguments: dict[str, Any] | str) -> str:
        """Return the call in its tags."""
        return (
            f'<tool_call>\n{{"name": "{name}", "arguments": {_as_json(arguments)}}}\n</tool_call>'
        )

    def answer(self, text: str, calls: Sequence[str]) -> str:
        """Return text and calls on lines of their own."""
        return "\n".join([text, *calls] if text else calls)


class CoderWording:
    """Tags for functions and parameters: the words of Qwen3-Coder."""

    frame = Frame("<tool_response>\n", "\n</tool_response>\n")

    def offer(self, tools: Sequence[Any]) -> str:
        """Return each function as a list in tags, and how to call them."""
        listed = [_listed(tool) for tool in tools if isinstance(tool, dict)]
        return "".join([_CODER_BEFORE, *listed, _CODER_BEHIND])

    def call(self, name: str, arguments: dict[str, Any] | str) -> str:
        """Return the call in its tags; what is no object stands where the parameters would."""
        if isinstance(arguments, str):
            inner = f"{arguments}\n" if arguments else ""
        else:
            inner = "".join(
                f"<parameter={key}>\n{_as_text(value)}\n</parameter>\n"
                for key, value in arguments.items()
            )
        return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"

    def answer(self, text: str, calls: Sequence[str]) -> str:
        """Return the text, an empty line, and the calls."""
        said = text.strip()
        return "\n".join([f"{said}\n", *calls] if said else calls)


class LineWording:
    """`TOOL_CALL:` lines, which have no template: words of our own, in the spirit of the others."""

    frame = Frame("TOOL_RESULT:\n", "", "\n")

    def offer(self, tools: Sequence[Any]) -> str:
        """Return one line of JSON for each function, and how to call them."""
        lines = "".join(f"\n{to_json(_function(tool))}" for tool in tools)
        return f"{_LINE_BEFORE}{lines}{_LINE_BEHIND}"

    def call(self, name: str, arguments: dict[str, Any] | str) -> str:
        """Return the call's line."""
        return f'TOOL_CALL: {{"name": {to_json(name)}, "arguments": {_as_json(arguments)}}}'

    def answer(self, text: str, calls: Sequence[str]) -> str:
        """Return text and calls on lines of their own."""
        return "\n".join([text, *calls] if text else calls)


def to_json(value: Any) -> str:
    """Return JSON as templates write it."""
    return json.dumps(value, ensure_ascii=False)


def _as_json(arguments: dict[str, Any] | str) -> str:
    """Return arguments as JSON; those that are none as they are, and none at all as `{}`."""
    return (arguments or "{}") if isinstance(arguments, str) else to_json(arguments)


def _as_text(value: Any) -> str:
    return to_json(value) if isinstance(value, dict | list) else str(value)


def _function(tool: Any) -> Any:
    return tool.get("function", tool) if isinstance(tool, dict) else tool


def _listed(tool: dict[str, Any]) -> str:
    """Return a function as Qwen3-Coder's template lists it."""
    function = _function(tool)
    if not isinstance(function, dict):
        return ""
    parameters = function.get("parameters")
    if isinstance(parameters, list):
        parameters = of_parameters(parameters)
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    listed = properties.items() if isinstance(properties, dict) else ()
    return "".join(
        [
            f"\n<function>\n<name>{function.get('name', '')}</name>",
            _described(function),
            "\n<parameters>",
            *(_parameter(name, schema) for name, schema in listed),
            _others(parameters, _OF_PARAMETERS),
            "\n</parameters>",
            _others(function, _OF_FUNCTION),
            "\n</function>",
        ]
    )


def _parameter(name: str, schema: Any) -> str:
    fields = schema if isinstance(schema, dict) else {}
    kind = f"\n<type>{fields['type']}</type>" if "type" in fields else ""
    return (
        f"\n<parameter>\n<name>{name}</name>{kind}{_described(fields)}"
        f"{_others(fields, _OF_PARAMETER)}\n</parameter>"
    )


def _described(fields: dict[str, Any]) -> str:
    if "description" not in fields:
        return ""
    return f"\n<description>{str(fields['description']).strip()}</description>"


def _others(fields: Any, known: frozenset[str]) -> str:
    if not isinstance(fields, dict):
        return ""
    others = ((key, value) for key, value in fields.items() if key not in known)
    return "".join(f"\n<{key}>{_as_text(value)}</{key}>" for key, value in others)
