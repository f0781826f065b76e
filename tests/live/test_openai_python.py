"""
The official `openai` package for Python receives calls through blockops, and none without it.

Each test runs llama.cpp's server with the project's tiny model, and a real `twistd`.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import skip_without, start_daemon, start_llama
from tests.live.tiny_model import CALL_TEXTS, DIALECTS, PLAIN_TEXTS, TEXTS, TOOLS, messages

try:
    import openai
except ImportError:
    openai = None

SKIP_REASON = skip_without("openai", "xllamacpp")


def create(client: Any, key: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=messages(key), tools=TOOLS, temperature=0, **options
    )


def join_chunks(chunks: Any) -> tuple[str, list[tuple[str, Any]], list[str]]:
    """Return the text, the calls and the finish reasons of a stream."""
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


def parse_calls(message: Any) -> list[tuple[str, Any]]:
    return [
        (call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls or ()
    ]


class WithBlockopsTests(SynchronousTestCase):
    skip = SKIP_REASON

    def setUp(self) -> None:
        self.daemon = start_daemon(self, "--backend", start_llama(self))
        self.client = openai.OpenAI(base_url=f"{self.daemon.url}/v1", api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def test_streams(self) -> None:
        for expected in CALL_TEXTS:
            with self.subTest(key=expected.key):
                text, calls, reasons = join_chunks(create(self.client, expected.key, stream=True))
                self.assertEqual(calls, expected.calls)
                self.assertEqual(text, expected.content)
                self.assertEqual(reasons, ["tool_calls"])

    def test_non_streaming(self) -> None:
        for expected in CALL_TEXTS:
            with self.subTest(key=expected.key):
                choice = create(self.client, expected.key).choices[0]
                self.assertEqual(parse_calls(choice.message), expected.calls)
                self.assertEqual(choice.message.content or "", expected.content)
                self.assertEqual(choice.finish_reason, "tool_calls")
                self.assertTrue(choice.message.tool_calls[0].id.startswith("call_"))

    def test_the_streaming_helper(self) -> None:
        for expected in CALL_TEXTS:
            with self.subTest(key=expected.key):
                request: Any = {"model": "tiny", "messages": messages(expected.key), "tools": TOOLS}
                with self.client.chat.completions.stream(**request, temperature=0) as stream:
                    events = [event for event in stream if event.type.startswith("tool_calls")]
                    choice = stream.get_final_completion().choices[0]
                self.assertEqual(parse_calls(choice.message), expected.calls)
                self.assertEqual(choice.finish_reason, "tool_calls")
                done = [
                    item for item in events if item.type == "tool_calls.function.arguments.done"
                ]
                self.assertEqual(
                    [(item.name, json.loads(item.arguments)) for item in done], expected.calls
                )

    def test_text_stays_text(self) -> None:
        for expected in PLAIN_TEXTS:
            with self.subTest(key=expected.key):
                text, calls, reasons = join_chunks(create(self.client, expected.key, stream=True))
                self.assertEqual((text, calls, reasons), (expected.answer, [], ["stop"]))
                message = create(self.client, expected.key).choices[0].message
                self.assertEqual((message.content, message.tool_calls), (expected.answer, None))

    def test_arguments_stream(self) -> None:
        for mark in DIALECTS:
            with self.subTest(key=f"{mark}-long"):
                chunks = list(create(self.client, f"{mark}-long", stream=True))
                parts = [
                    part
                    for chunk in chunks
                    for choice in chunk.choices
                    for part in choice.delta.tool_calls or ()
                ]
                self.assertGreater(len(parts), 20)
                self.assertEqual([bool(part.id) for part in parts].count(True), 1)

    def test_a_complete_agent_loop(self) -> None:
        """The model calls a tool, the tool runs, and the model reads its result."""
        for mark in DIALECTS:
            with self.subTest(format=DIALECTS[mark]):
                history: list[Any] = messages(f"{mark}-add")
                message = self.run_turn(history)
                call = message.tool_calls[0]
                total = sum(json.loads(call.function.arguments).values())
                history += [
                    message.model_dump(exclude_none=True),
                    {"role": "tool", "tool_call_id": call.id, "content": str(total)},
                ]
                final = self.run_turn(history)
                self.assertEqual((total, final.tool_calls), (42, None))
                self.assertEqual(final.content, "The tool answered. All done.")

    def run_turn(self, history: list[Any]) -> Any:
        with self.client.chat.completions.stream(
            model="tiny", messages=history, tools=TOOLS, temperature=0
        ) as stream:
            return stream.get_final_completion().choices[0].message

    def test_a_call_in_the_second_turn(self) -> None:
        for expected in [text for text in TEXTS if text.turn == 1 and text.calls]:
            with self.subTest(key=expected.key):
                history: list[Any] = [
                    *messages(expected.key),
                    {"role": "assistant", "content": "On it."},
                    {"role": "user", "content": "Go on."},
                ]
                completion = self.client.chat.completions.create(
                    model="tiny", messages=history, tools=TOOLS, temperature=0
                )
                self.assertEqual(parse_calls(completion.choices[0].message), expected.calls)

    def test_usage(self) -> None:
        chunks = list(
            create(self.client, "j-add", stream=True, stream_options={"include_usage": True})
        )
        self.assertEqual(len([item for item in chunks if item.usage]), 1)
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


class WithoutBlockopsTests(SynchronousTestCase):
    """The controls: without blockops the same client receives no call from the same backend."""

    skip = SKIP_REASON

    def setUp(self) -> None:
        self.client = openai.OpenAI(
            base_url=f"{start_llama(self)}/v1", api_key="none", max_retries=0
        )
        self.addCleanup(self.client.close)

    def test_streams(self) -> None:
        for expected in CALL_TEXTS:
            with self.subTest(key=expected.key):
                text, calls, reasons = join_chunks(create(self.client, expected.key, stream=True))
                self.assertEqual((text, calls, reasons), (expected.answer, [], ["stop"]))

    def test_non_streaming(self) -> None:
        for expected in CALL_TEXTS:
            with self.subTest(key=expected.key):
                choice = create(self.client, expected.key).choices[0]
                self.assertEqual(choice.message.content, expected.answer)
                self.assertEqual((choice.message.tool_calls, choice.finish_reason), (None, "stop"))

    def test_the_streaming_helper(self) -> None:
        for mark in DIALECTS:
            request: Any = {"model": "tiny", "messages": messages(f"{mark}-add"), "tools": TOOLS}
            with self.client.chat.completions.stream(**request, temperature=0) as stream:
                choice = stream.get_final_completion().choices[0]
            self.assertEqual((parse_calls(choice.message), choice.finish_reason), ([], "stop"))
