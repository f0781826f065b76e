"""What blockops takes: memory after many requests, for an idle stream, for the silent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.backends import DONE, event
from tests.live.harness import LONG, Daemon, question, start_daemon, wait_for
from tests.live.wires import Heard, Stage, Wire, allow_files, connect, post

#: Bounds for what has to come to an end: generous, nothing is judged by them.
PATIENCE = 300


_WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
_FIRST = event({"role": "assistant", "content": "hello"})
_STREAM = _FIRST + event({}, "stop") + DONE
_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "


async def answers(wire: Wire, heard: Heard) -> None:
    """Answer whole, or as a stream, as asked."""
    if heard.json().get("stream"):
        await wire.send(_HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await wire.chunk(_STREAM)
        await wire.send(b"0\r\n\r\n")
    else:
        length = b"Content-Length: %d\r\n\r\n" % len(_WHOLE)
        await wire.send(_HEAD + b"application/json\r\n" + length + _WHOLE)


async def begins(wire: Wire, _: Heard) -> None:
    """Begin a stream and say nothing more until the other side leaves."""
    await wire.send(_HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await wire.chunk(_FIRST)
    await wire.reader.read()


class Case(SynchronousTestCase):
    skip = LONG

    def start(self, stage: Stage, **options: object) -> Daemon:
        options = {"max_connections": 8000, **options}
        words = [
            word
            for name, value in options.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        return start_daemon(self, "--backend", stage.url, *words)

    def allow(self, files: int) -> None:
        try:
            allow_files(files)
        except ValueError as error:
            raise SkipTest(f"{files} files may not be open here: {error}") from None

    async def ask(self, wire: Wire, body: dict[str, Any]) -> None:
        """Ask on `wire` and assert that the answer is whole."""
        await wire.send(post(json.dumps(body).encode()))
        head = await wire.head()
        answer = await wire.whole(head)
        self.assertEqual(head.status, 200, answer)
        if body["stream"]:
            self.assertTrue(answer.endswith(DONE), answer)
        else:
            self.assertEqual(json.loads(answer)["choices"][0]["message"]["content"], "hello")


class ManyRequests(Case):
    few, many, clients = 2000, 20_000, 8

    def test_memory_does_not_grow(self):
        rss = asyncio.run(asyncio.wait_for(self.measure(), PATIENCE))
        print(f"RSS after {self.few}: {rss[0]:,}, after {self.many}: {rss[1]:,} bytes")  # noqa: T201
        self.assertLess(rss[1], rss[0] * 1.05)

    async def measure(self) -> list[int]:
        async with Stage(answers) as stage:
            daemon = await asyncio.to_thread(self.start, stage, max_concurrent=self.clients)
            rss = []
            for first, last in ((0, self.few), (self.few, self.many)):
                numbers = iter(range(first, last))
                await asyncio.gather(*(self.come(daemon, numbers) for _ in range(self.clients)))
                rss.append(daemon.rss())
            self.assertEqual(stage.heard, self.many)
            return rss

    async def come(self, daemon: Daemon, numbers: Any) -> None:
        """Ask number after number; half of them over a connection of their own."""
        kept = await connect(daemon.port)
        for number in numbers:
            # Each is a session of its own, as far as they are remembered.
            body = question(f"hi {number}", stream=number % 4 < 2)
            wire = kept if number % 2 else await connect(daemon.port)
            await self.ask(wire, body)
            if wire is not kept:
                await wire.close()
        await kept.close()


class IdleStreams(Case):
    streams, bound = 1000, 16_000

    def test_each_takes_little(self):
        self.allow(4 * self.streams)
        each = asyncio.run(asyncio.wait_for(self.measure(), PATIENCE))
        print(f"{each:,.0f} bytes for an idle stream")  # noqa: T201
        self.assertLess(each, self.bound)

    async def measure(self) -> float:
        async with Stage(begins) as stage:
            places = self.streams + 100
            daemon = await asyncio.to_thread(self.start, stage, max_concurrent=places)
            warm = [await self.open(daemon) for _ in range(50)]
            before = daemon.rss()
            wires = [await self.open(daemon) for _ in range(self.streams)]
            each = (daemon.rss() - before) / self.streams
            self.assertEqual(stage.open, len(warm) + self.streams)
            for wire in warm + wires:
                await wire.close()
            await stage.until_empty()
            return each

    async def open(self, daemon: Daemon) -> Wire:
        wire = await connect(daemon.port)
        await wire.send(post(json.dumps(question(stream=True)).encode()))
        head = await wire.head()
        self.assertEqual(head.status, 200)
        async for piece in wire.body(head):
            if b"hello" in piece:
                break
        return wire


class Silent(Case):
    silent = 5000

    def test_who_says_nothing_is_gone_and_keeps_nobody_from_being_served(self):
        self.allow(2 * self.silent + 1000)
        served = asyncio.run(asyncio.wait_for(self.crowd(), PATIENCE))
        self.assertGreater(served, 0)

    async def crowd(self) -> int:
        async with Stage(answers) as stage:
            daemon = await asyncio.to_thread(self.start, stage, header_timeout=5)
            wires = [await connect(daemon.port) for _ in range(self.silent)]
            gone = asyncio.gather(*(wire.reader.read() for wire in wires))
            served = 0
            while not gone.done():
                wire = await connect(daemon.port)
                await self.ask(wire, question(f"hi {served}", stream=bool(served % 2)))
                await wire.close()
                served += 1
            # They ended because blockops closed them, and not by a reset: read() would have raised.
            said = {text[:12] for text in await gone}
            self.assertLessEqual(said, {b"", b"HTTP/1.1 408"})
            for wire in wires:
                await wire.close()
            few = lambda: len(daemon.connections()) < 10  # noqa: E731
            await asyncio.to_thread(wait_for, few, "connections stay")
            return served
