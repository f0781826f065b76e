"""The bounded HTTP server: what it refuses, and how long it waits."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.server import site
from blockops.server.limits import KEEP_ALIVE, LINGER, MAX_HEAD, MAX_LINE, SLOWEST_BODY
from blockops.server.upload import UPLOAD_BUFFER, Upload
from tests.world import NOTHING_LEFT, Client, World

BAD_REQUESTS = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n",  # somebody speaks TLS
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


class Malformed(SynchronousTestCase):
    def test_not_http(self) -> None:
        for garbage in BAD_REQUESTS:
            client = World().client()
            client.send(garbage)
            self.assertEqual(client.status(), 400, garbage)
            self.assertEqual(client.error()["type"], "invalid_request_error")
            client.reactor.advance(0)
            self.assertTrue(client.wire.ended, garbage)

    def test_a_long_request_line(self) -> None:
        client = World().client()
        client.send(b"GET /" + b"x" * (MAX_LINE + 100))
        self.assertEqual(client.status(), 414)
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
        client.leave()
        self.assertEqual(world.idle(), NOTHING_LEFT)


class LargeBodies(SynchronousTestCase):
    def ask(self, target: str, *lines: str) -> Client:
        self.world = World(max_body=1000)
        client = self.world.client()
        client.send("\r\n".join([f"POST {target} HTTP/1.1", "Host: b", *lines, "", ""]))
        self.world.reactor.advance(0)
        return client

    def assert_refused(self, client: Client) -> None:
        self.assertEqual(client.status(), 413)
        self.assertEqual(client.error()["code"], "request_too_large")
        self.assertIn("--max-body", client.error()["message"])
        self.assertEqual(self.world.idle()["running"], 0)

    def test_declared(self) -> None:
        for target in ("/v1/chat/completions", "/v1/audio", "/elsewhere"):
            client = self.ask(target, "Content-Length: 1001")
            self.assert_refused(client)
            self.assertEqual(self.world.connecting(), 0)

    def test_chunked(self) -> None:
        client = self.ask("/v1/chat/completions", "Transfer-Encoding: chunked")
        client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        self.assertEqual(client.status(), 0)
        client.send(b"1\r\nx\r\n")
        self.assert_refused(client)

    def test_chunked_and_relayed(self) -> None:
        client = self.ask("/v1/audio", "Transfer-Encoding: chunked")
        backend = self.world.backend()
        client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        client.send(b"1\r\nx\r\n")
        self.assert_refused(client)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(self.world.idle(), NOTHING_LEFT)

    def test_chunked_and_queued(self) -> None:
        self.world = World(max_body=1000, max_concurrent=1)
        self.world.ask()
        client = self.world.client()
        client.send("POST /v1/audio HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertEqual(self.world.idle()["waiting"], 1)
        client.send(b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        self.assertEqual(client.status(), 413)
        self.assertEqual(self.world.idle()["waiting"], 0)

    def test_at_the_bound(self) -> None:
        client = self.ask("/v1/audio", "Content-Length: 1000")
        client.send(b"x" * 1000)
        self.world.backend().answer(b"{}")
        self.assertEqual(client.status(), 200)

    def test_the_rest_is_read_into_the_void(self) -> None:
        client = self.ask("/v1/chat/completions", "Content-Length: 5000")
        client.send(b"x" * 4000)
        self.assertFalse(client.wire.disconnecting)
        client.send(b"x" * 1000)
        self.assertTrue(client.wire.disconnecting)
        self.assertEqual(client.received().count(b"HTTP/1.1"), 1)

    def test_the_rest_does_not_come(self) -> None:
        client = self.ask("/v1/chat/completions", "Content-Length: 5000")
        self.world.pass_time(LINGER - 1)
        self.assertFalse(client.wire.closed)
        self.world.pass_time(2)
        self.assertTrue(client.wire.closed)

    def test_no_leave_to_send_it(self) -> None:
        client = self.ask("/v1/chat/completions", "Content-Length: 5000", "Expect: 100-continue")
        self.assert_refused(client)
        self.assertNotIn(b"100 Continue", client.received())

    def test_leave_to_send_others(self) -> None:
        client = self.ask("/v1/chat/completions", "Content-Length: 50", "Expect: 100-continue")
        self.assertIn(b"HTTP/1.1 100 Continue", client.received())


class Deadlines(SynchronousTestCase):
    def test_nothing_comes(self) -> None:
        world = World(header_timeout=60)
        client = world.client()
        world.pass_time(59)
        self.assertFalse(client.wire.closed)
        world.pass_time(2)
        self.assertTrue(client.wire.closed)
        self.assertEqual(client.received(), b"")

    def test_headers_that_trickle_in(self) -> None:
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

    def test_a_body_that_trickles_in(self) -> None:
        for target in ("/v1/chat/completions", "/v1/completions"):
            world = World(header_timeout=60)
            client = world.client()
            size = SLOWEST_BODY * 40
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: {size}\r\n\r\n")
            for _ in range(99):
                client.send("x")
                world.pass_time(1)
            self.assertEqual(client.status(), 0)
            world.pass_time(2)
            self.assertEqual(client.status(), 408)
            self.assertTrue(client.wire.ended)

    def test_an_upload_that_trickles_in(self) -> None:
        world = World(header_timeout=60)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        world.reactor.advance(0)
        backend = world.backend()
        world.pass_time(62)
        self.assertTrue(client.wire.ended)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_an_answer_may_take_its_time(self) -> None:
        world = World(header_timeout=60, heartbeat=1000)
        client, backend = world.ask(stream=False)
        world.pass_time(500, step=1)
        self.assertFalse(client.wire.closed)
        backend.answer(b"{}", "400 No")
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

    def test_a_body_of_which_the_next_piece_does_not_come(self) -> None:
        for target in ("/v1/chat/completions", "/v1/x"):
            world = World(header_timeout=60)
            client = world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: 60000000\r\n\r\n")
            world.reactor.advance(0)
            if world.connecting():
                world.backend()
            world.pass_time(50)
            client.send("x")
            world.pass_time(59)
            self.assertEqual(client.status(), 0)
            world.pass_time(2)
            self.assertEqual(client.status(), 408, target)
            self.assertTrue(client.wire.ended)
            self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_time_that_nobody_takes_the_body_does_not_count(self) -> None:
        world = World(header_timeout=60, idle_timeout=1000, heartbeat=1000)
        client = world.client()
        size = SLOWEST_BODY * 10
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
        self.assertTrue(client.wire.ended)

    def test_a_closed_connection_that_stays(self) -> None:
        """TLS waits for an answer to its goodbye."""
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
        backend.answer(b"1")
        self.assertTrue(client.received().endswith(b"\r\n\r\n1"))
        backend = world.backend()
        world.pass_time(200, step=1)
        backend.answer(b"2")
        self.assertTrue(client.received().endswith(b"\r\n\r\n2"))
        self.assertFalse(client.wire.closed)


class _Sender:
    """A client, as an upload sees it."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def pauseProducing(self) -> None:
        self.states.append("paused")

    def resumeProducing(self) -> None:
        self.states.append("resumed")


class _Sink:
    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: bytes) -> None:
        self.taken += data


class Uploads(SynchronousTestCase):
    def upload(self, length: int | None = 6) -> tuple[Upload, _Sender, Any]:
        sender = _Sender()
        return Upload(length, sender), sender, _Sink()  # type: ignore[arg-type]

    def test_early_and_late_pieces(self) -> None:
        upload, _, sink = self.upload()
        upload.received(b"abc")
        taken = upload.startProducing(sink)
        upload.received(b"def")
        self.assertNoResult(taken)
        upload.completed()
        self.successResultOf(taken)
        self.assertEqual(sink.taken, b"abcdef")

    def test_all_of_it_early(self) -> None:
        upload, sender, sink = self.upload()
        upload.received(b"abcdef")
        upload.completed()
        self.successResultOf(upload.startProducing(sink))
        self.assertEqual(sink.taken, b"abcdef")
        self.assertEqual(sender.states, [])

    def test_the_sender_pauses_until_somebody_takes(self) -> None:
        upload, sender, sink = self.upload(None)
        upload.received(b"x" * (UPLOAD_BUFFER + 1))
        self.assertEqual(sender.states, ["paused"])
        upload.startProducing(sink)
        self.assertEqual(sender.states, ["paused", "resumed"])

    def test_the_taker_may_want_a_pause_at_once(self) -> None:
        upload, sender, _ = self.upload(None)

        class Full(_Sink):
            def write(self, data: bytes) -> None:
                upload.pauseProducing()

        upload.received(b"abc")
        upload.startProducing(Full())  # type: ignore[arg-type]
        self.assertEqual(sender.states, ["paused"])

    def test_failed(self) -> None:
        upload, _, sink = self.upload()
        told: list[ApiError] = []
        upload.on_failure = told.append
        taken = upload.startProducing(sink)
        error = ApiError(413, "no")
        upload.failed(error)
        upload.received(b"late")
        self.assertEqual((told, sink.taken), ([error], b""))
        self.assertNoResult(taken)

    def test_its_beginning_is_remembered(self) -> None:
        upload, _, _ = self.upload()
        upload.remember(4)
        for piece in (b"abc", b"def", b"g"):
            upload.received(piece)
        self.assertEqual((upload.beginning(), upload.size), (b"abcd", 7))

    def test_dropped(self) -> None:
        upload, sender, sink = self.upload()
        taken = upload.startProducing(sink)
        upload.stopProducing()
        upload.received(b"late")
        upload.completed()
        self.assertNoResult(taken)
        self.assertEqual(sink.taken, b"")
        self.assertEqual(sender.states[-1], "resumed")


class Departures(SynchronousTestCase):
    """A transport that is not read from does not tell that its peer has left."""

    def test_the_sweep(self) -> None:
        world = World(max_concurrent=1, heartbeat=1000)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        world.reactor.advance(0)
        backend = world.backend()
        backend.pause()
        self.patch(site, "departed", lambda transport: transport is client.wire)
        world.pass_time(2)
        self.assertTrue(client.wire.aborted)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.idle(), NOTHING_LEFT)
