"""
The daemon under load: many clients that disconnect, clients that do not read, a stop under load.
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
    CHAT_PATH,
    SKIP_UNLESS_LIVE,
    TIMEOUT,
    Daemon,
    Stream,
    chat_body,
    open_stream,
    send_request,
    start_daemon,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEGABYTE = 1_000_000
#: The request's `seed` of clients that disconnect in the middle of their stream.
MID_STREAM_SEED = 7
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class LoadTestCase(SynchronousTestCase):
    skip = SKIP_UNLESS_LIVE

    def start(self, script: Any, *options: str) -> tuple[Backend, Daemon]:
        backend = Backend(script)
        self.addCleanup(backend.stop)
        return backend, start_daemon(self, "--backend", backend.url, *options)


class DisconnectLoadTests(LoadTestCase):
    """400 clients for 8 slots; half of them disconnect at a random time."""

    client_count = 400
    slots = 8

    def test_every_slot_is_released(self) -> None:
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")  # noqa: T201 - to repeat the same run
        dice = random.Random(seed)
        backend, daemon = self.start(
            _stream_or_stall,
            *("--max-concurrent", str(self.slots), "--max-queue", str(self.client_count)),
            *("--heartbeat", "0.2"),
        )
        patient = [LoadClient(daemon) for _ in range(self.client_count // 2)]
        impatient = [
            LoadClient(daemon, disconnect=self.random_disconnect(dice), reset=dice.random() < 0.5)
            for _ in patient
        ]
        load_clients = patient + impatient
        dice.shuffle(load_clients)
        LoadClient.run_all(load_clients)

        self.assertEqual([client.outcome for client in patient], ["complete"] * len(patient))
        # The others disconnected in the queue, in their stream or, if late, after its end.
        outcomes = {each.outcome for each in impatient}
        self.assertLessEqual(outcomes, {"disconnected", "too late"})
        mid_stream = [each for each in impatient if each.disconnect and each.disconnect.events]
        self.assertEqual({each.outcome for each in mid_stream}, {"disconnected"})
        self.assertGreater(len(mid_stream), self.client_count // 10)
        # The backend had begun these responses.
        incomplete = [exchange for exchange in backend.requests if not exchange.is_complete]
        self.assertGreaterEqual(len(incomplete), len(mid_stream))
        self.assert_slots_free(backend, daemon)

    def random_disconnect(self, dice: random.Random) -> DisconnectPoint:
        """Return when a client disconnects: after some time, mostly queued, or in its stream."""
        if dice.random() < 0.5:
            return DisconnectPoint(seconds=dice.uniform(0, 4))
        return DisconnectPoint(events=dice.randrange(1, 4))

    def assert_slots_free(self, backend: Backend, daemon: Daemon) -> None:
        self.assertTrue(backend.wait_until(lambda it: it.open_connections == 0))
        self.assertLessEqual(backend.max_active, self.slots)
        self.assertEqual(daemon.backend_connections(backend.url), 0)
        health = send_request(daemon.url, method="GET", path="/health").json()
        self.assertEqual((health["running"], health["waiting"]), (0, 0))
        # No response begins before as many requests as there are slots have arrived.
        barrier = threading.Barrier(self.slots)
        backend.script = lambda exchange: _respond_together(exchange, barrier)
        load_clients = [LoadClient(daemon) for _ in range(self.slots)]
        LoadClient.run_all(load_clients)
        self.assertEqual([client.outcome for client in load_clients], ["complete"] * self.slots)


def _stream_or_stall(exchange: Exchange) -> None:
    """Stream a call; for `MID_STREAM_SEED` stop before its end and wait for the disconnect."""
    if exchange.json().get("seed") == MID_STREAM_SEED:
        exchange.start_chunked()
        exchange.send_chunk(backends.event({"role": "assistant", "content": ""}))
        exchange.send_chunk(backends.event({"content": "Well. " + CALL}))
        exchange.send_chunk(backends.event({"content": " Done."}))
        exchange.wait_for_disconnect(timeout=TIMEOUT)
    else:
        backends.stream_text(CALL, pause=0.003)(exchange)


def _respond_together(exchange: Exchange, barrier: threading.Barrier) -> None:
    barrier.wait(TIMEOUT)
    backends.stream_text(CALL)(exchange)


@dataclass(frozen=True)
class DisconnectPoint:
    """
    When a client disconnects.

    :ivar seconds: after its request; a client that reaches the default indicates a failure
    :ivar events: after this many events of its stream, which then stalls; 0 to use the time only
    """

    seconds: float = 4 * TIMEOUT
    events: int = 0


class LoadClient(threading.Thread):
    """
    One client.

    :param disconnect: when it disconnects, or None if it reads to the end
    :param reset: True to disconnect with a RST instead of a FIN
    :ivar outcome: "complete", "disconnected", "too late", or a description of the failure
    """

    def __init__(
        self, daemon: Daemon, *, disconnect: DisconnectPoint | None = None, reset: bool = False
    ) -> None:
        super().__init__(daemon=True)
        self.disconnect = disconnect
        self.outcome = "no response"
        self._daemon = daemon
        self._reset = reset

    @classmethod
    def run_all(cls, load_clients: list[LoadClient]) -> None:
        """Run all clients at the same time and wait for their end."""
        for client in load_clients:
            client.start()
        cls.join_all(load_clients)

    @staticmethod
    def join_all(load_clients: list[LoadClient], timeout: float = 4 * TIMEOUT) -> None:
        """Wait for all clients; one that is late keeps the outcome "no response"."""
        end = time.monotonic() + timeout
        for client in load_clients:
            client.join(max(0, end - time.monotonic()))

    def run(self) -> None:
        with socket.create_connection(
            ("127.0.0.1", self._daemon.port), timeout=4 * TIMEOUT
        ) as client:
            mid_stream = self.disconnect is not None and self.disconnect.events > 0
            # blockops passes `seed` unchanged, so it selects the backend's behaviour.
            request_body = chat_body(
                stream=True, tools=TOOLS, seed=MID_STREAM_SEED if mid_stream else 0
            )
            body = json.dumps(request_body).encode()
            head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            if self.disconnect is None:
                self.outcome = self._read_to_end(client)
            else:
                self.outcome = self._disconnect(client, self.disconnect)

    def _read_to_end(self, client: socket.socket) -> str:
        response = http.client.HTTPResponse(client)
        response.begin()
        stream = Stream(response, http.client.HTTPConnection("none")).read()
        is_complete = (stream.calls, stream.done_count) == ([("add", {"a": 1, "b": 2})], 1)
        return "complete" if is_complete else f"{response.status} {stream.text!r} {stream.errors}"

    def _disconnect(self, client: socket.socket, disconnect: DisconnectPoint) -> str:
        end = time.monotonic() + disconnect.seconds
        events = 0
        while (seconds_left := end - time.monotonic()) > 0 and events < max(disconnect.events, 1):
            client.settimeout(seconds_left)
            try:
                received = client.recv(4096)
            except TimeoutError:
                break
            if received.endswith(b"0\r\n\r\n"):
                return "too late"
            events += received.count(b"data: ") if disconnect.events else 0
        if self._reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "disconnected"


class SlowReaderTests(LoadTestCase):
    def test_a_client_that_does_not_read_uses_no_memory(self) -> None:
        size = 200 * MEGABYTE
        backend, daemon = self.start(backends.stream_flood(MEGABYTE), "--client-timeout", "300")
        open_stream(daemon.url, chat_body(stream=True)).read()
        before = daemon.rss()
        backend.script = backends.stream_flood(size)
        stream = open_stream(daemon.url, chat_body(stream=True), timeout=200)
        wait_for(self.has_stalled(backend), "backpressure does not reach the backend", timeout=60)
        self.assertLess(backend.requests[1].bytes_sent, size // 4)
        self.assertLess(daemon.rss() - before, 4 << 20)

        count = sum(line.count("~") for line in _iter_and_discard(stream))
        self.assertEqual(
            (count, stream.done_count, stream.errors), (backends.flood_length(size), 1, [])
        )
        self.assertLess(daemon.rss() - before, 4 << 20)

    def has_stalled(self, backend: Backend) -> Callable[[], bool]:
        """Return a function that returns True if the backend sent nothing for one second."""
        sizes = [-1]

        def check() -> bool:
            time.sleep(1)
            sizes.append(backend.requests[1].bytes_sent if len(backend.requests) > 1 else -1)
            return sizes[-1] == sizes[-2] >= 0

        return check


def _iter_and_discard(stream: Stream) -> Iterator[str]:
    """Yield the stream's lines without recording the chunks, which would fill the memory."""
    for line in stream.iter_lines():
        stream.chunks.clear()
        yield line


class StopTests(LoadTestCase):
    """SIGTERM while 20 streams are open."""

    streams = 20

    def start_streams(self, script: Any, drain: str) -> tuple[Backend, Daemon, list[Stream]]:
        backend, daemon = self.start(script, "--max-concurrent", "20", "--drain", drain)
        body = chat_body(stream=True, tools=TOOLS)
        streams = [open_stream(daemon.url, body) for _ in range(self.streams)]
        for stream in streams:
            next(stream.iter_lines())
        return backend, daemon, streams

    def test_each_stream_is_completed(self) -> None:
        _, daemon, streams = self.start_streams(backends.stream_text(CALL, pause=0.05), "60")
        daemon.send_sigterm()
        for stream in streams:
            stream.read()
            self.assertEqual(stream.calls, [("add", {"a": 1, "b": 2})])
            self.assertEqual((stream.finish_reasons, stream.done_count), (["tool_calls"], 1))
            self.assertEqual(stream.errors, [])

    def test_a_stream_longer_than_the_drain_ends_with_an_error(self) -> None:
        backend, daemon, streams = self.start_streams(backends.stall_mid_stream, "0.5")
        daemon.send_sigterm()
        for stream in streams:
            stream.read()
            self.assertEqual((stream.done_count, len(stream.errors)), (0, 1))
            self.assertEqual(stream.errors[0]["error"]["code"], "shutting_down")
        self.assertTrue(backend.wait_until(lambda it: it.open_connections == 0))

    def test_new_connections_are_refused_during_the_drain(self) -> None:
        _, daemon, streams = self.start_streams(backends.stream_text(CALL, pause=0.05), "60")
        daemon.send_sigterm()
        wait_for(lambda: not daemon.is_listening(), "it still listens")
        for stream in streams:
            self.assertEqual(stream.read().done_count, 1)

    def test_queued_requests_are_served(self) -> None:
        gate = backends.Gate()

        def wait_and_stream(exchange: Exchange) -> None:
            gate.wait()
            backends.stream_text(CALL)(exchange)

        backend, daemon = self.start(wait_and_stream, "--max-concurrent", "2", "--drain", "60")
        load_clients = [LoadClient(daemon) for _ in range(self.streams)]
        for client in load_clients:
            client.start()
        wait_for(lambda: _queue_length(daemon) == self.streams - 2, "not all are queued")
        daemon.send_sigterm()
        wait_for(lambda: not daemon.is_listening(), "it still listens")
        gate.open(self.streams)
        LoadClient.join_all(load_clients)
        self.assertEqual([client.outcome for client in load_clients], ["complete"] * self.streams)
        self.assertEqual(len(backend.requests), self.streams)


def _queue_length(daemon: Daemon) -> int:
    return int(send_request(daemon.url, method="GET", path="/health").json()["waiting"])
