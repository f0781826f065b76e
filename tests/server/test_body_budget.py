"""The body budget: the upper bound for the bytes of all request bodies in memory."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.server.body_budget import BodyBudget
from blockops.server.limits import RETRY_AFTER
from tests.faults.client import encode_request_head
from tests.faults.responses import judge, parse_response
from tests.world import IDLE, Client, World

KIB = 1024


class Budget(SynchronousTestCase):
    def test_exactly_at_the_limit(self) -> None:
        budget = BodyBudget(10)
        self.assertIsNone(budget.reserve(4))
        self.assertIsNone(budget.reserve(6))
        error = budget.reserve(1)
        assert error is not None
        self.assertEqual(
            (error.status, error.code, error.retry_after), (503, "body_budget_exceeded", 5)
        )
        budget.release(4)
        self.assertIsNone(budget.reserve(4))
        self.assertEqual(budget.status(), {"body_bytes": 10, "bodies_refused": 1})


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

    def reserved_bytes(self) -> Any:
        client = self.world.client()
        client.get("/health")
        return client.json()["body_bytes"]

    def assert_rejected(self, client: Client) -> None:
        reply = parse_response(client.received())
        self.assertEqual(judge(client.received()).outcome, "503 body_budget_exceeded")
        self.assertEqual(reply.headers["retry-after"], str(RETRY_AFTER))

    def test_ignored_bodies_reserve_nothing(self) -> None:
        # Some of these paths need no key.
        for target in ("/health", "/ready", "/metrics", "/nowhere", "/"):
            client = self.world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: {64 * KIB}\r\n\r\n")
            client.send(b"x" * 63 * KIB)
            self.assertEqual(self.reserved_bytes(), 0, target)
            self.assertIn(client.status(), {404, 405}, target)
            client.send(b"x" * KIB)
            client.reactor.advance(0)
            self.assertTrue(client.wire.closed, target)
        self.assertEqual(self.world.load(), IDLE)

    def test_queued_bodies(self) -> None:
        clients = [self.post(16 * KIB) for _ in range(4)]
        self.assertEqual(self.reserved_bytes(), 64 * KIB)
        self.assert_rejected(self.post(70))
        for client in clients:
            self.assertEqual(client.status(), 0)
        clients[2].disconnect()
        self.assertEqual(self.reserved_bytes(), 48 * KIB)
        self.assertEqual(self.post(16 * KIB).status(), 0)

    def test_the_budget_is_released_however_requests_end(self) -> None:
        client = self.post(16 * KIB)
        self.world.backend().respond({"error": {"message": "no"}}, "500 No")
        self.assertEqual(client.status(), 500)
        self.assertEqual(self.reserved_bytes(), 0)
        client = self.post(16 * KIB)
        client.disconnect()
        self.world.reactor.advance(0)
        self.assertEqual(self.reserved_bytes(), 0)
        client = self.world.client()
        client.post("/v1/chat/completions", b"x" * 16 * KIB)
        self.assertEqual(client.status(), 400)
        self.assertEqual(self.reserved_bytes(), 0)
        self.assertEqual(self.world.load(), IDLE)

    def test_incomplete_bodies_count(self) -> None:
        """Received bytes count, announced ones do not."""
        slow = self.world.client()
        body = self.body(60 * KIB)
        slow.send(encode_request_head(body))
        self.assertEqual(self.reserved_bytes(), 0)
        slow.send(body[: 50 * KIB])
        self.assertEqual(self.reserved_bytes(), 50 * KIB)
        other = self.post(20 * KIB)
        self.assert_rejected(other)
        self.assertEqual(self.reserved_bytes(), 50 * KIB)
        slow.send(body[50 * KIB :])
        self.assertEqual(self.reserved_bytes(), 60 * KIB)
        self.assertEqual(self.world.connection_attempts(), 1)

    def test_a_rejected_slow_body_releases_its_budget(self) -> None:
        slow = self.world.client()
        body = self.body(60 * KIB)
        slow.send(encode_request_head(body) + body[: 30 * KIB])
        waiting = self.post(30 * KIB)
        slow.send(body[30 * KIB : 50 * KIB])
        self.assert_rejected(slow)
        self.assertEqual(self.reserved_bytes(), 30 * KIB)
        self.assertEqual(waiting.status(), 0)
        record = self.world.traffic.responses()[-1]
        self.assertEqual((record.status, record.outcome), (503, "failed"))

    def test_a_body_above_the_whole_budget(self) -> None:
        self.assertEqual(judge(self.post(64 * KIB + 1).received()).outcome, "413 request_too_large")
        self.assertEqual(self.post(64 * KIB).status(), 0)

    def test_many_requests_on_one_connection(self) -> None:
        client = self.world.client()
        for _ in range(10):
            client.wire.clear()
            client.post("/v1/chat/completions", self.body(32 * KIB))
            self.assertEqual(self.reserved_bytes(), 32 * KIB)
            self.world.backend().respond({"error": {"message": "no"}}, "500 No")
            self.assertEqual(client.status(), 500)
        self.assertEqual(self.reserved_bytes(), 0)
