"""Early responses: sent when the headers are complete, without reading the body."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.server.limits import LINGER
from blockops.server.request import ClientRequest
from tests.world import IDLE, Client, World, chat

TARGETS = ("/v1/chat/completions", "/v1/embeddings", "/v1/models/m", "/health", "/nowhere")


class EarlyResponses(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(max_body=5000)
        self.world.daemon.site.check_access = self.check_access
        self.checked: list[bytes] = []

    def check_access(self, request: ClientRequest) -> ApiError | None:
        self.checked.append(request.uri)
        if request.requestHeaders.hasHeader("X-Allowed"):
            return None
        return ApiError(403, "Go away.", code="not_allowed_here")

    def assert_rejected(self, client: Client) -> None:
        self.assertEqual((client.status(), client.error()["code"]), (403, "not_allowed_here"))
        self.assertTrue(client.is_complete())
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_before_the_body(self) -> None:
        for target in TARGETS:
            client = self.world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n\r\n")
            self.assert_rejected(client)
            self.assertEqual(client.headers()["connection"], "close")

    def test_without_a_body(self) -> None:
        for target in TARGETS:
            client = self.world.client()
            client.get(target)
            self.assert_rejected(client)
            client.wire.clear()
            client.get(target)
            self.assert_rejected(client)

    def test_a_complete_body(self) -> None:
        for target in TARGETS:
            client = self.world.client()
            client.post(target, chat())
            self.assert_rejected(client)
            client.reactor.advance(0)
            self.assertTrue(client.wire.closed)

    def test_a_body_that_is_also_too_large(self) -> None:
        client = self.world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 999999\r\n\r\n")
        self.assert_rejected(client)

    def test_the_body_is_discarded_for_a_while(self) -> None:
        client = self.world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assert_rejected(client)
        for _ in range(round(LINGER) - 1):
            client.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
            self.world.pass_time(1)
        self.assertFalse(client.wire.closed)
        self.world.pass_time(2)
        self.assertTrue(client.wire.closed)
        self.assertEqual(client.received().count(b"HTTP/1.1"), 1)

    def test_no_100_continue(self) -> None:
        client = self.world.client()
        client.send(
            "POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assert_rejected(client)
        self.assertNotIn(b"100 Continue", client.received())

    def test_the_log_has_no_body(self) -> None:
        self.world.client().post("/v1/embeddings", b"poem" * 100)
        (request,), (response,) = self.world.traffic.requests(), self.world.traffic.responses()
        self.assertEqual((request.path, request.size, request.body), ("/v1/embeddings", 0, b""))
        self.assertEqual((response.status, response.outcome), (403, "failed"))

    def test_each_request_is_checked_once(self) -> None:
        client = self.world.client()
        client.post("/v1/embeddings", b"{}", X_Allowed="1")
        self.world.backend().respond(b"{}")
        self.assertEqual(client.status(), 200)
        self.assertEqual(self.checked, [b"/v1/embeddings"])

    def test_nothing_is_left(self) -> None:
        self.world.client().post("/v1/x", b"x" * 100)
        self.world.client().get("/v1/models")
        self.world.daemon.site.check_access = lambda _: None
        self.assertEqual(self.world.load(), IDLE)
