"""Requests that are turned away when their headers are here: nothing of their bodies is read."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.proxy.in_flight import refusal
from blockops.server.limits import LINGER
from blockops.server.request import IncomingRequest, Instead
from tests.world import NOTHING_LEFT, Client, World, chat

TARGETS = ("/v1/chat/completions", "/v1/embeddings", "/v1/models/m", "/health", "/nowhere")


class TurnedAway(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(max_body=5000)
        self.world.daemon.site.screen = self.screen
        self.asked: list[bytes] = []

    def screen(self, request: IncomingRequest) -> Instead | None:
        self.asked.append(request.uri)
        if request.requestHeaders.hasHeader("X-Friend"):
            return None
        return refusal(ApiError(403, "Go away.", code="not_you"))

    def assert_refused(self, client: Client) -> None:
        self.assertEqual((client.status(), client.error()["code"]), (403, "not_you"))
        self.assertTrue(client.complete())
        self.assertEqual(self.world.connecting(), 0)

    def test_before_a_byte_of_the_body(self) -> None:
        for target in TARGETS:
            client = self.world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n\r\n")
            self.assert_refused(client)
            self.assertEqual(client.headers()["connection"], "close")

    def test_without_a_body(self) -> None:
        for target in TARGETS:
            client = self.world.client()
            client.get(target)
            self.assert_refused(client)
            client.wire.clear()
            client.get(target)
            self.assert_refused(client)

    def test_a_whole_body(self) -> None:
        for target in TARGETS:
            client = self.world.client()
            client.post(target, chat())
            self.assert_refused(client)
            client.reactor.advance(0)
            self.assertTrue(client.wire.closed)

    def test_a_body_that_is_too_large_besides(self) -> None:
        client = self.world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 999999\r\n\r\n")
        self.assert_refused(client)

    def test_what_follows_is_discarded_for_a_while(self) -> None:
        client = self.world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assert_refused(client)
        for _ in range(round(LINGER) - 1):
            client.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
            self.world.pass_time(1)
        self.assertFalse(client.wire.closed)
        self.world.pass_time(2)
        self.assertTrue(client.wire.closed)
        self.assertEqual(client.received().count(b"HTTP/1.1"), 1)

    def test_no_leave_to_send_a_body(self) -> None:
        client = self.world.client()
        client.send(
            "POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assert_refused(client)
        self.assertNotIn(b"100 Continue", client.received())

    def test_it_is_written_down_without_the_body(self) -> None:
        self.world.client().post("/v1/embeddings", b"poem" * 100)
        (request,), (response,) = self.world.traffic.requests(), self.world.traffic.responses()
        self.assertEqual((request.path, request.size, request.body), ("/v1/embeddings", 0, b""))
        self.assertEqual((response.status, response.outcome), (403, "failed"))

    def test_each_is_asked_once_and_friends_pass(self) -> None:
        client = self.world.client()
        client.post("/v1/embeddings", b"{}", X_Friend="1")
        self.world.backend().answer(b"{}")
        self.assertEqual(client.status(), 200)
        self.assertEqual(self.asked, [b"/v1/embeddings"])

    def test_nothing_is_left(self) -> None:
        self.world.client().post("/v1/x", b"x" * 100)
        self.world.client().get("/v1/models")
        self.world.daemon.site.screen = lambda _: None
        self.assertEqual(self.world.idle(), NOTHING_LEFT)
