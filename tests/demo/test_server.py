"""The demo backend: its script and its server."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

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
from twisted.web.client import ResponseNeverReceived
from twisted.web.server import Request

from blockops.demo import server as demo
from blockops.demo.script import (
    DIALECTS,
    Call,
    make_arguments,
    reply,
    split_tokens,
    write_hermes,
    write_line,
    write_qwen_xml,
)
from blockops.demo.server import DemoBackend, example_command
from tests import thorough

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

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
KINDS = ("object", "string", "integer", "number", "boolean", "array", "null")
SCHEMAS = st.recursive(
    JSON,
    lambda inner: st.fixed_dictionaries(
        {"properties": st.dictionaries(st.sampled_from("ab"), inner) | JSON},
        optional={
            "type": st.sampled_from(KINDS) | JSON,
            "required": st.lists(st.sampled_from("ab")) | JSON,
            "items": inner,
            "enum": JSON,
            "minimum": JSON,
            "anyOf": st.lists(inner, max_size=2) | JSON,
            "$ref": st.sampled_from(["#", "#/properties/a", "#/nowhere"]) | JSON,
        },
    ),
    max_leaves=20,
)


def chat_request(**fields: Any) -> dict[str, Any]:
    return {"messages": [QUESTION], "tools": [WEATHER]} | fields


class ReplyTests(SynchronousTestCase):
    def test_dialects_alternate(self) -> None:
        replies = [reply(chat_request(), turn) for turn in range(4)]
        expected = {"city": "Paris", "days": 3}
        self.assertIn(write_hermes(Call("get_weather", expected)), replies[0])
        self.assertIn(write_line(Call("get_weather", expected)), replies[1])
        self.assertIn(write_qwen_xml(Call("get_weather", expected)), replies[2])
        self.assertEqual(replies[3], replies[0])

    def test_hermes(self) -> None:
        self.assertEqual(
            write_hermes(Call("f", {"é": [1]})),
            '<tool_call>\n{"name": "f", "arguments": {"é": [1]}}\n</tool_call>',
        )

    def test_line(self) -> None:
        self.assertEqual(write_line(Call("f", {})), 'TOOL_CALL: {"name": "f", "arguments": {}}')

    def test_the_line_dialect_begins_a_line(self) -> None:
        self.assertRegex(reply(chat_request(), 1), re.compile("^TOOL_CALL: ", re.MULTILINE))

    def test_qwen_xml(self) -> None:
        self.assertEqual(
            write_qwen_xml(Call("f", {"a": "x < y", "b": [1]})),
            "<tool_call>\n<function=f>\n<parameter=a>\nx < y\n</parameter>\n"
            "<parameter=b>\n[1]\n</parameter>\n</function>\n</tool_call>",
        )

    def test_a_result_is_answered_without_a_call(self) -> None:
        call: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
        result = {"role": "tool", "content": "18 degrees"}
        text = reply(chat_request(messages=[QUESTION, call, result]), 0)
        self.assertIn("18 degrees", text)
        self.assertNotIn("<tool_call>", text)

    def test_a_new_question_is_a_new_call(self) -> None:
        result = {"role": "tool", "content": "18 degrees"}
        self.assertIn("<tool_call>", reply(chat_request(messages=[QUESTION, result, QUESTION]), 0))

    def test_no_call_without_tools(self) -> None:
        without: list[dict[str, Any]] = [{"tools": []}, {"tools": None}, {"tool_choice": "none"}]
        for fields in without:
            for turn in range(len(DIALECTS)):
                self.assertNotRegex(
                    reply(chat_request(**fields), turn), "tool_call|TOOL_CALL|function="
                )

    def test_tool_choice(self) -> None:
        other = {"type": "function", "function": {"name": "other"}}
        forced = {"type": "function", "function": {"name": "other"}}
        text = reply(chat_request(tools=[WEATHER, other], tool_choice=forced), 0)
        self.assertIn('"name": "other", "arguments": {}', text)

    def test_content_in_parts(self) -> None:
        parts = [{"type": "text", "text": "in Rome"}, {"type": "image_url", "image_url": {}}]
        text = reply(chat_request(messages=[{"role": "user", "content": parts}]), 0)
        self.assertIn('"city": "Rome"', text)

    @given(st.text())
    def test_tokens_concatenate_to_the_text(self, text: str) -> None:
        self.assertEqual("".join(split_tokens(text)), text)

    def test_tokens_are_small(self) -> None:
        self.assertLess(max(map(len, split_tokens(reply(chat_request(), 0)))), 7)

    @thorough(50)
    @given(tools=JSON, messages=st.lists(st.dictionaries(st.text(), JSON)), choice=JSON)
    def test_any_request_has_a_reply(self, tools: Any, messages: Any, choice: Any) -> None:
        request = {"tools": tools, "messages": messages, "tool_choice": choice}
        self.assertIsInstance(reply(request, 0), str)


class ArgumentsTests(SynchronousTestCase):
    def example(self, question: str = "", **properties: Any) -> dict[str, Any]:
        return make_arguments({"type": "object", "properties": properties}, question)

    def test_strings_are_the_question(self) -> None:
        self.assertEqual(
            self.example("Find bread", query={"type": "string"}), {"query": "Find bread"}
        )

    def test_strings_without_a_question(self) -> None:
        self.assertEqual(self.example(query={"type": "string"}), {"query": "query"})

    def test_cities(self) -> None:
        self.assertEqual(self.example("rain in Oslo?", city={"type": "string"}), {"city": "Oslo"})

    def test_numbers_in_order(self) -> None:
        result = self.example("add 17 and 2.5", a={"type": "integer"}, b={"type": "number"})
        self.assertEqual(result, {"a": 17, "b": 2.5})

    def test_default_numbers(self) -> None:
        result = self.example(a={"type": "integer", "minimum": 4}, b={"type": "number"})
        self.assertEqual(result, {"a": 4, "b": 1})

    def test_enums(self) -> None:
        unit = {"enum": ["celsius", "fahrenheit"]}
        self.assertEqual(self.example("in Fahrenheit", unit=unit), {"unit": "fahrenheit"})
        self.assertEqual(self.example("in Kelvin", unit=unit), {"unit": "celsius"})

    def test_fixed_values(self) -> None:
        result = self.example(
            a={"const": 7}, b={"type": "string", "default": "d"}, c={"type": "boolean"}
        )
        self.assertEqual(result, {"a": 7, "b": "d", "c": True})

    def test_nested(self) -> None:
        result = self.example(
            "1 2", point={"properties": {"x": {"type": "integer"}}}, tags=LIST_OF_INT
        )
        self.assertEqual(result, {"point": {"x": 1}, "tags": [2]})

    def test_unions(self) -> None:
        union = {"anyOf": [{"type": "null"}, {"type": "boolean"}]}
        result = self.example(a=union, b={"type": ["null", "boolean"]})
        self.assertEqual(result, {"a": True, "b": True})

    def test_references(self) -> None:
        schema = {
            "properties": {"a": {"$ref": "#/$defs/yes"}, "b": {"$ref": "#/$defs/missing"}},
            "$defs": {"yes": {"type": "boolean"}},
        }
        self.assertEqual(make_arguments(schema, "hm"), {"a": True, "b": "hm"})

    def test_recursive_schema(self) -> None:
        tree = {"type": "object", "properties": {"child": {"$ref": "#"}}}
        self.assertIn("child", make_arguments(tree, ""))

    def test_no_schema(self) -> None:
        self.assertEqual(make_arguments(None, "x"), {})

    @thorough(100)
    @given(SCHEMAS, st.text(max_size=30))
    def test_any_schema_has_an_object(self, schema: Any, question: str) -> None:
        result = make_arguments(schema, question)
        self.assertIsInstance(result, dict)
        json.dumps(result)


LIST_OF_INT = {"type": "array", "items": {"type": "integer"}}


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

    @property
    def producer(self) -> Any:
        return self.transport.producer

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
        self.assertEqual(self.text(), reply(chat_request(), 0))
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
        self.assertEqual(
            usage["usage"]["completion_tokens"], len(split_tokens(reply(chat_request(), 0)))
        )

    def test_no_usage_unless_requested(self) -> None:
        self.request(stream=True)
        self.pass_time(60)
        self.assertNotIn(b"usage", self.client.transport.value())

    def test_max_tokens(self) -> None:
        self.request(stream=True, max_tokens=3)
        self.pass_time(60)
        self.assertEqual(self.text(), "".join(split_tokens(reply(chat_request(), 0))[:3]))
        self.assertEqual(self.client.events()[-2]["choices"][0]["finish_reason"], "length")

    def test_backpressure(self) -> None:
        self.request(stream=True)
        self.pass_time(2)
        self.client.producer.pauseProducing()
        self.pass_time(0.25)
        before = len(self.client.events())
        self.pass_time(30)
        self.assertEqual(len(self.client.events()), before)
        self.client.producer.resumeProducing()
        self.pass_time(60)
        self.assertEqual(self.text(), reply(chat_request(), 0))

    def test_a_disconnect_cancels_the_response(self) -> None:
        for seconds in (1, 2):
            with self.subTest(seconds=seconds):
                self.client = MemoryClient(self.clock)
                idle = len(self.clock.getDelayedCalls())
                self.request(stream=True)
                self.pass_time(seconds)
                self.client.disconnect()
                self.assertLessEqual(len(self.clock.getDelayedCalls()), idle)

    def test_a_paused_client_that_disconnects(self) -> None:
        self.request(stream=True)
        self.pass_time(2)
        self.client.producer.pauseProducing()
        self.pass_time(1)
        self.client.disconnect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_dialects_alternate_between_requests(self) -> None:
        texts = []
        for _ in DIALECTS:
            self.client = MemoryClient(self.clock)
            self.request(stream=True)
            self.pass_time(60)
            texts.append(self.text())
        self.assertEqual(texts, [reply(chat_request(), turn) for turn in range(len(DIALECTS))])


class NonStreamingTests(InMemoryTestCase):
    def test_the_response_takes_time(self) -> None:
        self.request()
        self.pass_time(1.5 + 0.125 * (len(split_tokens(reply(chat_request(), 0))) - 1))
        self.assertEqual(self.client.transport.value(), b"")
        self.pass_time(0.25)
        status, body = self.client.received()
        completion = json.loads(body)
        self.assertEqual((status, completion["object"]), (200, "chat.completion"))
        self.assertEqual(completion["choices"][0]["message"]["content"], reply(chat_request(), 0))
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
        self.assertIn("<tool_call>", reply(json.loads(body), 0))

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

    def test_stopping_aborts_running_responses(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.check_stopping())

    async def check_stopping(self) -> None:
        received: Deferred[None] = Deferred()
        chat = demo._Api._chat

        def record(api: demo._Api, request: Request) -> int:
            received.callback(None)
            return chat(api, request)

        self.patch(demo._Api, "_chat", record)
        backend = DemoBackend(reactor, prefill=0, pace=3600)
        backend.startService()
        response = Deferred.fromCoroutine(self.response_text(backend))
        await received
        await backend.stopService()
        with self.assertRaises(ResponseNeverReceived):
            await response

    def test_no_url_before_it_listens(self) -> None:
        backend = DemoBackend(reactor)
        self.assertRaises(RuntimeError, lambda: backend.url)
