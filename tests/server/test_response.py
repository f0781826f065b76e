"""Responses: their framing, and their order while the client does not read."""

from __future__ import annotations

import json
from typing import Any, cast
from unittest.mock import Mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from blockops.server.response import WRITE_SIZE, ClientResponse
from tests.world import DONE, IDLE, Backend, Client, World, chat, chunk

STEPS = st.lists(
    st.one_of(
        st.sampled_from(["pause", "resume", "time", "fill"]),
        st.integers(1, 3).map(lambda count: count * "x"),
        st.sampled_from([WRITE_SIZE - 300, WRITE_SIZE, 3 * WRITE_SIZE]).map(lambda n: n * "x"),
    ),
    max_size=12,
)


def perform(step: str, world: World, client: Client, backend: Backend) -> None:
    """Perform one step. A step that is not a name is a text of the model."""
    if step == "pause":
        client.pause()
    elif step == "resume":
        client.resume()
    elif step == "fill":
        client.pause_every(1000)
    elif step == "time":
        world.pass_time(12)
    elif step == "cut":
        backend.disconnect()
    else:
        backend.stream(chunk(step))


class Writes(SynchronousTestCase):
    """The client gets all data in order, however it reads."""

    def events_after(self, steps: list[str]) -> list[str]:
        world = World(heartbeat=10, client_timeout=1000)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk(role="assistant"))
        for step in steps:
            perform(step, world, client, backend)
        backend.stream(chunk(finish="stop"), DONE)
        backend.end_stream()
        while not client.is_complete():
            client.resume()
        self.assertEqual(world.load(), IDLE)
        return client.events()

    @settings(max_examples=40)
    @given(STEPS, st.sampled_from([[], ["cut"]]))
    def test_the_events_are_the_same(self, steps: list[str], end: list[str]) -> None:
        steady = [step for step in steps if step not in {"pause", "resume", "fill"}]
        self.assertEqual(self.events_after(steps + end), self.events_after(steady + end))

    def test_after_a_pause(self) -> None:
        client, backend = World().start_chat()
        backend.begin_stream()
        backend.stream(chunk("a"))
        client.pause()
        backend.stream(chunk("b"))
        self.assertNotIn(b'"b"', client.body())
        client.resume()
        backend.stream(chunk("c"))
        positions = [client.body().find(b'"%s"' % text) for text in (b"a", b"b", b"c")]
        self.assertEqual(positions, sorted(positions))
        self.assertGreater(positions[0], 0)

    def test_a_response_without_chunks(self) -> None:
        world = World()
        client = world.client()
        body = json.dumps(chat()).encode()
        head = b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.send(head + body)
        world.reactor.advance(0)
        backend = world.backend()
        backend.begin_stream()
        backend.stream(chunk("a"), chunk("b"))
        self.assertTrue(client.body().startswith(b"data: {"), client.body())
        self.assertIn(b'"b"}, "finish_reason": null}]}\n\n', client.body())

    def test_no_writes_after_the_end(self) -> None:
        for end in ("finish", "abort", "mark_disconnected"):
            sent: list[bytes] = []
            request = Mock(method=b"GET", version=b"HTTP/1.1", responseHeaders=Headers())
            request.connection.writer.write = sent.append
            client = ClientResponse(request, cast("Any", Clock()))
            client.begin(200, ())
            client.write(b"a")
            getattr(client, end)()
            before = len(sent)
            client.write(b"b")
            client.pauseProducing()
            client.resumeProducing()
            client.write(b"c")
            self.assertEqual((len(sent), client.bytes_sent), (before, 1), end)
            self.assertEqual(sent[1:], [b"1\r\na\r\n", b"0\r\n\r\n"][: before - 1])

    def test_a_complete_response_is_one_write(self) -> None:
        client = World().client()
        client.get("/health")
        self.assertEqual((client.status(), client.wire.writes), (200, 1))
