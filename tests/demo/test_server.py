"""The demo backend: its script and its server."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import msgspec
import treq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from blockops.demo.script import (
    DIALECTS,
    ChatRequest,
    Parameters,
    make_arguments,
    reply,
    split_tokens,
)
from blockops.demo.server import DemoBackend, example_command

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer"},
            },
            "required": ["city", "days"],
        },
    },
}
QUESTION = {"role": "user", "content": "How is the weather in Paris, for 3 days?"}


def chat_request(**fields: Any) -> dict[str, Any]:
    return {"messages": [QUESTION], "tools": [WEATHER]} | fields


def demo_reply(answer_number: int = 0, **fields: Any) -> str:
    return reply(msgspec.convert(chat_request(**fields), ChatRequest), answer_number)


class ReplyTests(SynchronousTestCase):
    def test_dialects_alternate(self) -> None:
        replies = [demo_reply(number) for number in range(4)]
        arguments = '{"city": "Paris", "days": 3}'
        self.assertIn(
            f'\n<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>',
            replies[0],
        )
        self.assertIn(
            f'\nTOOL_CALL: {{"name": "get_weather", "arguments": {arguments}}}', replies[1]
        )
        self.assertIn(
            "\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            replies[2],
        )
        self.assertEqual(replies[3], replies[0])

    def test_a_result_is_answered_without_a_call(self) -> None:
        call: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
        result = {"role": "tool", "content": "18 degrees"}
        text = demo_reply(messages=[QUESTION, call, result])
        self.assertIn("18 degrees", text)
        self.assertNotIn("<tool_call>", text)

    def test_a_new_question_is_a_new_call(self) -> None:
        result = {"role": "tool", "content": "18 degrees"}
        self.assertIn("<tool_call>", demo_reply(messages=[QUESTION, result, QUESTION]))

    def test_no_call_without_tools(self) -> None:
        without: list[dict[str, Any]] = [{"tools": []}, {"tools": None}, {"tool_choice": "none"}]
        for fields in without:
            for turn in range(len(DIALECTS)):
                self.assertNotRegex(demo_reply(turn, **fields), "tool_call|TOOL_CALL|function=")

    def test_tool_choice(self) -> None:
        other = {"type": "function", "function": {"name": "other"}}
        forced = {"type": "function", "function": {"name": "other"}}
        text = demo_reply(tools=[WEATHER, other], tool_choice=forced)
        self.assertIn('"name": "other", "arguments": {}', text)

    def test_content_in_parts(self) -> None:
        parts = [{"type": "text", "text": "in Rome"}, {"type": "image_url", "image_url": {}}]
        text = demo_reply(messages=[{"role": "user", "content": parts}])
        self.assertIn('"city": "Rome"', text)

    @given(st.text())
    def test_tokens_concatenate_to_the_text(self, text: str) -> None:
        self.assertEqual("".join(split_tokens(text)), text)

    def test_tokens_are_small(self) -> None:
        self.assertLess(max(map(len, split_tokens(demo_reply()))), 7)


class ArgumentsTests(SynchronousTestCase):
    def example(self, question: str = "", **properties: Any) -> dict[str, Any]:
        return make_arguments(msgspec.convert({"properties": properties}, Parameters), question)

    def test_strings_are_the_question(self) -> None:
        self.assertEqual(
            self.example("Find bread", query={"type": "string"}), {"query": "Find bread"}
        )

    def test_strings_without_a_question(self) -> None:
        self.assertEqual(self.example(query={"type": "string"}), {"query": "query"})

    def test_cities(self) -> None:
        self.assertEqual(self.example("rain in Oslo?", city={"type": "string"}), {"city": "Oslo"})

    def test_numbers_in_order(self) -> None:
        number = {"type": "number"}
        result = self.example("add 17 and 2", a={"type": "integer"}, b=number, c=number)
        self.assertEqual(result, {"a": 17, "b": 2, "c": 1})

    def test_other_types(self) -> None:
        result = self.example(
            a={"enum": ["celsius", "fahrenheit"]},
            b={"type": "boolean"},
            c={"type": "array"},
            d={"type": "object"},
        )
        self.assertEqual(result, {"a": "celsius", "b": True, "c": [], "d": {}})

    def test_no_schema(self) -> None:
        self.assertEqual(make_arguments(Parameters(), "x"), {})


class MemoryClient:
    """A client's connection to a demo backend, both in memory."""

    def __init__(self, clock: MemoryReactorClock) -> None:
        self.transport = StringTransport()
        address = IPv4Address("TCP", "127.0.0.1", 40000)
        site: Any = clock.tcpServers[-1][1]
        self._channel = site.buildProtocol(address)
        self._channel.makeConnection(self.transport)

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: demo\r\nContent-Length: {len(body)}\r\n\r\n"
        self._channel.dataReceived(head.encode() + body)

    def disconnect(self) -> None:
        self.transport.disconnected = True
        self._channel.connectionLost(Failure(ConnectionLost()))

    def received(self) -> tuple[int, bytes]:
        """Return the status and the body of a non-streaming response."""
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            raise AssertionError("a non-streaming response has a length")
        return int(head.split()[1]), body

    def events(self) -> list[Any]:
        data = re.findall(rb"data: (.+)\n\n", self.transport.value())
        return [one if one == b"[DONE]" else json.loads(one) for one in data]


class InMemoryTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.backend = DemoBackend(self.clock, prefill=1.5, pace=0.125)
        self.backend.startService()
        self.client = MemoryClient(self.clock)

    def request(self, **fields: Any) -> None:
        self.client.send(
            "POST", "/v1/chat/completions", json.dumps(chat_request(**fields)).encode()
        )

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.0625] * round(seconds / 0.0625))

    def text(self) -> str:
        chunks = [one for one in self.client.events() if isinstance(one, dict) and one["choices"]]
        return "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks)


class StreamTests(InMemoryTestCase):
    def test_no_event_during_prefill(self) -> None:
        self.request(stream=True)
        self.pass_time(1.5)
        self.assertEqual(self.client.transport.value(), b"")

    def test_one_token_at_a_time(self) -> None:
        self.request(stream=True)
        self.pass_time(1.5)
        lengths = []
        for _ in range(10):
            self.pass_time(0.125)
            lengths.append(len(self.client.events()))
        self.assertEqual(lengths, list(range(lengths[0], lengths[0] + 10)))
        self.assertEqual(self.client.events()[0]["choices"][0]["delta"]["role"], "assistant")

    def test_complete_stream(self) -> None:
        self.request(stream=True)
        self.pass_time(60)
        *chunks, done = self.client.events()
        self.assertEqual(done, b"[DONE]")
        self.assertEqual(self.text(), demo_reply())
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        self.assertEqual([reason for reason in reasons if reason], ["stop"])
        self.assertEqual({chunk["object"] for chunk in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({chunk["id"] for chunk in chunks}), 1)
        self.assertTrue(self.client.transport.value().endswith(b"\r\n0\r\n\r\n"))

    def test_usage_if_requested(self) -> None:
        self.request(stream=True, stream_options={"include_usage": True})
        self.pass_time(60)
        usage = self.client.events()[-2]
        self.assertEqual(usage["choices"], [])
        self.assertEqual(usage["usage"]["completion_tokens"], len(split_tokens(demo_reply())))

    def test_no_usage_unless_requested(self) -> None:
        self.request(stream=True)
        self.pass_time(60)
        self.assertNotIn(b"usage", self.client.transport.value())

    def test_max_tokens(self) -> None:
        self.request(stream=True, max_tokens=3)
        self.pass_time(60)
        self.assertEqual(self.text(), "".join(split_tokens(demo_reply())[:3]))
        self.assertEqual(self.client.events()[-2]["choices"][0]["finish_reason"], "length")

    def test_a_disconnect_cancels_the_response(self) -> None:
        for seconds in (1, 2):
            with self.subTest(seconds=seconds):
                self.client = MemoryClient(self.clock)
                idle = len(self.clock.getDelayedCalls())
                self.request(stream=True)
                self.pass_time(seconds)
                self.client.disconnect()
                self.assertLessEqual(len(self.clock.getDelayedCalls()), idle)

    def test_dialects_alternate_between_requests(self) -> None:
        texts = []
        for _ in DIALECTS:
            self.client = MemoryClient(self.clock)
            self.request(stream=True)
            self.pass_time(60)
            texts.append(self.text())
        self.assertEqual(texts, [demo_reply(turn) for turn in range(len(DIALECTS))])


class NonStreamingTests(InMemoryTestCase):
    def test_the_response_takes_time(self) -> None:
        self.request()
        self.pass_time(1.5 + 0.125 * (len(split_tokens(demo_reply())) - 1))
        self.assertEqual(self.client.transport.value(), b"")
        self.pass_time(0.25)
        status, body = self.client.received()
        completion = json.loads(body)
        self.assertEqual((status, completion["object"]), (200, "chat.completion"))
        self.assertEqual(completion["choices"][0]["message"]["content"], demo_reply())
        self.assertEqual(completion["choices"][0]["finish_reason"], "stop")
        self.assertEqual(
            completion["usage"]["total_tokens"],
            completion["usage"]["prompt_tokens"] + completion["usage"]["completion_tokens"],
        )

    def test_a_disconnect_cancels_the_response(self) -> None:
        self.request()
        self.client.disconnect()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_models(self) -> None:
        self.client.send("GET", "/v1/models")
        status, body = self.client.received()
        self.assertEqual((status, json.loads(body)["data"][0]["id"]), (200, "demo"))

    def test_an_idle_connection_is_closed(self) -> None:
        """The backend uses its own clock for the timeout."""
        self.client.send("GET", "/v1/models")
        self.clock.advance(61)
        self.assertTrue(self.client.transport.disconnecting)

    def test_errors_in_the_openai_format(self) -> None:
        chat = "/v1/chat/completions"
        for method, path, body, expected in (
            ("GET", "/missing", b"", 404),
            ("GET", chat, b"", 404),
            ("POST", chat, b"{", 400),
            ("POST", chat, b"\xff", 400),
            ("POST", chat, b"[" * 100_000, 400),
            ("POST", chat, b"[]", 400),
            ("POST", chat, b"{}", 400),
            ("POST", chat, b'{"messages": [1]}', 400),
        ):
            with self.subTest(method=method, path=path, body=body[:20]):
                self.client = MemoryClient(self.clock)
                self.client.send(method, path, body)
                status, response = self.client.received()
                self.assertEqual(status, expected)
                self.assertTrue(json.loads(response)["error"]["message"])


class ExampleCommandTests(SynchronousTestCase):
    def test_it_requests_a_call(self) -> None:
        curl, options, url, flag, body = shlex.split(example_command("127.0.0.1", 8080))
        self.assertEqual((curl, options, flag), ("curl", "-gN", "-d"))
        self.assertEqual(url, "http://127.0.0.1:8080/v1/chat/completions")
        self.assertIn("<tool_call>", reply(msgspec.json.decode(body, type=ChatRequest), 0))

    def test_ipv6(self) -> None:
        self.assertIn(" 'http://[::1]:80/v1/", example_command("::1", 80))


class ListeningTests(TestCase):
    """Over a real socket."""

    async def response_text(self, backend: DemoBackend) -> str:
        response = await treq.post(
            f"{backend.url}/v1/chat/completions",
            json=chat_request(stream=True),
            persistent=False,
        )
        return await response.text()

    def test_a_stream(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.check_a_stream())

    async def check_a_stream(self) -> None:
        backend = DemoBackend(reactor, prefill=0, pace=0)
        backend.startService()
        self.addCleanup(backend.stopService)
        text = await self.response_text(backend)
        self.assertTrue(text.endswith("data: [DONE]\n\n"))
        self.assertIn("chat.completion.chunk", text)
