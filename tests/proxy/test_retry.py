"""Retries without a feature that the backend rejects, and requests that are never forwarded."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.memory import MemoryMonitor
from tests.world import DONE, IDLE, Backend, Client, World, chat, chunk

USAGE_ERROR = b'{"error": {"message": "Unrecognized argument: stream_options"}}'


def stream(backend: Backend, text: str = "Hi") -> None:
    backend.begin_stream()
    backend.stream(chunk(text, role="assistant"), chunk(finish="stop"), DONE)
    backend.reactor.advance(0)


class WithoutUsageTests(SynchronousTestCase):
    def test_concurrent_rejections(self) -> None:
        world = World()
        pairs = [world.start_chat() for _ in range(2)]
        for _, backend in pairs:
            self.assertTrue(backend.request_json()["stream_options"]["include_usage"])
        for client, rejecting_backend in pairs:
            rejecting_backend.respond(USAGE_ERROR, "400 Bad Request")
            backend = world.backend()
            self.assertNotIn("stream_options", backend.request_json())
            stream(backend)
            self.assertEqual(client.events()[-1], "[DONE]")
        self.assertEqual(world.load(), IDLE)

    def test_the_deadlines_restart(self) -> None:
        world = World(idle_timeout=20, first_byte_timeout=200, heartbeat=1000, notices="off")
        client, rejecting_backend = world.start_chat()
        rejecting_backend.respond(USAGE_ERROR, "400 Bad Request")
        backend = world.backend()
        world.pass_time(100, step=1)
        self.assertEqual(client.status(), 0)
        stream(backend)
        self.assertEqual(client.events()[-1], "[DONE]")
        (response,) = world.traffic.responses()
        self.assertNotIn(b"Unrecognized", response.body)

    def test_json_requested_as_a_stream(self) -> None:
        world = World(whole_as_stream=True)
        client, rejecting_backend = world.start_chat(stream=False)
        rejecting_backend.respond(USAGE_ERROR, "400 Bad Request")
        self.respond_with_json(client, world.backend())
        # From then on neither usage nor the stream is requested.
        second_client, backend = world.start_chat(stream=False)
        self.respond_with_json(second_client, backend)
        self.assertEqual(world.load(), IDLE)

    def respond_with_json(self, client: Client, backend: Backend) -> None:
        self.assertFalse(backend.request_json()["stream"])
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        backend.respond({"id": "1", "object": "chat.completion", "choices": [choice]})
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "Hello")

    def test_other_error_for_json_requested_as_a_stream(self) -> None:
        world = World(whole_as_stream=True)
        client, rejecting_backend = world.start_chat(stream=False)
        rejecting_backend.respond(b'{"error": {"message": "no such model"}}', "404 Not Found")
        self.assertEqual(client.status(), 404)
        self.assertEqual(world.connection_attempts(), 1)


class MemoryGateTests(SynchronousTestCase):
    def test_the_gate_rejects_before_a_cache_purge(self) -> None:
        self.patch(MemoryMonitor, "poll", lambda monitor: setattr(monitor, "percent", 1.0))
        world = World(memory_gate=True)
        world.daemon.components.memory.tier = max(type(world.daemon.components.memory.tier))
        client = world.client()
        messages = [{"role": "user", "content": "/new and then a question"}]
        client.post("/v1/chat/completions", chat(messages=messages))
        self.assertEqual(client.status(), 503)
        self.assertIn("retry-after", client.headers())
        self.assertEqual(world.connection_attempts(), 0)


class OddRequestTests(SynchronousTestCase):
    """Valid JSON with values that no client would normally send."""

    def status(self, body: bytes) -> int:
        world = World()
        client = world.client()
        client.post("/v1/chat/completions", body)
        if not client.status():
            stream(world.backend())
        return client.status()

    def test_odd_types_of_response_formats(self) -> None:
        types: tuple[object, ...] = ({}, [], 7, True)
        for response_type in types:
            body = json.dumps(chat(response_format={"type": response_type})).encode()
            self.assertEqual(self.status(body), 200, response_type)

    def test_model_name_is_a_lone_surrogate(self) -> None:
        body = b'{"stream": true, "model": "\\ud800", "x": NaN, "messages": [{"role": "user"}]}'
        self.assertEqual(self.status(body), 200)

    def test_tools_are_not_utf_8(self) -> None:
        world = World(token_warn_threshold=10, token_hard_threshold=20_000)
        client = world.client()
        tools = b'[{"type": "function", "function": {"name": "f", "description": "\xff"}}]'
        text = b"word " * 2000
        client.post(
            "/v1/chat/completions",
            b'{"stream": true, "tools": %s, "messages": [{"role": "user", "content": "%s"}]}'
            % (tools, text),
        )
        for _ in range(5):
            if world.connection_attempts() == 0 or client.status():
                break
            world.backend().respond({"tokens": [1, 2, 3]})
        self.assertNotEqual(client.status(), 500)


class ResetTests(SynchronousTestCase):
    def test_reset_with_a_json_response_purges(self) -> None:
        world = World(cache_reset="DELETE /v1/cache")
        client = world.client()
        messages = [{"role": "user", "content": "/new"}]
        body = chat(messages=messages, stream=False, response_format={"type": "json_object"})
        client.post("/v1/chat/completions", body)
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "{}")
        self.assertTrue(world.backend().request().startswith(b"DELETE /v1/cache"))
