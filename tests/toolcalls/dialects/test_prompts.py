"""The tool prompts equal the prompts that the chat templates of their models render."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from unittest import SkipTest

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest
from blockops.conversation.messages import MessageParser
from blockops.conversation.tools_in_prompt import ToolsInPrompt
from blockops.toolcalls.deltas import CallArguments, CallStarted
from blockops.toolcalls.dialects import BUILT_IN
from blockops.toolcalls.dialects.prompts import (
    HermesPrompt,
    QwenXmlPrompt,
    ToolCallLinePrompt,
    ToolPrompt,
)
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools
from tests.toolcalls.dialects.templates import TEMPLATES, published, render, render_published

TOOL_PROMPTS: dict[str, ToolPrompt] = {
    "qwen2.5": HermesPrompt(),
    "qwen3": HermesPrompt(),
    "qwen3-coder": QwenXmlPrompt(),
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tells the weather of <today> in a "place", such as Köln.\n',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": " Wo? ", "minLength": 1},
                "unit": {"type": ["string", "null"], "enum": ["°C", "°F"], "default": None},
                "days": {"type": "array", "items": {"type": "object", "properties": {"n": {}}}},
                "anything": True,
            },
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {}}}
TOOLS = [WEATHER, NOW]

SYSTEM = {"role": "system", "content": "You are brief.\n"}
USER = {"role": "user", "content": "What is the weather in Köln?"}


def call(number: int, name: str, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def calls(text: str, *made: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "tool_calls": list(made)}


def result(number: int, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": text}


def question(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


KOELN = call(1, "get_weather", {"city": "Köln"})
ODD = call(
    2,
    "get_weather",
    {"city": "<b>\n", "unit": None, "days": [1, {"é": 2.5}], "hot": True, "in": {"a": "\u2028"}},
)

#: Conversations by name.
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a call, its result and a question": [
        SYSTEM,
        USER,
        calls("", KOELN),
        result(1, '{"degrees": 21}'),
        question("And tomorrow?"),
    ],
    "a result is the last": [SYSTEM, USER, calls("I look. ", KOELN), result(1, "21 °C")],
    "two calls in one answer, and two steps": [
        SYSTEM,
        USER,
        calls("First\nthis:\n", ODD, call(3, "now", {})),
        result(2, "<sun>"),
        result(3, ""),
        calls("", KOELN),
        result(1, "rain"),
        {"role": "assistant", "content": "It rains."},
        question("Thanks"),
    ],
    "nothing called yet": [SYSTEM, USER],
}

#: SHA-256 of the prompts that the published templates rendered, by template and conversation.
DIGESTS: dict[str, dict[str, str]] = {
    "qwen2.5": {
        "a call, its result and a question": "258fe15cc06de7daa8f8052505cc23c8a72dcc743ff8a44f7f412b1681fd693b",  # noqa: E501
        "a result is the last": "b0e020e992884d5eaff022a684706a7f5d2798134e8950061f587206d1796fd8",
        "two calls in one answer, and two steps": "57ca9e5759af7cbe35aaace7bfa9307af6b110d525a09d4675ed4eaaad1066b9",  # noqa: E501
        "nothing called yet": "e9336703056439d4407605e47a7c8cfab2a256fe5a9de0b98cea2488c1e109c1",
    },
    "qwen3": {
        "a call, its result and a question": "258fe15cc06de7daa8f8052505cc23c8a72dcc743ff8a44f7f412b1681fd693b",  # noqa: E501
        "a result is the last": "b0e020e992884d5eaff022a684706a7f5d2798134e8950061f587206d1796fd8",
        "two calls in one answer, and two steps": "57ca9e5759af7cbe35aaace7bfa9307af6b110d525a09d4675ed4eaaad1066b9",  # noqa: E501
        "nothing called yet": "e9336703056439d4407605e47a7c8cfab2a256fe5a9de0b98cea2488c1e109c1",
    },
    "qwen3-coder": {
        "a call, its result and a question": "30412340fe03a63539da4fb66e4ffc2f82fddece79ec467e0023cbdc92391efd",  # noqa: E501
        "a result is the last": "483bf2b9e95d5ee931c424ce3fab0a4653ddcac78affda117fbee6015b8ad461",
        "two calls in one answer, and two steps": "e8f7af46d440e61e1b2d8176d3402aa34e5f34876e188c9fe19ff15b22ecd659",  # noqa: E501
        "nothing called yet": "9568a577dcc82d3c34377407442dd9657bdfbe2ba24afaa069f6ccc581a27c39",
    },
}


def with_json_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as clients send them, with the arguments as JSON in a string."""
    sent = json.loads(json.dumps(messages))
    for message in sent:
        for each in message.get("tool_calls", ()):
            each["function"]["arguments"] = json.dumps(each["function"]["arguments"])
    return list(sent)


def without_tools(messages: list[dict[str, Any]], prompt: ToolPrompt) -> list[dict[str, Any]]:
    """Return the messages that blockops sends in place of `messages` and the tools."""
    body = json.dumps({"messages": with_json_arguments(messages), "tools": TOOLS}).encode()
    request = ChatRequest(body)
    lines = MessageParser().parse(request.messages())
    return [json.loads(raw) for raw in ToolsInPrompt(request, prompt).rewrite_messages(lines)]


class TemplateTests(SynchronousTestCase):
    """The prompt is the same, byte for byte, whether blockops or the template adds the tools."""

    def template_and_conversation(self) -> list[tuple[str, str]]:
        return [(template, name) for template in TOOL_PROMPTS for name in CONVERSATIONS]

    def test_own_templates_render_the_same(self) -> None:
        for template, name in self.template_and_conversation():
            messages = CONVERSATIONS[name]
            expected = render(TEMPLATES[template], messages, TOOLS)
            sent = without_tools(messages, TOOL_PROMPTS[template])
            self.assertEqual(render(TEMPLATES[template], sent), expected, (template, name))

    def test_digests_of_published_templates(self) -> None:
        for template, name in self.template_and_conversation():
            sent = without_tools(CONVERSATIONS[name], TOOL_PROMPTS[template])
            rendered = render(TEMPLATES[template], sent).encode()
            digest = hashlib.sha256(rendered).hexdigest()
            self.assertEqual(digest, DIGESTS[template][name], (template, name))

    def test_published_templates(self) -> None:
        """Needs the files, in the folder that `BLOCKOPS_TEMPLATES` names."""
        for template, name in self.template_and_conversation():
            text = published(template)
            if text is None:
                raise SkipTest("set BLOCKOPS_TEMPLATES to the folder of the published templates")
            messages = CONVERSATIONS[name]
            expected = render_published(text, messages, TOOLS)
            sent = without_tools(messages, TOOL_PROMPTS[template])
            self.assertEqual(render_published(text, sent), expected, (template, name))
            digest = hashlib.sha256(expected.encode()).hexdigest()
            self.assertEqual(digest, DIGESTS[template][name], (template, name))

    def test_the_conversations_are_those_of_the_digests(self) -> None:
        first = CONVERSATIONS["a call, its result and a question"]
        roles = [message["role"] for message in first]
        self.assertEqual(roles, ["system", "user", "assistant", "tool", "user"])
        self.assertEqual(len(TOOLS), 2)


class ToolPromptTests(SynchronousTestCase):
    def test_every_built_in_dialect_has_one(self) -> None:
        for each in BUILT_IN:
            prompt: Any = getattr(each, "tool_prompt", None)
            self.assertIsNotNone(prompt, each.name)
            self.assertTrue(prompt.tools_text([NOW]).startswith("# Tools\n\n"), each.name)

    def test_tool_call_lines(self) -> None:
        prompt = ToolCallLinePrompt()
        offered = prompt.tools_text([WEATHER, NOW, "malformed"]).split("\n")
        self.assertIn(json.dumps(WEATHER["function"], ensure_ascii=False), offered)
        self.assertIn('{"name": "now", "parameters": {}}', offered)
        self.assertIn('"malformed"', offered)
        self.assertEqual(
            prompt.assistant_text(
                "So:", [prompt.call_text("f", {"a": "é"}), prompt.call_text('"', "")]
            ),
            'So:\nTOOL_CALL: {"name": "f", "arguments": {"a": "é"}}\n'
            'TOOL_CALL: {"name": "\\"", "arguments": {}}',
        )

    def test_arguments_that_are_not_an_object_are_unchanged(self) -> None:
        self.assertIn('"arguments": {"a": 1', HermesPrompt().call_text("f", '{"a": 1'))
        self.assertIn('"arguments": {}', HermesPrompt().call_text("f", ""))
        self.assertEqual(
            QwenXmlPrompt().call_text("f", '{"a": 1'),
            '<tool_call>\n<function=f>\n{"a": 1\n</function>\n</tool_call>',
        )
        self.assertEqual(
            QwenXmlPrompt().call_text("f", ""),
            "<tool_call>\n<function=f>\n</function>\n</tool_call>",
        )

    def test_malformed_functions(self) -> None:
        malformed = [
            3,
            {"function": 4},
            {"name": "bare"},
            {"function": {"parameters": {"properties": 7, "x": [1]}, "description": None}},
        ]
        text = QwenXmlPrompt().tools_text(malformed)
        listed = text[text.index("<tools>") : text.index("</tools>")]
        self.assertEqual(
            listed,
            "<tools>\n<function>\n<name>bare</name>\n<parameters>\n</parameters>\n</function>"
            "\n<function>\n<name></name>\n<description>None</description>\n<parameters>"
            "\n<x>[1]</x>\n</parameters>\n</function>\n",
        )

    def test_parameters_in_a_list(self) -> None:
        """Qwen-Agent sends these; the template itself would omit them."""
        listed = [{"name": "a", "type": "integer", "description": "One.", "required": True}]
        text = QwenXmlPrompt().tools_text([{"name": "f", "parameters": listed}])
        self.assertIn(
            "<parameters>\n<parameter>\n<name>a</name>\n<type>integer</type>"
            "\n<description>One.</description>\n</parameter>"
            '\n<required>["a"]</required>\n</parameters>',
            text,
        )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.text("abcdef_", min_size=1, max_size=8)


class RoundTripTests(SynchronousTestCase):
    """blockops reads the calls that a history shows to the model as the same calls."""

    def calls_in(self, text: str, schema: Any) -> list[tuple[str, Any]]:
        tools = OfferedTools(schemas={"f": schema})
        parser = ToolCallParser(tools, TranslationOptions())
        made: list[tuple[str, str]] = []
        for delta in [*parser.feed(text), *parser.finish("stop")]:
            if isinstance(delta, CallStarted):
                made.append((delta.name, ""))
            elif isinstance(delta, CallArguments):
                made[-1] = (made[-1][0], made[-1][1] + delta.text)
        return [(name, json.loads(arguments)) for name, arguments in made]

    @given(st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=1, max_size=3))
    def test_json(self, many: list[dict[str, Any]]) -> None:
        for prompt in (HermesPrompt(), ToolCallLinePrompt()):
            text = prompt.assistant_text("Well:", [prompt.call_text("f", each) for each in many])
            self.assertEqual(self.calls_in(text, {}), [("f", each) for each in many])

    @given(st.dictionaries(NAMES, st.none() | st.booleans() | st.integers() | NAMES, max_size=4))
    def test_tags(self, arguments: dict[str, Any]) -> None:
        prompt = QwenXmlPrompt()
        kinds = {bool: "boolean", int: "integer", str: "string", type(None): "null"}
        schema = {"properties": {k: {"type": kinds[type(v)]} for k, v in arguments.items()}}
        text = prompt.assistant_text("", [prompt.call_text("f", arguments)])
        self.assertEqual(self.calls_in(text, schema), [("f", arguments)])
