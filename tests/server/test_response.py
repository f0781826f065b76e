"""Chunks that go straight to the connection, beside the way through request and channel."""

from __future__ import annotations

import json
from typing import Any, cast
from unittest.mock import Mock, patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.server.request import IncomingRequest
from blockops.server.response import SLICE, Downstream
from tests.world import DONE, NOTHING_LEFT, Backend, Client, World, chat, chunk

STEPS = st.lists(
    st.one_of(
        st.sampled_from(["pause", "resume", "time", "fill"]),
        st.integers(1, 3).map(lambda count: count * "x"),
        st.sampled_from([SLICE - 300, SLICE, 3 * SLICE]).map(lambda size: size * "x"),
    ),
    max_size=12,
)


def act(step: str, world: World, client: Client, backend: Backend) -> None:
    """Let one thing happen; anything else than a name is a text of the model."""
    if step == "pause":
        client.pause()
    elif step == "resume":
        client.resume()
    elif step == "fill":
        client.fills_at(1000)
    elif step == "time":
        world.pass_time(12)
    elif step == "cut":
        backend.leave()
    elif step == "leave":
        client.leave()
    else:
        backend.stream(chunk(step))


class Straight(SynchronousTestCase):
    """What reaches the client is what would, if `IncomingRequest.write` saw all of it."""

    def told(self, steps: list[str]) -> tuple[bytes, bool, bool]:
        world = World(heartbeat=10)
        client, backend = world.ask()
        backend.begin_stream()
        backend.stream(chunk(role="assistant"))
        for step in steps:
            if client.wire.producer is not None:
                act(step, world, client, backend)
        backend.stream(chunk(finish="stop"), DONE)
        backend.end_stream()
        world.reactor.advance(0)
        while client.wire.producer is not None and not client.wire.closed:
            before = client.received()
            client.resume()
            if client.received() == before:
                break
        self.assertEqual(world.idle(), NOTHING_LEFT)
        body = client.received().partition(b"\r\n\r\n")[2]
        return body, client.wire.disconnecting, client.wire.aborted

    @settings(max_examples=40)
    @given(STEPS, st.sampled_from([[], ["cut"], ["leave"]]))
    def test_it_makes_no_difference(self, steps: list[str], end: list[str]) -> None:
        straight = self.told(steps + end)
        with patch.object(IncomingRequest, "way_out", lambda _: None):
            self.assertEqual(straight, self.told(steps + end))

    def test_behind_a_pause(self) -> None:
        client, backend = World().ask()
        backend.begin_stream()
        backend.stream(chunk("a"))
        client.pause()
        backend.stream(chunk("b"))
        self.assertNotIn(b'"b"', client.body())
        client.resume()
        backend.stream(chunk("c"))
        places = [client.body().find(b'"%s"' % text) for text in (b"a", b"b", b"c")]
        self.assertEqual(places, sorted(places))
        self.assertGreater(places[0], 0)

    def test_an_answer_without_chunks(self) -> None:
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

    def test_nothing_goes_straight_when_the_answer_is_over(self) -> None:
        for end in ("finish", "cut", "lost"):
            sent: list[bytes] = []
            request = Mock(way_out=lambda sent=sent: sent.append)
            client = Downstream(cast("Any", request), cast("Any", Clock()))
            client.begin(200, ())
            client.write(b"a")
            getattr(client, end)()
            client.write(b"b")
            client.pauseProducing()
            client.resumeProducing()
            client.write(b"c")
            self.assertEqual((sent, client.bytes_sent), ([b"1\r\na\r\n"], 1), end)
