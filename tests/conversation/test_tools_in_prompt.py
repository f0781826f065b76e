"""Tests of tools that are written into the prompt."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest
from blockops.conversation.messages import MessageParser
from blockops.conversation.tools_in_prompt import (
    MUST_CALL,
    MUST_CALL_ONE,
    NO_CALL,
    ONE_CALL,
    ToolsInPrompt,
)
from blockops.toolcalls.dialects.prompts import (
    HermesPrompt,
    QwenXmlPrompt,
    ToolCallLinePrompt,
    ToolPrompt,
)

HERMES = HermesPrompt()
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOLS_TEXT = HERMES.tools_text([TOOL])

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:x"}}


def tool_call(name: str = "f", arguments: Any = '{"a": 1}', number: str = "1") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": number, "type": "function", "function": function}


def calling(*calls: dict[str, Any], content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def tool_result(content: Any, number: str = "1", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": number, "content": content, **more}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def rewritten_json(body: bytes, prompt: ToolPrompt = HERMES) -> list[bytes]:
    request = ChatRequest(body)
    messages = MessageParser().parse(request.messages())
    return ToolsInPrompt(request, prompt).rewrite_messages(messages)


def rewritten(
    *messages: dict[str, Any], prompt: ToolPrompt = HERMES, **fields: Any
) -> list[dict[str, Any]]:
    """Return the messages that the backend receives instead of `messages`."""
    body = json.dumps({"messages": messages, **fields}).encode()
    return [json.loads(raw) for raw in rewritten_json(body, prompt)]


class SystemPromptTests(SynchronousTestCase):
    """The place of the tools."""

    def first_message(self, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return rewritten(*messages, **{"tools": [TOOL], **fields})[0]

    def test_after_the_system_prompt(self) -> None:
        self.assertEqual(
            self.first_message(SYSTEM, USER),
            {"role": "system", "content": f"Be brief.\n\n{TOOLS_TEXT}"},
        )

    def test_without_a_system_prompt(self) -> None:
        received = rewritten(USER, tools=[TOOL])
        self.assertEqual(received, [{"role": "system", "content": TOOLS_TEXT}, USER])

    def test_later_system_message(self) -> None:
        received = rewritten(USER, SYSTEM, tools=[TOOL])
        self.assertEqual(received, [{"role": "system", "content": TOOLS_TEXT}, USER, SYSTEM])

    def test_developer_message_becomes_a_system_message(self) -> None:
        """Templates without tools leave out messages of a role that they do not support."""
        first = self.first_message({"role": "developer", "content": "Be kind.", "x": 1}, USER)
        self.assertEqual(first, {"role": "system", "content": f"Be kind.\n\n{TOOLS_TEXT}", "x": 1})

    def test_content_parts(self) -> None:
        first = self.first_message(
            {"role": "system", "content": [text_part("A"), {**text_part("B"), "x": 1}]}
        )
        self.assertEqual(
            first["content"], [text_part("A"), {**text_part(f"B\n\n{TOOLS_TEXT}"), "x": 1}]
        )
        first = self.first_message({"role": "system", "content": [text_part("A"), IMAGE]})
        self.assertEqual(first["content"], [text_part("A"), IMAGE, text_part(TOOLS_TEXT)])
        contents: list[Any] = ["", None, []]
        for empty in contents:
            first = self.first_message({"role": "system", "content": empty})
            self.assertIn(first["content"], (TOOLS_TEXT, [text_part(TOOLS_TEXT)]))

    def test_legacy_functions(self) -> None:
        messages = rewritten(USER, functions=[TOOL["function"]])
        self.assertEqual(messages[0]["content"], TOOLS_TEXT)

    def test_no_offered_tools(self) -> None:
        offers: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": None, "tool_choice": "none"}]
        for fields in offers:
            self.assertEqual(rewritten(SYSTEM, USER, **fields), [SYSTEM, USER])


class ToolChoiceTests(SynchronousTestCase):
    """Requirements on the answer, as text."""

    def test_at_the_end_of_the_system_prompt(self) -> None:
        named = {"type": "function", "function": {"name": "f"}}
        for fields, instruction in (
            ({"parallel_tool_calls": False}, ONE_CALL),
            ({"tool_choice": "required"}, MUST_CALL),
            ({"tool_choice": named}, MUST_CALL_ONE.format(name="f")),
            ({"tool_choice": "auto", "parallel_tool_calls": True}, ""),
        ):
            (first, second) = rewritten(USER, tools=[TOOL], **fields)
            self.assertEqual(first["content"], f"{TOOLS_TEXT}\n\n{instruction}".rstrip())
            self.assertEqual(second, USER)

    def test_several_instructions(self) -> None:
        (first, _) = rewritten(
            USER, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
        )
        instruction = f"{ONE_CALL}\n\n{MUST_CALL}"
        self.assertEqual(first["content"], f"{TOOLS_TEXT}\n\n{instruction}")

    def test_legacy_function_call(self) -> None:
        functions = [TOOL["function"]]
        first = rewritten(USER, functions=functions, function_call={"name": "f"})[0]
        self.assertIn(MUST_CALL_ONE.format(name="f"), first["content"])

    def test_only_allowed_tools_are_offered(self) -> None:
        other = {"type": "function", "function": {"name": "g"}}
        for mode, instruction in (("auto", ""), ("required", MUST_CALL)):
            allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "f"}}]}
            choice = {"type": "allowed_tools", "allowed_tools": allowed}
            (first, _) = rewritten(USER, tools=[TOOL, other], tool_choice=choice)
            self.assertEqual(first["content"], f"{TOOLS_TEXT}\n\n{instruction}".rstrip())

    def test_no_allowed_tools(self) -> None:
        nothing = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}
        self.assertEqual(rewritten(USER, tools=[TOOL], tool_choice=nothing), [USER])

    def test_none_keeps_the_tools(self) -> None:
        """The part of a long history that the backend has cached stays unchanged."""
        history = [SYSTEM, USER, calling(tool_call()), tool_result("21")]
        before = rewritten(*history, tools=[TOOL])
        forbidden = rewritten(*history, tools=[TOOL], tool_choice="none")
        self.assertEqual(before[:-1], forbidden[:-1])
        self.assertEqual(forbidden[-1]["content"], f"{before[-1]['content']}\n\n{NO_CALL}")

    def test_none_after_a_user_message_in_parts(self) -> None:
        message = {"role": "user", "content": [text_part("See:"), IMAGE], "name": "Ann"}
        last = rewritten(message, tools=[TOOL], tool_choice="none")[-1]
        self.assertEqual(last["content"], [text_part("See:"), IMAGE, text_part(NO_CALL)])
        self.assertEqual(last["name"], "Ann")

    def test_none_before_a_partial_answer(self) -> None:
        partial = {"role": "assistant", "content": "Well, "}
        received = rewritten(USER, partial, tools=[TOOL], tool_choice="none")
        self.assertEqual(received[1]["content"], f"Hi\n\n{NO_CALL}")
        self.assertEqual(received[2], partial)

    def test_none_without_a_user_message(self) -> None:
        received = rewritten(SYSTEM, tools=[TOOL], tool_choice="none")
        self.assertEqual(received, [{"role": "system", "content": f"Be brief.\n\n{TOOLS_TEXT}"}])


class CallTests(SynchronousTestCase):
    """Calls of the assistant, as text."""

    def rewritten_message(
        self, message: dict[str, Any], prompt: ToolPrompt = HERMES
    ) -> dict[str, Any]:
        return rewritten(message, prompt=prompt)[0]

    def test_text_and_calls(self) -> None:
        received = self.rewritten_message(
            calling(tool_call(), tool_call("g", "{}", "2"), content="So:", refusal=None, x=1.0)
        )
        self.assertEqual(
            received,
            {
                "role": "assistant",
                "content": 'So:\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
                '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
                "refusal": None,
                "x": 1.0,
            },
        )

    def test_calls_without_offered_tools(self) -> None:
        """An agent may offer no tools when it requests a summary."""
        self.assertNotIn("tool_calls", self.rewritten_message(calling(tool_call())))

    def test_reasoning_is_unchanged(self) -> None:
        self.assertEqual(
            self.rewritten_message(calling(tool_call(), reasoning_content="Hm"))[
                "reasoning_content"
            ],
            "Hm",
        )

    def test_content_parts(self) -> None:
        call_text = HERMES.call_text("f", {"a": 1})
        received = self.rewritten_message(calling(tool_call(), content=[text_part("So:")]))
        self.assertEqual(received["content"], [text_part(f"So:\n{call_text}")])
        received = self.rewritten_message(calling(tool_call(), content=[]))
        self.assertEqual(received["content"], [text_part(call_text)])

    def test_arguments(self) -> None:
        for arguments, expected in (
            ('{"b":"\\u00e9","a":1}', '{"b": "é", "a": 1}'),
            ({"a": [1]}, '{"a": [1]}'),
            ('{"a": 1', '{"a": 1'),
            ("[1]", "[1]"),
            ("", "{}"),
            (None, "{}"),
            ([1], "[1]"),
        ):
            content = self.rewritten_message(calling(tool_call("f", arguments)))["content"]
            self.assertIn(f'"arguments": {expected}}}\n', content)

    def test_arguments_in_tags(self) -> None:
        received = self.rewritten_message(
            calling(tool_call("f", '{"a": true, "b": {"c": 1}}')), QwenXmlPrompt()
        )
        self.assertEqual(
            received["content"],
            "<tool_call>\n<function=f>\n<parameter=a>\nTrue\n</parameter>\n"
            '<parameter=b>\n{"c": 1}\n</parameter>\n</function>\n</tool_call>',
        )

    def test_legacy_call(self) -> None:
        message = {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}
        received = rewritten(message, {"role": "function", "name": "f", "content": "21"})
        self.assertEqual(
            received,
            [
                {"role": "assistant", "content": HERMES.call_text("f", {"a": 1})},
                {"role": "user", "content": "<tool_response>\n21\n</tool_response>"},
            ],
        )

    def test_calls_without_a_function(self) -> None:
        received = self.rewritten_message(calling({"id": "1", "type": "custom"}))
        self.assertIn('"name": ""', received["content"])

    def test_calls_whose_function_is_not_an_object(self) -> None:
        received = self.rewritten_message(calling({"id": "1", "type": "function", "function": "f"}))
        self.assertIn('"name": ""', received["content"])

    def test_custom_calls(self) -> None:
        call = {"id": "1", "type": "custom", "custom": {"name": "sh", "input": "ls -l"}}
        received = self.rewritten_message(calling(call))
        self.assertEqual(received["content"], HERMES.call_text("sh", "ls -l"))

    def test_answer_without_calls_is_unchanged(self) -> None:
        body = b'{"messages": [{"role":"assistant",  "content":"\\u0041", "x": 1e0}]}'
        self.assertEqual(
            rewritten_json(body), [b'{"role":"assistant",  "content":"\\u0041", "x": 1e0}']
        )


class ResultTests(SynchronousTestCase):
    """Results of tools, as user messages."""

    def test_consecutive_results_are_one_message(self) -> None:
        received = rewritten(
            calling(tool_call(), tool_call(number="2")),
            tool_result("21"),
            tool_result("x", "2", is_error=True),
            USER,
        )
        self.assertEqual(
            received[1:],
            [
                {
                    "role": "user",
                    "content": "<tool_response>\n21\n</tool_response>\n"
                    "<tool_response>\nx\n</tool_response>",
                    "is_error": True,
                },
                USER,
            ],
        )

    def test_other_fields_stay(self) -> None:
        (received,) = rewritten(tool_result("1", a=1.5), tool_result("2", "2", b=[1]))
        self.assertEqual({key: received[key] for key in ("a", "b")}, {"a": 1.5, "b": [1]})

    def test_other_dialects(self) -> None:
        for prompt, expected in (
            (QwenXmlPrompt(), "<tool_response>\n1\n</tool_response>\n" * 2),
            (ToolCallLinePrompt(), "TOOL_RESULT:\n1\nTOOL_RESULT:\n1"),
        ):
            received = rewritten(tool_result("1"), tool_result("1", "2"), prompt=prompt)
            self.assertEqual(received, [{"role": "user", "content": expected}])

    def test_text_parts_are_joined(self) -> None:
        (received,) = rewritten(tool_result([text_part("a"), text_part("b")]))
        self.assertEqual(received["content"], "<tool_response>\na\nb\n</tool_response>")

    def test_images_stay(self) -> None:
        (received,) = rewritten(tool_result([text_part("a"), IMAGE]), tool_result("b", "2"))
        self.assertEqual(
            received["content"],
            [
                text_part("<tool_response>\na"),
                IMAGE,
                text_part("\n</tool_response>\n<tool_response>\nb\n</tool_response>"),
            ],
        )

    def test_content_that_is_not_text(self) -> None:
        for content, expected in ((None, ""), ({"a": 1}, '{"a": 1}'), (7, "7"), ("7", "7")):
            (received,) = rewritten(tool_result(content))
            self.assertEqual(received["role"], "user")
            self.assertEqual(received["content"], f"<tool_response>\n{expected}\n</tool_response>")

    def test_numeric_ids(self) -> None:
        """These messages are invalid only in their ids."""
        numeric = rewritten(
            calling({**tool_call(), "id": 1}, content="Now"),
            {**tool_result("21"), "tool_call_id": 1},
        )
        self.assertEqual(numeric, rewritten(calling(tool_call(), content="Now"), tool_result("21")))

    def test_lone_surrogates(self) -> None:
        body = b'{"messages": [{"role": "tool", "content": "\\ud83d \\u00e9", "x": NaN}]}'
        (received,) = rewritten_json(body)
        self.assertIn(b"\\ud83d \\u00e9", received)
        body = b'{"messages": [{"role": "user", "content": "\\ud83d", "x": NaN}], "tools": [{}]}'
        (_, received) = rewritten_json(body[:-1] + b', "tool_choice": "none"}')
        self.assertIn(b'"\\ud83d\\n\\n', received)

    def test_invalid_messages_are_unchanged(self) -> None:
        odd = b'{"role": 7, "tool_calls": 3}'
        body = b'{"messages": [%s], "tools": [{}], "tool_choice": "none"}' % odd
        self.assertEqual(rewritten_json(body)[1:], [odd])
        key = b'{"messages": [{"role": "tool", "content": "21", "\xff": 1}]}'
        self.assertIn(b"<tool_response>\\n21\\n</tool_response>", rewritten_json(key)[0])
        bad = b'{"role": "user", "content": "\xff"}'
        body = b'{"messages": [%s], "tools": [{}], "tool_choice": "none"}' % bad
        self.assertEqual(rewritten_json(body)[1:], [bad])


steps_strategy = st.one_of(
    st.builds(lambda text: [{"role": "user", "content": text}], st.text(max_size=5)),
    st.builds(
        lambda text, results: [
            calling(*(tool_call(number=str(index)) for index in range(len(results))), content=text),
            *(tool_result(result, str(index)) for index, result in enumerate(results)),
        ],
        st.text(max_size=5),
        st.lists(st.text(max_size=5), min_size=1, max_size=3),
    ),
)


class StabilityTests(SynchronousTestCase):
    """The backend's prefix cache keeps hitting."""

    @given(st.lists(steps_strategy, min_size=1, max_size=6), st.sampled_from(["auto", "required"]))
    def test_longer_history_extends_the_rewritten_shorter_one(
        self, steps: list[list[dict[str, Any]]], choice: str
    ) -> None:
        before: list[bytes] = []
        for end in range(1, len(steps) + 1):
            messages = [SYSTEM, *(message for step in steps[:end] for message in step)]
            fields = {"messages": messages, "tools": [TOOL], "tool_choice": choice}
            body = json.dumps(fields).encode()
            now = rewritten_json(body)
            self.assertEqual(now, rewritten_json(body))
            self.assertEqual(now[: len(before)], before)
            before = now
