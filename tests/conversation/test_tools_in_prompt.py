"""What the backend gets instead of tools."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest
from blockops.conversation import tools_in_prompt as prompting
from blockops.conversation.messages import Reader
from blockops.conversation.tools_in_prompt import Prompting
from blockops.toolcalls.dialects.prompts import (
    CoderWording,
    HermesWording,
    LineWording,
    Wording,
)

HERMES = HermesWording()
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OFFER = HERMES.offer([TOOL])

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:x"}}


def call(name: str = "f", arguments: Any = '{"a": 1}', number: str = "1") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": number, "type": "function", "function": function}


def calls(*made: dict[str, Any], content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made), **more}


def result(content: Any, number: str = "1", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": number, "content": content, **more}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def said_to(body: bytes, wording: Wording = HERMES) -> list[bytes]:
    asked = ChatRequest.parse(body)
    return Prompting(asked, wording).messages(Reader().read(asked.messages()))


def written(
    *messages: dict[str, Any], wording: Wording = HERMES, **fields: Any
) -> list[dict[str, Any]]:
    """Return the messages that the backend gets instead of `messages`."""
    body = json.dumps({"messages": messages, **fields}).encode()
    return [json.loads(raw) for raw in said_to(body, wording)]


class System(SynchronousTestCase):
    """Where the tools go."""

    def first(self, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return written(*messages, **{"tools": [TOOL], **fields})[0]

    def test_behind_the_system_prompt(self) -> None:
        self.assertEqual(
            self.first(SYSTEM, USER), {"role": "system", "content": f"Be brief.\n\n{OFFER}"}
        )

    def test_without_one(self) -> None:
        came = written(USER, tools=[TOOL])
        self.assertEqual(came, [{"role": "system", "content": OFFER}, USER])

    def test_with_one_that_came_late(self) -> None:
        came = written(USER, SYSTEM, tools=[TOOL])
        self.assertEqual(came, [{"role": "system", "content": OFFER}, USER, SYSTEM])

    def test_one_of_the_developer_is_one_of_the_system(self) -> None:
        """Templates that know no tools leave out messages of a role that they do not know."""
        first = self.first({"role": "developer", "content": "Be kind.", "x": 1}, USER)
        self.assertEqual(first, {"role": "system", "content": f"Be kind.\n\n{OFFER}", "x": 1})

    def test_parts(self) -> None:
        first = self.first({"role": "system", "content": [text("A"), {**text("B"), "x": 1}]})
        self.assertEqual(first["content"], [text("A"), {**text(f"B\n\n{OFFER}"), "x": 1}])
        first = self.first({"role": "system", "content": [text("A"), PICTURE]})
        self.assertEqual(first["content"], [text("A"), PICTURE, text(OFFER)])
        contents: list[Any] = ["", None, []]
        for empty in contents:
            first = self.first({"role": "system", "content": empty})
            self.assertIn(first["content"], (OFFER, [text(OFFER)]))

    def test_legacy_functions(self) -> None:
        messages = written(USER, functions=[TOOL["function"]])
        self.assertEqual(messages[0]["content"], OFFER)

    def test_nothing_on_offer(self) -> None:
        offers: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": None, "tool_choice": "none"}]
        for fields in offers:
            self.assertEqual(written(SYSTEM, USER, **fields), [SYSTEM, USER])


class Choices(SynchronousTestCase):
    """What a request demands of its answer, in words."""

    def test_at_the_end_of_the_system_prompt(self) -> None:
        named = {"type": "function", "function": {"name": "f"}}
        for fields, words in (
            ({"parallel_tool_calls": False}, prompting.ONE_CALL),
            ({"tool_choice": "required"}, prompting.MUST_CALL),
            ({"tool_choice": named}, prompting.MUST_CALL_ONE.format(name="f")),
            ({"tool_choice": "auto", "parallel_tool_calls": True}, ""),
        ):
            (first, second) = written(USER, tools=[TOOL], **fields)
            self.assertEqual(first["content"], f"{OFFER}\n\n{words}".rstrip())
            self.assertEqual(second, USER)

    def test_both(self) -> None:
        (first, _) = written(USER, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        words = f"{prompting.ONE_CALL}\n\n{prompting.MUST_CALL}"
        self.assertEqual(first["content"], f"{OFFER}\n\n{words}")

    def test_legacy(self) -> None:
        functions = [TOOL["function"]]
        first = written(USER, functions=functions, function_call={"name": "f"})[0]
        self.assertIn(prompting.MUST_CALL_ONE.format(name="f"), first["content"])

    def test_only_the_allowed_ones_are_offered(self) -> None:
        other = {"type": "function", "function": {"name": "g"}}
        for mode, words in (("auto", ""), ("required", prompting.MUST_CALL)):
            allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "f"}}]}
            choice = {"type": "allowed_tools", "allowed_tools": allowed}
            (first, _) = written(USER, tools=[TOOL, other], tool_choice=choice)
            self.assertEqual(first["content"], f"{OFFER}\n\n{words}".rstrip())

    def test_none_of_them_is_allowed(self) -> None:
        nothing = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}
        self.assertEqual(written(USER, tools=[TOOL], tool_choice=nothing), [USER])

    def test_none_leaves_the_tools_where_they_are(self) -> None:
        """All that the backend has read of a long history stays as it was."""
        history = [SYSTEM, USER, calls(call()), result("21")]
        before = written(*history, tools=[TOOL])
        forbidden = written(*history, tools=[TOOL], tool_choice="none")
        self.assertEqual(before[:-1], forbidden[:-1])
        self.assertEqual(
            forbidden[-1]["content"], f"{before[-1]['content']}\n\n{prompting.NO_CALL}"
        )

    def test_none_behind_what_a_user_said_in_parts(self) -> None:
        asked = {"role": "user", "content": [text("See:"), PICTURE], "name": "Ann"}
        last = written(asked, tools=[TOOL], tool_choice="none")[-1]
        self.assertEqual(last["content"], [text("See:"), PICTURE, text(prompting.NO_CALL)])
        self.assertEqual(last["name"], "Ann")

    def test_none_in_front_of_an_answer_that_was_begun(self) -> None:
        begun = {"role": "assistant", "content": "Well, "}
        came = written(USER, begun, tools=[TOOL], tool_choice="none")
        self.assertEqual(came[1]["content"], f"Hi\n\n{prompting.NO_CALL}")
        self.assertEqual(came[2], begun)

    def test_none_where_no_user_speaks(self) -> None:
        came = written(SYSTEM, tools=[TOOL], tool_choice="none")
        self.assertEqual(came, [{"role": "system", "content": f"Be brief.\n\n{OFFER}"}])


class Calls(SynchronousTestCase):
    """What the model called."""

    def one(self, message: dict[str, Any], wording: Wording = HERMES) -> dict[str, Any]:
        return written(message, wording=wording)[0]

    def test_text_and_calls(self) -> None:
        came = self.one(calls(call(), call("g", "{}", "2"), content="So:", refusal=None, x=1.0))
        self.assertEqual(
            came,
            {
                "role": "assistant",
                "content": 'So:\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
                '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
                "refusal": None,
                "x": 1.0,
            },
        )

    def test_without_tools_on_offer_too(self) -> None:
        """An agent may offer no tools any more when it wants its summary."""
        self.assertNotIn("tool_calls", self.one(calls(call())))

    def test_thoughts_stay(self) -> None:
        self.assertEqual(self.one(calls(call(), reasoning_content="Hm"))["reasoning_content"], "Hm")

    def test_parts(self) -> None:
        made = HERMES.call("f", {"a": 1})
        came = self.one(calls(call(), content=[text("So:")]))
        self.assertEqual(came["content"], [text(f"So:\n{made}")])
        came = self.one(calls(call(), content=[]))
        self.assertEqual(came["content"], [text(made)])

    def test_arguments(self) -> None:
        for arguments, shown in (
            ('{"b":"\\u00e9","a":1}', '{"b": "é", "a": 1}'),
            ({"a": [1]}, '{"a": [1]}'),
            ('{"a": 1', '{"a": 1'),
            ("[1]", "[1]"),
            ("", "{}"),
            (None, "{}"),
            ([1], "[1]"),
        ):
            content = self.one(calls(call("f", arguments)))["content"]
            self.assertIn(f'"arguments": {shown}}}\n', content)

    def test_arguments_in_tags(self) -> None:
        came = self.one(calls(call("f", '{"a": true, "b": {"c": 1}}')), CoderWording())
        self.assertEqual(
            came["content"],
            "<tool_call>\n<function=f>\n<parameter=a>\nTrue\n</parameter>\n"
            '<parameter=b>\n{"c": 1}\n</parameter>\n</function>\n</tool_call>',
        )

    def test_the_legacy_one(self) -> None:
        message = {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}
        came = written(message, {"role": "function", "name": "f", "content": "21"})
        self.assertEqual(
            came,
            [
                {"role": "assistant", "content": HERMES.call("f", {"a": 1})},
                {"role": "user", "content": "<tool_response>\n21\n</tool_response>"},
            ],
        )

    def test_calls_without_a_function(self) -> None:
        came = self.one(calls({"id": "1", "type": "custom"}))
        self.assertIn('"name": ""', came["content"])

    def test_calls_of_free_text(self) -> None:
        made = {"id": "1", "type": "custom", "custom": {"name": "sh", "input": "ls -l"}}
        came = self.one(calls(made))
        self.assertEqual(came["content"], HERMES.call("sh", "ls -l"))

    def test_an_answer_without_calls_stays_as_it_came(self) -> None:
        body = b'{"messages": [{"role":"assistant",  "content":"\\u0041", "x": 1e0}]}'
        self.assertEqual(said_to(body), [b'{"role":"assistant",  "content":"\\u0041", "x": 1e0}'])


class Results(SynchronousTestCase):
    """What the tools said."""

    def test_those_behind_one_another_are_one_message(self) -> None:
        came = written(
            calls(call(), call(number="2")), result("21"), result("x", "2", is_error=True), USER
        )
        self.assertEqual(
            came[1:],
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

    def test_what_else_each_of_them_says_stays(self) -> None:
        (came,) = written(result("1", a=1.5), result("2", "2", b=[1]))
        self.assertEqual({key: came[key] for key in ("a", "b")}, {"a": 1.5, "b": [1]})

    def test_as_the_other_formats_have_them(self) -> None:
        for wording, shown in (
            (CoderWording(), "<tool_response>\n1\n</tool_response>\n" * 2),
            (LineWording(), "TOOL_RESULT:\n1\nTOOL_RESULT:\n1"),
        ):
            came = written(result("1"), result("1", "2"), wording=wording)
            self.assertEqual(came, [{"role": "user", "content": shown}])

    def test_texts_in_parts_are_one_text(self) -> None:
        (came,) = written(result([text("a"), text("b")]))
        self.assertEqual(came["content"], "<tool_response>\na\nb\n</tool_response>")

    def test_pictures_stay(self) -> None:
        (came,) = written(result([text("a"), PICTURE]), result("b", "2"))
        self.assertEqual(
            came["content"],
            [
                text("<tool_response>\na"),
                PICTURE,
                text("\n</tool_response>\n<tool_response>\nb\n</tool_response>"),
            ],
        )

    def test_what_is_no_text(self) -> None:
        for content, shown in ((None, ""), ({"a": 1}, '{"a": 1}'), (7, "7"), ("7", "7")):
            (came,) = written(result(content))
            self.assertEqual(came["role"], "user")
            self.assertEqual(came["content"], f"<tool_response>\n{shown}\n</tool_response>")

    def test_numbers_for_ids(self) -> None:
        """Nothing but their ids is odd in these messages."""
        odd = written(
            calls({**call(), "id": 1}, content="Now"), {**result("21"), "tool_call_id": 1}
        )
        self.assertEqual(odd, written(calls(call(), content="Now"), result("21")))

    def test_halves_of_characters(self) -> None:
        body = b'{"messages": [{"role": "tool", "content": "\\ud83d \\u00e9", "x": NaN}]}'
        (came,) = said_to(body)
        self.assertIn(b"\\ud83d \\u00e9", came)
        body = b'{"messages": [{"role": "user", "content": "\\ud83d", "x": NaN}], "tools": [{}]}'
        (_, came) = said_to(body[:-1] + b', "tool_choice": "none"}')
        self.assertIn(b'"\\ud83d\\n\\n', came)

    def test_messages_that_nobody_can_read_stay(self) -> None:
        odd = b'{"role": 7, "tool_calls": 3}'
        body = b'{"messages": [%s], "tools": [{}], "tool_choice": "none"}' % odd
        self.assertEqual(said_to(body)[1:], [odd])
        key = b'{"messages": [{"role": "tool", "content": "21", "\xff": 1}]}'
        self.assertIn(b"<tool_response>\\n21\\n</tool_response>", said_to(key)[0])
        bad = b'{"role": "user", "content": "\xff"}'
        body = b'{"messages": [%s], "tools": [{}], "tool_choice": "none"}' % bad
        self.assertEqual(said_to(body)[1:], [bad])


STEPS = st.one_of(
    st.builds(lambda said: [{"role": "user", "content": said}], st.text(max_size=5)),
    st.builds(
        lambda said, answers: [
            calls(*(call(number=str(at)) for at in range(len(answers))), content=said),
            *(result(answer, str(at)) for at, answer in enumerate(answers)),
        ],
        st.text(max_size=5),
        st.lists(st.text(max_size=5), min_size=1, max_size=3),
    ),
)


class Stability(SynchronousTestCase):
    """The backend's prefix cache keeps hitting."""

    @given(st.lists(STEPS, min_size=1, max_size=6), st.sampled_from(["auto", "required"]))
    def test_a_longer_history_begins_with_the_shorter_one(
        self, steps: list[list[dict[str, Any]]], choice: str
    ) -> None:
        before: list[bytes] = []
        for end in range(1, len(steps) + 1):
            messages = [SYSTEM, *(message for step in steps[:end] for message in step)]
            fields = {"messages": messages, "tools": [TOOL], "tool_choice": choice}
            body = json.dumps(fields).encode()
            now = said_to(body)
            self.assertEqual(now, said_to(body))
            self.assertEqual(now[: len(before)], before)
            before = now
