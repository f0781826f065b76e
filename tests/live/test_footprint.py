"""The resources that blockops uses: memory of many requests and idle streams, silent clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.asyncio_http import (
    AsyncBackend,
    Connection,
    ReceivedRequest,
    connect,
    encode_post,
    raise_file_limit,
)
from tests.live.backends import DONE, event
from tests.live.harness import SKIP_UNLESS_LIVE, Daemon, chat_body, start_daemon, wait_for

#: Seconds after which a test fails. Generous: no test measures time with it.
TIMEOUT = 300


_JSON_BODY = json.dumps(
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
_FIRST_EVENT = event({"role": "assistant", "content": "hello"})
_STREAM = _FIRST_EVENT + event({}, "stop") + DONE
_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "


async def respond(connection: Connection, request: ReceivedRequest) -> None:
    """Send a stream or a non-streaming response, as requested."""
    if request.json().get("stream"):
        await connection.send(_HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.send_chunk(_STREAM)
        await connection.send(b"0\r\n\r\n")
    else:
        length = b"Content-Length: %d\r\n\r\n" % len(_JSON_BODY)
        await connection.send(_HEAD + b"application/json\r\n" + length + _JSON_BODY)


async def start_stream(connection: Connection, _: ReceivedRequest) -> None:
    """Begin a stream and stay silent until the peer disconnects."""
    await connection.send(_HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    await connection.send_chunk(_FIRST_EVENT)
    await connection.reader.read()


class FootprintTestCase(SynchronousTestCase):
    skip = SKIP_UNLESS_LIVE

    def start(self, backend: AsyncBackend, **options: object) -> Daemon:
        options = {"max_connections": 8000, **options}
        words = [
            word
            for name, value in options.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        return start_daemon(self, "--backend", backend.url, *words)

    def allow(self, files: int) -> None:
        try:
            raise_file_limit(files)
        except ValueError as error:
            raise SkipTest(f"The limit of open files is below {files}: {error}") from None

    async def send_chat(self, connection: Connection, body: dict[str, Any]) -> None:
        """Send a chat request on `connection` and assert that the response is complete."""
        await connection.send(encode_post(json.dumps(body).encode()))
        head = await connection.read_head()
        response_body = await connection.read_body(head)
        self.assertEqual(head.status, 200, response_body)
        if body["stream"]:
            self.assertTrue(response_body.endswith(DONE), response_body)
        else:
            self.assertEqual(json.loads(response_body)["choices"][0]["message"]["content"], "hello")


class ManyRequestsTests(FootprintTestCase):
    few, many, clients = 2000, 20_000, 8

    def test_memory_does_not_grow(self):
        rss = asyncio.run(asyncio.wait_for(self.measure(), TIMEOUT))
        print(f"RSS after {self.few}: {rss[0]:,}, after {self.many}: {rss[1]:,} bytes")  # noqa: T201
        self.assertLess(rss[1], rss[0] * 1.05)

    async def measure(self) -> list[int]:
        async with AsyncBackend(respond) as backend:
            daemon = await asyncio.to_thread(self.start, backend, max_concurrent=self.clients)
            rss = []
            for first, last in ((0, self.few), (self.few, self.many)):
                numbers = iter(range(first, last))
                await asyncio.gather(
                    *(self.send_numbers(daemon, numbers) for _ in range(self.clients))
                )
                rss.append(daemon.rss())
            self.assertEqual(backend.chat_requests, self.many)
            return rss

    async def send_numbers(self, daemon: Daemon, numbers: Any) -> None:
        """Send one request for each of `numbers`, every second one over a new connection."""
        keep_alive = await connect(daemon.port)
        for number in numbers:
            # Each message is a separate session; the oldest sessions are forgotten.
            body = chat_body(f"hi {number}", stream=number % 4 < 2)
            connection = keep_alive if number % 2 else await connect(daemon.port)
            await self.send_chat(connection, body)
            if connection is not keep_alive:
                await connection.close()
        await keep_alive.close()


class IdleStreamTests(FootprintTestCase):
    streams, bound = 1000, 16_000

    def test_memory_of_an_idle_stream(self):
        self.allow(4 * self.streams)
        size = asyncio.run(asyncio.wait_for(self.measure(), TIMEOUT))
        print(f"{size:,.0f} bytes for an idle stream")  # noqa: T201
        self.assertLess(size, self.bound)

    async def measure(self) -> float:
        async with AsyncBackend(start_stream) as backend:
            slots = self.streams + 100
            daemon = await asyncio.to_thread(self.start, backend, max_concurrent=slots)
            warm_up = [await self.open(daemon) for _ in range(50)]
            before = daemon.rss()
            connections = [await self.open(daemon) for _ in range(self.streams)]
            size = (daemon.rss() - before) / self.streams
            self.assertEqual(backend.open_connections, len(warm_up) + self.streams)
            for connection in warm_up + connections:
                await connection.close()
            await backend.wait_until_idle()
            return size

    async def open(self, daemon: Daemon) -> Connection:
        connection = await connect(daemon.port)
        await connection.send(encode_post(json.dumps(chat_body(stream=True)).encode()))
        head = await connection.read_head()
        self.assertEqual(head.status, 200)
        async for piece in connection.iter_body(head):
            if b"hello" in piece:
                break
        return connection


class SilentClientTests(FootprintTestCase):
    silent = 5000

    def test_silent_clients_time_out_and_others_are_served(self):
        self.allow(2 * self.silent + 1000)
        served = asyncio.run(asyncio.wait_for(self.run_clients(), TIMEOUT))
        self.assertGreater(served, 0)

    async def run_clients(self) -> int:
        async with AsyncBackend(respond) as backend:
            daemon = await asyncio.to_thread(self.start, backend, header_timeout=5)
            connections = [await connect(daemon.port) for _ in range(self.silent)]
            closings = asyncio.gather(*(connection.reader.read() for connection in connections))
            served = 0
            while not closings.done():
                connection = await connect(daemon.port)
                await self.send_chat(connection, chat_body(f"hi {served}", stream=bool(served % 2)))
                await connection.close()
                served += 1
            # blockops closed the connections without a reset, after which read() would raise.
            starts = {text[:12] for text in await closings}
            self.assertLessEqual(starts, {b"", b"HTTP/1.1 408"})
            for connection in connections:
                await connection.close()
            are_closed = lambda: len(daemon.connections()) < 10  # noqa: E731
            await asyncio.to_thread(wait_for, are_closed, "connections stay open")
            return served
