"""
The parts of chat templates that render tools: those of these tests, and published ones.

The templates here render the same prompts as the published ones; digests of the published ones'
prompts in `test_prompts` show it. With `BLOCKOPS_TEMPLATES` set to a folder that has the published
files, the tests render those as well. The digests were made in November 2026, from these files:

| name here | file | read in |
| --- | --- | --- |
| `qwen2.5.jinja` | `chat_template` in `tokenizer_config.json` of Qwen2.5-Instruct | three public repositories that carry it, identical in all |
| `qwen3.jinja` | llama.cpp's `models/templates/Qwen-Qwen3-0.6B.jinja` (with LF) | ye-NX/llama.cpp at b354d7c9ecb76c97c07098617cdebbdfffa2583e; the text equals that of Unsloth's and BFCL's copies |
| `qwen3-coder.jinja` | vLLM's `examples/tool_chat_template_qwen3coder.jinja` | vllm-project/vllm at 7a3bde4c9988d419449263a80f79e5d586e872a4; the text equals that of another copy of the model's own |

Qwen3-Coder's template of its first weeks (July 2025) listed functions in another way; it is not the
one that is tested here.
"""  # noqa: E501 - a table

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

#: SHA-256 of the published files.
PUBLISHED = {
    "qwen2.5": "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
    "qwen3": "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5",
    "qwen3-coder": "5a38bfa05833266240066aedc497decc9b00cc0d3e3b8cceea98cf530196ab06",
}

_TURNS = """
{%- macro turn(role, text) -%}
<|im_start|>{{ role }}
{{ text }}<|im_end|>
{% endmacro -%}
"""

_HERMES = (
    _TURNS
    + """
{%- macro signatures() -%}
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{% for each in tools -%}
{{ each | tojson }}
{% endfor -%}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
{%- endmacro -%}
{%- macro call_text(call) -%}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endmacro -%}
{%- set between = "\\n" -%}
{%- for each in messages -%}
{%- if loop.first and tools -%}
{{ turn("system", each.content ~ "\\n\\n" ~ signatures()) }}
{%- elif each.tool_calls -%}
{%- set lines = namespace(all=[each.content] if each.content else []) -%}
{%- for call in each.tool_calls %}{% set lines.all = lines.all + [call_text(call)] %}{% endfor -%}
{{ turn("assistant", lines.all | join(between)) }}
"""
)

_CODER = (
    _TURNS
    + """
{%- macro other_tags(fields, known) -%}
{%- for key, value in (fields or {}).items() if key not in known %}
<{{ key }}>{{ value | tojson if value is mapping or value is sequence and value is not string \
else value }}</{{ key }}>
{%- endfor -%}
{%- endmacro -%}
{%- macro description(fields) -%}
{%- if "description" in fields %}
<description>{{ fields.description | trim }}</description>
{%- endif -%}
{%- endmacro -%}
{%- macro signatures() -%}
# Tools

You have access to the following functions:

<tools>
{%- for each in tools %}{% set it = each.function %}
<function>
<name>{{ it.name }}</name>
{{- description(it) }}
<parameters>
{%- for name, schema in (it.parameters or {}).get("properties", {}).items() %}
<parameter>
<name>{{ name }}</name>
{%- if schema is mapping and "type" in schema %}
<type>{{ schema.type }}</type>
{%- endif %}
{{- description(schema) if schema is mapping }}
{{- other_tags(schema, ["name", "type", "description"]) if schema is mapping }}
</parameter>
{%- endfor %}
{{- other_tags(it.parameters, ["type", "properties"]) }}
</parameters>
{{- other_tags(it, ["type", "name", "description", "parameters"]) }}
</function>
{%- endfor %}
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
</IMPORTANT>
{%- endmacro -%}
{%- macro call_text(call) -%}
<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments.items() -%}
<parameter={{ key }}>
{{ value | tojson if value is mapping or value is sequence and value is not string else value }}
</parameter>
{% endfor -%}
</function>
</tool_call>
{%- endmacro -%}
{%- set between = "" -%}
{%- for each in messages -%}
{%- if loop.first and tools -%}
{{ turn("system", each.content ~ "\\n\\n" ~ signatures()) }}
{%- elif each.tool_calls -%}
{%- set text = each.content | trim -%}
{%- set lines = namespace(all=[text ~ "\\n"] if text else []) -%}
{%- for call in each.tool_calls %}{% set lines.all = lines.all + [call_text(call)] %}{% endfor -%}
{{ turn("assistant", lines.all | join("\\n")) }}
"""
)

_END = """
{%- elif each.role == "tool" -%}
{%- if loop.previtem.role != "tool" %}{{ "<|im_start|>user\\n" }}{% else %}{{ between }}{% endif -%}
{{ "<tool_response>\\n" ~ each.content ~ "\\n</tool_response>" ~ ("" if between else "\\n") -}}
{%- if loop.last or loop.nextitem.role != "tool" %}{{ "<|im_end|>\\n" }}{% endif -%}
{%- else -%}
{{ turn(each.role, each.content) }}
{%- endif -%}
{%- endfor -%}
{{ "<|im_start|>assistant\\n" }}"""

TEMPLATES = {"qwen2.5": _HERMES + _END, "qwen3": _HERMES + _END, "qwen3-coder": _CODER + _END}


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Return an environment like the one in which transformers renders templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=False, keep_trailing_newline=False)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


def render(
    template: str, messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None = None
) -> str:
    """Return the prompt that a template renders."""
    variables = {"tools": tools} if tools else {}
    return _environment().from_string(template).render(messages=messages, **variables)


def published(name: str) -> str | None:
    """Return a published template, or None if `BLOCKOPS_TEMPLATES` is not set."""
    folder = os.environ.get("BLOCKOPS_TEMPLATES")
    if folder is None:
        return None
    text = Path(folder, f"{name}.jinja").read_text("utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != PUBLISHED[name]:
        raise ValueError(
            f"{name}.jinja is not the version that these tests were written for; see PUBLISHED"
        )
    return text


def render_published(
    template: str, messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None = None
) -> str:
    """Return the prompt that transformers renders from a published template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    variables = {"tools": tools} if tools else {}
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=True, **variables
    )
