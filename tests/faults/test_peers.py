"""The misbehaving peers over real sockets: each plays its script as written."""

from __future__ import annotations

import socket
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.api.strict import InvalidStream
from tests.faults.backend import FaultyBackend, ReceivedRequest, parse_request
from tests.faults.client import FaultyClient, encode_request
from tests.faults.responses import MisleadingResponse, judge, parse_error, parse_response
from tests.faults.scripts import (
    CALL,
    FAULTS,
    JSON_BODY,
    TEXT,
    encode_response,
    encode_response_head,
    good_response,
)
from tests.faults.steps import (
    Close,
    Flood,
    HalfClose,
    Reset,
    Script,
    Send,
    SetReadSize,
    Wait,
    WaitFor,
)

CLOCK = cast("IReactorTime", reactor)


class SocketTests(TestCase):
    timeout = 30

    def listen(self, script: Script | None = None, greeting: Script | None = None) -> None:
        self.backend = FaultyBackend(CLOCK, lambda _: script or (), greeting)
        port = cast("Any", reactor).listenTCP(0, self.backend, interface="127.0.0.1")
        self.addCleanup(self.stop, port)
        self.port = port.getHost().port

    async def stop(self, port: Any) -> None:
        self.backend.reset_all()
        await self.backend.all_closed
        await port.stopListening()

    async def connect(self) -> FaultyClient:
        client = await FaultyClient.connect(reactor, "127.0.0.1", self.port)
        self.addCleanup(client.reset)
        return client

    def send_with_plain_socket(self, send: bytes, read: int | None = None) -> Deferred[bytes]:
        """
        Send with a socket of the standard library and return the data received.

        :param read: bytes to read, or None to read until the peer closes
        """

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

    async def test_a_good_response(self) -> None:
        self.listen((*good_response(stream=False), Close()))
        received = await self.send_with_plain_socket(encode_request({"messages": []}))
        self.assertEqual(parse_response(received).body, JSON_BODY)
        self.assertEqual(self.backend.requests[0].json, {"messages": []})
        await self.backend.all_closed

    async def test_reset(self) -> None:
        self.listen((Send(encode_response_head()), Wait(0.01), Reset()))
        sending = self.send_with_plain_socket(encode_request({}))
        await self.assertFailure(sending, ConnectionResetError)

    async def test_greeting_without_a_request(self) -> None:
        self.listen(greeting=(Send(b"SSH-2.0\r\n"), Close()))
        self.assertEqual(await self.send_with_plain_socket(b""), b"SSH-2.0\r\n")

    async def test_reading_continues_after_half_close(self) -> None:
        self.listen((Send(b"bye"), HalfClose(), WaitFor(b"more"), Close()))
        client = await self.connect()
        client.readConnectionLost = lambda: client.play([Send(b"more")])  # type: ignore[assignment]
        client.play([Send(encode_request({}))])
        await self.backend.all_closed
        self.assertEqual(client.received, b"bye")

    async def test_byte_by_byte(self) -> None:
        clock = Clock()
        self.listen((Send(b"abc", piece_size=1, pause=0.01), Close()))
        self.backend.clock = clock
        client = await self.connect()
        client.play([Send(encode_request({}))])
        for size in (1, 2, 3):
            await client.wait_for(size)
            self.assertEqual(client.received, b"abc"[:size])
            clock.advance(0.01)
        await client.when_closed

    async def test_reading_one_byte_at_a_time(self) -> None:
        self.listen((Send(b"abc"), Close()))
        client = await self.connect()
        pieces: list[bytes] = []
        received = client.dataReceived
        client.dataReceived = lambda data: (pieces.append(data), received(data))[1]  # type: ignore[method-assign, func-returns-value]
        client.play([SetReadSize(1), Send(encode_request({}))])
        await client.when_closed
        self.assertEqual(pieces, [b"a", b"b", b"c"])

    async def test_a_client_that_does_not_read_applies_backpressure(self) -> None:
        self.listen((Flood(b"x" * 65536),))
        client = await self.connect()
        client.play([Send(encode_request({})), WaitFor(1), SetReadSize(0)])
        await client.wait_for(1)
        await client.play([Wait(0.2)])
        self.assertEqual(self.backend.open_connections, 1)
        self.assertLess(len(client.received), 1 << 20)
        client.reset()
        await self.backend.all_closed

    async def test_a_disconnect_ends_the_script(self) -> None:
        self.listen((Wait(1000), Send(b"never")))
        client = await self.connect()
        await client.play([Send(encode_request({})), Wait(0.01), Reset()])
        await self.backend.all_closed

    async def test_half_close_of_the_client(self) -> None:
        self.listen()
        client = await self.connect()
        client.play([Send(encode_request({})), HalfClose()])
        await client.when_closed
        await self.backend.all_closed


class ParseRequestTests(SynchronousTestCase):
    def test_complete_and_incomplete(self) -> None:
        sent = encode_request({"stream": True}, "/v1/x", X_Y="z")
        request = parse_request(sent)
        assert request is not None
        self.assertEqual(
            (request.method, request.target, request.is_streaming), ("POST", "/v1/x", True)
        )
        self.assertEqual(request.headers["x-y"], "z")
        for size in range(len(sent)):
            self.assertIsNone(parse_request(sent[:size]))

    def test_chunked(self) -> None:
        sent = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        self.assertIsNone(parse_request(sent[:-1]))
        self.assertIsNotNone(parse_request(sent))

    def test_without_a_body(self) -> None:
        request = parse_request(b"GET /v1/models HTTP/1.1\r\n\r\n")
        self.assertEqual(request, ReceivedRequest("GET", "/v1/models", {}, b""))
        assert request is not None
        self.assertFalse(request.is_streaming)


class JudgeTests(SynchronousTestCase):
    """`judge` rejects every response that could mislead a client."""

    def test_a_good_stream(self) -> None:
        good_stream = self.good_stream()
        verdict = judge(good_stream)
        self.assertEqual(
            (verdict.outcome, verdict.text, verdict.calls), ("complete", TEXT, (CALL,))
        )

    def good_stream(self) -> bytes:
        """Return a stream as blockops would send it, with the call translated."""
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
        return encode_response_head("Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (
            len(body),
            body,
        )

    def test_a_stream_that_ends_without_done(self) -> None:
        body = self.good_stream().partition(b"\r\n\r\n")[2].partition(b"\r\n")[2]
        truncated = body[: body.index(b"data: [DONE]")]
        sent = encode_response_head("Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (
            len(truncated),
            truncated,
        )
        self.assertRaises(InvalidStream, judge, sent)
        self.assertRaises(InvalidStream, judge, encode_response_head() + truncated, closed=True)

    def test_truncated(self) -> None:
        good_stream = self.good_stream()
        for size in range(
            len(encode_response_head("Transfer-Encoding: chunked")), len(good_stream)
        ):
            self.assertEqual(judge(good_stream[:size], closed=True).outcome, "truncated")
        self.assertEqual(
            judge(encode_response(JSON_BODY, stream=False)[:-1], closed=True).outcome, "truncated"
        )

    def test_incomplete_head(self) -> None:
        self.assertRaises(MisleadingResponse, judge, b"HTTP/1.1 200 OK\r\nX", closed=True)
        self.assertEqual(judge(b"", closed=True).outcome, "no response")

    def test_data_after_the_end(self) -> None:
        self.assertRaises(MisleadingResponse, judge, self.good_stream() + b"x")
        self.assertRaises(
            MisleadingResponse, judge, encode_response(JSON_BODY, stream=False) + b"x"
        )

    def test_two_lengths(self) -> None:
        data = encode_response_head("Content-Length: 1", "Content-Length: 2") + b"xx"
        self.assertRaises(MisleadingResponse, parse_response, data)

    def test_errors_in_another_format(self) -> None:
        for body in (b"{}", b'{"error": "no"}', b'{"detail": "no"}', b"[]"):
            self.assertRaises(MisleadingResponse, parse_error, body)
        empty_message = b'{"error": {"message": "", "type": "t", "param": null, "code": null}}'
        self.assertRaises(MisleadingResponse, parse_error, empty_message)

    def test_a_provisional_response_first(self) -> None:
        response = parse_response(
            b"HTTP/1.1 100 Continue\r\n\r\n" + encode_response(b"{}", stream=False)
        )
        self.assertEqual((response.status, response.body, response.complete), (200, b"{}", True))

    def test_every_fault_has_a_script(self) -> None:
        for name, fault in FAULTS.items():
            self.assertTrue(fault.stream or name == "silent", name)
