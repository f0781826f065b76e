"""
HTTP over asyncio's streams, from both ends, for crowds: thousands of connections in one thread.

Every byte is written by who uses it, so that it may be wrong; what is read is read strictly.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from tests.live.harness import CHAT

#: Bytes that a line or a buffered piece may have here.
LIMIT = 1 << 24


@dataclass(frozen=True)
class Head:
    """The first line of a request or a response, and its headers, their names in lower case."""

    first: str
    headers: dict[str, str]

    @property
    def status(self) -> int:
        """Return the status, if this is a response's."""
        return int(self.first.split(" ", 2)[1])


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write `data` and wait until most of it is gone."""
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """Write `data` as one piece of a chunked body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def head(self) -> Head:
        """
        Read a head.

        :raises EOFError: the other end closed before that was whole
        """
        text = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        return Head(first, {name.lower(): value.strip() for name, _, value in pairs})

    async def body(self, head: Head) -> AsyncIterator[bytes]:
        """
        Yield the body that follows `head`, in the pieces in which it comes.

        :raises EOFError: it was cut
        """
        if head.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield await self.reader.readexactly(size)
                await self._newline()
            await self._newline()
        else:
            yield await self.reader.readexactly(int(head.headers.get("content-length", 0)))

    async def _newline(self) -> None:
        if await self.reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk has not the size that it says")

    async def whole(self, head: Head) -> bytes:
        """Read the body that follows `head`."""
        return b"".join([piece async for piece in self.body(head)])

    def reset(self) -> None:
        """Close the connection by a RST."""
        linger = struct.pack("ii", 1, 0)
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
        self.writer.close()

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass(frozen=True)
class Heard:
    """A request, read whole."""

    head: Head
    body: bytes

    @property
    def path(self) -> str:
        return self.head.first.split(" ", 2)[1]

    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Wire, Heard], Awaitable[None]]


class Stage:
    """
    A backend: it answers each chat request by awaiting `script`, then closes the connection.

    An asynchronous context manager. Everything but chats gets a 404.

    :param port: where it listens; 0 for any that is free
    :ivar open: connections that are open
    :ivar heard: how many chats were asked for
    """

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self.port = port
        self.open = 0
        self.heard = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.come_back()
        return self

    async def come_back(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(
            self._come, "127.0.0.1", self.port, backlog=1024, limit=LIMIT
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def leave(self) -> None:
        """Take no more connections, until `come_back`; those that are open stay."""
        self._server.close()

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def until_empty(self) -> None:
        """Wait until no connection is open."""
        while self.open:
            self._left.clear()
            await self._left.wait()

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A coroutine given to start_server() would have its cancellation told as an error.
        task = asyncio.create_task(self._serve(Wire(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, wire: Wire) -> None:
        self.open += 1
        try:
            await self._answer(wire)
        except (OSError, EOFError, ValueError):
            pass  # The other end went away.
        finally:
            await wire.close()
            self.open -= 1
            self._left.set()

    async def _answer(self, wire: Wire) -> None:
        head = await wire.head()
        heard = Heard(head, await wire.whole(head))
        if heard.path == CHAT:
            self.heard += 1
            await self.script(wire, heard)
        else:
            await wire.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


async def connect(port: int, receive: int | None = None) -> Wire:
    """
    Connect to `port` of this machine.

    :param receive: bytes that the system may keep for a client that does not read
    """
    connection = socket.socket()
    if receive is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    connection.settimeout(0)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    limit = LIMIT if receive is None else receive
    return Wire(*await asyncio.open_connection(sock=connection, limit=limit))


def post(body: bytes, path: str = CHAT, *more: str) -> bytes:
    """Return a request whole; `more` are further header lines."""
    head = [f"POST {path} HTTP/1.1", "Host: blockops", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(head).encode() + body


def allow_files(count: int) -> None:
    """
    Let this process and its children have `count` files and connections open.

    :raises ValueError: the system does not allow so many
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
