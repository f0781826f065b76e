"""Raw writes of chunks to the connection, compared with writes through the request."""

from __future__ import annotations

import json
from typing import Any, cast
from unittest.mock import Mock, patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.server.request import ClientRequest
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
    elif step == "leave":
        client.disconnect()
    else:
        backend.stream(chunk(step))


class RawWrites(SynchronousTestCase):
    """The client gets the same bytes as through `ClientRequest.write`."""

    def response_to(self, steps: list[str]) -> tuple[bytes, bool, bool]:
        world = World(heartbeat=10)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk(role="assistant"))
        for step in steps:
            if client.wire.producer is not None:
                perform(step, world, client, backend)
        backend.stream(chunk(finish="stop"), DONE)
        backend.end_stream()
        world.reactor.advance(0)
        while client.wire.producer is not None and not client.wire.closed:
            before = client.received()
            client.resume()
            if client.received() == before:
                break
        self.assertEqual(world.load(), IDLE)
        body = client.received().partition(b"\r\n\r\n")[2]
        return body, client.wire.disconnecting, client.wire.aborted

    @settings(max_examples=40)
    @given(STEPS, st.sampled_from([[], ["cut"], ["leave"]]))
    def test_the_bytes_are_the_same(self, steps: list[str], end: list[str]) -> None:
        raw = self.response_to(steps + end)
        with patch.object(ClientRequest, "raw_write", lambda _: None):
            self.assertEqual(raw, self.response_to(steps + end))

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
            request = Mock(raw_write=lambda sent=sent: sent.append)
            client = ClientResponse(cast("Any", request), cast("Any", Clock()))
            client.begin(200, ())
            client.write(b"a")
            getattr(client, end)()
            client.write(b"b")
            client.pauseProducing()
            client.resumeProducing()
            client.write(b"c")
            self.assertEqual((sent, client.bytes_sent), ([b"1\r\na\r\n"], 1), end)
