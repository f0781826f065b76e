"""
The official `openai` package for Python: it gets calls through blockops, and none without.

llama.cpp's own server with a model of this project's, a real `twistd`, real sockets.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import needs, start_daemon, start_llama
from tests.live.tools import CALLING, FORMATS, PLAIN, TEXTS, TOOLS, messages

try:
    import openai
except ImportError:
    openai = None

_MISSING = needs("openai", "xllamacpp")


def _ask(client: Any, key: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=messages(key), tools=TOOLS, temperature=0, **more
    )


def joined(chunks: Any) -> tuple[str, list[tuple[str, Any]], list[str]]:
    """Join a stream's deltas: text, calls, finish reasons."""
    text, reasons = "", []
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for part in choice.delta.tool_calls or ():
                names[part.index] = names.get(part.index, "") + (part.function.name or "")
                before = arguments.get(part.index, "")
                arguments[part.index] = before + (part.function.arguments or "")
    calls = [(names[index], json.loads(arguments[index])) for index in sorted(names)]
    return text, calls, reasons


def of_message(message: Any) -> list[tuple[str, Any]]:
    return [
        (call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls or ()
    ]


class WithBlockops(SynchronousTestCase):
    skip = _MISSING

    def setUp(self) -> None:
        self.daemon = start_daemon(self, "--backend", start_llama(self))
        self.client = openai.OpenAI(base_url=f"{self.daemon.url}/v1", api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def test_streams(self) -> None:
        for expected in CALLING:
            with self.subTest(key=expected.key):
                text, calls, reasons = joined(_ask(self.client, expected.key, stream=True))
                self.assertEqual(calls, expected.calls)
                self.assertEqual(text, expected.content)
                self.assertEqual(reasons, ["tool_calls"])

    def test_whole_answers(self) -> None:
        for expected in CALLING:
            with self.subTest(key=expected.key):
                choice = _ask(self.client, expected.key).choices[0]
                self.assertEqual(of_message(choice.message), expected.calls)
                self.assertEqual(choice.message.content or "", expected.content)
                self.assertEqual(choice.finish_reason, "tool_calls")
                self.assertTrue(choice.message.tool_calls[0].id.startswith("call_"))

    def test_the_streaming_helper(self) -> None:
        for expected in CALLING:
            with self.subTest(key=expected.key):
                asked: Any = {"model": "tiny", "messages": messages(expected.key), "tools": TOOLS}
                with self.client.chat.completions.stream(**asked, temperature=0) as stream:
                    heard = [event for event in stream if event.type.startswith("tool_calls")]
                    choice = stream.get_final_completion().choices[0]
                self.assertEqual(of_message(choice.message), expected.calls)
                self.assertEqual(choice.finish_reason, "tool_calls")
                done = [one for one in heard if one.type == "tool_calls.function.arguments.done"]
                self.assertEqual(
                    [(one.name, json.loads(one.arguments)) for one in done], expected.calls
                )

    def test_text_stays_text(self) -> None:
        for expected in PLAIN:
            with self.subTest(key=expected.key):
                text, calls, reasons = joined(_ask(self.client, expected.key, stream=True))
                self.assertEqual((text, calls, reasons), (expected.reply, [], ["stop"]))
                message = _ask(self.client, expected.key).choices[0].message
                self.assertEqual((message.content, message.tool_calls), (expected.reply, None))

    def test_arguments_come_while_they_are_written(self) -> None:
        for mark in FORMATS:
            with self.subTest(key=f"{mark}-long"):
                chunks = list(_ask(self.client, f"{mark}-long", stream=True))
                parts = [
                    part
                    for chunk in chunks
                    for choice in chunk.choices
                    for part in choice.delta.tool_calls or ()
                ]
                self.assertGreater(len(parts), 20)
                self.assertEqual([bool(part.id) for part in parts].count(True), 1)

    def test_an_agent_from_question_to_answer(self) -> None:
        """The model calls, the tool runs, the model reads its result."""
        for mark in FORMATS:
            with self.subTest(format=FORMATS[mark]):
                talk: list[Any] = messages(f"{mark}-add")
                message = self.turn(talk)
                call = message.tool_calls[0]
                total = sum(json.loads(call.function.arguments).values())
                talk += [
                    message.model_dump(exclude_none=True),
                    {"role": "tool", "tool_call_id": call.id, "content": str(total)},
                ]
                final = self.turn(talk)
                self.assertEqual((total, final.tool_calls), (42, None))
                self.assertEqual(final.content, "The tool answered. All done.")

    def turn(self, talk: list[Any]) -> Any:
        with self.client.chat.completions.stream(
            model="tiny", messages=talk, tools=TOOLS, temperature=0
        ) as stream:
            return stream.get_final_completion().choices[0].message

    def test_a_call_in_the_second_turn(self) -> None:
        for expected in [text for text in TEXTS if text.turn == 1 and text.calls]:
            with self.subTest(key=expected.key):
                talk: list[Any] = [
                    *messages(expected.key),
                    {"role": "assistant", "content": "On it."},
                    {"role": "user", "content": "Go on."},
                ]
                answer = self.client.chat.completions.create(
                    model="tiny", messages=talk, tools=TOOLS, temperature=0
                )
                self.assertEqual(of_message(answer.choices[0].message), expected.calls)

    def test_usage(self) -> None:
        chunks = list(
            _ask(self.client, "j-add", stream=True, stream_options={"include_usage": True})
        )
        self.assertEqual(len([one for one in chunks if one.usage]), 1)
        self.assertEqual(chunks[-1].choices, [])
        self.assertGreater(chunks[-1].usage.completion_tokens, 10)

    def test_models(self) -> None:
        self.assertEqual([model.id for model in self.client.models.list()], ["tiny"])
        self.assertEqual(self.client.models.retrieve("tiny").id, "tiny")

    def test_the_backends_error_reaches_the_client(self) -> None:
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "[[full]]" + " word" * 4000}]
            )
        self.assertEqual(caught.exception.type, "exceed_context_size_error")


class WithoutBlockops(SynchronousTestCase):
    """The controls: the same client, the same backend, the same questions, and no call."""

    skip = _MISSING

    def setUp(self) -> None:
        self.client = openai.OpenAI(
            base_url=f"{start_llama(self)}/v1", api_key="none", max_retries=0
        )
        self.addCleanup(self.client.close)

    def test_streams(self) -> None:
        for expected in CALLING:
            with self.subTest(key=expected.key):
                text, calls, reasons = joined(_ask(self.client, expected.key, stream=True))
                self.assertEqual((text, calls, reasons), (expected.reply, [], ["stop"]))

    def test_whole_answers(self) -> None:
        for expected in CALLING:
            with self.subTest(key=expected.key):
                choice = _ask(self.client, expected.key).choices[0]
                self.assertEqual(choice.message.content, expected.reply)
                self.assertEqual((choice.message.tool_calls, choice.finish_reason), (None, "stop"))

    def test_the_streaming_helper(self) -> None:
        for mark in FORMATS:
            asked: Any = {"model": "tiny", "messages": messages(f"{mark}-add"), "tools": TOOLS}
            with self.client.chat.completions.stream(**asked, temperature=0) as stream:
                choice = stream.get_final_completion().choices[0]
            self.assertEqual((of_message(choice.message), choice.finish_reason), ([], "stop"))
