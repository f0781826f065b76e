"""The misbehaving peers themselves, over real sockets: each does what its script says."""

from __future__ import annotations

import socket
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.api.strict import StreamRefused
from tests.faults.backend import Asked, FaultyBackend, request_in
from tests.faults.client import FaultyClient, request
from tests.faults.reading import Untrue, error_in, judge, read
from tests.faults.scripts import CALL, FAULTS, TEXT, WHOLE, answer, head, well
from tests.faults.steps import Close, Flood, HalfClose, Read, Reset, Script, Send, Until, Wait

CLOCK = cast("IReactorTime", reactor)


class OverSockets(TestCase):
    timeout = 30

    def listen(self, script: Script | None = None, greeting: Script | None = None) -> None:
        self.backend = FaultyBackend(CLOCK, lambda _: script or (), greeting)
        port = cast("Any", reactor).listenTCP(0, self.backend, interface="127.0.0.1")
        self.addCleanup(self.end, port)
        self.port = port.getHost().port

    async def end(self, port: Any) -> None:
        self.backend.close()
        await self.backend.ended
        await port.stopListening()

    async def client(self) -> FaultyClient:
        client = await FaultyClient.connect(reactor, "127.0.0.1", self.port)
        self.addCleanup(client.reset)
        return client

    def plainly(self, send: bytes, read: int | None = None) -> Deferred[bytes]:
        """Send with a socket of the standard library, and return what comes until the end."""

        def run() -> bytes:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
                plain.sendall(send)
                received = b""
                while read is None or len(received) < read:
                    data = plain.recv(65536)
                    if not data:
                        break
                    received += data
                return received

        return cast("Deferred[bytes]", deferToThread(run))

    async def test_a_good_answer(self) -> None:
        self.listen((*well(streams=False), Close()))
        received = await self.plainly(request({"messages": []}))
        self.assertEqual(read(received).body, WHOLE)
        self.assertEqual(self.backend.asked[0].json, {"messages": []})
        await self.backend.ended

    async def test_reset(self) -> None:
        self.listen((Send(head()), Wait(0.01), Reset()))
        asking = self.plainly(request({}))
        await self.assertFailure(asking, ConnectionResetError)

    async def test_before_anything_is_asked(self) -> None:
        self.listen(greeting=(Send(b"SSH-2.0\r\n"), Close()))
        self.assertEqual(await self.plainly(b""), b"SSH-2.0\r\n")

    async def test_half_closed_it_still_reads(self) -> None:
        self.listen((Send(b"bye"), HalfClose(), Until(b"more"), Close()))
        client = await self.client()
        client.readConnectionLost = lambda: client.play([Send(b"more")])  # type: ignore[assignment]
        client.play([Send(request({}))])
        await self.backend.ended
        self.assertEqual(client.received, b"bye")

    async def test_byte_by_byte(self) -> None:
        clock = Clock()
        self.listen((Send(b"abc", at_once=1, pause=0.01), Close()))
        self.backend.clock = clock
        client = await self.client()
        client.play([Send(request({}))])
        for size in (1, 2, 3):
            await client.until(size)
            self.assertEqual(client.received, b"abc"[:size])
            clock.advance(0.01)
        await client.over

    async def test_sipping(self) -> None:
        self.listen((Send(b"abc"), Close()))
        client = await self.client()
        pieces: list[bytes] = []
        received = client.dataReceived
        client.dataReceived = lambda data: (pieces.append(data), received(data))[1]  # type: ignore[method-assign, func-returns-value]
        client.play([Read(1), Send(request({}))])
        await client.over
        self.assertEqual(pieces, [b"a", b"b", b"c"])

    async def test_who_does_not_read_is_waited_for(self) -> None:
        self.listen((Flood(b"x" * 65536),))
        client = await self.client()
        client.play([Send(request({})), Until(1), Read(0)])
        await client.until(1)
        await client.play([Wait(0.2)])
        self.assertEqual(self.backend.open, 1)
        self.assertLess(len(client.received), 1 << 20)
        client.reset()
        await self.backend.ended

    async def test_a_client_that_leaves_ends_the_script(self) -> None:
        self.listen((Wait(1000), Send(b"never")))
        client = await self.client()
        await client.play([Send(request({})), Wait(0.01), Reset()])
        await self.backend.ended

    async def test_clients_half_close(self) -> None:
        self.listen()
        client = await self.client()
        client.play([Send(request({})), HalfClose()])
        await client.over
        await self.backend.ended


class Requests(SynchronousTestCase):
    def test_whole(self) -> None:
        sent = request({"stream": True}, "/v1/x", X_Y="z")
        asked = request_in(sent)
        assert asked is not None
        self.assertEqual((asked.method, asked.target, asked.streams), ("POST", "/v1/x", True))
        self.assertEqual(asked.headers["x-y"], "z")
        for size in range(len(sent)):
            self.assertIsNone(request_in(sent[:size]))

    def test_in_chunks(self) -> None:
        sent = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        self.assertIsNone(request_in(sent[:-1]))
        self.assertIsNotNone(request_in(sent))

    def test_without_a_body(self) -> None:
        asked = request_in(b"GET /v1/models HTTP/1.1\r\n\r\n")
        self.assertEqual(asked, Asked("GET", "/v1/models", {}, b""))
        assert asked is not None
        self.assertFalse(asked.streams)


class Reading(SynchronousTestCase):
    """Nothing untrue passes."""

    def test_a_good_stream(self) -> None:
        good = self.good()
        judged = judge(good)
        self.assertEqual((judged.outcome, judged.text, judged.calls), ("whole", TEXT, (CALL,)))

    def good(self) -> bytes:
        """Return a stream as blockops would send it: of the call, the translation."""
        call = (
            b'{"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather",'
            b' "arguments": "{\\"city\\": \\"Z\\u00fcrich\\"}"}}'
        )
        chunks = [
            b'{"role": "assistant", "content": "%s"}' % TEXT.encode(),
            b'{"tool_calls": [%s]}' % call,
        ]
        body = b"".join(
            b'data: {"id": "1", "object": "o", "created": 1, "model": "m", "choices": [{"index": 0,'
            b' "delta": %s, "finish_reason": null}]}\n\n' % each
            for each in chunks
        )
        body += (
            b'data: {"id": "1", "object": "o", "created": 1, "model": "m", "choices": [{"index": 0,'
            b' "delta": {}, "finish_reason": "tool_calls"}]}\n\ndata: [DONE]\n\n'
        )
        return head("Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)

    def test_a_stream_that_stops_without_a_word(self) -> None:
        body = self.good().partition(b"\r\n\r\n")[2].partition(b"\r\n")[2]
        quiet = body[: body.index(b"data: [DONE]")]
        sent = head("Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(quiet), quiet)
        self.assertRaises(StreamRefused, judge, sent)
        self.assertRaises(StreamRefused, judge, head() + quiet, closed=True)

    def test_cut(self) -> None:
        good = self.good()
        for size in range(len(head("Transfer-Encoding: chunked")), len(good)):
            self.assertEqual(judge(good[:size], closed=True).outcome, "cut")
        self.assertEqual(judge(answer(WHOLE, streams=False)[:-1], closed=True).outcome, "cut")

    def test_half_a_head(self) -> None:
        self.assertRaises(Untrue, judge, b"HTTP/1.1 200 OK\r\nX", closed=True)
        self.assertEqual(judge(b"", closed=True).outcome, "nothing")

    def test_behind_the_end(self) -> None:
        self.assertRaises(Untrue, judge, self.good() + b"x")
        self.assertRaises(Untrue, judge, answer(WHOLE, streams=False) + b"x")

    def test_two_lengths(self) -> None:
        twice = head("Content-Length: 1", "Content-Length: 2") + b"xx"
        self.assertRaises(Untrue, read, twice)

    def test_errors_of_another_shape(self) -> None:
        for body in (b"{}", b'{"error": "no"}', b'{"detail": "no"}', b"[]"):
            self.assertRaises(Untrue, error_in, body)
        silent = b'{"error": {"message": "", "type": "t", "param": null, "code": null}}'
        self.assertRaises(Untrue, error_in, silent)

    def test_the_first_answer_may_be_provisional(self) -> None:
        reply = read(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"{}", streams=False))
        self.assertEqual((reply.status, reply.body, reply.complete), (200, b"{}", True))

    def test_every_fault_has_a_script(self) -> None:
        for name, fault in FAULTS.items():
            self.assertTrue(fault.stream or name == "silent", name)
