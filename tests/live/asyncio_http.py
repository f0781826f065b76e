"""
HTTP over asyncio's streams, for clients and backends: thousands of connections in one thread.

The caller writes every byte, so that requests and responses may be invalid; parsing is strict.
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

from tests.live.harness import CHAT_PATH

#: Bytes that a line or a buffered piece may have at most.
BUFFER_LIMIT = 1 << 24


@dataclass(frozen=True)
class MessageHead:
    """The first line and the headers, with lower-case names, of a request or a response."""

    first_line: str
    headers: dict[str, str]

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.first_line.split(" ", 2)[1])


class Connection:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write `data` and wait until the buffer has room for more."""
        self.writer.write(data)
        await self.writer.drain()

    async def send_chunk(self, data: bytes) -> None:
        """Write `data` as one chunk of a chunked body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def read_head(self) -> MessageHead:
        """
        Read a head.

        :raises EOFError: the peer closed the connection before the end of the head
        """
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        return MessageHead(first, {name.lower(): value.strip() for name, _, value in pairs})

    async def iter_body(self, head: MessageHead) -> AsyncIterator[bytes]:
        """
        Yield the body that follows `head`, chunk by chunk.

        :raises EOFError: the body is truncated
        """
        if head.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield await self.reader.readexactly(size)
                await self._read_newline()
            await self._read_newline()
        else:
            yield await self.reader.readexactly(int(head.headers.get("content-length", 0)))

    async def _read_newline(self) -> None:
        if await self.reader.readexactly(2) != b"\r\n":
            raise ValueError("A chunk is longer than its size")

    async def read_body(self, head: MessageHead) -> bytes:
        """Return the body that follows `head`."""
        return b"".join([piece async for piece in self.iter_body(head)])

    def reset(self) -> None:
        """Close the connection with a RST."""
        linger = struct.pack("ii", 1, 0)
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
        self.writer.close()

    async def close(self) -> None:
        """Close the connection and wait until it is closed."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass(frozen=True)
class ReceivedRequest:
    """A complete request."""

    head: MessageHead
    body: bytes

    @property
    def path(self) -> str:
        return self.head.first_line.split(" ", 2)[1]

    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Connection, ReceivedRequest], Awaitable[None]]


class AsyncBackend:
    """
    A backend that awaits `script` for each chat request, then closes the connection.

    An asynchronous context manager. Requests other than chat requests get a 404.

    :param port: the port to listen on; 0 for any free port
    :ivar open_connections: the number of open connections
    :ivar chat_requests: the number of chat requests received
    """

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self.port = port
        self.open_connections = 0
        self.chat_requests = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._disconnected = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start_listening()
        return self

    async def start_listening(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, backlog=1024, limit=BUFFER_LIMIT
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """Accept no more connections; those that are open stay open."""
        self._server.close()

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_until_idle(self) -> None:
        """Wait until no connection is open."""
        while self.open_connections:
            self._disconnected.clear()
            await self._disconnected.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio logs the cancellation of a coroutine passed to start_server() as an error.
        task = asyncio.create_task(self._serve(Connection(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: Connection) -> None:
        self.open_connections += 1
        try:
            await self._handle(connection)
        except (OSError, EOFError, ValueError):
            pass  # The peer disconnected.
        finally:
            await connection.close()
            self.open_connections -= 1
            self._disconnected.set()

    async def _handle(self, connection: Connection) -> None:
        head = await connection.read_head()
        request = ReceivedRequest(head, await connection.read_body(head))
        if request.path == CHAT_PATH:
            self.chat_requests += 1
            await self.script(connection, request)
        else:
            await connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


async def connect(port: int, receive_buffer: int | None = None) -> Connection:
    """
    Connect to `port` of this machine.

    :param receive_buffer: bytes of the socket's receive buffer, which bounds the data sent to a
        client that does not read; None for the system's default
    """
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(0)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    limit = BUFFER_LIMIT if receive_buffer is None else receive_buffer
    return Connection(*await asyncio.open_connection(sock=connection, limit=limit))


def encode_post(body: bytes, path: str = CHAT_PATH, *extra_headers: str) -> bytes:
    """Return the bytes of a POST request; `extra_headers` are complete lines."""
    head = [f"POST {path} HTTP/1.1", "Host: blockops", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", *extra_headers, "", ""]
    return "\r\n".join(head).encode() + body


def raise_file_limit(count: int) -> None:
    """
    Raise the limit of open files of this process and its children to at least `count`.

    :raises ValueError: the hard limit is lower
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
