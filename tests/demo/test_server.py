"""The demo backend: what it says, and at what pace it says it."""

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
from blockops.demo.script import FORMATS, Call, arguments, hermes, line, qwen_xml, reply, tokens
from blockops.demo.server import DemoBackend, hint
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


def asked(**fields: Any) -> dict[str, Any]:
    return {"messages": [QUESTION], "tools": [WEATHER]} | fields


class Texts(SynchronousTestCase):
    def test_each_format_by_turns(self) -> None:
        written = [reply(asked(), turn) for turn in range(4)]
        expected = {"city": "Paris", "days": 3}
        self.assertIn(hermes(Call("get_weather", expected)), written[0])
        self.assertIn(line(Call("get_weather", expected)), written[1])
        self.assertIn(qwen_xml(Call("get_weather", expected)), written[2])
        self.assertEqual(written[3], written[0])

    def test_hermes(self) -> None:
        self.assertEqual(
            hermes(Call("f", {"é": [1]})),
            '<tool_call>\n{"name": "f", "arguments": {"é": [1]}}\n</tool_call>',
        )

    def test_line(self) -> None:
        self.assertEqual(line(Call("f", {})), 'TOOL_CALL: {"name": "f", "arguments": {}}')

    def test_the_line_format_begins_a_line(self) -> None:
        self.assertRegex(reply(asked(), 1), re.compile("^TOOL_CALL: ", re.MULTILINE))

    def test_qwen_xml(self) -> None:
        self.assertEqual(
            qwen_xml(Call("f", {"a": "x < y", "b": [1]})),
            "<tool_call>\n<function=f>\n<parameter=a>\nx < y\n</parameter>\n"
            "<parameter=b>\n[1]\n</parameter>\n</function>\n</tool_call>",
        )

    def test_a_result_is_answered_and_not_called_for_again(self) -> None:
        call: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
        result = {"role": "tool", "content": "18 degrees"}
        said = reply(asked(messages=[QUESTION, call, result]), 0)
        self.assertIn("18 degrees", said)
        self.assertNotIn("<tool_call>", said)

    def test_a_new_question_is_a_new_call(self) -> None:
        result = {"role": "tool", "content": "18 degrees"}
        self.assertIn("<tool_call>", reply(asked(messages=[QUESTION, result, QUESTION]), 0))

    def test_no_call_without_tools(self) -> None:
        without: list[dict[str, Any]] = [{"tools": []}, {"tools": None}, {"tool_choice": "none"}]
        for fields in without:
            for turn in range(len(FORMATS)):
                self.assertNotRegex(reply(asked(**fields), turn), "tool_call|TOOL_CALL|function=")

    def test_the_tool_that_tool_choice_names(self) -> None:
        other = {"type": "function", "function": {"name": "other"}}
        forced = {"type": "function", "function": {"name": "other"}}
        said = reply(asked(tools=[WEATHER, other], tool_choice=forced), 0)
        self.assertIn('"name": "other", "arguments": {}', said)

    def test_content_in_parts(self) -> None:
        parts = [{"type": "text", "text": "in Rome"}, {"type": "image_url", "image_url": {}}]
        said = reply(asked(messages=[{"role": "user", "content": parts}]), 0)
        self.assertIn('"city": "Rome"', said)

    @given(st.text())
    def test_tokens_lose_nothing(self, text: str) -> None:
        self.assertEqual("".join(tokens(text)), text)

    def test_tokens_are_small(self) -> None:
        self.assertLess(max(map(len, tokens(reply(asked(), 0)))), 7)

    @thorough(50)
    @given(tools=JSON, messages=st.lists(st.dictionaries(st.text(), JSON)), choice=JSON)
    def test_whatever_is_asked_something_is_said(
        self, tools: Any, messages: Any, choice: Any
    ) -> None:
        request = {"tools": tools, "messages": messages, "tool_choice": choice}
        self.assertIsInstance(reply(request, 0), str)


class Arguments(SynchronousTestCase):
    def of(self, words: str = "", **properties: Any) -> dict[str, Any]:
        return arguments({"type": "object", "properties": properties}, words)

    def test_strings_are_what_the_user_said(self) -> None:
        self.assertEqual(self.of("Find bread", query={"type": "string"}), {"query": "Find bread"})

    def test_strings_where_the_user_said_nothing(self) -> None:
        self.assertEqual(self.of(query={"type": "string"}), {"query": "query"})

    def test_places(self) -> None:
        self.assertEqual(self.of("rain in Oslo?", city={"type": "string"}), {"city": "Oslo"})

    def test_numbers_in_their_order(self) -> None:
        made = self.of("add 17 and 2.5", a={"type": "integer"}, b={"type": "number"})
        self.assertEqual(made, {"a": 17, "b": 2.5})

    def test_numbers_that_were_not_said(self) -> None:
        made = self.of(a={"type": "integer", "minimum": 4}, b={"type": "number"})
        self.assertEqual(made, {"a": 4, "b": 1})

    def test_options(self) -> None:
        unit = {"enum": ["celsius", "fahrenheit"]}
        self.assertEqual(self.of("in Fahrenheit", unit=unit), {"unit": "fahrenheit"})
        self.assertEqual(self.of("in Kelvin", unit=unit), {"unit": "celsius"})

    def test_fixed_values(self) -> None:
        made = self.of(a={"const": 7}, b={"type": "string", "default": "d"}, c={"type": "boolean"})
        self.assertEqual(made, {"a": 7, "b": "d", "c": True})

    def test_nested(self) -> None:
        made = self.of("1 2", point={"properties": {"x": {"type": "integer"}}}, tags=LIST_OF_INT)
        self.assertEqual(made, {"point": {"x": 1}, "tags": [2]})

    def test_unions(self) -> None:
        union = {"anyOf": [{"type": "null"}, {"type": "boolean"}]}
        made = self.of(a=union, b={"type": ["null", "boolean"]})
        self.assertEqual(made, {"a": True, "b": True})

    def test_references(self) -> None:
        schema = {
            "properties": {"a": {"$ref": "#/$defs/yes"}, "b": {"$ref": "#/$defs/missing"}},
            "$defs": {"yes": {"type": "boolean"}},
        }
        self.assertEqual(arguments(schema, "hm"), {"a": True, "b": "hm"})

    def test_a_schema_that_contains_itself(self) -> None:
        tree = {"type": "object", "properties": {"child": {"$ref": "#"}}}
        self.assertIn("child", arguments(tree, ""))

    def test_no_schema(self) -> None:
        self.assertEqual(arguments(None, "x"), {})

    @thorough(100)
    @given(SCHEMAS, st.text(max_size=30))
    def test_whatever_the_schema_the_arguments_are_an_object(self, schema: Any, words: str) -> None:
        made = arguments(schema, words)
        self.assertIsInstance(made, dict)
        json.dumps(made)


LIST_OF_INT = {"type": "array", "items": {"type": "integer"}}


class Conversation:
    """One client's connection to a demo backend, both in memory."""

    def __init__(self, clock: MemoryReactorClock) -> None:
        self.transport = StringTransport()
        address = IPv4Address("TCP", "127.0.0.1", 40000)
        site: Any = clock.tcpServers[-1][1]
        self._channel = site.buildProtocol(address)
        self._channel.makeConnection(self.transport)

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: demo\r\nContent-Length: {len(body)}\r\n\r\n"
        self._channel.dataReceived(head.encode() + body)

    def leave(self) -> None:
        self.transport.disconnected = True
        self._channel.connectionLost(Failure(ConnectionLost()))

    @property
    def producer(self) -> Any:
        return self.transport.producer

    def received(self) -> tuple[int, bytes]:
        """Return the status and the body of a whole answer."""
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            raise AssertionError("a whole answer has a length")
        return int(head.split()[1]), body

    def events(self) -> list[Any]:
        data = re.findall(rb"data: (.+)\n\n", self.transport.value())
        return [one if one == b"[DONE]" else json.loads(one) for one in data]


class InMemory(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.backend = DemoBackend(self.clock, prefill=1.5, pace=0.125)
        self.backend.startService()
        self.client = Conversation(self.clock)

    def ask(self, **fields: Any) -> None:
        self.client.send("POST", "/v1/chat/completions", json.dumps(asked(**fields)).encode())

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.0625] * round(seconds / 0.0625))

    def text(self) -> str:
        chunks = [one for one in self.client.events() if isinstance(one, dict) and one["choices"]]
        return "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks)


class Streams(InMemory):
    def test_nothing_comes_while_the_prompt_is_read(self) -> None:
        self.ask(stream=True)
        self.pass_time(1.5)
        self.assertEqual(self.client.transport.value(), b"")

    def test_then_token_after_token(self) -> None:
        self.ask(stream=True)
        self.pass_time(1.5)
        lengths = []
        for _ in range(10):
            self.pass_time(0.125)
            lengths.append(len(self.client.events()))
        self.assertEqual(lengths, list(range(lengths[0], lengths[0] + 10)))
        self.assertEqual(self.client.events()[0]["choices"][0]["delta"]["role"], "assistant")

    def test_the_whole_stream(self) -> None:
        self.ask(stream=True)
        self.pass_time(60)
        *chunks, done = self.client.events()
        self.assertEqual(done, b"[DONE]")
        self.assertEqual(self.text(), reply(asked(), 0))
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        self.assertEqual([reason for reason in reasons if reason], ["stop"])
        self.assertEqual({chunk["object"] for chunk in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({chunk["id"] for chunk in chunks}), 1)
        self.assertTrue(self.client.transport.value().endswith(b"\r\n0\r\n\r\n"))

    def test_usage_when_asked(self) -> None:
        self.ask(stream=True, stream_options={"include_usage": True})
        self.pass_time(60)
        usage = self.client.events()[-2]
        self.assertEqual(usage["choices"], [])
        self.assertEqual(usage["usage"]["completion_tokens"], len(tokens(reply(asked(), 0))))

    def test_no_usage_when_not_asked(self) -> None:
        self.ask(stream=True)
        self.pass_time(60)
        self.assertNotIn(b"usage", self.client.transport.value())

    def test_max_tokens(self) -> None:
        self.ask(stream=True, max_tokens=3)
        self.pass_time(60)
        self.assertEqual(self.text(), "".join(tokens(reply(asked(), 0))[:3]))
        self.assertEqual(self.client.events()[-2]["choices"][0]["finish_reason"], "length")

    def test_a_client_that_stops_reading_stops_the_tokens(self) -> None:
        self.ask(stream=True)
        self.pass_time(2)
        self.client.producer.pauseProducing()
        self.pass_time(0.25)
        before = len(self.client.events())
        self.pass_time(30)
        self.assertEqual(len(self.client.events()), before)
        self.client.producer.resumeProducing()
        self.pass_time(60)
        self.assertEqual(self.text(), reply(asked(), 0))

    def test_a_client_that_leaves_stops_the_work(self) -> None:
        for moment in (1, 2):
            with self.subTest(moment=moment):
                self.client = Conversation(self.clock)
                idle = len(self.clock.getDelayedCalls())
                self.ask(stream=True)
                self.pass_time(moment)
                self.client.leave()
                self.assertLessEqual(len(self.clock.getDelayedCalls()), idle)

    def test_a_paused_client_that_leaves(self) -> None:
        self.ask(stream=True)
        self.pass_time(2)
        self.client.producer.pauseProducing()
        self.pass_time(1)
        self.client.leave()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_formats_take_turns(self) -> None:
        said = []
        for _ in FORMATS:
            self.client = Conversation(self.clock)
            self.ask(stream=True)
            self.pass_time(60)
            said.append(self.text())
        self.assertEqual(said, [reply(asked(), turn) for turn in range(len(FORMATS))])


class Wholes(InMemory):
    def test_the_answer_takes_its_time(self) -> None:
        self.ask()
        self.pass_time(1.5 + 0.125 * (len(tokens(reply(asked(), 0))) - 1))
        self.assertEqual(self.client.transport.value(), b"")
        self.pass_time(0.25)
        status, body = self.client.received()
        answer = json.loads(body)
        self.assertEqual((status, answer["object"]), (200, "chat.completion"))
        self.assertEqual(answer["choices"][0]["message"]["content"], reply(asked(), 0))
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        self.assertEqual(
            answer["usage"]["total_tokens"],
            answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"],
        )

    def test_a_client_that_leaves_stops_the_work(self) -> None:
        self.ask()
        self.client.leave()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_models(self) -> None:
        self.client.send("GET", "/v1/models")
        status, body = self.client.received()
        self.assertEqual((status, json.loads(body)["data"][0]["id"]), (200, "demo"))

    def test_an_idle_connection_is_closed(self) -> None:
        """By the clock that was given: no other may tick here."""
        self.client.send("GET", "/v1/models")
        self.clock.advance(61)
        self.assertTrue(self.client.transport.disconnecting)

    def test_errors_in_openai_shape(self) -> None:
        chat = "/v1/chat/completions"
        for method, path, body, expected in (
            ("GET", "/nothing", b"", 404),
            ("GET", chat, b"", 404),
            ("POST", chat, b"{", 400),
            ("POST", chat, b"\xff", 400),
            ("POST", chat, b"[" * 100_000, 400),
            ("POST", chat, b"[]", 400),
            ("POST", chat, b"{}", 400),
            ("POST", chat, b'{"messages": [1]}', 400),
        ):
            with self.subTest(method=method, path=path, body=body[:20]):
                self.client = Conversation(self.clock)
                self.client.send(method, path, body)
                status, answer = self.client.received()
                self.assertEqual(status, expected)
                self.assertTrue(json.loads(answer)["error"]["message"])


class Hints(SynchronousTestCase):
    def test_a_command_that_asks_for_a_call(self) -> None:
        curl, options, url, flag, body = shlex.split(hint("127.0.0.1", 8080))
        self.assertEqual((curl, options, flag), ("curl", "-gN", "-d"))
        self.assertEqual(url, "http://127.0.0.1:8080/v1/chat/completions")
        self.assertIn("<tool_call>", reply(json.loads(body), 0))

    def test_ipv6(self) -> None:
        self.assertIn(" 'http://[::1]:80/v1/", hint("::1", 80))


class Listening(TestCase):
    """Over a real socket."""

    async def answer_of(self, backend: DemoBackend) -> str:
        response = await treq.post(
            f"{backend.url}/v1/chat/completions",
            json=asked(stream=True),
            persistent=False,
        )
        return await response.text()

    def test_a_stream(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.check_a_stream())

    async def check_a_stream(self) -> None:
        backend = DemoBackend(reactor, prefill=0, pace=0)
        backend.startService()
        self.addCleanup(backend.stopService)
        text = await self.answer_of(backend)
        self.assertTrue(text.endswith("data: [DONE]\n\n"))
        self.assertIn("chat.completion.chunk", text)

    def test_stopping_cuts_what_runs(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.check_stopping())

    async def check_stopping(self) -> None:
        arrived: Deferred[None] = Deferred()
        chat = demo._Api._chat

        def told(api: demo._Api, request: Request) -> int:
            arrived.callback(None)
            return chat(api, request)

        self.patch(demo._Api, "_chat", told)
        backend = DemoBackend(reactor, prefill=0, pace=3600)
        backend.startService()
        answer = Deferred.fromCoroutine(self.answer_of(backend))
        await arrived
        await backend.stopService()
        with self.assertRaises(ResponseNeverReceived):
            await answer

    def test_no_url_before_it_listens(self) -> None:
        backend = DemoBackend(reactor)
        self.assertRaises(RuntimeError, lambda: backend.url)
