"""Model names: `/v1/models`, and aliases in requests and responses."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from tests.world import DONE, IDLE, MESSAGES, Backend, Client, World, chunk

BACKEND_NAME = "Qwen/Qwen3-8B \u2713"
ALIASES = {"qwen": BACKEND_NAME, 'my "own"\\': "/models/gpt oss", "gone": "no/such"}
ENTRY = {"id": BACKEND_NAME, "object": "model", "owned_by": "vllm", "max_model_len": 40960}
OTHER = {"id": "other", "object": "model"}
LISTING = {"object": "list", "data": [ENTRY, OTHER], "models": [1]}


def named_chunk(content: str | None = None, *, finish: str | None = None, **delta: Any) -> str:
    """Return a chunk of a backend whose model is `BACKEND_NAME`."""
    return chunk(content, finish=finish, **delta).replace('"tiny"', json.dumps(BACKEND_NAME))


class AliasTestCase(SynchronousTestCase):
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


class ChatTests(AliasTestCase):
    def models(self, client: Client) -> set[str]:
        return {json.loads(event)["model"] for event in client.events() if event != "[DONE]"}

    def test_a_stream(self) -> None:
        for alias, backend_name in ALIASES.items():
            client, backend = self.world.start_chat(model=alias)
            self.assertEqual(backend.request_json()["model"], backend_name)
            backend.begin_stream()
            call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
            backend.stream(
                named_chunk("Hi", role="assistant"),
                named_chunk(call),
                named_chunk(finish="stop"),
                DONE,
            )
            backend.reactor.advance(0)
            self.assertEqual(self.models(client), {alias})
            self.assertEqual(client.events()[-1], "[DONE]")
        self.assertEqual(self.world.load(), IDLE)

    def test_unchanged_chunks_after_a_rewritten_one(self) -> None:
        """One has white space, the other has none."""
        for first in (named_chunk("Hi"), named_chunk(), named_chunk(role="assistant")):
            for alias, name in ALIASES.items():
                client, backend = self.world.start_chat(model=alias)
                backend.begin_stream()
                events = [
                    first,
                    named_chunk("a"),
                    named_chunk("b"),
                    named_chunk(finish="stop"),
                    DONE,
                ]
                backend_name = json.dumps(name)
                backend.stream(
                    *(each.replace(json.dumps(BACKEND_NAME), backend_name) for each in events)
                )
                backend.reactor.advance(0)
                self.assertEqual(self.models(client), {alias})
                self.assertIn(
                    f'"model":{json.dumps(alias, ensure_ascii=False)}', client.events()[2]
                )

    def test_first_chunk_without_a_name(self) -> None:
        client, backend = self.world.start_chat(model="qwen")
        backend.begin_stream()
        nameless = named_chunk(role="assistant").replace(json.dumps(BACKEND_NAME), '""')
        backend.stream(nameless, named_chunk("a"), named_chunk(finish="stop"), DONE)
        backend.reactor.advance(0)
        self.assertEqual(self.models(client), {"", "qwen"})

    def test_the_text_is_not_renamed(self) -> None:
        text = f'{{"model": "{BACKEND_NAME}"}} "model":"{BACKEND_NAME}"'
        client, backend = self.world.start_chat(model="qwen", tools=None)
        backend.begin_stream()
        nested = named_chunk(text).replace('"id":', '"x": {"model": "x"}, "id":')
        backend.stream(named_chunk(role="assistant"), nested, named_chunk(finish="stop"), DONE)
        backend.reactor.advance(0)
        received = json.loads(client.events()[1])
        self.assertEqual(received["choices"][0]["delta"]["content"], text)
        self.assertEqual((received["model"], received["x"]), ("qwen", {"model": "x"}))

    def test_heartbeats_and_truncated_streams(self) -> None:
        """Heartbeats and the end of a truncated stream have the backend's fields."""
        self.world = World(model_alias=ALIASES, heartbeat_style="chunk", heartbeat=1)
        client, backend = self.world.start_chat(model="qwen")
        self.world.pass_time(2)
        backend.begin_stream()
        backend.stream(named_chunk("<tool", role="assistant"))
        self.world.pass_time(3)
        backend.end_stream()
        self.world.reactor.advance(0)
        *chunks, error = client.events()
        self.assertIn("error", json.loads(error))
        self.assertEqual({json.loads(event)["model"] for event in chunks}, {"qwen"})
        self.assertGreater(len(chunks), 3)

    def test_prefill_notice(self) -> None:
        self.world = World(model_alias=ALIASES, cold_start_notice=2)
        client, backend = self.world.start_chat(model="qwen")
        backend.begin_stream()
        backend.stream(named_chunk(role="assistant"))
        self.world.pass_time(5)
        self.assertIn("reasoning_content", client.events()[-1])
        self.assertEqual(self.models(client), {"qwen"})

    def test_json(self) -> None:
        body = {
            "model": BACKEND_NAME,
            "choices": [{"index": 0, "message": {"content": "Hi"}}],
            "x": 1.0,
        }
        for settings in ({}, {"whole_as_stream": True}):
            self.world = World(model_alias=ALIASES, **settings)
            client, backend = self.world.start_chat(model="qwen", stream=False)
            self.assertEqual(backend.request_json()["model"], BACKEND_NAME)
            backend.respond(body)
            received = client.json()
            self.assertEqual((received["model"], received["x"]), ("qwen", 1.0))

    def test_response_without_a_name_or_with_the_alias(self) -> None:
        message = {"role": "assistant", "content": "Hi"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        for more in ({}, {"model": "qwen"}, {"model": None}):
            client, backend = self.world.start_chat(model="qwen", stream=False)
            backend.respond({**more, "choices": choices})
            self.assertEqual(client.json(), {**more, "choices": choices})

    def test_aggregated_stream_and_the_reverse(self) -> None:
        self.world = World(model_alias=ALIASES, whole_as_stream=True)
        client, backend = self.world.start_chat(model="qwen", stream=False)
        backend.begin_stream()
        backend.stream(named_chunk("Hi", role="assistant"), named_chunk(finish="stop"), DONE)
        backend.reactor.advance(0)
        self.assertEqual(client.json()["model"], "qwen")
        client, backend = self.world.start_chat(model="qwen")
        backend.respond({"model": BACKEND_NAME, "choices": [{"message": {"content": "Hi"}}]})
        self.assertEqual(self.models(client), {"qwen"})

    def test_completions(self) -> None:
        client, backend = self.post("/v1/completions", {"model": "qwen", "prompt": "Hi"})
        self.assertEqual(backend.request_json(), {"model": BACKEND_NAME, "prompt": "Hi"})
        backend.respond({"model": BACKEND_NAME, "choices": [{"text": "x"}]})
        self.assertEqual(client.json()["model"], "qwen")

    def test_other_names_pass_unchanged(self) -> None:
        for name in (BACKEND_NAME, "else", None):
            body = json.dumps({"messages": MESSAGES, "model": name}).encode()
            client, backend = self.post("/v1/chat/completions", body)
            self.assertTrue(backend.received().endswith(body))
            backend.respond({"model": "tiny", "choices": [{"message": {"content": "Hi"}}]})
            self.assertEqual(client.json()["model"], "tiny")

    def test_the_log_has_the_alias(self) -> None:
        self.world.start_chat(model="qwen")
        (request,) = self.world.traffic.requests()
        self.assertEqual(json.loads(request.body)["model"], "qwen")
        self.assertEqual(request.model, "qwen")

    def test_rejected_tools_are_remembered_for_the_backends_name(self) -> None:
        self.world = World(model_alias={"a": BACKEND_NAME, "b": BACKEND_NAME}, tools="auto")
        _, rejecting_backend = self.world.start_chat(model="a")
        rejecting_backend.respond(b"it does not support tools", "400 Bad Request")
        self.assertNotIn("tools", self.world.backend().request_json())
        _, backend = self.world.start_chat(model="b")
        self.assertNotIn("tools", backend.request_json())

    def test_tokens_are_counted_for_the_backends_name(self) -> None:
        self.world = World(model_alias=ALIASES, token_warn_threshold=1)
        _, backend = self.world.start_chat(model="qwen")
        self.assertTrue(backend.request().startswith(b"POST /tokenize"))
        self.assertEqual(backend.request_json()["model"], BACKEND_NAME)
        self.assertEqual(
            list(self.world.daemon.components.conversations.tokens._models), [BACKEND_NAME]
        )


class PassthroughTests(AliasTestCase):
    def test_embeddings(self) -> None:
        client, backend = self.post("/v1/embeddings", {"model": "qwen", "input": ["a"]})
        self.assertEqual(backend.request_json(), {"model": BACKEND_NAME, "input": ["a"]})
        backend.respond(b'{"model": "x", "data": [{"embedding": [0.10, 1e-2]}]}')
        self.assertEqual(client.json()["model"], "qwen")
        self.assertIn(b'"data":[{"embedding": [0.10, 1e-2]}]', client.body())
        (request,) = self.world.traffic.requests()
        self.assertIn(b'"qwen"', request.body)

    def test_bodies_without_an_alias(self) -> None:
        bodies = [b'{"model":  "x"}', b'{"model": 7}', b'{"model": "qwen"', b"[]", b'"model"']
        for body in bodies:
            client, backend = self.post("/v1/rerank", body)
            self.assertTrue(backend.received().endswith(b"\r\n\r\n" + body), body)
            backend.respond(b'{"model": "qwen/x"}')
            self.assertEqual(client.body(), b'{"model": "qwen/x"}')

    def test_a_stream(self) -> None:
        client, backend = self.post("/v1/responses", {"model": "qwen", "stream": True})
        self.assertEqual(backend.request_json()["model"], BACKEND_NAME)
        backend.begin_stream()
        event = 'event: x\ndata: {"response": {"model": "%s", "n": 1.0}}\n\n'
        backend.stream(event % "y", "event: y\ndata: {", '"model": 1}\n\n', ": c\n")
        backend.end_stream()
        renamed = 'event: x\ndata: {"response":{"model":"qwen","n":1.0}}\n\n'
        self.assertEqual(
            client.body().decode(), f'{renamed}event: y\ndata: {{"model": 1}}\n\n: c\n'
        )
        self.assertEqual(self.world.load(), IDLE)

    def test_truncated_stream(self) -> None:
        client, backend = self.post("/v1/responses", {"model": "qwen", "stream": True})
        backend.begin_stream()
        backend.stream("data: {")
        backend.wire.connection_lost(ConnectionLost())
        self.world.reactor.advance(0)
        self.assertIn("data: {\n\nevent: error\ndata: {", client.body().decode())

    def test_stream_with_the_backends_name_passes_unchanged(self) -> None:
        client, backend = self.post("/v1/responses", {"model": BACKEND_NAME, "stream": True})
        backend.begin_stream()
        event = f'data: {{"model":  "{BACKEND_NAME}"}}\n\n'
        backend.stream(event)
        backend.end_stream()
        self.assertEqual(client.body().decode(), event)

    def test_bodies_are_not_buffered_without_aliases(self) -> None:
        self.world = World()
        client = self.world.client()
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
        client.send(head + b'{"model": "qwen"')
        self.world.reactor.advance(0)
        self.assertEqual(self.world.connection_attempts(), 1)

    def test_invalid_names(self) -> None:
        """They pass unchanged, for the backend to reject."""
        for name in (b'"\xff"', b"1e999", b"[1]", b'"\\ud83d"'):
            for world in (World(), World(model_alias=ALIASES)):
                self.world = world
                body = b'{"model": ' + name + b', "input": "x"}'
                _, backend = self.post("/v1/embeddings", body)
                self.assertTrue(backend.received().endswith(body))


class ListTests(AliasTestCase):
    def test_aliases_are_added(self) -> None:
        client, backend = self.get("/v1/models")
        backend.respond(LISTING)
        received = client.json()
        own = {"object": "model", "created": 0, "owned_by": "blockops"}
        self.assertEqual(
            received["data"],
            [
                ENTRY,
                OTHER,
                {**ENTRY, "id": "qwen"},
                {**own, "id": 'my "own"\\'},
                {**own, "id": "gone"},
            ],
        )
        self.assertEqual(received["models"], [1])

    def test_alias_equals_a_name_of_the_backend(self) -> None:
        client, backend = self.get("/v1/models")
        backend.respond({"data": [{"id": "qwen"}, {}]})
        names = [entry.get("id") for entry in client.json()["data"]]
        self.assertEqual(names, ["qwen", None, 'my "own"\\', "gone"])

    def test_invalid_lists(self) -> None:
        for body in (b"", b"[]", b"{}", b'{"data": 7}', b'{"data": [1]}'):
            client, backend = self.get("/v1/models")
            backend.respond(body)
            self.assertEqual((client.status(), client.body()), (200, body))

    def test_invalid_names_in_entries(self) -> None:
        ids = (b"[1]", b'{"a": 1}', b'"\xff"', b"1e999", b"null")
        entries = b", ".join(b'{"id": ' + name + b"}" for name in ids)
        client, backend = self.get("/v1/models")
        backend.respond(b'{"data": [' + entries + b"]}")
        self.assertIn(b'{"id":"qwen",', client.body())
        client, backend = self.get("/v1/models/qwen")
        backend.respond(b"", "404 Not Found")
        listing = entries + b", " + json.dumps(ENTRY).encode()
        self.world.backend().respond(b'{"data": [' + listing + b"]}")
        self.assertEqual(client.json(), {**ENTRY, "id": "qwen"})

    def test_without_aliases_the_list_passes_unchanged(self) -> None:
        self.world = World()
        client, backend = self.get("/v1/models")
        backend.respond(b'{"data":  []}')
        self.assertEqual(client.body(), b'{"data":  []}')

    def test_error(self) -> None:
        client, backend = self.get("/v1/models")
        backend.respond(b"busy", "503 Service Unavailable")
        self.assertEqual(client.status(), 503)


class RetrieveTests(AliasTestCase):
    def test_from_the_backend(self) -> None:
        client, backend = self.get("/v1/models/qwen")
        self.assertTrue(backend.request().startswith(b"GET /v1/models/Qwen/Qwen3-8B%20%E2%9C%93 "))
        backend.respond(ENTRY)
        self.assertEqual(client.json(), {**ENTRY, "id": "qwen"})

    def test_from_the_list(self) -> None:
        client, backend = self.get("/v1/models/qwen")
        backend.respond(b"", "404 Not Found")
        backend = self.world.backend()
        self.assertTrue(backend.request().startswith(b"GET /v1/models "))
        backend.respond(LISTING)
        self.assertEqual(client.json(), {**ENTRY, "id": "qwen"})

    def test_unknown_model(self) -> None:
        client, backend = self.get("/v1/models/gone")
        backend.respond(b"", "501 Not Implemented")
        self.world.backend().respond(LISTING)
        self.assertEqual(client.status(), 404)
        self.assertIn("no/such", client.json()["error"]["message"])

    def test_invalid_entry(self) -> None:
        client, backend = self.get("/v1/models/qwen")
        backend.respond(b"OK")
        self.assertEqual(client.body(), b"OK")

    def test_backends_name(self) -> None:
        client, backend = self.get("/v1/models/other")
        backend.respond(b'{"id":  "other"}')
        self.assertEqual(client.body(), b'{"id":  "other"}')
