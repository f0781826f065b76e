"""
The daemon under strain: crowds that come and go, clients that do not read, a stop in full flight.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live import backends
from tests.live.backends import Backend, Exchange
from tests.live.harness import (
    CHAT,
    LONG,
    Daemon,
    Stream,
    ask,
    open_stream,
    question,
    start_daemon,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEGABYTE = 1_000_000
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class Case(SynchronousTestCase):
    skip = LONG

    def start(self, script: Any, *options: str) -> tuple[Backend, Daemon]:
        backend = Backend(script)
        self.addCleanup(backend.stop)
        return backend, start_daemon(self, "--backend", backend.url, *options)


class Crowd(Case):
    """400 clients for 8 places; half of them are cut off at random moments."""

    clients = 400
    places = 8

    def test_every_place_comes_back(self) -> None:
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")  # noqa: T201 - to be able to run the same crowd again
        dice = random.Random(seed)
        backend, daemon = self.start(
            backends.says(CALL, pause=0.003),
            *("--max-concurrent", str(self.places), "--max-queue", str(self.clients)),
            *("--heartbeat", "0.2"),
        )
        moments = [dice.uniform(0, 4) if number % 2 else None for number in range(self.clients)]
        visits = [Visit(daemon, moment, reset=dice.random() < 0.5) for moment in moments]
        for visit in visits:
            visit.start()
        for visit in visits:
            visit.join(120)

        stayed = [visit for visit in visits if visit.moment is None]
        self.assertEqual([visit.outcome for visit in stayed], ["whole"] * (self.clients // 2))
        self.assertGreater(sum(visit.outcome == "cut" for visit in visits), self.clients // 8)
        self.assert_all_is_back(backend, daemon)

    def assert_all_is_back(self, backend: Backend, daemon: Daemon) -> None:
        self.assertTrue(backend.wait_until(lambda it: it.open == 0))
        self.assertLessEqual(backend.most_at_work, self.places)
        self.assertEqual(daemon.backend_connections(backend.url), 0)
        health = ask(daemon.url, method="GET", path="/health").json()
        self.assertEqual((health["running"], health["waiting"]), (0, 0))
        # Nobody gets an answer before as many as there are places have asked.
        together = threading.Barrier(self.places)
        backend.script = lambda exchange: _together(exchange, together)
        visits = [Visit(daemon, None) for _ in range(self.places)]
        for visit in visits:
            visit.start()
        for visit in visits:
            visit.join(30)
        self.assertEqual([visit.outcome for visit in visits], ["whole"] * self.places)


def _together(exchange: Exchange, barrier: threading.Barrier) -> None:
    barrier.wait(20)
    backends.says(CALL)(exchange)


class Visit(threading.Thread):
    """
    One client.

    :param moment: seconds after which it leaves; None: it stays to the end
    :param reset: it leaves with a RST instead of a FIN
    :ivar outcome: "whole", "cut", or what went wrong
    """

    def __init__(self, daemon: Daemon, moment: float | None, *, reset: bool = False) -> None:
        super().__init__(daemon=True)
        self.moment = moment
        self.outcome = "nothing"
        self._daemon = daemon
        self._reset = reset

    def run(self) -> None:
        with socket.create_connection(("127.0.0.1", self._daemon.port), timeout=100) as client:
            body = json.dumps(question(stream=True, tools=TOOLS)).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            if self.moment is None:
                self.outcome = self._stay(client)
            else:
                self.outcome = self._leave(client, time.monotonic() + self.moment)

    def _stay(self, client: socket.socket) -> str:
        response = http.client.HTTPResponse(client)
        response.begin()
        stream = Stream(response, http.client.HTTPConnection("none")).read()
        whole = (stream.calls, stream.done) == ([("add", {"a": 1, "b": 2})], 1)
        return "whole" if whole else f"{response.status} {stream.text!r} {stream.errors}"

    def _leave(self, client: socket.socket, end: float) -> str:
        while (left := end - time.monotonic()) > 0:
            client.settimeout(left)
            try:
                if client.recv(4096).endswith(b"0\r\n\r\n"):
                    return "too late"
            except TimeoutError:
                break
        if self._reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "cut"


class Flood(Case):
    def test_a_client_that_reads_nothing_costs_nothing(self) -> None:
        size = 200 * MEGABYTE
        backend, daemon = self.start(backends.floods(MEGABYTE), "--client-timeout", "300")
        open_stream(daemon.url, question(stream=True)).read()
        before = daemon.rss()
        backend.script = backends.floods(size)
        stream = open_stream(daemon.url, question(stream=True), within=200)
        wait_for(self.stands_still(backend), "the backend is not slowed down", within=60)
        self.assertLess(backend.requests[1].sent, size // 4)
        self.assertLess(daemon.rss() - before, 4 << 20)

        letters = sum(line.count("~") for line in _lines(stream))
        self.assertEqual((letters, stream.done, stream.errors), (backends.letters(size), 1, []))
        self.assertLess(daemon.rss() - before, 4 << 20)

    def stands_still(self, backend: Backend) -> Callable[[], bool]:
        """Return what says whether the backend sent nothing since it was asked a second ago."""
        sent = [-1]

        def standing() -> bool:
            time.sleep(1)
            sent.append(backend.requests[1].sent if len(backend.requests) > 1 else -1)
            return sent[-1] == sent[-2] >= 0

        return standing


def _lines(stream: Stream) -> Iterator[str]:
    """Yield the stream's lines, and forget them: there are too many to keep."""
    for line in stream.lines():
        stream.chunks.clear()
        yield line


class Stops(Case):
    """SIGTERM while 20 streams are under way."""

    streams = 20

    def begin(self, script: Any, drain: str) -> tuple[Backend, Daemon, list[Stream]]:
        backend, daemon = self.start(script, "--max-concurrent", "20", "--drain", drain)
        body = question(stream=True, tools=TOOLS)
        streams = [open_stream(daemon.url, body) for _ in range(self.streams)]
        for stream in streams:
            next(stream.lines())
        return backend, daemon, streams

    def test_each_stream_comes_to_its_end(self) -> None:
        _, daemon, streams = self.begin(backends.says(CALL, pause=0.05), "20")
        daemon.begin_to_stop()
        for stream in streams:
            stream.read()
            self.assertEqual(stream.calls, [("add", {"a": 1, "b": 2})])
            self.assertEqual((stream.finish_reasons, stream.done), (["tool_calls"], 1))
            self.assertEqual(stream.errors, [])

    def test_a_stream_that_takes_too_long_is_told_so(self) -> None:
        backend, daemon, streams = self.begin(backends.stalls_in_midstream, "0.5")
        daemon.begin_to_stop()
        for stream in streams:
            stream.read()
            self.assertEqual((stream.done, len(stream.errors)), (0, 1))
            self.assertEqual(stream.errors[0]["error"]["code"], "shutting_down")
        self.assertTrue(backend.wait_until(lambda it: it.open == 0))

    def test_new_connections_are_refused_meanwhile(self) -> None:
        _, daemon, streams = self.begin(backends.says(CALL, pause=0.05), "20")
        daemon.begin_to_stop()
        wait_for(lambda: not daemon.listens(), "it still listens")
        for stream in streams:
            self.assertEqual(stream.read().done, 1)

    def test_those_in_the_queue_are_served_too(self) -> None:
        backend, daemon = self.start(backends.says(CALL, pause=0.01), "--max-concurrent", "2")
        visits = [Visit(daemon, None) for _ in range(self.streams)]
        for visit in visits:
            visit.start()
        wait_for(lambda: _waiting(daemon) == self.streams - 2, "not all are queued")
        daemon.begin_to_stop()
        for visit in visits:
            visit.join(30)
        self.assertEqual([visit.outcome for visit in visits], ["whole"] * self.streams)
        self.assertEqual(len(backend.requests), self.streams)


def _waiting(daemon: Daemon) -> int:
    return int(ask(daemon.url, method="GET", path="/health").json()["waiting"])
