"""What models are called: `/v1/models`, and short names in requests and answers."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from tests.world import DONE, MESSAGES, NOTHING_LEFT, Backend, Client, World, chunk

REAL = "Qwen/Qwen3-8B \u2713"
ALIASES = {"qwen": REAL, 'my "own"\\': "/models/gpt oss", "gone": "no/such"}
ENTRY = {"id": REAL, "object": "model", "owned_by": "vllm", "max_model_len": 40960}
OTHER = {"id": "other", "object": "model"}
LISTING = {"object": "list", "data": [ENTRY, OTHER], "models": [1]}


def part(content: str | None = None, *, finish: str | None = None, **delta: Any) -> str:
    """Return an event of a backend that serves `REAL`."""
    return chunk(content, finish=finish, **delta).replace('"tiny"', json.dumps(REAL))


class Named(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(model_alias=ALIASES, cache_reset="off")

    def post(self, path: str, body: dict[str, Any] | bytes) -> tuple[Client, Backend]:
        client = self.world.client()
        client.post(path, body)
        return client, self.world.backend()

    def get(self, path: str) -> tuple[Client, Backend]:
        client = self.world.client()
        client.get(path)
        return client, self.world.backend()


class Chats(Named):
    def models(self, client: Client) -> set[str]:
        return {json.loads(event)["model"] for event in client.events() if event != "[DONE]"}

    def test_a_stream(self) -> None:
        for short, real in ALIASES.items():
            client, backend = self.world.ask(model=short)
            self.assertEqual(backend.asked()["model"], real)
            backend.begin_stream()
            call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
            backend.stream(part("Hi", role="assistant"), part(call), part(finish="stop"), DONE)
            backend.reactor.advance(0)
            self.assertEqual(self.models(client), {short})
            self.assertEqual(client.events()[-1], "[DONE]")
        self.assertEqual(self.world.idle(), NOTHING_LEFT)

    def test_chunks_that_pass_behind_one_that_was_written_anew(self) -> None:
        """Where there is white space in the one and not in the other."""
        for first in (part("Hi"), part(), part(role="assistant")):
            for short, name in ALIASES.items():
                client, backend = self.world.ask(model=short)
                backend.begin_stream()
                named = [first, part("a"), part("b"), part(finish="stop"), DONE]
                real = json.dumps(name)
                backend.stream(*(each.replace(json.dumps(REAL), real) for each in named))
                backend.reactor.advance(0)
                self.assertEqual(self.models(client), {short})
                self.assertIn(
                    f'"model":{json.dumps(short, ensure_ascii=False)}', client.events()[2]
                )

    def test_a_first_chunk_that_names_none(self) -> None:
        client, backend = self.world.ask(model="qwen")
        backend.begin_stream()
        nameless = part(role="assistant").replace(json.dumps(REAL), '""')
        backend.stream(nameless, part("a"), part(finish="stop"), DONE)
        backend.reactor.advance(0)
        self.assertEqual(self.models(client), {"", "qwen"})

    def test_the_text_stays(self) -> None:
        text = f'{{"model": "{REAL}"}} "model":"{REAL}"'
        client, backend = self.world.ask(model="qwen", tools=None)
        backend.begin_stream()
        nested = part(text).replace('"id":', '"x": {"model": "x"}, "id":')
        backend.stream(part(role="assistant"), nested, part(finish="stop"), DONE)
        backend.reactor.advance(0)
        told = json.loads(client.events()[1])
        self.assertEqual(told["choices"][0]["delta"]["content"], text)
        self.assertEqual((told["model"], told["x"]), ("qwen", {"model": "x"}))

    def test_whatever_is_between(self) -> None:
        """Signs of life and the end of a stream that broke off have the backend's own fields."""
        self.world = World(model_alias=ALIASES, heartbeat_style="chunk", heartbeat=1)
        client, backend = self.world.ask(model="qwen")
        self.world.pass_time(2)
        backend.begin_stream()
        backend.stream(part("<tool", role="assistant"))
        self.world.pass_time(3)
        backend.end_stream()
        self.world.reactor.advance(0)
        *chunks, error = client.events()
        self.assertIn("error", json.loads(error))
        self.assertEqual({json.loads(event)["model"] for event in chunks}, {"qwen"})
        self.assertGreater(len(chunks), 3)

    def test_a_long_wait(self) -> None:
        self.world = World(model_alias=ALIASES, cold_start_notice=2)
        client, backend = self.world.ask(model="qwen")
        backend.begin_stream()
        backend.stream(part(role="assistant"))
        self.world.pass_time(5)
        self.assertIn("reasoning_content", client.events()[-1])
        self.assertEqual(self.models(client), {"qwen"})

    def test_a_whole_answer(self) -> None:
        body = {"model": REAL, "choices": [{"index": 0, "message": {"content": "Hi"}}], "x": 1.0}
        for settings in ({}, {"whole_as_stream": True}):
            self.world = World(model_alias=ALIASES, **settings)
            client, backend = self.world.ask(model="qwen", stream=False)
            self.assertEqual(backend.asked()["model"], REAL)
            backend.answer(body)
            told = client.json()
            self.assertEqual((told["model"], told["x"]), ("qwen", 1.0))

    def test_an_answer_that_names_no_model_or_the_short_one(self) -> None:
        message = {"role": "assistant", "content": "Hi"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        for more in ({}, {"model": "qwen"}, {"model": None}):
            client, backend = self.world.ask(model="qwen", stream=False)
            backend.answer({**more, "choices": choices})
            self.assertEqual(client.json(), {**more, "choices": choices})

    def test_a_stream_that_is_joined_and_the_reverse(self) -> None:
        self.world = World(model_alias=ALIASES, whole_as_stream=True)
        client, backend = self.world.ask(model="qwen", stream=False)
        backend.begin_stream()
        backend.stream(part("Hi", role="assistant"), part(finish="stop"), DONE)
        backend.reactor.advance(0)
        self.assertEqual(client.json()["model"], "qwen")
        client, backend = self.world.ask(model="qwen")
        backend.answer({"model": REAL, "choices": [{"message": {"content": "Hi"}}]})
        self.assertEqual(self.models(client), {"qwen"})

    def test_completions(self) -> None:
        client, backend = self.post("/v1/completions", {"model": "qwen", "prompt": "Hi"})
        self.assertEqual(backend.asked(), {"model": REAL, "prompt": "Hi"})
        backend.answer({"model": REAL, "choices": [{"text": "x"}]})
        self.assertEqual(client.json()["model"], "qwen")

    def test_other_names_pass_as_they_come(self) -> None:
        for name in (REAL, "else", None):
            body = json.dumps({"messages": MESSAGES, "model": name}).encode()
            client, backend = self.post("/v1/chat/completions", body)
            self.assertTrue(backend.received().endswith(body))
            backend.answer({"model": "tiny", "choices": [{"message": {"content": "Hi"}}]})
            self.assertEqual(client.json()["model"], "tiny")

    def test_the_log_has_what_came(self) -> None:
        self.world.ask(model="qwen")
        (request,) = self.world.traffic.requests()
        self.assertEqual(json.loads(request.body)["model"], "qwen")
        self.assertEqual(request.model, "qwen")

    def test_what_is_learnt_is_learnt_of_the_real_model(self) -> None:
        self.world = World(model_alias={"a": REAL, "b": REAL}, tools="auto")
        _, refused = self.world.ask(model="a")
        refused.answer(b"it does not support tools", "400 Bad Request")
        self.assertNotIn("tools", self.world.backend().asked())
        _, backend = self.world.ask(model="b")
        self.assertNotIn("tools", backend.asked())

    def test_tokens_are_counted_for_the_real_model(self) -> None:
        self.world = World(model_alias=ALIASES, token_warn_threshold=1)
        _, backend = self.world.ask(model="qwen")
        self.assertTrue(backend.request().startswith(b"POST /tokenize"))
        self.assertEqual(backend.asked()["model"], REAL)
        self.assertEqual(list(self.world.daemon._turns.tokens._models), [REAL])


class Relayed(Named):
    def test_embeddings(self) -> None:
        client, backend = self.post("/v1/embeddings", {"model": "qwen", "input": ["a"]})
        self.assertEqual(backend.asked(), {"model": REAL, "input": ["a"]})
        backend.answer(b'{"model": "x", "data": [{"embedding": [0.10, 1e-2]}]}')
        self.assertEqual(client.json()["model"], "qwen")
        self.assertIn(b'"data":[{"embedding": [0.10, 1e-2]}]', client.body())
        (request,) = self.world.traffic.requests()
        self.assertIn(b'"qwen"', request.body)

    def test_bodies_that_name_none_of_them(self) -> None:
        bodies = [b'{"model":  "x"}', b'{"model": 7}', b'{"model": "qwen"', b"[]", b'"model"']
        for body in bodies:
            client, backend = self.post("/v1/rerank", body)
            self.assertTrue(backend.received().endswith(b"\r\n\r\n" + body), body)
            backend.answer(b'{"model": "qwen/x"}')
            self.assertEqual(client.body(), b'{"model": "qwen/x"}')

    def test_a_stream(self) -> None:
        client, backend = self.post("/v1/responses", {"model": "qwen", "stream": True})
        self.assertEqual(backend.asked()["model"], REAL)
        backend.begin_stream()
        event = 'event: x\ndata: {"response": {"model": "%s", "n": 1.0}}\n\n'
        backend.stream(event % "y", "event: y\ndata: {", '"model": 1}\n\n', ": c\n")
        backend.end_stream()
        renamed = 'event: x\ndata: {"response":{"model":"qwen","n":1.0}}\n\n'
        self.assertEqual(
            client.body().decode(), f'{renamed}event: y\ndata: {{"model": 1}}\n\n: c\n'
        )
        self.assertEqual(self.world.idle(), NOTHING_LEFT)

    def test_a_stream_that_breaks(self) -> None:
        client, backend = self.post("/v1/responses", {"model": "qwen", "stream": True})
        backend.begin_stream()
        backend.stream("data: {")
        backend.wire.lose(ConnectionLost())
        self.world.reactor.advance(0)
        self.assertIn("data: {\n\nevent: error\ndata: {", client.body().decode())

    def test_a_stream_of_the_real_name_is_let_through(self) -> None:
        client, backend = self.post("/v1/responses", {"model": REAL, "stream": True})
        backend.begin_stream()
        event = f'data: {{"model":  "{REAL}"}}\n\n'
        backend.stream(event)
        backend.end_stream()
        self.assertEqual(client.body().decode(), event)

    def test_without_short_names_bodies_go_as_they_come(self) -> None:
        self.world = World()
        client = self.world.client()
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
        client.send(head + b'{"model": "qwen"')
        self.world.reactor.advance(0)
        self.assertEqual(self.world.connecting(), 1)

    def test_names_that_cannot_be_read(self) -> None:
        """They are the backend's to judge."""
        for name in (b'"\xff"', b"1e999", b"[1]", b'"\\ud83d"'):
            for world in (World(), World(model_alias=ALIASES)):
                self.world = world
                body = b'{"model": ' + name + b', "input": "x"}'
                _, backend = self.post("/v1/embeddings", body)
                self.assertTrue(backend.received().endswith(body))


class Lists(Named):
    def test_short_names_stand_beside_the_others(self) -> None:
        client, backend = self.get("/v1/models")
        backend.answer(LISTING)
        told = client.json()
        own = {"object": "model", "created": 0, "owned_by": "blockops"}
        self.assertEqual(
            told["data"],
            [
                ENTRY,
                OTHER,
                {**ENTRY, "id": "qwen"},
                {**own, "id": 'my "own"\\'},
                {**own, "id": "gone"},
            ],
        )
        self.assertEqual(told["models"], [1])

    def test_a_name_that_the_backend_has_too(self) -> None:
        client, backend = self.get("/v1/models")
        backend.answer({"data": [{"id": "qwen"}, {}]})
        names = [entry.get("id") for entry in client.json()["data"]]
        self.assertEqual(names, ["qwen", None, 'my "own"\\', "gone"])

    def test_lists_that_are_none(self) -> None:
        for body in (b"", b"[]", b"{}", b'{"data": 7}', b'{"data": [1]}'):
            client, backend = self.get("/v1/models")
            backend.answer(body)
            self.assertEqual((client.status(), client.body()), (200, body))

    def test_entries_whose_names_cannot_be_read(self) -> None:
        ids = (b"[1]", b'{"a": 1}', b'"\xff"', b"1e999", b"null")
        entries = b", ".join(b'{"id": ' + name + b"}" for name in ids)
        client, backend = self.get("/v1/models")
        backend.answer(b'{"data": [' + entries + b"]}")
        self.assertIn(b'{"id":"qwen",', client.body())
        client, backend = self.get("/v1/models/qwen")
        backend.answer(b"", "404 Not Found")
        listing = entries + b", " + json.dumps(ENTRY).encode()
        self.world.backend().answer(b'{"data": [' + listing + b"]}")
        self.assertEqual(client.json(), {**ENTRY, "id": "qwen"})

    def test_without_short_names_it_is_relayed(self) -> None:
        self.world = World()
        client, backend = self.get("/v1/models")
        backend.answer(b'{"data":  []}')
        self.assertEqual(client.body(), b'{"data":  []}')

    def test_a_refusal(self) -> None:
        client, backend = self.get("/v1/models")
        backend.answer(b"busy", "503 Service Unavailable")
        self.assertEqual(client.status(), 503)


class One(Named):
    def test_from_the_backend(self) -> None:
        client, backend = self.get("/v1/models/qwen")
        self.assertTrue(backend.request().startswith(b"GET /v1/models/Qwen/Qwen3-8B%20%E2%9C%93 "))
        backend.answer(ENTRY)
        self.assertEqual(client.json(), {**ENTRY, "id": "qwen"})

    def test_from_its_list(self) -> None:
        client, backend = self.get("/v1/models/qwen")
        backend.answer(b"", "404 Not Found")
        backend = self.world.backend()
        self.assertTrue(backend.request().startswith(b"GET /v1/models "))
        backend.answer(LISTING)
        self.assertEqual(client.json(), {**ENTRY, "id": "qwen"})

    def test_one_that_it_does_not_have(self) -> None:
        client, backend = self.get("/v1/models/gone")
        backend.answer(b"", "501 Not Implemented")
        self.world.backend().answer(LISTING)
        self.assertEqual(client.status(), 404)
        self.assertIn("no/such", client.json()["error"]["message"])

    def test_what_is_no_entry(self) -> None:
        client, backend = self.get("/v1/models/qwen")
        backend.answer(b"OK")
        self.assertEqual(client.body(), b"OK")

    def test_by_its_real_name(self) -> None:
        client, backend = self.get("/v1/models/other")
        backend.answer(b'{"id":  "other"}')
        self.assertEqual(client.body(), b'{"id":  "other"}')
