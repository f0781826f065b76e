"""What the backend is asked again in another way, and what is turned away before it is asked."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.memory import MemoryGauge
from tests.world import DONE, NOTHING_LEFT, Backend, Client, World, chat, chunk

REFUSAL = b'{"error": {"message": "Unrecognized argument: stream_options"}}'


def stream(backend: Backend, text: str = "Hi") -> None:
    backend.begin_stream()
    backend.stream(chunk(text, role="assistant"), chunk(finish="stop"), DONE)
    backend.reactor.advance(0)


class WithoutUsage(SynchronousTestCase):
    def test_streams_that_are_refused_at_the_same_time(self) -> None:
        world = World()
        pairs = [world.ask() for _ in range(2)]
        for _, backend in pairs:
            self.assertTrue(backend.asked()["stream_options"]["include_usage"])
        for client, refused in pairs:
            refused.answer(REFUSAL, "400 Bad Request")
            backend = world.backend()
            self.assertNotIn("stream_options", backend.asked())
            stream(backend)
            self.assertEqual(client.events()[-1], "[DONE]")
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_the_clocks_begin_anew(self) -> None:
        world = World(idle_timeout=20, first_byte_timeout=200, heartbeat=1000, notices="off")
        client, refused = world.ask()
        refused.answer(REFUSAL, "400 Bad Request")
        backend = world.backend()
        world.pass_time(100, step=1)
        self.assertEqual(client.status(), 0)
        stream(backend)
        self.assertEqual(client.events()[-1], "[DONE]")
        (response,) = world.traffic.responses()
        self.assertNotIn(b"Unrecognized", response.body)

    def test_a_whole_answer_that_was_to_be_streamed(self) -> None:
        world = World(whole_as_stream=True)
        client, refused = world.ask(stream=False)
        refused.answer(REFUSAL, "400 Bad Request")
        self.answer_whole(client, world.backend())
        # From then on the wish, and with it the stream, is not tried any more.
        again, backend = world.ask(stream=False)
        self.answer_whole(again, backend)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def answer_whole(self, client: Client, backend: Backend) -> None:
        self.assertFalse(backend.asked()["stream"])
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        backend.answer({"id": "1", "object": "chat.completion", "choices": [choice]})
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "Hello")

    def test_another_refusal_of_a_whole_answer_that_was_to_be_streamed(self) -> None:
        world = World(whole_as_stream=True)
        client, refused = world.ask(stream=False)
        refused.answer(b'{"error": {"message": "no such model"}}', "404 Not Found")
        self.assertEqual(client.status(), 404)
        self.assertEqual(world.connecting(), 1)


class TurnedAway(SynchronousTestCase):
    def test_no_memory_for_what_comes_before_the_answer_either(self) -> None:
        self.patch(MemoryGauge, "poll", lambda gauge: setattr(gauge, "percent", 1.0))
        world = World(memory_gate=True)
        world.daemon._memory.tier = max(type(world.daemon._memory.tier))
        client = world.client()
        messages = [{"role": "user", "content": "/new and then a question"}]
        client.post("/v1/chat/completions", chat(messages=messages))
        self.assertEqual(client.status(), 503)
        self.assertIn("retry-after", client.headers())
        self.assertEqual(world.connecting(), 0)


class Oddities(SynchronousTestCase):
    """Requests that parse, and hold what nobody would send."""

    def status(self, body: bytes) -> int:
        world = World()
        client = world.client()
        client.post("/v1/chat/completions", body)
        if not client.status():
            stream(world.backend())
        return client.status()

    def test_a_response_format_of_a_format(self) -> None:
        kinds: tuple[object, ...] = ({}, [], 7, True)
        for kind in kinds:
            body = json.dumps(chat(response_format={"type": kind})).encode()
            self.assertEqual(self.status(body), 200, kind)

    def test_a_model_that_is_half_a_character(self) -> None:
        body = b'{"stream": true, "model": "\\ud800", "x": NaN, "messages": [{"role": "user"}]}'
        self.assertEqual(self.status(body), 200)

    def test_tools_in_no_encoding(self) -> None:
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
            if world.connecting() == 0 or client.status():
                break
            world.backend().answer({"tokens": [1, 2, 3]})
        self.assertNotEqual(client.status(), 500)


class Resets(SynchronousTestCase):
    def test_a_reset_that_has_to_be_answered_in_json_purges_too(self) -> None:
        world = World(cache_reset="DELETE /v1/cache")
        client = world.client()
        messages = [{"role": "user", "content": "/new"}]
        body = chat(messages=messages, stream=False, response_format={"type": "json_object"})
        client.post("/v1/chat/completions", body)
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "{}")
        self.assertTrue(world.backend().request().startswith(b"DELETE /v1/cache"))
