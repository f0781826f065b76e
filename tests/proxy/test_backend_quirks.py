"""Quirks of backends, which `docs/backends.md` lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from tests.world import DONE, IDLE, Client, World, chunk

CAPTURES = Path(__file__).parent.parent / "captures"
ROOT = Path(__file__).parent.parent.parent
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
RESPONSE = {
    "id": "1",
    "object": "chat.completion",
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
STREAM = chunk("Hel", role="assistant") + chunk("lo") + chunk(finish="stop") + DONE
CALL = {
    "index": 0,
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": "{}"},
}


def captured(name: str) -> bytes:
    return (CAPTURES / f"{name}.sse").read_bytes()


def sent_events(client: Client) -> list[dict[str, Any]]:
    """Return the chunks and errors that a client received."""
    return [json.loads(event) for event in client.events() if event != "[DONE]"]


def content(client: Client) -> str:
    choices = (choice for each in sent_events(client) for choice in each.get("choices", ()))
    return "".join(choice["delta"].get("content") or "" for choice in choices)


class QuirkTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(notices="off")

    def tearDown(self) -> None:
        self.assertEqual(self.world.load(), IDLE)

    def stream(self, *events: str | bytes, **fields: Any) -> Client:
        """Request a stream, and send `events` and its end from the backend."""
        client, backend = self.world.start_chat(**fields)
        backend.begin_stream()
        backend.stream(*(each.decode() if isinstance(each, bytes) else each for each in events))
        backend.end_stream()
        self.world.reactor.advance(0)
        return client

    def request_json(
        self, body: Any, status: str = "200 OK", kind: str = "application/json"
    ) -> Client:
        """Request a JSON response, and send `body` from the backend."""
        client, backend = self.world.start_chat(stream=False)
        backend.respond(body, status, kind)
        return client


class ConnectionTests(QuirkTestCase):
    def test_keep_alive_connections_are_not_reused(self) -> None:
        """llama.cpp closes after a stream although it has sent keep-alive."""
        for number in range(1, 4):
            client, backend = self.world.start_chat()
            backend.send(
                "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5, max=100\r\n"
                f"Content-Type: text/event-stream\r\nContent-Length: {len(STREAM)}\r\n\r\n{STREAM}"
            )
            self.world.reactor.advance(0)
            self.assertEqual(content(client), "Hello")
            self.assertEqual(self.world.connection_attempts(), number)
            self.assertTrue(backend.wire.closed or backend.wire.aborted)

    def test_http_1_0_stream(self) -> None:
        """As mlx-lm sends it."""
        client, backend = self.world.start_chat()
        backend.send(f"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{STREAM}")
        backend.wire.connection_lost(ConnectionDone())
        self.world.reactor.advance(0)
        self.assertEqual((content(client), client.events()[-1]), ("Hello", "[DONE]"))

    def test_truncated_http_1_0_stream(self) -> None:
        client, backend = self.world.start_chat()
        backend.send("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + chunk("Hel"))
        backend.wire.connection_lost(ConnectionDone())
        self.world.reactor.advance(0)
        self.assertEqual(sent_events(client)[-1]["error"]["code"], "backend_truncated")

    def test_http_1_0_json(self) -> None:
        body = json.dumps(RESPONSE)
        for end, status in ((len(body), 200), (len(body) - 9, 502)):
            client, backend = self.world.start_chat(stream=False)
            backend.send("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body[:end])
            backend.wire.connection_lost(ConnectionDone())
            self.world.reactor.advance(0)
            self.assertEqual(client.status(), status)


class ErrorFormatTests(QuirkTestCase):
    """An error keeps its status, and its text is sent in the OpenAI format."""

    def test_formats(self) -> None:
        for body, status, kind, message in (
            (b'{"error": "no such model"}', 404, "application/json", "no such model"),
            (b'{"detail": "Not found"}', 404, "application/json", "Not found"),
            (
                b'{"detail": [{"loc": ["body", "n"], "msg": "too many"}]}',
                422,
                "application/json",
                "body.n: too many",
            ),
            (b'{"object": "error", "message": "Oh"}', 400, "application/json", "Oh"),
            (b"<html><h1>Oh no</h1></html>", 501, "text/html", "Oh no"),
            (b"Internal Server Error", 500, "text/plain", "Internal Server Error"),
            (b'"bare"', 400, "application/json", "bare"),
        ):
            client = self.request_json(body, f"{status} X", kind)
            self.assertEqual((client.status(), client.error()["message"]), (status, message))
            client, backend = self.world.start_chat()
            backend.respond(body, f"{status} X", kind)
            self.assertEqual((client.status(), client.error()["message"]), (status, message))

    def test_recorded_errors(self) -> None:
        for name, message in (
            ("mlx-err-badmodel", "HF_HUB_OFFLINE"),
            ("vllm-mlx-err-badmodel", "does not exist. Available"),
            ("transformers-err-badmodel", "pinned to 'tiny'"),
            ("mlx-err-delcache", "Unsupported method"),
            ("vllm-err-badmodel", "does not exist"),
        ):
            body = captured(name)
            kind = "text/html" if body.startswith(b"<") else "application/json"
            client = self.request_json(body, "404 Not Found", kind)
            self.assertIn(message, client.error()["message"], name)


class ErrorWithStatus200Tests(QuirkTestCase):
    """An error in a response with the status 200."""

    #: the backend's data -> fields of the error, and the status of a non-streaming response
    BODIES: ClassVar[dict[str, tuple[dict[str, Any], int]]] = {
        '{"error": "boom"}': ({"message": "boom", "code": "backend_error"}, 502),
        '{"detail": "boom"}': ({"message": "boom", "code": "backend_error"}, 502),
        '{"detail": [{"loc": ["a"], "msg": "boom"}]}': ({"message": "a: boom"}, 502),
        '{"object": "error", "message": "boom", "type": "BadRequestError", "code": 400}': (
            {"message": "boom", "type": "BadRequestError"},
            400,
        ),
        '{"error": {"message": "boom", "type": "x", "param": "y", "code": "z"}}': (
            {"message": "boom", "type": "x", "param": "y", "code": "z"},
            502,
        ),
        '{"error": {"message": "boom", "code": 503}}': ({"message": "boom"}, 503),
        '{"error": {"message": "boom", "code": 42}}': ({"message": "boom"}, 502),
        '"boom"': ({"code": "backend_invalid_response"}, 502),
    }

    def check(self, error: dict[str, Any], expected: dict[str, Any], name: str) -> None:
        self.assertIn("boom", error["message"], name)
        for key, value in expected.items():
            self.assertEqual(error[key], value, name)

    def send_streams(self, error_body: str) -> Iterator[Client]:
        """Yield the client of a stream with this error, for each position and event type."""
        first_chunk = chunk("Hel", role="assistant")
        yield self.stream(f"data: {error_body}\n\n")
        yield self.stream(first_chunk, f"data: {error_body}\n\n", DONE)
        if "code" not in error_body:
            yield self.stream(first_chunk, f"event: error\ndata: {error_body}\n\n")
            yield self.stream(f"error: {error_body}\n\n", DONE)

    def test_in_a_stream(self) -> None:
        for error_body in self.BODIES:
            for client in self.send_streams(error_body):
                self.assertEqual(client.status(), 200)
                self.assertNotEqual(client.events()[-1], "[DONE]", error_body)
                error = sent_events(client)[-1]["error"]
                self.assertIn("boom", error["message"], error_body)

    def test_error_event(self) -> None:
        for error_body, (expected, _) in self.BODIES.items():
            error = sent_events(self.stream(f"data: {error_body}\n\n"))[-1]["error"]
            self.check(error, expected, error_body)

    def test_as_text(self) -> None:
        client = self.stream(chunk("Hel"), "event: error\ndata: boom\n\n")
        self.assertEqual(sent_events(client)[-1]["error"]["message"], "boom")
        client = self.stream("boom")
        self.assertIn("boom", sent_events(client)[-1]["error"]["message"])

    def test_json(self) -> None:
        for error_body, (expected, status) in self.BODIES.items():
            client = self.request_json(error_body.encode())
            self.assertEqual(client.status(), status, error_body)
            self.check(client.error(), expected, error_body)

    def test_aggregated_stream(self) -> None:
        self.world = World(notices="off", whole_as_stream=True)
        for error_body, (expected, status) in self.BODIES.items():
            client = self.stream(f"data: {error_body}\n\n", stream=False)
            # In a stream only an error in the OpenAI format keeps a numeric code.
            self.assertEqual(
                client.status(), status if '"error": {' in error_body else 502, error_body
            )
            self.check(client.error(), expected, error_body)

    def test_html(self) -> None:
        page = b"<html><body>boom</body></html>"
        for kind in ("text/html", "application/json"):
            self.assertIn("boom", self.request_json(page, kind=kind).error()["message"])
        client, backend = self.world.start_chat()
        backend.respond(page, kind="text/html")
        self.assertEqual(client.status(), 502)
        self.assertIn("boom", client.error()["message"])


class EmptyResponseTests(QuirkTestCase):
    def test_a_stream(self) -> None:
        """As llama-cpp-python responds to a prompt that is too long."""
        for body in ((), (": ping\n\n",), ("\n\n",)):
            error = sent_events(self.stream(*body))[-1]["error"]
            self.assertEqual(error["code"], "backend_empty_response")
            self.assertIn("too long", error["message"])

    def test_json_response(self) -> None:
        for body in (b"", b"\n"):
            client = self.request_json(body)
            self.assertEqual(
                (client.status(), client.error()["code"]), (502, "backend_empty_response")
            )
        client, backend = self.world.start_chat()
        backend.respond(b"")
        self.assertEqual((client.status(), client.error()["code"]), (502, "backend_empty_response"))


class RepeatedUsageTests(QuirkTestCase):
    def usages(self, client: Client) -> list[Any]:
        return [each["usage"] for each in sent_events(client) if each.get("usage")]

    def test_repeated_usage_is_sent_once(self) -> None:
        body = captured("vllm-mlx-json-usage")
        self.assertEqual(body.count(b'"completion_tokens":26'), 2)
        client = self.stream(body, stream_options={"include_usage": True})
        self.assertEqual(len(self.usages(client)), 1)
        self.assertEqual(client.events()[-1], "[DONE]")
        (response,) = self.world.traffic.responses()
        self.assertEqual((response.usage or {})["completion_tokens"], 26)

    def test_different_usage_is_sent(self) -> None:
        """Some backends report the usage so far in each chunk."""
        first = json.loads(chunk("Hi", role="assistant")[6:])
        last = {"choices": [], "usage": USAGE}
        events = [{**first, "usage": {**USAGE, "completion_tokens": 1}}, last]
        client = self.stream(
            *(f"data: {json.dumps(each)}\n\n" for each in events),
            chunk(finish="stop"),
            DONE,
            stream_options={"include_usage": True},
        )
        self.assertEqual(len(self.usages(client)), 2)

    def test_different_usage_after_the_finish_reason(self) -> None:
        last = json.loads(chunk(finish="stop")[6:])
        for second in ({**USAGE, "completion_tokens": 3}, {**USAGE, "cached": 1}):
            client = self.stream(
                chunk("Hi", role="assistant"),
                *(
                    f"data: {json.dumps(each)}\n\n"
                    for each in ({**last, "usage": USAGE}, {"choices": [], "usage": second})
                ),
                DONE,
                stream_options={"include_usage": True},
            )
            self.assertEqual(self.usages(client), [USAGE, second])

    def test_other_fields_beside_the_usage_stay(self) -> None:
        last = json.loads(chunk(finish="stop")[6:])
        again = {"id": "1", "choices": [], "usage": USAGE, "timings": {"ms": 7}}
        events = [{**last, "usage": USAGE}, again]
        client = self.stream(
            *(f"data: {json.dumps(each)}\n\n" for each in events),
            DONE,
            stream_options={"include_usage": True},
        )
        self.assertEqual(self.usages(client), [USAGE])
        self.assertEqual(sent_events(client)[-1], {"id": "1", "choices": [], "timings": {"ms": 7}})


class UnknownEventTests(QuirkTestCase):
    """Events with a message that are neither chunks nor errors."""

    UNKNOWN_EVENT = 'data: {"message": "no memory"}\n\n'

    def both(self, *events: str) -> Iterator[dict[str, Any]]:
        """Yield the last event of a stream, and the JSON of the aggregated stream."""
        yield sent_events(self.stream(*events))[-1]
        client, backend = self.world.start_chat(stream=False)
        backend.begin_stream()
        backend.stream(*events)
        backend.end_stream()
        self.world.reactor.advance(0)
        yield client.json()

    def test_in_place_of_an_answer(self) -> None:
        for content in self.both(self.UNKNOWN_EVENT, DONE):
            self.assertEqual(content["error"]["code"], "backend_invalid_response")
            self.assertIn("no memory", content["error"]["message"])

    def test_as_the_last_event(self) -> None:
        first_chunk = chunk("Hel", role="assistant")
        for content in (
            *self.both(self.UNKNOWN_EVENT),
            *self.both(first_chunk, self.UNKNOWN_EVENT),
        ):
            self.assertEqual(content["error"]["code"], "backend_truncated")
            self.assertIn("It sent: no memory", content["error"]["message"])
        for content in self.both(self.UNKNOWN_EVENT, first_chunk):
            self.assertNotIn("no memory", content["error"]["message"])

    def test_as_the_first_event_after_a_heartbeat(self) -> None:
        self.world = World(notices="off", heartbeat=1, heartbeat_style="chunk")
        client, backend = self.world.start_chat()
        self.world.reactor.pump([1, 1])
        backend.begin_stream()
        backend.stream(self.UNKNOWN_EVENT, DONE)
        backend.end_stream()
        self.world.reactor.advance(0)
        self.assertIn("no memory", sent_events(client)[-1]["error"]["message"])

    def test_among_the_chunks_of_an_answer(self) -> None:
        """The message stays, as an unknown field."""
        other = self.UNKNOWN_EVENT.replace("memory", "time")
        events = (
            chunk("a", role="assistant"),
            self.UNKNOWN_EVENT,
            other,
            chunk(finish="stop"),
            DONE,
        )
        *_, joined = self.both(*events)
        self.assertEqual(joined["choices"][0]["message"]["content"], "a")
        self.assertEqual(joined["message"], "no memoryno time")
        messages = [
            each["message"] for each in sent_events(self.stream(*events)) if "message" in each
        ]
        self.assertEqual(messages, ["no memory", "no time"])


class LeakedTagTests(QuirkTestCase):
    def test_tag_before_a_call(self) -> None:
        """vllm-mlx sends the opening tag before its parser has the call."""
        parts = (chunk("I look. ", role="assistant"), chunk("<tool"), chunk("_call"))
        for leaked in (parts, (*parts, chunk(">\n"))):
            client = self.stream(
                *leaked, chunk(tool_calls=[CALL]), chunk(finish="tool_calls"), DONE
            )
            self.assertEqual(content(client).rstrip(), "I look.")
            self.assertEqual(sum("tool_calls" in event for event in client.events()), 2)

    def test_recorded_stream(self) -> None:
        body = captured("vllm-mlx-json-tools")
        self.assertIn(b'"<tool"', body)
        self.assertNotIn("<tool", content(self.stream(body)))


class OtherModeTests(QuirkTestCase):
    """JSON in place of a stream, and the reverse, whatever the Content-Type."""

    def test_json_response(self) -> None:
        request_json = json.dumps(RESPONSE)
        for client in (self.stream(request_json), self.stream(json.dumps(RESPONSE, indent=1))):
            self.assertEqual((content(client), client.events()[-1]), ("Hello", "[DONE]"))
        client, backend = self.world.start_chat()
        backend.respond(RESPONSE)
        self.assertEqual((content(client), client.events()[-1]), ("Hello", "[DONE]"))

    def test_an_error(self) -> None:
        """The error keeps its type and its code."""
        error = {"message": "no", "type": "a", "code": "b", "param": None}
        client = self.stream(json.dumps({"error": error}))
        self.assertEqual(sent_events(client), [{"error": error}])
        client = self.stream('{"choices": [1]}')
        self.assertEqual(sent_events(client)[-1]["error"]["code"], "backend_invalid_response")

    def test_truncated_json(self) -> None:
        client = self.stream(json.dumps(RESPONSE)[:-5])
        self.assertEqual(sent_events(client)[-1]["error"]["code"], "backend_truncated")

    def test_a_stream(self) -> None:
        for kind in ("text/event-stream", "application/json", "text/plain"):
            client = self.request_json(STREAM.encode(), kind=kind)
            self.assertEqual(client.json()["choices"][0]["message"]["content"], "Hello", kind)
        client = self.request_json(STREAM[:-30].encode(), kind="text/plain")
        self.assertEqual(client.status(), 502)


class PageTests(SynchronousTestCase):
    def test_the_table_names_existing_tests(self) -> None:
        page = (ROOT / "docs" / "backends.md").read_text("utf-8")
        section = page[page.index("## Quirks") :]
        rows = [row for row in section.splitlines() if row.startswith("| ") and "`" in row]
        named = {name for row in rows for name in _tests_named_in(row)}
        test_classes = {each.__name__ for each in QuirkTestCase.__subclasses__()}
        self.assertEqual(named, test_classes)


def _tests_named_in(row: str) -> set[str]:
    return set(row.rstrip(" |").rpartition("|")[2].replace("`", " ").replace(",", " ").split())
