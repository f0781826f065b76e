"""What servers do besides what the API says; `docs/backends.md` lists it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from tests.world import DONE, NOTHING_LEFT, Client, World, chunk

CAPTURES = Path(__file__).parent.parent / "captures"
ROOT = Path(__file__).parent.parent.parent
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
WHOLE = {
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


def told(client: Client) -> list[dict[str, Any]]:
    """Return the chunks and errors of a stream."""
    return [json.loads(event) for event in client.events() if event != "[DONE]"]


def said(client: Client) -> str:
    choices = (choice for each in told(client) for choice in each.get("choices", ()))
    return "".join(choice["delta"].get("content") or "" for choice in choices)


class Habits(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(notices="off")

    def tearDown(self) -> None:
        self.assertEqual(self.world.idle(), NOTHING_LEFT)

    def stream(self, *events: str | bytes, **fields: Any) -> Client:
        """Ask for a stream, and let the backend say `events` and close."""
        client, backend = self.world.ask(**fields)
        backend.begin_stream()
        backend.stream(*(each.decode() if isinstance(each, bytes) else each for each in events))
        backend.end_stream()
        self.world.reactor.advance(0)
        return client

    def whole(self, body: Any, status: str = "200 OK", kind: str = "application/json") -> Client:
        """Ask for a whole answer, and let the backend answer `body`."""
        client, backend = self.world.ask(stream=False)
        backend.answer(body, status, kind)
        return client


class Connections(Habits):
    def test_one_that_is_said_to_stay_is_not_used_again(self) -> None:
        """llama.cpp closes behind a stream although it says keep-alive."""
        for number in range(1, 4):
            client, backend = self.world.ask()
            backend.send(
                "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5, max=100\r\n"
                f"Content-Type: text/event-stream\r\nContent-Length: {len(STREAM)}\r\n\r\n{STREAM}"
            )
            self.world.reactor.advance(0)
            self.assertEqual(said(client), "Hello")
            self.assertEqual(self.world.connecting(), number)
            self.assertTrue(backend.wire.closed or backend.wire.aborted)

    def test_http_1_0_ends_by_closing(self) -> None:
        """mlx-lm speaks it."""
        client, backend = self.world.ask()
        backend.send(f"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{STREAM}")
        backend.wire.lose(ConnectionDone())
        self.world.reactor.advance(0)
        self.assertEqual((said(client), client.events()[-1]), ("Hello", "[DONE]"))

    def test_http_1_0_that_closes_too_early(self) -> None:
        client, backend = self.world.ask()
        backend.send("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + chunk("Hel"))
        backend.wire.lose(ConnectionDone())
        self.world.reactor.advance(0)
        self.assertEqual(told(client)[-1]["error"]["code"], "backend_truncated")

    def test_a_whole_answer_of_http_1_0(self) -> None:
        body = json.dumps(WHOLE)
        for end, status in ((len(body), 200), (len(body) - 9, 502)):
            client, backend = self.world.ask(stream=False)
            backend.send("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body[:end])
            backend.wire.lose(ConnectionDone())
            self.world.reactor.advance(0)
            self.assertEqual(client.status(), status)


class Refusals(Habits):
    """An error's status stays; its text is in OpenAI's shape, whatever shape it came in."""

    def test_shapes(self) -> None:
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
            client = self.whole(body, f"{status} X", kind)
            self.assertEqual((client.status(), client.error()["message"]), (status, message))
            client, backend = self.world.ask()
            backend.answer(body, f"{status} X", kind)
            self.assertEqual((client.status(), client.error()["message"]), (status, message))

    def test_as_they_were_recorded(self) -> None:
        for name, message in (
            ("mlx-err-badmodel", "HF_HUB_OFFLINE"),
            ("vllm-mlx-err-badmodel", "does not exist. Available"),
            ("transformers-err-badmodel", "pinned to 'tiny'"),
            ("mlx-err-delcache", "Unsupported method"),
            ("vllm-err-badmodel", "does not exist"),
        ):
            body = captured(name)
            kind = "text/html" if body.startswith(b"<") else "application/json"
            client = self.whole(body, "404 Not Found", kind)
            self.assertIn(message, client.error()["message"], name)


class Failures(Habits):
    """An error behind a status that says OK."""

    #: what came -> what the client is told, and with which status where it asked for no stream
    SHAPES: ClassVar[dict[str, tuple[dict[str, Any], int]]] = {
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

    def check(self, error: dict[str, Any], wanted: dict[str, Any], name: str) -> None:
        self.assertIn("boom", error["message"], name)
        for key, value in wanted.items():
            self.assertEqual(error[key], value, name)

    def streams(self, shape: str) -> Iterator[Client]:
        """Yield streams in which an error of this shape stands, in each way that there is."""
        begun = chunk("Hel", role="assistant")
        yield self.stream(f"data: {shape}\n\n")
        yield self.stream(begun, f"data: {shape}\n\n", DONE)
        if "code" not in shape:
            yield self.stream(begun, f"event: error\ndata: {shape}\n\n")
            yield self.stream(f"error: {shape}\n\n", DONE)

    def test_in_a_stream(self) -> None:
        for shape in self.SHAPES:
            for client in self.streams(shape):
                self.assertEqual(client.status(), 200)
                self.assertNotEqual(client.events()[-1], "[DONE]", shape)
                error = told(client)[-1]["error"]
                self.assertIn("boom", error["message"], shape)

    def test_what_a_stream_says_of_it(self) -> None:
        for shape, (wanted, _) in self.SHAPES.items():
            error = told(self.stream(f"data: {shape}\n\n"))[-1]["error"]
            self.check(error, wanted, shape)

    def test_as_text(self) -> None:
        client = self.stream(chunk("Hel"), "event: error\ndata: boom\n\n")
        self.assertEqual(told(client)[-1]["error"]["message"], "boom")
        client = self.stream("boom")
        self.assertIn("boom", told(client)[-1]["error"]["message"])

    def test_in_place_of_a_whole_answer(self) -> None:
        for shape, (wanted, status) in self.SHAPES.items():
            client = self.whole(shape.encode())
            self.assertEqual(client.status(), status, shape)
            self.check(client.error(), wanted, shape)

    def test_joined(self) -> None:
        self.world = World(notices="off", whole_as_stream=True)
        for shape, (wanted, status) in self.SHAPES.items():
            client = self.stream(f"data: {shape}\n\n", stream=False)
            # In a stream only what is in OpenAI's shape keeps a code that is a number.
            self.assertEqual(client.status(), status if '"error": {' in shape else 502, shape)
            self.check(client.error(), wanted, shape)

    def test_html(self) -> None:
        page = b"<html><body>boom</body></html>"
        for kind in ("text/html", "application/json"):
            self.assertIn("boom", self.whole(page, kind=kind).error()["message"])
        client, backend = self.world.ask()
        backend.answer(page, kind="text/html")
        self.assertEqual(client.status(), 502)
        self.assertIn("boom", client.error()["message"])


class Emptiness(Habits):
    def test_a_stream(self) -> None:
        """llama-cpp-python answers so when a prompt is too long."""
        for body in ((), (": ping\n\n",), ("\n\n",)):
            error = told(self.stream(*body))[-1]["error"]
            self.assertEqual(error["code"], "backend_empty_response")
            self.assertIn("too long", error["message"])

    def test_a_whole_answer(self) -> None:
        for body in (b"", b"\n"):
            client = self.whole(body)
            self.assertEqual((client.status(), client.error()["code"]), (502, "backend_empty_response"))
        client, backend = self.world.ask()
        backend.answer(b"")
        self.assertEqual((client.status(), client.error()["code"]), (502, "backend_empty_response"))


class Usage(Habits):
    def usages(self, client: Client) -> list[Any]:
        return [each["usage"] for each in told(client) if each.get("usage")]

    def test_what_is_told_twice_is_told_once(self) -> None:
        body = captured("vllm-mlx-json-usage")
        self.assertEqual(body.count(b'"completion_tokens":26'), 2)
        client = self.stream(body, stream_options={"include_usage": True})
        self.assertEqual(len(self.usages(client)), 1)
        self.assertEqual(client.events()[-1], "[DONE]")
        (response,) = self.world.traffic.responses()
        self.assertEqual((response.usage or {})["completion_tokens"], 26)

    def test_what_is_another_is_told_too(self) -> None:
        """Some tell it in each chunk, as far as they are."""
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

    def test_another_behind_the_one_with_the_finish_reason(self) -> None:
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

    def test_what_stands_beside_the_second_one_stays(self) -> None:
        last = json.loads(chunk(finish="stop")[6:])
        again = {"id": "1", "choices": [], "usage": USAGE, "timings": {"ms": 7}}
        events = [{**last, "usage": USAGE}, again]
        client = self.stream(
            *(f"data: {json.dumps(each)}\n\n" for each in events),
            DONE,
            stream_options={"include_usage": True},
        )
        self.assertEqual(self.usages(client), [USAGE])
        self.assertEqual(told(client)[-1], {"id": "1", "choices": [], "timings": {"ms": 7}})


class Strays(Habits):
    """Events that are no chunks, and say something."""

    STRAY = 'data: {"message": "no memory"}\n\n'

    def both(self, *events: str) -> Iterator[dict[str, Any]]:
        """Yield what ends the answer: as a stream, and as a stream that was joined."""
        yield told(self.stream(*events))[-1]
        client, backend = self.world.ask(stream=False)
        backend.begin_stream()
        backend.stream(*events)
        backend.end_stream()
        self.world.reactor.advance(0)
        yield client.json()

    def test_in_place_of_an_answer(self) -> None:
        for said in self.both(self.STRAY, DONE):
            self.assertEqual(said["error"]["code"], "backend_invalid_response")
            self.assertIn("no memory", said["error"]["message"])

    def test_as_the_last_word(self) -> None:
        begun = chunk("Hel", role="assistant")
        for said in (*self.both(self.STRAY), *self.both(begun, self.STRAY)):
            self.assertEqual(said["error"]["code"], "backend_truncated")
            self.assertIn("It said: no memory", said["error"]["message"])
        for said in self.both(self.STRAY, begun):
            self.assertNotIn("no memory", said["error"]["message"])

    def test_as_the_first_word_behind_a_heartbeat(self) -> None:
        self.world = World(notices="off", heartbeat=1, heartbeat_style="chunk")
        client, backend = self.world.ask()
        self.world.reactor.pump([1, 1])
        backend.begin_stream()
        backend.stream(self.STRAY, DONE)
        backend.end_stream()
        self.world.reactor.advance(0)
        self.assertIn("no memory", told(client)[-1]["error"]["message"])

    def test_among_the_chunks_of_an_answer(self) -> None:
        """It stays beside the answer, where unknown fields are."""
        other = self.STRAY.replace("memory", "time")
        events = (chunk("a", role="assistant"), self.STRAY, other, chunk(finish="stop"), DONE)
        *_, joined = self.both(*events)
        self.assertEqual(joined["choices"][0]["message"]["content"], "a")
        self.assertEqual(joined["message"], "no memoryno time")
        strays = [each["message"] for each in told(self.stream(*events)) if "message" in each]
        self.assertEqual(strays, ["no memory", "no time"])


class Leaks(Habits):
    def test_a_tag_in_front_of_a_call(self) -> None:
        """vllm-mlx lets the opening tag through before its parser has the call."""
        parts = (chunk("I look. ", role="assistant"), chunk("<tool"), chunk("_call"))
        for leaked in (parts, (*parts, chunk(">\n"))):
            client = self.stream(
                *leaked, chunk(tool_calls=[CALL]), chunk(finish="tool_calls"), DONE
            )
            self.assertEqual(said(client).rstrip(), "I look.")
            self.assertEqual(sum("tool_calls" in event for event in client.events()), 2)

    def test_as_it_was_recorded(self) -> None:
        body = captured("vllm-mlx-json-tools")
        self.assertIn(b'"<tool"', body)
        self.assertNotIn("<tool", said(self.stream(body)))


class OtherThanAskedFor(Habits):
    """A whole answer where a stream was asked for, and the reverse, whatever the headers say."""

    def test_a_whole_answer(self) -> None:
        whole = json.dumps(WHOLE)
        for client in (self.stream(whole), self.stream(json.dumps(WHOLE, indent=1))):
            self.assertEqual((said(client), client.events()[-1]), ("Hello", "[DONE]"))
        client, backend = self.world.ask()
        backend.answer(WHOLE)
        self.assertEqual((said(client), client.events()[-1]), ("Hello", "[DONE]"))

    def test_an_error(self) -> None:
        """With the type and the code that it has."""
        error = {"message": "no", "type": "a", "code": "b", "param": None}
        client = self.stream(json.dumps({"error": error}))
        self.assertEqual(told(client), [{"error": error}])
        client = self.stream('{"choices": [1]}')
        self.assertEqual(told(client)[-1]["error"]["code"], "backend_invalid_response")

    def test_one_that_is_not_whole(self) -> None:
        client = self.stream(json.dumps(WHOLE)[:-5])
        self.assertEqual(told(client)[-1]["error"]["code"], "backend_truncated")

    def test_a_stream(self) -> None:
        for kind in ("text/event-stream", "application/json", "text/plain"):
            client = self.whole(STREAM.encode(), kind=kind)
            self.assertEqual(client.json()["choices"][0]["message"]["content"], "Hello", kind)
        client = self.whole(STREAM[:-30].encode(), kind="text/plain")
        self.assertEqual(client.status(), 502)


class Page(SynchronousTestCase):
    def test_the_table_names_tests_that_there_are(self) -> None:
        page = (ROOT / "docs" / "backends.md").read_text("utf-8")
        section = page[page.index("## Habits") :]
        rows = [row for row in section.splitlines() if row.startswith("| ") and "`" in row]
        named = {name for row in rows for name in _tests_in(row)}
        kinds = {each.__name__ for each in Habits.__subclasses__()}
        self.assertEqual(named, kinds)


def _tests_in(row: str) -> set[str]:
    return set(row.rstrip(" |").rpartition("|")[2].replace("`", " ").replace(",", " ").split())
