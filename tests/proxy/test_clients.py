"""
Clients that leave, at every stage of a request, and those that are slow, over real sockets.

Whatever they do: nothing of theirs is left behind, the backend's connection is closed at once, the
daemon's log has no line of it, and the traffic log says what became of the request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.faults.backend import Asked
from tests.faults.client import FaultyClient, request
from tests.faults.daemon import House, until
from tests.faults.reading import judge
from tests.faults.scripts import (
    CALL,
    CHUNKED,
    HALF_STREAM,
    TEXT,
    Script,
    chunked,
    event,
    head,
    well,
)
from tests.faults.steps import (
    Close,
    Flood,
    HalfClose,
    Read,
    Reset,
    Send,
    Step,
    Until,
    Wait,
)
from tests.world import chat

ASKED = request(chat())
ASKED_WHOLE = request(chat(stream=False))
SPLIT = len(ASKED) - 20

#: How clients leave.
WAYS: dict[str, Step] = {"close": Close(), "half-close": HalfClose(), "reset": Reset()}

#: stage at which they do -> what they do before, what the backend does, and the traffic log's word.
STAGES: dict[str, tuple[Script, Script, str | None]] = {
    "before a byte": ((), (), None),
    "in the request line": ((Send(b"POST /v1/ch"),), (), None),
    "in the headers": ((Send(ASKED[:60]),), (), None),
    "in the body": ((Send(ASKED[:SPLIT]),), (), None),
    "before the backend's headers": ((Send(ASKED),), (), "client left"),
    "in the backend's headers": (
        (Send(ASKED),),
        (Send(b"HTTP/1.1 200 OK\r\nConte"),),
        "client left",
    ),
    "in the stream": (
        (Send(ASKED), Until(b"data: ")),
        (Send(head(CHUNKED) + chunked(HALF_STREAM)),),
        "client left",
    ),
    "in a stream that goes on": (
        (Send(ASKED), Until(b"data: ")),
        (Send(head(CHUNKED)), Flood(chunked(event({"content": "x"})), pause=0.001)),
        "client left",
    ),
    "in the whole answer": (
        (Send(ASKED_WHOLE),),
        (Send(head("Content-Length: 9999", streams=False) + b"{"),),
        "client left",
    ),
    "behind the end": ((Send(ASKED), Until(b"[DONE]\n\n")), well(streams=True), "done"),
    "while it uploads": (
        (Send(request(b"x" * 1000, "/v1/files")[:-500]),),
        (),
        "client left",
    ),
}


class Quiet(TestCase):
    """Clients that leave nothing behind, not even a line in the log."""

    timeout = 60

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def house(self, script: Script = (), **settings: Any) -> House:
        house = House(self, lambda _: script, **settings)
        self.events.clear()
        return house

    def assert_quiet(self) -> None:
        """Check that the daemon's log has no line."""
        lines = [each for each in self.events if each["log_namespace"].startswith("blockops")]
        self.assertEqual(lines, [])
        troubles = [each for each in self.events if each["log_level"] >= LogLevel.error]
        self.assertEqual(troubles, [])


class Leaving(Quiet):
    """The table."""

    async def leave(self, stage: str, way: str) -> None:
        before, answer, outcome = STAGES[stage]
        house = self.house(answer)
        client = await house.client()
        await client.play(before)
        if outcome == "client left":
            await until(lambda: len(house.daemon.gateway) and house.backend.open)
        client.play((WAYS[way],))
        await house.empty()
        self.assert_quiet()
        outcomes = [record.outcome for record in house.traffic.responses()]
        self.assertEqual(outcomes, [outcome] if outcome else [], f"{stage}, {way}")
        await client.over


def _leaving(stage: str, way: str) -> Callable[[Leaving], Any]:
    async def test(self: Leaving) -> None:
        await self.leave(stage, way)

    return test


for _stage in STAGES:
    for _way in WAYS:
        _name = f"test_{_way}_{_stage}".replace(" ", "_").replace("-", "_").replace("'", "")
        setattr(Leaving, _name, _leaving(_stage, _way))


class InTheQueue(Quiet):
    """One place, which somebody holds."""

    async def leave(self, way: Step) -> None:
        house = self.house(max_concurrent=1)
        running = await house.client()
        await running.play((Send(ASKED),))
        await until(lambda: house.backend.asked)
        waiting = [await house.client() for _ in range(3)]
        for client in waiting:
            client.play((Send(ASKED),))
        await until(lambda: len(house.daemon.gateway) == 4)
        waiting[1].play((way,))
        await until(lambda: len(house.daemon.gateway) == 3)
        running.play((way,))
        await until(lambda: len(house.backend.asked) == 2)
        await until(lambda: house.backend.open == 1)
        for client in waiting:
            client.play((way,))
        await house.empty()
        self.assertEqual(len(house.traffic.responses()), 4)
        self.assert_quiet()

    async def test_leaving_it(self) -> None:
        for way in WAYS.values():
            await self.leave(way)


class Sending(Quiet):
    """Clients that are told off in the middle of what they send, and read only when all is sent."""

    #: More than the system holds of it, on both sides.
    MORE = b"x" * (8 << 20)

    async def told(self, beginning: bytes) -> str:
        house = self.house()
        client = await house.client()
        await client.play((Read(0), Send(beginning), Send(self.MORE)))
        client.play((Read(None),))
        await client.over
        await house.empty()
        self.assert_quiet()
        return judge(bytes(client.received), closed=True).outcome

    async def test_what_is_no_request(self) -> None:
        for beginning, told in (
            (b"GET / HTTP/1.1\r\nX : y\r\n\r\n", "400 None"),
            (b"GET /" + b"x" * 20_000, "414 request_too_large"),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, "431 request_too_large"),
            (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, "431 request_too_large"),
        ):
            self.assertEqual(await self.told(beginning), told)

    async def test_a_body_that_is_none(self) -> None:
        for target in ("/v1/chat/completions", "/v1/x"):
            head = f"POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.assertEqual(await self.told(head.encode() + b"no size\r\n"), "400 None")

    async def test_more_than_the_last_request(self) -> None:
        asked = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        house = self.house()
        client = await house.client()
        await client.play((Read(0), Send(asked + b"x"), Send(self.MORE)))
        client.play((Read(None),))
        await client.over
        self.assertTrue(bytes(client.received).startswith(b"HTTP/1.1 200 "))
        self.assertTrue(bytes(client.received).endswith(b"}"))
        await house.empty()


class Slow(Quiet):
    """Clients that have much time."""

    async def told(self, house: House, client: FaultyClient) -> str:
        await client.over
        await house.empty()
        self.assert_quiet()
        return judge(bytes(client.received), closed=True).outcome

    async def test_who_reads_byte_by_byte_gets_all(self) -> None:
        house = self.house(well(streams=True))
        client = await house.client()
        client.play((Read(1), Send(request(chat(), Connection="close"))))
        await client.over
        judged = judge(bytes(client.received), closed=True)
        self.assertEqual((judged.outcome, judged.text, judged.calls), ("whole", TEXT, (CALL,)))
        await house.empty()
        self.assert_quiet()

    async def test_who_does_not_read_is_dropped(self) -> None:
        flood = Flood(chunked(event({"content": "x" * 10_000})))
        house = self.house((Send(head(CHUNKED)), flood), client_timeout=0.3, heartbeat=0.4)
        client = await house.client()
        client.play((Read(0), Send(ASKED)))
        await house.empty()
        (record,) = house.traffic.responses()
        self.assertEqual(record.outcome, "failed")
        self.assertIn("The client read nothing for 0.3 seconds", record.error or "")
        self.assert_quiet()
        client.reset()
        await client.over

    async def test_half_a_request(self) -> None:
        house = self.house(header_timeout=1.0, heartbeat=0.2)
        clients = [await house.client() for _ in range(4)]
        for size, client in zip((1, 30, 60, SPLIT), clients, strict=True):
            client.play((Send(ASKED[:size]),))
        for client in clients:
            self.assertEqual(await self.told(house, client), "408 request_timeout")

    async def test_headers_that_trickle(self) -> None:
        house = self.house(header_timeout=0.7, heartbeat=0.2)
        client = await house.client()
        client.play((Send(ASKED, at_once=1, pause=0.05),))
        self.assertEqual(await self.told(house, client), "408 request_timeout")
        self.assertEqual(house.backend.asked, [])

    async def test_a_body_that_trickles(self) -> None:
        house = self.house(header_timeout=0.7, heartbeat=0.2)
        client = await house.client()
        begin = ASKED.index(b"\r\n\r\n") + 4
        client.play((Send(ASKED[:begin]), Send(ASKED[begin:], at_once=1, pause=0.05)))
        self.assertEqual(await self.told(house, client), "408 request_timeout")
        self.assertEqual(house.backend.asked, [])

    async def test_who_says_nothing(self) -> None:
        house = self.house(header_timeout=0.2, heartbeat=0.2)
        client = await house.client()
        self.assertEqual(await self.told(house, client), "nothing")

    async def test_a_request_byte_by_byte_is_a_request(self) -> None:
        def choose(asked: Asked) -> Script:
            return (*well(streams=asked.streams), Wait(0.05), Close())

        house = House(self, choose)
        self.events.clear()
        client = await house.client()
        sent = request(chat(), Connection="close")
        client.play((Send(sent, at_once=1),))
        await client.over
        self.assertEqual(judge(bytes(client.received), closed=True).outcome, "whole")
        await house.empty()
        self.assert_quiet()
