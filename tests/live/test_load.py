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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live import backends
from tests.live.backends import Backend, Exchange
from tests.live.harness import (
    CHAT,
    LONG,
    PATIENCE,
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
#: What clients say who leave amidst their stream.
AMIDST = 7
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class Case(SynchronousTestCase):
    skip = LONG

    def start(self, script: Any, *options: str) -> tuple[Backend, Daemon]:
        backend = Backend(script)
        self.addCleanup(backend.stop)
        return backend, start_daemon(self, "--backend", backend.url, *options)


class Crowd(Case):
    """400 clients for 8 places; half of them leave, at any moment."""

    clients = 400
    places = 8

    def test_every_place_comes_back(self) -> None:
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")  # noqa: T201 - to be able to run the same crowd again
        dice = random.Random(seed)
        backend, daemon = self.start(
            _says_or_waits,
            *("--max-concurrent", str(self.places), "--max-queue", str(self.clients)),
            *("--heartbeat", "0.2"),
        )
        stay = [Visit(daemon) for _ in range(self.clients // 2)]
        leave = [Visit(daemon, leaves=self.leaving(dice), reset=dice.random() < 0.5) for _ in stay]
        visits = stay + leave
        dice.shuffle(visits)
        Visit.pay(visits)

        self.assertEqual([visit.outcome for visit in stay], ["whole"] * len(stay))
        # The others left in the queue, in their stream or, those who took their time, behind it.
        outcomes = {each.outcome for each in leave}
        self.assertLessEqual(outcomes, {"cut", "too late"})
        amidst = [each for each in leave if each.leaves and each.leaves.events]
        self.assertEqual({each.outcome for each in amidst}, {"cut"})
        self.assertGreater(len(amidst), self.clients // 10)
        # The backend was at work for those.
        unanswered = [one for one in backend.requests if not one.answered]
        self.assertGreaterEqual(len(unanswered), len(amidst))
        self.assert_all_is_back(backend, daemon)

    def leaving(self, dice: random.Random) -> Leaving:
        """Return when a client leaves: some time, mostly in the queue, or within its stream."""
        if dice.random() < 0.5:
            return Leaving(seconds=dice.uniform(0, 4))
        return Leaving(events=dice.randrange(1, 4))

    def assert_all_is_back(self, backend: Backend, daemon: Daemon) -> None:
        self.assertTrue(backend.wait_until(lambda it: it.open == 0))
        self.assertLessEqual(backend.most_at_work, self.places)
        self.assertEqual(daemon.backend_connections(backend.url), 0)
        health = ask(daemon.url, method="GET", path="/health").json()
        self.assertEqual((health["running"], health["waiting"]), (0, 0))
        # Nobody gets an answer before as many as there are places have asked.
        together = threading.Barrier(self.places)
        backend.script = lambda exchange: _together(exchange, together)
        visits = [Visit(daemon) for _ in range(self.places)]
        Visit.pay(visits)
        self.assertEqual([visit.outcome for visit in visits], ["whole"] * self.places)


def _says_or_waits(exchange: Exchange) -> None:
    """Stream a call; for whoever leaves amidst it, all but its end, until the client has left."""
    if exchange.json().get("seed") == AMIDST:
        exchange.begin()
        exchange.chunk(backends.event({"role": "assistant", "content": ""}))
        exchange.chunk(backends.event({"content": "Well. " + CALL}))
        exchange.chunk(backends.event({"content": " Done."}))
        exchange.peer_is_gone(within=PATIENCE)
    else:
        backends.says(CALL, pause=0.003)(exchange)


def _together(exchange: Exchange, barrier: threading.Barrier) -> None:
    barrier.wait(PATIENCE)
    backends.says(CALL)(exchange)


@dataclass(frozen=True)
class Leaving:
    """
    When a client leaves.

    :ivar seconds: from its request on; at `PATIENCE` something is wrong
    :ivar events: of its stream, which stands still then; 0: it leaves by the clock
    """

    seconds: float = 4 * PATIENCE
    events: int = 0


class Visit(threading.Thread):
    """
    One client.

    :param leaves: when it leaves; None: it stays to the end
    :param reset: it leaves with a RST instead of a FIN
    :ivar outcome: "whole", "cut", or what went wrong
    """

    def __init__(
        self, daemon: Daemon, *, leaves: Leaving | None = None, reset: bool = False
    ) -> None:
        super().__init__(daemon=True)
        self.leaves = leaves
        self.outcome = "nothing"
        self._daemon = daemon
        self._reset = reset

    @classmethod
    def pay(cls, visits: list[Visit]) -> None:
        """Let all of `visits` go on at the same time, and wait for their end."""
        for visit in visits:
            visit.start()
        cls.join_all(visits)

    @staticmethod
    def join_all(visits: list[Visit], within: float = 4 * PATIENCE) -> None:
        """Wait for the end of all of `visits`; who is late has the outcome "nothing"."""
        end = time.monotonic() + within
        for visit in visits:
            visit.join(max(0, end - time.monotonic()))

    def run(self) -> None:
        with socket.create_connection(
            ("127.0.0.1", self._daemon.port), timeout=4 * PATIENCE
        ) as client:
            amidst = self.leaves is not None and self.leaves.events > 0
            # A field that blockops does not mind tells the backend of it.
            asked = question(stream=True, tools=TOOLS, seed=AMIDST if amidst else 0)
            body = json.dumps(asked).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            if self.leaves is None:
                self.outcome = self._stay(client)
            else:
                self.outcome = self._leave(client, self.leaves)

    def _stay(self, client: socket.socket) -> str:
        response = http.client.HTTPResponse(client)
        response.begin()
        stream = Stream(response, http.client.HTTPConnection("none")).read()
        whole = (stream.calls, stream.done) == ([("add", {"a": 1, "b": 2})], 1)
        return "whole" if whole else f"{response.status} {stream.text!r} {stream.errors}"

    def _leave(self, client: socket.socket, leaves: Leaving) -> str:
        end = time.monotonic() + leaves.seconds
        events = 0
        while (left := end - time.monotonic()) > 0 and events < max(leaves.events, 1):
            client.settimeout(left)
            try:
                received = client.recv(4096)
            except TimeoutError:
                break
            if received.endswith(b"0\r\n\r\n"):
                return "too late"
            events += received.count(b"data: ") if leaves.events else 0
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
        _, daemon, streams = self.begin(backends.says(CALL, pause=0.05), "60")
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
        _, daemon, streams = self.begin(backends.says(CALL, pause=0.05), "60")
        daemon.begin_to_stop()
        wait_for(lambda: not daemon.listens(), "it still listens")
        for stream in streams:
            self.assertEqual(stream.read().done, 1)

    def test_those_in_the_queue_are_served_too(self) -> None:
        gate = backends.Gate()

        def waits(exchange: Exchange) -> None:
            gate.wait()
            backends.says(CALL)(exchange)

        backend, daemon = self.start(waits, "--max-concurrent", "2", "--drain", "60")
        visits = [Visit(daemon) for _ in range(self.streams)]
        for visit in visits:
            visit.start()
        wait_for(lambda: _waiting(daemon) == self.streams - 2, "not all are queued")
        daemon.begin_to_stop()
        wait_for(lambda: not daemon.listens(), "it still listens")
        gate.open(self.streams)
        Visit.join_all(visits)
        self.assertEqual([visit.outcome for visit in visits], ["whole"] * self.streams)
        self.assertEqual(len(backend.requests), self.streams)


def _waiting(daemon: Daemon) -> int:
    return int(ask(daemon.url, method="GET", path="/health").json()["waiting"])
