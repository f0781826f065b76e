"""
A model server with minimal CPU use: it sends the response that a request's script describes.

    python -m benchmarks.mock_backend PORT TIMES

Frames are built before they are needed. Each is sent separately, as servers do: one per turn of
the loop (fast: a proxy reads as many as have arrived since its last read), or each at its scheduled
time (paced). The frames of paced streams are spread evenly, so that concurrent streams never share
a wake-up, which is the most expensive case for a proxy. In a batched script all streams get their
frames at once, as from a server that decodes them together: the last of them waits longest.

The send time of each paced frame is written to the file TIMES, which the load generator maps too,
so the frames themselves contain no timestamps.
"""

from __future__ import annotations

import gc
import heapq
import mmap
import re
import select
import socket
import sys
import time
from pathlib import Path

from benchmarks.streams import FAST, IDLE, NON_STREAMING, Script, completion_body, frames

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CONNECTION_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_JSON_RESPONSE = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","owned_by":"bench"}]}'

#: Multiples of the golden ratio, modulo 1, spread any number of streams evenly over the interval
#: between two frames.
_GOLDEN_RATIO = 0.6180339887498949

_READ_SIZE = 1 << 18


class SendTimes:
    """
    The send time of each frame of each paced stream, in seconds of the monotonic clock.

    :param path: a file that two processes share, or None for memory of this process
    """

    SLOTS = 256
    #: Later frames of a stream are not recorded.
    MAX_FRAMES = 8192

    def __init__(self, path: str | None = None) -> None:
        size = 8 * self.SLOTS * self.MAX_FRAMES
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            with Path(path).open("ab") as file:
                file.truncate(size)
            with Path(path).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), size)
        self._times = memoryview(self._map).cast("d")

    def set(self, slot: int, frame: int, now: float) -> None:
        if frame < self.MAX_FRAMES:
            self._times[slot % self.SLOTS * self.MAX_FRAMES + frame] = now

    def get(self, slot: int, frame: int) -> float:
        return self._times[slot % self.SLOTS * self.MAX_FRAMES + frame]

    def count_between(self, slot: int, start: float, end: float) -> int:
        """Return the number of frames of a stream with `start <= send time < end`."""
        first = slot % self.SLOTS * self.MAX_FRAMES
        return sum(start <= sent < end for sent in self._times[first : first + self.MAX_FRAMES])

    def clear(self, slot: int) -> None:
        first = slot % self.SLOTS * self.MAX_FRAMES
        zeros = memoryview(bytes(8 * self.MAX_FRAMES)).cast("d")
        self._times[first : first + self.MAX_FRAMES] = zeros


class _Connection:
    """
    One client connection: the received part of a request, and the unsent part of its response.

    :ivar head: the bytes received while the head of a request is incomplete
    :ivar request_parts: the bytes of a request whose head is complete
    :ivar missing: bytes of that request that have not arrived
    :ivar closes_after_response: whether the connection is closed after the last frame
    :ivar next_frame: index of the first frame of `frames` that has not been sent
    :ivar due: when that frame of a paced stream is sent
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.head = b""
        self.request_parts: list[bytes] = []
        self.missing = 0
        self.unsent: memoryview = memoryview(b"")
        self.closes_after_response = False
        self.closed = False
        self.script = Script(NON_STREAMING)
        self.frames: list[bytes] = []
        self.next_frame = 0
        self.due = 0.0


class MockBackend:
    """
    The server. It listens when it is created.

    :param port: 0 for any free port
    :ivar port: the port on 127.0.0.1
    """

    def __init__(self, port: int, send_times: SendTimes) -> None:
        self._send_times = send_times
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._listener.settimeout(0)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        #: A heap of the paced streams, ordered by the time of their next frame.
        self._paced: list[tuple[float, int, _Connection]] = []
        self._fast: list[_Connection] = []
        # A byte written to `_stop_writer` ends the loop; any thread may write it.
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._epoll.register(self._stop_reader, select.EPOLLIN)

    def stop(self) -> None:
        """End `run`; may be called from any thread."""
        self._stop_writer.send(b".")

    def run(self) -> None:
        """Serve until `stop` is called."""
        while True:
            for descriptor, event in self._poll():
                if descriptor == self._stop_reader.fileno():
                    self._close_all()
                    return
                if descriptor == self._listener.fileno():
                    self._accept()
                    continue
                connection = self._connections.get(descriptor)
                if connection is not None:
                    self._serve(connection, event)
            if self._fast:
                self._send_fast()
            while self._paced and self._paced[0][0] <= time.monotonic():
                self._send_paced(heapq.heappop(self._paced)[2])

    def _poll(self) -> list[tuple[int, int]]:
        """
        Wait for socket events or the next paced frame.

        The last two milliseconds are slept, because epoll's timeout has no finer resolution.
        """
        if self._fast:
            blocked = all(each.unsent for each in self._fast) and not self._paced
            return self._epoll.poll(None if blocked else 0)
        if not self._paced:
            return self._epoll.poll()
        wait = self._paced[0][0] - time.monotonic()
        if wait >= 0.002:  # noqa: PLR2004 - epoll counts whole milliseconds, rounded up
            return self._epoll.poll(int(wait * 1000 - 1) / 1000)
        events = self._epoll.poll(0)
        if not events and wait > 0:
            time.sleep(wait)
        return events

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(0)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[connection.fileno()] = _Connection(connection)
                self._epoll.register(connection, select.EPOLLIN)
        except BlockingIOError:
            return

    def _serve(self, connection: _Connection, event: int) -> None:
        if event & select.EPOLLOUT:
            self._epoll.modify(connection.socket, select.EPOLLIN)
            self._flush(connection)
        if event & ~select.EPOLLOUT and not connection.closed:
            try:
                data = connection.socket.recv(_READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._receive(connection, data)

    def _receive(self, connection: _Connection, data: bytes) -> None:
        if not data:
            self._close(connection)
        elif connection.missing:
            connection.request_parts.append(data)
            connection.missing -= len(data)
            if connection.missing <= 0:
                self._respond(connection, b"".join(connection.request_parts))
        else:
            connection.head += data
            self._read_head(connection)

    def _read_head(self, connection: _Connection) -> None:
        """Read the head of a request if it is complete."""
        end = connection.head.find(b"\r\n\r\n")
        if end < 0:
            return
        request, connection.head = connection.head, b""
        head = request[: end + 2]
        length = _CONTENT_LENGTH.search(head)
        connection.closes_after_response = _CONNECTION_CLOSE.search(head) is not None
        connection.request_parts = [request]
        connection.missing = end + 4 + (int(length[1]) if length else 0) - len(request)
        if connection.missing <= 0:
            self._respond(connection, request)

    def _respond(self, connection: _Connection, request: bytes) -> None:
        connection.missing, connection.request_parts = 0, []
        connection.frames, connection.next_frame = [], 0
        script = Script.find(request) if request.startswith(b"POST") else None
        if script is None:
            if request.startswith(b"GET /v1/models "):
                status, body = b"200 OK", _MODELS
            else:
                status, body = b"404 Not Found", b'{"detail":"?"}'
            self._send(connection, _JSON_RESPONSE % (status, len(body), body))
        elif script.kind == NON_STREAMING:
            body = completion_body(script.delta_size, script.frames)
            self._send(connection, _JSON_RESPONSE % (b"200 OK", len(body), body))
        else:
            self._start_stream(connection, script, usage=b'"include_usage"' in request)

    def _start_stream(self, connection: _Connection, script: Script, *, usage: bool) -> None:
        """Send the first two frames and schedule the others."""
        connection.script = script
        every = frames(script, usage=usage)
        if script.fault == "truncated":
            connection.closes_after_response = True
        connection.frames, connection.next_frame = every, 2
        now = time.monotonic()
        self._send_times.clear(script.slot)
        self._send_times.set(script.slot, 0, now)
        self._send_times.set(script.slot, 1, now)
        self._send(connection, _STREAM_HEAD + every[0] + every[1])
        if script.pace == FAST:
            self._fast.append(connection)
        elif script.pace != IDLE:
            interval = 1 / script.pace
            phase = 0 if script.batched else script.slot * _GOLDEN_RATIO % 1 * interval
            connection.due = now - now % interval + interval + phase
            heapq.heappush(self._paced, (connection.due, id(connection), connection))

    def _send_paced(self, connection: _Connection) -> None:
        """Send the next frame of a paced stream and schedule the one after it."""
        if connection.closed:
            return
        frame, connection.next_frame = connection.next_frame, connection.next_frame + 1
        if connection.next_frame < len(connection.frames):
            connection.due += 1 / connection.script.pace
            heapq.heappush(self._paced, (connection.due, id(connection), connection))
        self._send_times.set(connection.script.slot, frame, time.monotonic())
        self._send(connection, connection.frames[frame])

    def _send_fast(self) -> None:
        """Send one frame of each fast stream whose socket is writable."""
        for connection in self._fast:
            if not connection.unsent and not connection.closed:
                connection.next_frame += 1
                self._send(connection, connection.frames[connection.next_frame - 1])
        self._fast = [each for each in self._fast if each.next_frame < len(each.frames)]

    def _send(self, connection: _Connection, data: bytes) -> None:
        is_blocked = bool(connection.unsent)
        connection.unsent = memoryview(bytes(connection.unsent) + data if is_blocked else data)
        if not is_blocked:
            self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                sent = connection.socket.send(connection.unsent)
                connection.unsent = connection.unsent[sent:]
        except BlockingIOError:
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._close(connection)
        else:
            is_complete = connection.next_frame >= len(connection.frames)
            if connection.closes_after_response and is_complete:
                self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if not connection.closed:
            connection.closed = True
            connection.frames = []
            del self._connections[connection.socket.fileno()]
            connection.socket.close()

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        for each in (self._listener, self._stop_reader, self._stop_writer, self._epoll):
            each.close()


def main() -> None:
    port, times_path = sys.argv[1:]
    gc.disable()
    MockBackend(int(port), SendTimes(times_path)).run()


if __name__ == "__main__":
    main()
