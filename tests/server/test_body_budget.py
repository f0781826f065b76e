"""Room for bodies: what is in memory of requests is bounded in bytes, all of them together."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.server.body_budget import Room
from blockops.server.limits import FULL_FOR
from tests.faults.client import head_of
from tests.faults.reading import judge, read
from tests.world import NOTHING_LEFT, Client, World

KIB = 1024


class Counting(SynchronousTestCase):
    def test_exactly_as_much_as_there_is(self) -> None:
        room = Room(10)
        self.assertIsNone(room.take(4))
        self.assertIsNone(room.take(6))
        error = room.take(1)
        assert error is not None
        self.assertEqual((error.status, error.code, error.retry_after), (503, "body_budget_exceeded", 5))
        room.give_back(4)
        self.assertIsNone(room.take(4))
        self.assertEqual(room.vitals(), {"body_bytes": 10, "bodies_refused": 1})


class Bodies(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(max_queued_bytes=64 * KIB, max_concurrent=1)

    def body(self, size: int) -> bytes:
        """Return a chat request of `size` bytes."""
        frame = b'{"stream": true, "messages": [{"role": "user", "content": "%s"}]}'
        return frame % ((size - len(frame) + 2) * b"x")

    def post(self, size: int) -> Client:
        client = self.world.client()
        client.post("/v1/chat/completions", self.body(size))
        return client

    def held(self) -> Any:
        client = self.world.client()
        client.get("/health")
        return client.json()["body_bytes"]

    def assert_refused(self, client: Client) -> None:
        reply = read(client.received())
        self.assertEqual(judge(client.received()).outcome, "503 body_budget_exceeded")
        self.assertEqual(reply.headers["retry-after"], str(FULL_FOR))

    def test_what_nobody_reads_takes_none(self) -> None:
        # Some of it would need no key.
        for target in ("/health", "/ready", "/metrics", "/nowhere", "/"):
            client = self.world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: {64 * KIB}\r\n\r\n")
            client.send(b"x" * 63 * KIB)
            self.assertEqual(self.held(), 0, target)
            self.assertIn(client.status(), {404, 405}, target)
            client.send(b"x" * KIB)
            client.reactor.advance(0)
            self.assertTrue(client.wire.closed, target)
        self.assertEqual(self.world.idle(), NOTHING_LEFT)

    def test_a_queue_of_large_bodies(self) -> None:
        clients = [self.post(16 * KIB) for _ in range(4)]
        self.assertEqual(self.held(), 64 * KIB)
        self.assert_refused(self.post(70))
        for client in clients:
            self.assertEqual(client.status(), 0)
        clients[2].leave()
        self.assertEqual(self.held(), 48 * KIB)
        self.assertEqual(self.post(16 * KIB).status(), 0)

    def test_it_is_given_back_however_requests_end(self) -> None:
        client = self.post(16 * KIB)
        self.world.backend().answer({"error": {"message": "no"}}, "500 No")
        self.assertEqual(client.status(), 500)
        self.assertEqual(self.held(), 0)
        client = self.post(16 * KIB)
        client.leave()
        self.world.reactor.advance(0)
        self.assertEqual(self.held(), 0)
        client = self.world.client()
        client.post("/v1/chat/completions", b"x" * 16 * KIB)
        self.assertEqual(client.status(), 400)
        self.assertEqual(self.held(), 0)
        self.assertEqual(self.world.idle(), NOTHING_LEFT)

    def test_bodies_that_are_still_coming_count_too(self) -> None:
        """As far as they have come: a length that is only announced takes nothing."""
        slow = self.world.client()
        body = self.body(60 * KIB)
        slow.send(head_of(body))
        self.assertEqual(self.held(), 0)
        slow.send(body[: 50 * KIB])
        self.assertEqual(self.held(), 50 * KIB)
        other = self.post(20 * KIB)
        self.assert_refused(other)
        self.assertEqual(self.held(), 50 * KIB)
        slow.send(body[50 * KIB :])
        self.assertEqual(self.held(), 60 * KIB)
        self.assertEqual(self.world.connecting(), 1)

    def test_one_that_comes_slowly_and_finds_no_room_gives_its_own_back(self) -> None:
        slow = self.world.client()
        body = self.body(60 * KIB)
        slow.send(head_of(body) + body[: 30 * KIB])
        waiting = self.post(30 * KIB)
        slow.send(body[30 * KIB : 50 * KIB])
        self.assert_refused(slow)
        self.assertEqual(self.held(), 30 * KIB)
        self.assertEqual(waiting.status(), 0)
        record = self.world.traffic.responses()[-1]
        self.assertEqual((record.status, record.outcome), (503, "failed"))

    def test_a_body_that_there_can_be_no_room_for_is_too_large(self) -> None:
        self.assertEqual(judge(self.post(64 * KIB + 1).received()).outcome, "413 request_too_large")
        self.assertEqual(self.post(64 * KIB).status(), 0)

    def test_one_connection_after_the_other(self) -> None:
        client = self.world.client()
        for _ in range(10):
            client.wire.clear()
            client.post("/v1/chat/completions", self.body(32 * KIB))
            self.assertEqual(self.held(), 32 * KIB)
            self.world.backend().answer({"error": {"message": "no"}}, "500 No")
            self.assertEqual(client.status(), 500)
        self.assertEqual(self.held(), 0)
