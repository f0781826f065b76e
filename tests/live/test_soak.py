"""
A soak test: hundreds of good and bad clients, and a backend with all kinds of faults.

    BLOCKOPS_SOAK_SECONDS=3600 BLOCKOPS_SOAK_SEED=1 bash tests/live/run tests.live.test_soak

The clients' behaviour and the backend's responses are drawn from a seed, which is printed. A client
that reads to the end must receive the backend's text and calls, or an error. After the last client
blockops must have released all resources. Its objects are counted twice, after a third of the time
and at the end, so that a cache that fills once does not count as a leak.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from twisted.trial.unittest import SynchronousTestCase

from tests.faults.responses import Verdict, judge
from tests.live.asyncio_http import (
    AsyncBackend,
    Connection,
    ReceivedRequest,
    connect,
    encode_post,
    raise_file_limit,
)
from tests.live.harness import CHAT_PATH, SKIP_UNLESS_LIVE, assert_clean_exit, send_request
from tests.live.inspectable_daemon import InspectableDaemon
from tests.live.scenarios import ENDLESS_FAULTS, Scenario, play_script, scenario_number

SECONDS = float(os.environ.get("BLOCKOPS_SOAK_SECONDS", "180"))
SEED = int(os.environ.get("BLOCKOPS_SOAK_SEED") or random.randrange(1 << 32))
CLIENTS = 300
SESSIONS = 100

#: Timeout in seconds: only faults last this long, even on a busy machine. No test measures time.
STALL = 15

OPTIONS = {
    "max-concurrent": 150,
    "max-queue": 2000,
    "heartbeat": 1,
    "first-byte-timeout": STALL,
    "idle-timeout": STALL,
    "header-timeout": STALL,
    "client-timeout": STALL,
    "max-answer": "1m",
    # Retry soon after the backend was stopped for a second: the test is about the time after that.
    "circuit-pause": 1,
    "max-sessions": SESSIONS,
    "log-size": "1m",
    "max-connections": 5000,
}


class SoakTests(SynchronousTestCase):
    skip = SKIP_UNLESS_LIVE or (None if SECONDS else "BLOCKOPS_SOAK_SECONDS is 0")

    def test_responses_are_correct_and_nothing_leaks(self):
        print(f"seed {SEED}, {SECONDS:.0f} s, {CLIENTS} clients")  # noqa: T201
        raise_file_limit(4 * CLIENTS)
        asyncio.run(self.soak())

    async def soak(self) -> None:
        self.pool = ClientPool(SEED)
        async with AsyncBackend(self.pool.respond) as backend:
            daemon = await asyncio.to_thread(self.start, backend)
            await self.pool.run_clients(daemon, backend, SECONDS / 3)
            before = await asyncio.to_thread(self.report_when_idle, daemon)
            earlier_clients = self.pool.clients_started
            await self.pool.run_clients(daemon, backend, SECONDS * 2 / 3)
            after = await asyncio.to_thread(self.report_when_idle, daemon)
            await asyncio.wait_for(backend.wait_until_idle(), 10 * STALL)
        print(f"{self.pool}; {before['rss']:,} bytes, then {after['rss']:,}")  # noqa: T201
        self.assertFalse(self.pool.problems, "\n".join(self.pool.problems))
        client_count = self.pool.clients_started - earlier_clients
        self.assert_no_leak(before, after, client_count=client_count)
        await asyncio.to_thread(assert_clean_exit, self, daemon)

    def start(self, backend: AsyncBackend) -> InspectableDaemon:
        options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
        # A fixed threshold: glibc otherwise raises it after large events and keeps freed memory.
        environ = {"MALLOC_MMAP_THRESHOLD_": "131072"}
        folder = Path(self.mktemp()).resolve()
        daemon = InspectableDaemon(folder, "--backend", backend.url, *options, environ=environ)
        self.addCleanup(daemon.process.kill)
        daemon.wait_for_port(("127.0.0.1", daemon.port))
        return daemon

    def report_when_idle(self, daemon: InspectableDaemon) -> dict[str, Any]:
        """Wait until no request and no connection is open, and return the daemon's report."""
        end = time.monotonic() + 10 * STALL
        while True:
            report = daemon.inspect()
            is_busy = report["in_flight"] or report["objects"].get(
                "blockops.server.connection.ClientConnection", 0
            )
            if not is_busy and not daemon.connections():
                break
            self.assertLess(
                time.monotonic(), end, f"connections stay: {report}, {daemon.connections()}"
            )
            time.sleep(0.5)
        health = send_request(daemon.url, method="GET", path="/health").json()
        self.assertEqual((health["running"], health["waiting"]), (0, 0))
        self.assertLessEqual(health["sessions"], SESSIONS)
        self.assertEqual(health["log_lines_lost"], 0)
        report = self.report_without_connections(daemon)
        files = psutil.Process(daemon.process.pid).num_fds()
        return report | {"files": files, "rss": daemon.rss()}

    def report_without_connections(self, daemon: InspectableDaemon) -> dict[str, Any]:
        """Return the report after the connection of the /health request is closed."""
        while daemon.connections():
            time.sleep(0.1)
        return daemon.inspect()

    def assert_no_leak(
        self, before: dict[str, Any], after: dict[str, Any], *, client_count: int
    ) -> None:
        self.assertEqual(after["calls"], before["calls"], "timers")
        self.assertEqual(after["files"], before["files"], "file descriptors")
        for name, count in after["objects"].items():
            # Pending calls are compared above; cancelled ones stay until they are due.
            if name.startswith("builtins.") or name == "twisted.internet.base.DelayedCall":
                continue
            # The number of remembered sessions is bounded, and the bound is reached by then.
            tolerance = 2 * SESSIONS if "conversation" in name else 5
            self.assertLessEqual(count, before["objects"].get(name, 0) + tolerance, name)
        # Built-in types are compared in total: each remembered session has a few lists and tuples
        # more or less. A leak of one object per client exceeds the bound by far.
        totals = [sum(report["objects"].values()) for report in (before, after)]
        self.assertLess(totals[1] - totals[0], 2 * SESSIONS + client_count / 100, "objects")
        self.assertLess(after["rss"], before["rss"] * 1.1, "memory")


class ClientPool:
    """
    Hundreds of concurrent clients, each replaced by a new one when it ends.

    :ivar problems: descriptions of wrong responses, without those of early disconnects
    :ivar clients_started: the number of clients so far
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._reached_backend: set[int] = set()
        self._counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.clients_started = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self._counts.items()))

    async def respond(self, connection: Connection, request: ReceivedRequest) -> None:
        """Play the scenario of `request` as the backend."""
        number = scenario_number(request.json())
        self._reached_backend.add(number)
        await play_script(connection, Scenario(self._seed, number).script())

    async def run_clients(
        self, daemon: InspectableDaemon, backend: AsyncBackend, seconds: float
    ) -> None:
        """Start clients for `seconds`, and wait for the end of the last one."""
        end = time.monotonic() + seconds
        loops = [self._run_client(daemon, end) for _ in range(CLIENTS)]
        restarts = asyncio.create_task(self._restart_backend(backend))
        try:
            await asyncio.wait_for(asyncio.gather(*loops), seconds + 20 * STALL)
        finally:
            restarts.cancel()

    async def _restart_backend(self, backend: AsyncBackend) -> None:
        """Stop the backend for a second every 20 seconds, like a backend that restarts."""
        while True:
            await asyncio.sleep(20)
            self._counts["backend stops"] += 1
            await backend.stop_listening()
            await asyncio.sleep(1)
            await backend.start_listening()

    async def _run_client(self, daemon: InspectableDaemon, end: float) -> None:
        while time.monotonic() < end and len(self.problems) < 20:
            number = self.clients_started
            self.clients_started += 1
            scenario = Scenario(self._seed, number)
            dice = random.Random(f"{self._seed}/client {number}")
            client = SoakClient(daemon.port, scenario, dice)
            try:
                verdict = await client.run()
            except AssertionError as error:
                self.problems.append(f"{scenario}: {error}")
            except (OSError, EOFError, ValueError) as error:
                if not client.disconnects_early:
                    self.problems.append(f"{scenario}: {error!r}")
            else:
                self._check(scenario, verdict)
                if verdict is not None and verdict.outcome.startswith("503"):
                    await asyncio.sleep(0.5)  # Retry-After, shortened.
            self._counts[client.behaviour] += 1

    def _check(self, scenario: Scenario, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        reached_backend = scenario.number in self._reached_backend
        self._reached_backend.discard(scenario.number)
        problem = scenario.find_problem(verdict, reached_backend=reached_backend)
        if problem is not None:
            self.problems.append(problem)
        is_complete = verdict.outcome == "complete"
        self._counts["complete responses" if is_complete else "error responses"] += 1
        if not is_complete and not reached_backend:
            self._counts[f"received {verdict.outcome} before the request reached the backend"] += 1


#: The behaviours of clients and their weights.
BEHAVIOURS = {
    "read to the end": 50,
    "reused their connection": 10,
    "read slowly": 5,
    "disconnected": 20,
    "sent half a request": 4,
    "sent half a request and waited": 2,
    "did not read": 3,
    "sent noise": 3,
    "sent nothing": 3,
}


class SoakClient:
    """
    One client.

    :ivar behaviour: one of `BEHAVIOURS`
    :ivar disconnects_early: True if it does not wait for the end of the response
    """

    def __init__(self, port: int, scenario: Scenario, dice: random.Random) -> None:
        self._port = port
        self._scenario = scenario
        self._random = dice
        self.behaviour = dice.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))[0]
        if scenario.fault in ENDLESS_FAULTS:
            self.behaviour = "disconnected"
        elif scenario.fault == "an event of 7 MiB" and self.behaviour == "read slowly":
            # blockops measures progress by events: reading one this large slowly is a timeout.
            self.behaviour = "read to the end"
        self.disconnects_early = self.behaviour not in {
            "read to the end",
            "reused their connection",
            "read slowly",
        }

    async def run(self) -> Verdict | None:
        """
        Run the client; return its view of the response, or None if it did not read to the end.

        :raises AssertionError: the response could mislead a client
        """
        is_slow = self.behaviour in {"read slowly", "did not read"}
        connection = await connect(self._port, receive_buffer=4096 if is_slow else None)
        try:
            return await _BEHAVIOUR_METHODS[self.behaviour](self, connection)
        finally:
            await connection.close()

    async def _read_to_end(self, connection: Connection) -> Verdict:
        await connection.send(encode_post(self._scenario.body, CHAT_PATH, "Connection: close"))
        return judge(await connection.reader.read(), closed=True)

    async def _keep_connection(self, connection: Connection) -> Verdict:
        await connection.send(encode_post(self._scenario.body))
        head = await connection.read_head()
        content_type = head.headers["content-type"]
        body = await connection.read_body(head)
        lines = [
            head.first_line,
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "",
            "",
        ]
        verdict = judge("\r\n".join(lines).encode() + body)
        if head.headers.get("connection") != "close":
            await connection.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await connection.read_head()).status == 200, "the connection cannot be reused"
        return verdict

    async def _read_slowly(self, connection: Connection) -> Verdict:
        await connection.send(encode_post(self._scenario.body, CHAT_PATH, "Connection: close"))
        received = b""
        size = 200
        while piece := await connection.reader.read(size):
            received += piece
            await asyncio.sleep(0.002)
            # Read faster and faster: a large response would exceed the client timeout.
            size = min(2 * size, 1 << 16)
        return judge(received, closed=True)

    async def _disconnect(self, connection: Connection) -> None:
        """Disconnect after a random number of bytes or a random time, whichever is first."""
        await connection.send(encode_post(self._scenario.body))
        remaining = self._random.choice((1, 100, 1000, 10_000, 1 << 30))
        try:
            async with asyncio.timeout(self._random.choice((0, 0.01, 0.1, 1, 4))):
                while remaining > 0 and (piece := await connection.reader.read(1000)):
                    remaining -= len(piece)
        except TimeoutError:
            pass
        if self._random.random() < 0.5:
            connection.reset()

    async def _send_half(self, connection: Connection) -> None:
        request = encode_post(self._scenario.body)
        await connection.send(request[: self._random.randrange(1, len(request))])
        await asyncio.sleep(self._random.choice((0, 0.1)))
        if self._random.random() < 0.5:
            connection.reset()

    async def _send_half_and_wait(self, connection: Connection) -> None:
        request = encode_post(self._scenario.body)
        await connection.send(request[: self._random.randrange(1, len(request))])
        self._assert_rejected(await connection.reader.read())

    async def _never_read(self, connection: Connection) -> None:
        await connection.send(encode_post(self._scenario.body))
        await asyncio.sleep(self._random.choice((0.5, 3, 1.5 * STALL)))

    async def _send_noise(self, connection: Connection) -> None:
        request = bytearray(encode_post(self._scenario.body, CHAT_PATH, "Connection: close"))
        for _ in range(self._random.choice((1, 3, 100))):
            request[self._random.randrange(60)] = self._random.randrange(256)
        if self._random.random() < 0.3:
            request[40:40] = b"X-Long: " + b"x" * 100_000 + b"\r\n"
        await connection.send(bytes(request))
        connection.writer.write_eof()
        await connection.reader.read()

    async def _send_nothing(self, connection: Connection) -> None:
        # A busy system may drop a connection from its backlog without notice to a silent client.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3 * STALL):
                self._assert_rejected(await connection.reader.read())

    def _assert_rejected(self, response: bytes) -> None:
        assert not response or response.startswith(b"HTTP/1.1 4"), response


_BEHAVIOUR_METHODS = {
    "read to the end": SoakClient._read_to_end,
    "reused their connection": SoakClient._keep_connection,
    "read slowly": SoakClient._read_slowly,
    "disconnected": SoakClient._disconnect,
    "sent half a request": SoakClient._send_half,
    "sent half a request and waited": SoakClient._send_half_and_wait,
    "did not read": SoakClient._never_read,
    "sent noise": SoakClient._send_noise,
    "sent nothing": SoakClient._send_nothing,
}
