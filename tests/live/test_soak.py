"""
A soak: hundreds of clients, good and bad, and a backend that fails them in every way, for a while.

    BLOCKOPS_SOAK_SECONDS=3600 BLOCKOPS_SOAK_SEED=1 bash tests/live/run tests.live.test_soak

Which client comes and what the backend does to it is drawn from a seed, which is printed. A stream
that its client did not cut must say what the backend was told to say, or that it could not. And
when all have left, blockops must hold what it held before: that is looked at twice, after a third
of the time and at the end, so that what only had to be filled once is not taken for a leak.
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

from tests.faults.reading import Judged, judge
from tests.live.harness import LONG, ask, check_peace
from tests.live.plays import ENDLESS, Play, number_of, perform
from tests.live.watched import Watched
from tests.live.wires import Heard, Stage, Wire, allow_files, connect, post

SECONDS = float(os.environ.get("BLOCKOPS_SOAK_SECONDS", "180"))
SEED = int(os.environ.get("BLOCKOPS_SOAK_SEED") or random.randrange(1 << 32))
CLIENTS = 300
SESSIONS = 100

#: Seconds; only faults take so long, not what a busy machine does: nothing is judged by time.
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
    # A backend that is away for a second is asked again soon: the soak is about what comes then.
    "circuit-pause": 1,
    "max-sessions": SESSIONS,
    "log-size": "1m",
    "max-connections": 5000,
}


class Soak(SynchronousTestCase):
    skip = LONG or (None if SECONDS else "BLOCKOPS_SOAK_SECONDS is 0")

    def test_all_is_true_and_nothing_is_left(self):
        print(f"seed {SEED}, {SECONDS:.0f} s, {CLIENTS} clients")  # noqa: T201
        allow_files(4 * CLIENTS)
        asyncio.run(self.soak())

    async def soak(self) -> None:
        self.crowd = Crowd(SEED)
        async with Stage(self.crowd.perform) as stage:
            daemon = await asyncio.to_thread(self.start, stage)
            await self.crowd.visit(daemon, stage, SECONDS / 3)
            before = await asyncio.to_thread(self.quiet, daemon)
            paid = self.crowd.visits
            await self.crowd.visit(daemon, stage, SECONDS * 2 / 3)
            after = await asyncio.to_thread(self.quiet, daemon)
            await asyncio.wait_for(stage.until_empty(), 10 * STALL)
        print(f"{self.crowd}; {before['rss']:,} bytes, then {after['rss']:,}")  # noqa: T201
        self.assertFalse(self.crowd.wrong, "\n".join(self.crowd.wrong))
        self.assert_the_same(before, after, visits=self.crowd.visits - paid)
        await asyncio.to_thread(check_peace, self, daemon)

    def start(self, stage: Stage) -> Watched:
        options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
        # Without this the system's allocator learns from large events to keep what is freed.
        environ = {"MALLOC_MMAP_THRESHOLD_": "131072"}
        folder = Path(self.mktemp()).resolve()
        daemon = Watched(folder, "--backend", stage.url, *options, environ=environ)
        self.addCleanup(daemon.process.kill)
        daemon.wait_for_port(("127.0.0.1", daemon.port))
        return daemon

    def quiet(self, daemon: Watched) -> dict[str, Any]:
        """Wait until nobody is served any more, and return what the daemon then holds."""
        end = time.monotonic() + 10 * STALL
        while True:
            held = daemon.look()
            busy = held["live"] or held["objects"].get("blockops.server.connection.Channel", 0)
            if not busy and not daemon.connections():
                break
            self.assertLess(
                time.monotonic(), end, f"somebody stays: {held}, {daemon.connections()}"
            )
            time.sleep(0.5)
        vitals = ask(daemon.url, method="GET", path="/health").json()
        self.assertEqual((vitals["running"], vitals["waiting"]), (0, 0))
        self.assertLessEqual(vitals["sessions"], SESSIONS)
        self.assertEqual(vitals["log_lines_lost"], 0)
        held = self.without_us(daemon)
        files = psutil.Process(daemon.process.pid).num_fds()
        return held | {"files": files, "rss": daemon.rss()}

    def without_us(self, daemon: Watched) -> dict[str, Any]:
        """Return what the daemon holds once the connection that asked for its health is gone."""
        while daemon.connections():
            time.sleep(0.1)
        return daemon.look()

    def assert_the_same(
        self, before: dict[str, Any], after: dict[str, Any], *, visits: int
    ) -> None:
        self.assertEqual(after["calls"], before["calls"], "timers")
        self.assertEqual(after["files"], before["files"], "file descriptors")
        for name, count in after["objects"].items():
            # Those that will be called are compared above; cancelled ones stay until they are due.
            if name.startswith("builtins.") or name == "twisted.internet.base.DelayedCall":
                continue
            # What is remembered of sessions is bounded, and is full by then.
            slack = 2 * SESSIONS if "conversation" in name else 5
            self.assertLessEqual(count, before["objects"].get(name, 0) + slack, name)
        # Lists and tuples have no names to be compared by: there are a few more or less for each
        # session that is remembered. What a visit leaves behind shows by the hundreds.
        containers = [sum(held["objects"].values()) for held in (before, after)]
        self.assertLess(containers[1] - containers[0], 2 * SESSIONS + visits / 100, "objects")
        self.assertLess(after["rss"], before["rss"] * 1.1, "memory")


class Crowd:
    """
    Clients who come one after the other, hundreds at a time.

    :ivar wrong: what was wrong with answers that their clients did not cut
    :ivar visits: how many have come
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._heard: set[int] = set()
        self._tally: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.visits = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(self._tally.items()))

    async def perform(self, wire: Wire, heard: Heard) -> None:
        """Be the backend."""
        number = number_of(heard.json())
        self._heard.add(number)
        await perform(wire, Play(self._seed, number).script())

    async def visit(self, daemon: Watched, stage: Stage, seconds: float) -> None:
        """Let clients come for so many seconds, and wait for the last one's end."""
        end = time.monotonic() + seconds
        visits = [self._come(daemon, end) for _ in range(CLIENTS)]
        away = asyncio.create_task(self._go_away(stage))
        try:
            await asyncio.wait_for(asyncio.gather(*visits), seconds + 20 * STALL)
        finally:
            away.cancel()

    async def _go_away(self, stage: Stage) -> None:
        """Let the backend be away for a moment now and then, as one that is restarted."""
        while True:
            await asyncio.sleep(20)
            self._tally["times away"] += 1
            await stage.leave()
            await asyncio.sleep(1)
            await stage.come_back()

    async def _come(self, daemon: Watched, end: float) -> None:
        while time.monotonic() < end and len(self.wrong) < 20:
            number = self.visits
            self.visits += 1
            play = Play(self._seed, number)
            visit = Visit(daemon.port, play, random.Random(f"{self._seed}/visit {number}"))
            try:
                seen = await visit.pay()
            except AssertionError as error:
                self.wrong.append(f"{play}: {error}")
            except (OSError, EOFError, ValueError) as error:
                if not visit.cuts:
                    self.wrong.append(f"{play}: {error!r}")
            else:
                self._take(play, seen)
                if seen is not None and seen.outcome.startswith("503"):
                    await asyncio.sleep(0.5)  # as it was asked to
            self._tally[visit.manner] += 1

    def _take(self, play: Play, seen: Judged | None) -> None:
        if seen is None:
            return
        heard = self._heard & {play.number}
        self._heard -= heard
        wrong = play.wrong(seen, heard=bool(heard))
        if wrong is not None:
            self.wrong.append(wrong)
        self._tally["whole answers" if seen.outcome == "whole" else "errors told"] += 1
        if seen.outcome != "whole" and play.number not in heard:
            self._tally[f"told {seen.outcome} before the backend heard of them"] += 1


#: What clients do, and how many of them.
MANNERS = {
    "stayed": 50,
    "kept their connection": 10,
    "read slowly": 5,
    "left": 20,
    "sent half a request": 4,
    "sent half a request and waited": 2,
    "did not read": 3,
    "sent noise": 3,
    "sent nothing": 3,
}


class Visit:
    """
    One client.

    :ivar manner: what it does, one of `MANNERS`
    :ivar cuts: it does not wait for a whole answer
    """

    def __init__(self, port: int, play: Play, dice: random.Random) -> None:
        self._port = port
        self._play = play
        self._dice = dice
        self.manner = dice.choices(list(MANNERS), list(MANNERS.values()))[0]
        if play.fault in ENDLESS:
            self.manner = "left"
        elif play.fault == "an event of 7 MiB" and self.manner == "read slowly":
            # One event is one thing to blockops: whoever reads it for too long does not read.
            self.manner = "stayed"
        self.cuts = self.manner not in {"stayed", "kept their connection", "read slowly"}

    async def pay(self) -> Judged | None:
        """
        Come, ask and leave; return the answer, if it was waited for.

        :raises AssertionError: the answer could be taken for what it is not
        """
        slow = self.manner in {"read slowly", "did not read"}
        wire = await connect(self._port, receive=4096 if slow else None)
        try:
            return await _MANNERS[self.manner](self, wire)
        finally:
            await wire.close()

    async def _stay(self, wire: Wire) -> Judged:
        await wire.send(post(self._play.body, "/v1/chat/completions", "Connection: close"))
        return judge(await wire.reader.read(), closed=True)

    async def _keep(self, wire: Wire) -> Judged:
        await wire.send(post(self._play.body))
        head = await wire.head()
        kind = head.headers["content-type"]
        body = await wire.whole(head)
        lines = [head.first, f"Content-Type: {kind}", f"Content-Length: {len(body)}", "", ""]
        seen = judge("\r\n".join(lines).encode() + body)
        if head.headers.get("connection") != "close":
            await wire.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await wire.head()).status == 200, "the connection is not good any more"
        return seen

    async def _sip(self, wire: Wire) -> Judged:
        await wire.send(post(self._play.body, "/v1/chat/completions", "Connection: close"))
        received = b""
        size = 200
        while piece := await wire.reader.read(size):
            received += piece
            await asyncio.sleep(0.002)
            # A large answer would take longer than a client may: it is read faster and faster.
            size = min(2 * size, 1 << 16)
        return judge(received, closed=True)

    async def _leave(self, wire: Wire) -> None:
        """Leave after so many bytes, or so much time, whatever is first."""
        await wire.send(post(self._play.body))
        bytes_left = self._dice.choice((1, 100, 1000, 10_000, 1 << 30))
        try:
            async with asyncio.timeout(self._dice.choice((0, 0.01, 0.1, 1, 4))):
                while bytes_left > 0 and (piece := await wire.reader.read(1000)):
                    bytes_left -= len(piece)
        except TimeoutError:
            pass
        if self._dice.random() < 0.5:
            wire.reset()

    async def _half(self, wire: Wire) -> None:
        request = post(self._play.body)
        await wire.send(request[: self._dice.randrange(1, len(request))])
        await asyncio.sleep(self._dice.choice((0, 0.1)))
        if self._dice.random() < 0.5:
            wire.reset()

    async def _half_and_wait(self, wire: Wire) -> None:
        request = post(self._play.body)
        await wire.send(request[: self._dice.randrange(1, len(request))])
        self._assert_refused(await wire.reader.read())

    async def _deaf(self, wire: Wire) -> None:
        await wire.send(post(self._play.body))
        await asyncio.sleep(self._dice.choice((0.5, 3, 1.5 * STALL)))

    async def _noise(self, wire: Wire) -> None:
        request = bytearray(post(self._play.body, "/v1/chat/completions", "Connection: close"))
        for _ in range(self._dice.choice((1, 3, 100))):
            request[self._dice.randrange(60)] = self._dice.randrange(256)
        if self._dice.random() < 0.3:
            request[40:40] = b"X-Long: " + b"x" * 100_000 + b"\r\n"
        await wire.send(bytes(request))
        wire.writer.write_eof()
        await wire.reader.read()

    async def _silent(self, wire: Wire) -> None:
        # A system too busy to take the connection may drop it, and tell only who sends something.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3 * STALL):
                self._assert_refused(await wire.reader.read())

    def _assert_refused(self, answer: bytes) -> None:
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer


_MANNERS = {
    "stayed": Visit._stay,
    "kept their connection": Visit._keep,
    "read slowly": Visit._sip,
    "left": Visit._leave,
    "sent half a request": Visit._half,
    "sent half a request and waited": Visit._half_and_wait,
    "did not read": Visit._deaf,
    "sent noise": Visit._noise,
    "sent nothing": Visit._silent,
}
