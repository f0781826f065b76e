"""
Describes tools to a model in its system prompt, in the words of its dialect's chat template.

They serve backends whose template has no tools. A model reads best the text that it was trained on:
`HermesPrompt` and `QwenXmlPrompt` are those of their models' templates, byte for byte.

The source: the templates that Qwen 2.5, Qwen 3 and Qwen3-Coder were published with;
`tests/toolcalls/dialects/templates.py` names the files. Templates write objects and arrays as
Python's `json.dumps` does, with its spaces, but leave characters outside ASCII as they are. In tags
they write other values as Python's `str` does: `True`, `None`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blockops.toolcalls.grammar.parameter_types import normalize_schema

_HERMES_PREFIX = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""

_HERMES_SUFFIX = """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

_QWEN_XML_PREFIX = """\
# Tools

You have access to the following functions:

<tools>"""

_QWEN_XML_SUFFIX = """
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

_TOOL_CALL_LINE_PREFIX = """\
# Tools

You can call tools. Each of these lines describes one of them, as JSON:
"""

_TOOL_CALL_LINE_SUFFIX = """

To call a tool, begin a line with TOOL_CALL: and write one JSON object after it, with the tool's \
name and its arguments:
TOOL_CALL: {"name": "name_of_the_tool", "arguments": {"name_of_an_argument": "value"}}

Write one such line for each call and nothing after the last one. The result of a tool comes in \
the next message, after TOOL_RESULT:"""

# Qwen3-Coder's template lists all other fields under their own names.
_FUNCTION_FIELDS = frozenset({"type", "name", "description", "parameters"})
_PARAMETERS_FIELDS = frozenset({"type", "properties"})
_PARAMETER_FIELDS = frozenset({"name", "type", "description"})


@dataclass(frozen=True)
class ResultFrame:
    """The text around each result of a call, and between two of them, in a user message."""

    before: str
    after: str
    between: str = ""


class ToolPrompt(Protocol):
    """The text with which a dialect shows tools, calls and results to a model."""

    @property
    def result_frame(self) -> ResultFrame: ...

    def tools_text(self, tools: Sequence[Any]) -> str:
        """Return the text for the system prompt; `tools` are the client's, at least one."""

    def call_text(self, name: str, arguments: dict[str, Any] | str) -> str:
        """Return the text of a call; `arguments` are a text if they are not a JSON object."""

    def assistant_text(self, text: str, calls: Sequence[str]) -> str:
        """Return the text of an answer: its own, which may be empty, and the texts of its calls."""


class HermesPrompt:
    """JSON in `<tool_call>`: the prompt of Qwen 2.5 and Qwen 3, which is that of Hermes."""

    result_frame = ResultFrame("<tool_response>\n", "\n</tool_response>", "\n")

    def tools_text(self, tools: Sequence[Any]) -> str:
        return "".join([_HERMES_PREFIX, *(f"\n{to_json(tool)}" for tool in tools), _HERMES_SUFFIX])

    def call_text(self, name: str, arguments: dict[str, Any] | str) -> str:
        call = f'{{"name": "{name}", "arguments": {_arguments_json(arguments)}}}'
        return f"<tool_call>\n{call}\n</tool_call>"

    def assistant_text(self, text: str, calls: Sequence[str]) -> str:
        return "\n".join([text, *calls] if text else calls)


class QwenXmlPrompt:
    """Tags for functions and parameters: the prompt of Qwen3-Coder."""

    result_frame = ResultFrame("<tool_response>\n", "\n</tool_response>\n")

    def tools_text(self, tools: Sequence[Any]) -> str:
        functions = [_function_tags(tool) for tool in tools if isinstance(tool, dict)]
        return "".join([_QWEN_XML_PREFIX, *functions, _QWEN_XML_SUFFIX])

    def call_text(self, name: str, arguments: dict[str, Any] | str) -> str:
        if isinstance(arguments, str):
            inner = f"{arguments}\n" if arguments else ""
        else:
            values = ((key, _value_text(value)) for key, value in arguments.items())
            inner = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in values)
        return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"

    def assistant_text(self, text: str, calls: Sequence[str]) -> str:
        stripped = text.strip()
        return "\n".join([f"{stripped}\n", *calls] if stripped else calls)


class ToolCallLinePrompt:
    """`TOOL_CALL:` lines: blockops' own prompt, modelled on the others; no template has them."""

    result_frame = ResultFrame("TOOL_RESULT:\n", "", "\n")

    def tools_text(self, tools: Sequence[Any]) -> str:
        lines = "".join(f"\n{to_json(_function_of(tool))}" for tool in tools)
        return f"{_TOOL_CALL_LINE_PREFIX}{lines}{_TOOL_CALL_LINE_SUFFIX}"

    def call_text(self, name: str, arguments: dict[str, Any] | str) -> str:
        return f'TOOL_CALL: {{"name": {to_json(name)}, "arguments": {_arguments_json(arguments)}}}'

    def assistant_text(self, text: str, calls: Sequence[str]) -> str:
        return "\n".join([text, *calls] if text else calls)


def to_json(value: Any) -> str:
    """Return `value` as JSON, spelled as templates spell it."""
    return json.dumps(value, ensure_ascii=False)


def _arguments_json(arguments: dict[str, Any] | str) -> str:
    return (arguments or "{}") if isinstance(arguments, str) else to_json(arguments)


def _value_text(value: Any) -> str:
    return to_json(value) if isinstance(value, dict | list) else str(value)


def _function_of(tool: Any) -> Any:
    return tool.get("function", tool) if isinstance(tool, dict) else tool


def _function_tags(tool: dict[str, Any]) -> str:
    """Return a function as Qwen3-Coder's template lists it; "" if it is not an object."""
    function = _function_of(tool)
    if not isinstance(function, dict):
        return ""
    parameters = function.get("parameters")
    if isinstance(parameters, list):
        parameters = normalize_schema(parameters)
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    items = properties.items() if isinstance(properties, dict) else ()
    parameter_tags = "".join([_parameter_tags(name, schema) for name, schema in items])
    parameter_tags += _other_tags(parameters, _PARAMETERS_FIELDS)
    return (
        f"\n<function>\n<name>{function.get('name', '')}</name>{_description_tag(function)}"
        f"\n<parameters>{parameter_tags}\n</parameters>"
        f"{_other_tags(function, _FUNCTION_FIELDS)}\n</function>"
    )


def _parameter_tags(name: str, schema: Any) -> str:
    fields = schema if isinstance(schema, dict) else {}
    type_tag = f"\n<type>{fields['type']}</type>" if "type" in fields else ""
    return (
        f"\n<parameter>\n<name>{name}</name>{type_tag}{_description_tag(fields)}"
        f"{_other_tags(fields, _PARAMETER_FIELDS)}\n</parameter>"
    )


def _description_tag(fields: dict[str, Any]) -> str:
    if "description" not in fields:
        return ""
    return f"\n<description>{str(fields['description']).strip()}</description>"


def _other_tags(fields: Any, known: frozenset[str]) -> str:
    if not isinstance(fields, dict):
        return ""
    others = ((key, value) for key, value in fields.items() if key not in known)
    return "".join(f"\n<{key}>{_value_text(value)}</{key}>" for key, value in others)
