"""The bounded HTTP server: rejections and deadlines."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.server import site
from blockops.server.limits import KEEP_ALIVE, LINGER, MAX_HEAD, MAX_LINE, MIN_UPLOAD_RATE
from blockops.server.upload import UPLOAD_BUFFER, StreamingUpload
from tests.world import IDLE, Client, World

BAD_REQUESTS = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n",  # TLS
    b"GET /\r\n",
    b"GET /a b HTTP/1.1\r\n",
    b"GET / HTTP/2.0\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n",
    b"POST /health HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /health HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
)


class InvalidRequests(SynchronousTestCase):
    def test_bad_requests(self) -> None:
        for data in BAD_REQUESTS:
            client = World().client()
            client.send(data)
            self.assertEqual(client.status(), 400, data)
            self.assertEqual(client.error()["type"], "invalid_request_error")
            client.reactor.advance(0)
            self.assertTrue(client.wire.is_write_closed, data)

    def test_a_long_request_line(self) -> None:
        client = World().client()
        client.send(b"GET /" + b"x" * (MAX_LINE + 100))
        self.assertEqual(client.status(), 414)
        self.assertIn("date", client.headers())  # RFC 9110, section 6.6.1
        self.assertIn("request line", client.error()["message"])

    def test_a_long_header(self) -> None:
        client = World().client()
        client.send(b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_LINE + 100))
        self.assertEqual(client.status(), 431)
        self.assertIn("header", client.error()["message"])

    def test_many_headers(self) -> None:
        client = World().client()
        line = b"X: 12\r\n"
        client.send(b"GET /health HTTP/1.1\r\n" + line * 1000 + b"\r\n")
        self.assertEqual(client.status(), 200)
        client.wire.clear()
        client.send(b"GET /health HTTP/1.1\r\n" + line * (MAX_HEAD // len(line)) + b"\r\n")
        self.assertEqual(client.status(), 431)
        self.assertIn("together", client.error()["message"])

    def test_an_absurd_length(self) -> None:
        client = World().client()
        client.send("POST /health HTTP/1.1\r\nContent-Length: " + "9" * 5000 + "\r\n\r\n")
        self.assertEqual(client.status(), 413)

    @given(st.binary(max_size=300))
    def test_anything(self, data: bytes) -> None:
        world = World()
        client = world.client()
        client.send(data)
        world.reactor.advance(0)
        client.disconnect()
        self.assertEqual(world.load(), IDLE)


class LargeBodies(SynchronousTestCase):
    def post(self, target: str, *lines: str) -> Client:
        self.world = World(max_body=1000)
        client = self.world.client()
        client.send("\r\n".join([f"POST {target} HTTP/1.1", "Host: b", *lines, "", ""]))
        self.world.reactor.advance(0)
        return client

    def assert_rejected(self, client: Client) -> None:
        self.assertEqual(client.status(), 413)
        self.assertEqual(client.error()["code"], "request_too_large")
        self.assertIn("--max-body", client.error()["message"])
        self.assertEqual(self.world.load()["running"], 0)

    def test_declared(self) -> None:
        for target in ("/v1/chat/completions", "/v1/audio", "/elsewhere"):
            client = self.post(target, "Content-Length: 1001")
            self.assert_rejected(client)
            self.assertEqual(self.world.connection_attempts(), 0)

    def test_chunked(self) -> None:
        client = self.post("/v1/chat/completions", "Transfer-Encoding: chunked")
        client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        self.assertEqual(client.status(), 0)
        client.send(b"1\r\nx\r\n")
        self.assert_rejected(client)

    def test_chunked_and_forwarded(self) -> None:
        client = self.post("/v1/audio", "Transfer-Encoding: chunked")
        backend = self.world.backend()
        client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        client.send(b"1\r\nx\r\n")
        self.assert_rejected(client)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(self.world.load(), IDLE)

    def test_chunked_and_queued(self) -> None:
        self.world = World(max_body=1000, max_concurrent=1)
        self.world.start_chat()
        client = self.world.client()
        client.send("POST /v1/audio HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertEqual(self.world.load()["waiting"], 1)
        client.send(b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        self.assertEqual(client.status(), 413)
        self.assertEqual(self.world.load()["waiting"], 0)

    def test_at_the_limit(self) -> None:
        client = self.post("/v1/audio", "Content-Length: 1000")
        client.send(b"x" * 1000)
        self.world.backend().respond(b"{}")
        self.assertEqual(client.status(), 200)

    def test_the_rest_is_discarded(self) -> None:
        client = self.post("/v1/chat/completions", "Content-Length: 5000")
        client.send(b"x" * 4000)
        self.assertFalse(client.wire.disconnecting)
        client.send(b"x" * 1000)
        self.assertTrue(client.wire.disconnecting)
        self.assertEqual(client.received().count(b"HTTP/1.1"), 1)

    def test_the_rest_does_not_arrive(self) -> None:
        client = self.post("/v1/chat/completions", "Content-Length: 5000")
        self.world.pass_time(LINGER - 1)
        self.assertFalse(client.wire.closed)
        self.world.pass_time(2)
        self.assertTrue(client.wire.closed)

    def test_no_100_continue(self) -> None:
        client = self.post("/v1/chat/completions", "Content-Length: 5000", "Expect: 100-continue")
        self.assert_rejected(client)
        self.assertNotIn(b"100 Continue", client.received())

    def test_100_continue(self) -> None:
        client = self.post("/v1/chat/completions", "Content-Length: 50", "Expect: 100-continue")
        self.assertIn(b"HTTP/1.1 100 Continue", client.received())


class Deadlines(SynchronousTestCase):
    def test_no_input(self) -> None:
        world = World(header_timeout=60)
        client = world.client()
        world.pass_time(59)
        self.assertFalse(client.wire.closed)
        world.pass_time(2)
        self.assertTrue(client.wire.closed)
        self.assertEqual(client.received(), b"")

    def test_slow_headers(self) -> None:
        world = World(header_timeout=60)
        client = world.client()
        client.send("GET /health HTTP/1.1\r\nX: ")
        for _ in range(59):
            client.send("x")
            world.pass_time(1)
        self.assertEqual(client.status(), 0)
        world.pass_time(2)
        self.assertEqual(client.status(), 408)
        self.assertTrue(client.wire.closed)

    def test_a_slow_body(self) -> None:
        for target in ("/v1/chat/completions", "/v1/completions"):
            world = World(header_timeout=60)
            client = world.client()
            size = MIN_UPLOAD_RATE * 40
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: {size}\r\n\r\n")
            for _ in range(99):
                client.send("x")
                world.pass_time(1)
            self.assertEqual(client.status(), 0)
            world.pass_time(2)
            self.assertEqual(client.status(), 408)
            self.assertTrue(client.wire.is_write_closed)

    def test_a_slow_upload(self) -> None:
        world = World(header_timeout=60)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        world.reactor.advance(0)
        backend = world.backend()
        world.pass_time(62)
        self.assertTrue(client.wire.is_write_closed)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_no_deadline_for_a_response(self) -> None:
        world = World(header_timeout=60, heartbeat=1000)
        client, backend = world.start_chat(stream=False)
        world.pass_time(500, step=1)
        self.assertFalse(client.wire.closed)
        backend.respond(b"{}", "400 No")
        self.assertEqual(client.status(), 400)

    def test_idle_between_requests(self) -> None:
        world = World(header_timeout=60)
        client = world.client()
        client.get("/health")
        world.pass_time(KEEP_ALIVE - 1)
        client.wire.clear()
        client.get("/health")
        self.assertEqual(client.status(), 200)
        world.pass_time(KEEP_ALIVE - 1)
        self.assertFalse(client.wire.closed)
        world.pass_time(2)
        self.assertTrue(client.wire.closed)

    def test_the_next_piece_of_a_body(self) -> None:
        for target in ("/v1/chat/completions", "/v1/x"):
            world = World(header_timeout=60)
            client = world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: 60000000\r\n\r\n")
            world.reactor.advance(0)
            if world.connection_attempts():
                world.backend()
            world.pass_time(50)
            client.send("x")
            world.pass_time(59)
            self.assertEqual(client.status(), 0)
            world.pass_time(2)
            self.assertEqual(client.status(), 408, target)
            self.assertTrue(client.wire.is_write_closed)
            self.assertEqual(world.load(), IDLE)

    def test_a_paused_upload_has_no_deadline(self) -> None:
        world = World(header_timeout=60, idle_timeout=1000, heartbeat=1000)
        client = world.client()
        size = MIN_UPLOAD_RATE * 10
        client.send(f"POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: {size}\r\n\r\nx")
        world.reactor.advance(0)
        backend = world.backend()
        backend.pause()
        world.pass_time(500, step=1)
        self.assertFalse(client.wire.closed)
        backend.resume()
        for _ in range(6):
            client.send("x")
            world.pass_time(10)
        self.assertFalse(client.wire.closed)
        world.pass_time(11)
        self.assertTrue(client.wire.is_write_closed)

    def test_a_close_that_does_not_end(self) -> None:
        """TLS waits for the close alert of the peer."""
        world = World(max_body=10)
        client = world.client()
        client.wire.loseConnection = lambda: None  # type: ignore[method-assign]
        client.post("/v1/chat/completions", b"x" * 11)
        self.assertEqual(client.status(), 413)
        world.pass_time(LINGER + 1)
        self.assertTrue(client.wire.aborted)

    def test_pipelined_requests(self) -> None:
        world = World(heartbeat=1000)
        client = world.client()
        one = b"GET /v1/x HTTP/1.1\r\nHost: b\r\n\r\n"
        client.send(one * 2)
        world.reactor.advance(0)
        backend = world.backend()
        world.pass_time(200, step=1)
        backend.respond(b"1")
        self.assertTrue(client.received().endswith(b"\r\n\r\n1"))
        backend = world.backend()
        world.pass_time(200, step=1)
        backend.respond(b"2")
        self.assertTrue(client.received().endswith(b"\r\n\r\n2"))
        self.assertFalse(client.wire.closed)


class _Connection:
    """The connection that an upload arrives on."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def pause(self) -> None:
        self.states.append("paused")

    def resume(self) -> None:
        self.states.append("resumed")


class _Consumer:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class StreamingUploads(SynchronousTestCase):
    def upload(self, length: int | None = 6) -> tuple[StreamingUpload, _Connection, Any]:
        client = _Connection()
        return StreamingUpload(length, client.pause, client.resume), client, _Consumer()

    def test_pieces_before_and_after_the_start(self) -> None:
        upload, _, consumer = self.upload()
        upload.data_received(b"abc")
        done = upload.startProducing(consumer)
        upload.data_received(b"def")
        self.assertNoResult(done)
        upload.finish()
        self.successResultOf(done)
        self.assertEqual(consumer.data, b"abcdef")

    def test_complete_before_the_start(self) -> None:
        upload, client, consumer = self.upload()
        upload.data_received(b"abcdef")
        upload.finish()
        self.successResultOf(upload.startProducing(consumer))
        self.assertEqual(consumer.data, b"abcdef")
        self.assertEqual(client.states, [])

    def test_the_client_is_paused_until_the_start(self) -> None:
        upload, client, consumer = self.upload(None)
        upload.data_received(b"x" * (UPLOAD_BUFFER + 1))
        self.assertEqual(client.states, ["paused"])
        upload.startProducing(consumer)
        self.assertEqual(client.states, ["paused", "resumed"])

    def test_a_consumer_that_pauses_at_once(self) -> None:
        upload, client, _ = self.upload(None)

        class FullConsumer(_Consumer):
            def write(self, data: bytes) -> None:
                upload.pauseProducing()

        upload.data_received(b"abc")
        upload.startProducing(FullConsumer())  # type: ignore[arg-type]
        self.assertEqual(client.states, ["paused"])

    def test_failure(self) -> None:
        upload, _, consumer = self.upload()
        errors: list[ApiError] = []
        upload.on_failure = errors.append
        done = upload.startProducing(consumer)
        error = ApiError(413, "no")
        upload.fail(error)
        upload.data_received(b"late")
        self.assertEqual((errors, consumer.data), ([error], b""))
        self.assertNoResult(done)

    def test_capture(self) -> None:
        upload, _, _ = self.upload()
        upload.capture(4)
        for piece in (b"abc", b"def", b"g"):
            upload.data_received(piece)
        self.assertEqual((upload.captured_bytes(), upload.size), (b"abcd", 7))

    def test_stopped(self) -> None:
        upload, client, consumer = self.upload()
        done = upload.startProducing(consumer)
        upload.stopProducing()
        upload.data_received(b"late")
        upload.finish()
        self.assertNoResult(done)
        self.assertEqual(consumer.data, b"")
        self.assertEqual(client.states[-1], "resumed")


class Disconnects(SynchronousTestCase):
    """A paused transport does not notice that its peer has closed the connection."""

    def test_polling(self) -> None:
        world = World(max_concurrent=1, heartbeat=1000)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        world.reactor.advance(0)
        backend = world.backend()
        backend.pause()
        self.patch(site, "has_peer_closed", lambda transport: transport is client.wire)
        world.pass_time(2)
        self.assertTrue(client.wire.aborted)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)
