"""
Clients that disconnect at every stage of a request, and slow clients, over real sockets.

In each case no object is leaked, the backend's connection is closed at once, the daemon's log stays
empty, and the traffic log has the outcome of the request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.faults.backend import ReceivedRequest
from tests.faults.client import FaultyClient, encode_request
from tests.faults.daemon import RunningDaemon, wait_until
from tests.faults.responses import judge
from tests.faults.scripts import (
    CALL,
    CHUNKED,
    HALF_STREAM,
    TEXT,
    Script,
    encode_chunks,
    encode_response_head,
    event,
    good_response,
)
from tests.faults.steps import (
    Close,
    Flood,
    HalfClose,
    Reset,
    Send,
    SetReadSize,
    Step,
    Wait,
    WaitFor,
)
from tests.world import chat

STREAM_REQUEST = encode_request(chat())
JSON_REQUEST = encode_request(chat(stream=False))
SPLIT_AT = len(STREAM_REQUEST) - 20

#: The ways in which clients disconnect.
DISCONNECTS: dict[str, Step] = {"close": Close(), "half-close": HalfClose(), "reset": Reset()}

#: stage -> the scripts of client and backend until then, and the outcome in the traffic log.
STAGES: dict[str, tuple[Script, Script, str | None]] = {
    "before a byte": ((), (), None),
    "in the request line": ((Send(b"POST /v1/ch"),), (), None),
    "in the headers": ((Send(STREAM_REQUEST[:60]),), (), None),
    "in the body": ((Send(STREAM_REQUEST[:SPLIT_AT]),), (), None),
    "before the backend's headers": ((Send(STREAM_REQUEST),), (), "client left"),
    "in the backend's headers": (
        (Send(STREAM_REQUEST),),
        (Send(b"HTTP/1.1 200 OK\r\nConte"),),
        "client left",
    ),
    "in the stream": (
        (Send(STREAM_REQUEST), WaitFor(b"data: ")),
        (Send(encode_response_head(CHUNKED) + encode_chunks(HALF_STREAM)),),
        "client left",
    ),
    "in an endless stream": (
        (Send(STREAM_REQUEST), WaitFor(b"data: ")),
        (
            Send(encode_response_head(CHUNKED)),
            Flood(encode_chunks(event({"content": "x"})), pause=0.001),
        ),
        "client left",
    ),
    "in a JSON response": (
        (Send(JSON_REQUEST),),
        (Send(encode_response_head("Content-Length: 9999", stream=False) + b"{"),),
        "client left",
    ),
    "after the end": (
        (Send(STREAM_REQUEST), WaitFor(b"[DONE]\n\n")),
        good_response(stream=True),
        "done",
    ),
    "in an upload": (
        (Send(encode_request(b"x" * 1000, "/v1/files")[:-500]),),
        (),
        "client left",
    ),
}


class QuietTestCase(TestCase):
    """The daemon's log stays empty."""

    timeout = 60

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def start(self, script: Script = (), **settings: Any) -> RunningDaemon:
        fixture = RunningDaemon(self, lambda _: script, **settings)
        self.events.clear()
        return fixture

    def assert_quiet(self) -> None:
        """Fail if the daemon's log has a line."""
        lines = [each for each in self.events if each["log_namespace"].startswith("blockops")]
        self.assertEqual(lines, [])
        errors = [each for each in self.events if each["log_level"] >= LogLevel.error]
        self.assertEqual(errors, [])


class DisconnectTests(QuietTestCase):
    """One test for each stage and each way to disconnect."""

    async def check(self, stage: str, disconnect: str) -> None:
        client_script, answer, outcome = STAGES[stage]
        fixture = self.start(answer)
        client = await fixture.connect()
        await client.play(client_script)
        if outcome == "client left":
            await wait_until(
                lambda: len(fixture.daemon.in_flight) and fixture.backend.open_connections
            )
        client.play((DISCONNECTS[disconnect],))
        await fixture.wait_until_idle()
        self.assert_quiet()
        outcomes = [record.outcome for record in fixture.traffic.responses()]
        self.assertEqual(outcomes, [outcome] if outcome else [], f"{stage}, {disconnect}")
        await client.when_closed


def _make_test(stage: str, disconnect: str) -> Callable[[DisconnectTests], Any]:
    async def test(self: DisconnectTests) -> None:
        await self.check(stage, disconnect)

    return test


for _stage in STAGES:
    for _disconnect in DISCONNECTS:
        _name = f"test_{_disconnect}_{_stage}".replace(" ", "_").replace("-", "_").replace("'", "")
        setattr(DisconnectTests, _name, _make_test(_stage, _disconnect))


class QueueTests(QuietTestCase):
    """One slot, which another request holds."""

    async def check(self, disconnect: Step) -> None:
        fixture = self.start(max_concurrent=1)
        running = await fixture.connect()
        await running.play((Send(STREAM_REQUEST),))
        await wait_until(lambda: fixture.backend.requests)
        waiting = [await fixture.connect() for _ in range(3)]
        for client in waiting:
            client.play((Send(STREAM_REQUEST),))
        await wait_until(lambda: len(fixture.daemon.in_flight) == 4)
        waiting[1].play((disconnect,))
        await wait_until(lambda: len(fixture.daemon.in_flight) == 3)
        running.play((disconnect,))
        await wait_until(lambda: len(fixture.backend.requests) == 2)
        await wait_until(lambda: fixture.backend.open_connections == 1)
        for client in waiting:
            client.play((disconnect,))
        await fixture.wait_until_idle()
        self.assertEqual(len(fixture.traffic.responses()), 4)
        self.assert_quiet()

    async def test_disconnects(self) -> None:
        for disconnect in DISCONNECTS.values():
            await self.check(disconnect)


class RejectionTests(QuietTestCase):
    """Clients that are rejected while they send, and read only after they have sent everything."""

    #: More than the socket buffers of both sides hold.
    FURTHER_DATA = b"x" * (8 << 20)

    async def outcome_of(self, data: bytes) -> str:
        fixture = self.start()
        client = await fixture.connect()
        await client.play((SetReadSize(0), Send(data), Send(self.FURTHER_DATA)))
        client.play((SetReadSize(None),))
        await client.when_closed
        await fixture.wait_until_idle()
        self.assert_quiet()
        return judge(bytes(client.received), closed=True).outcome

    async def test_invalid_head(self) -> None:
        for data, outcome in (
            (b"GET / HTTP/1.1\r\nX : y\r\n\r\n", "400 None"),
            (b"GET /" + b"x" * 20_000, "414 request_too_large"),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, "431 request_too_large"),
            (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, "431 request_too_large"),
        ):
            self.assertEqual(await self.outcome_of(data), outcome)

    async def test_invalid_chunk(self) -> None:
        for target in ("/v1/chat/completions", "/v1/x"):
            head = f"POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.assertEqual(await self.outcome_of(head.encode() + b"no size\r\n"), "400 None")

    async def test_data_after_the_last_request(self) -> None:
        first_request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        fixture = self.start()
        client = await fixture.connect()
        await client.play((SetReadSize(0), Send(first_request + b"x"), Send(self.FURTHER_DATA)))
        client.play((SetReadSize(None),))
        await client.when_closed
        self.assertTrue(bytes(client.received).startswith(b"HTTP/1.1 200 "))
        self.assertTrue(bytes(client.received).endswith(b"}"))
        await fixture.wait_until_idle()


class SlowClientTests(QuietTestCase):
    """SlowClientTests clients."""

    async def outcome_of(self, fixture: RunningDaemon, client: FaultyClient) -> str:
        await client.when_closed
        await fixture.wait_until_idle()
        self.assert_quiet()
        return judge(bytes(client.received), closed=True).outcome

    async def test_reads_byte_by_byte(self) -> None:
        fixture = self.start(good_response(stream=True))
        client = await fixture.connect()
        client.play((SetReadSize(1), Send(encode_request(chat(), Connection="close"))))
        await client.when_closed
        judged = judge(bytes(client.received), closed=True)
        self.assertEqual((judged.outcome, judged.text, judged.calls), ("complete", TEXT, (CALL,)))
        await fixture.wait_until_idle()
        self.assert_quiet()

    async def test_stalled_client_is_disconnected(self) -> None:
        flood = Flood(encode_chunks(event({"content": "x" * 10_000})))
        fixture = self.start(
            (Send(encode_response_head(CHUNKED)), flood), client_timeout=0.3, heartbeat=0.4
        )
        client = await fixture.connect()
        client.play((SetReadSize(0), Send(STREAM_REQUEST)))
        await fixture.wait_until_idle()
        (record,) = fixture.traffic.responses()
        self.assertEqual(record.outcome, "failed")
        self.assertIn("The client read nothing for 0.3 seconds", record.error or "")
        self.assert_quiet()
        client.reset()
        await client.when_closed

    async def test_incomplete_request(self) -> None:
        fixture = self.start(header_timeout=1.0, heartbeat=0.2)
        clients = [await fixture.connect() for _ in range(4)]
        for size, client in zip((1, 30, 60, SPLIT_AT), clients, strict=True):
            client.play((Send(STREAM_REQUEST[:size]),))
        for client in clients:
            self.assertEqual(await self.outcome_of(fixture, client), "408 request_timeout")

    async def test_slow_headers(self) -> None:
        fixture = self.start(header_timeout=0.7, heartbeat=0.2)
        client = await fixture.connect()
        client.play((Send(STREAM_REQUEST, piece_size=1, pause=0.05),))
        self.assertEqual(await self.outcome_of(fixture, client), "408 request_timeout")
        self.assertEqual(fixture.backend.requests, [])

    async def test_slow_body(self) -> None:
        fixture = self.start(header_timeout=0.7, heartbeat=0.2)
        client = await fixture.connect()
        begin = STREAM_REQUEST.index(b"\r\n\r\n") + 4
        client.play(
            (Send(STREAM_REQUEST[:begin]), Send(STREAM_REQUEST[begin:], piece_size=1, pause=0.05))
        )
        self.assertEqual(await self.outcome_of(fixture, client), "408 request_timeout")
        self.assertEqual(fixture.backend.requests, [])

    async def test_no_request(self) -> None:
        fixture = self.start(header_timeout=0.2, heartbeat=0.2)
        client = await fixture.connect()
        self.assertEqual(await self.outcome_of(fixture, client), "no response")

    async def test_request_byte_by_byte(self) -> None:
        def choose(request: ReceivedRequest) -> Script:
            return (*good_response(stream=request.is_streaming), Wait(0.05), Close())

        fixture = RunningDaemon(self, choose)
        self.events.clear()
        client = await fixture.connect()
        sent = encode_request(chat(), Connection="close")
        client.play((Send(sent, piece_size=1),))
        await client.when_closed
        self.assertEqual(judge(bytes(client.received), closed=True).outcome, "complete")
        await fixture.wait_until_idle()
        self.assert_quiet()
