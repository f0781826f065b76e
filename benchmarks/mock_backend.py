"""
A model's server that costs next to nothing: it says what a request's script asks for.

    python -m benchmarks.mock_backend PORT TIMES

Frames are made before they are asked for, and each is sent alone, as servers do: one a turn of
the loop (fast: a proxy finds as many as came since its last read), or each at its own time (paced:
streams that run side by side never share a wake-up, which is the dearest case for a proxy). When
each paced frame was sent is written into the file TIMES, which the load generator reads: nothing in
the frames has to tell it.
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

from benchmarks.streams import FAST, IDLE, WHOLE, Script, frames, whole

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)

_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_JSON = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","owned_by":"bench"}]}'

#: Where the golden ratio puts the streams within a frame's time: evenly, however many they are.
_SPREAD = 0.6180339887498949

_RECEIVED = 1 << 18


class Times:
    """
    When each frame of each paced stream was sent, in seconds of the monotonic clock.

    :param path: a file that two processes share; None for memory of this process
    """

    SLOTS = 256
    #: Frames of a stream of which the time is kept.
    FRAMES = 8192

    def __init__(self, path: str | None = None) -> None:
        size = 8 * self.SLOTS * self.FRAMES
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            with Path(path).open("ab") as file:
                file.truncate(size)
            with Path(path).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), size)
        self._at = memoryview(self._map).cast("d")

    def set(self, slot: int, frame: int, now: float) -> None:
        if frame < self.FRAMES:
            self._at[slot % self.SLOTS * self.FRAMES + frame] = now

    def get(self, slot: int, frame: int) -> float:
        return self._at[slot % self.SLOTS * self.FRAMES + frame]

    def between(self, slot: int, begin: float, end: float) -> int:
        """Return how many frames of a stream were sent in that time."""
        first = slot % self.SLOTS * self.FRAMES
        return sum(begin <= at < end for at in self._at[first : first + self.FRAMES])

    def forget(self, slot: int) -> None:
        first = slot % self.SLOTS * self.FRAMES
        self._at[first : first + self.FRAMES] = memoryview(bytes(8 * self.FRAMES)).cast("d")


class _Peer:
    """One connection: what was received of a request, and what is still to be sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = b""
        self.parts: list[bytes] = []
        self.missing = 0
        self.out: memoryview = memoryview(b"")
        self.closing = False
        self.closed = False
        self.script = Script(WHOLE)
        self.frames: list[bytes] = []
        self.next = 0
        self.due = 0.0


class Backend:
    """
    The server.

    :ivar port: where it listens, on 127.0.0.1
    """

    def __init__(self, port: int, times: Times) -> None:
        self._times = times
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._listener.settimeout(0)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._peers: dict[int, _Peer] = {}
        self._due: list[tuple[float, int, _Peer]] = []
        self._fast: list[_Peer] = []
        # A byte written to `_stop` ends the loop, from whichever thread.
        self._stopped, self._stop = socket.socketpair()
        self._epoll.register(self._stopped, select.EPOLLIN)

    def stop(self) -> None:
        self._stop.send(b".")

    def run(self) -> None:
        """Serve until `stop`."""
        while True:
            for number, event in self._events():
                if number == self._stopped.fileno():
                    self._close_all()
                    return
                if number == self._listener.fileno():
                    self._accept()
                    continue
                peer = self._peers.get(number)
                if peer is not None:
                    self._serve(peer, event)
            if self._fast:
                self._send_fast()
            while self._due and self._due[0][0] <= time.monotonic():
                self._send_next(heapq.heappop(self._due)[2])

    def _events(self) -> list[tuple[int, int]]:
        """Wait for sockets, or until a frame is due: to the microsecond, which epoll cannot."""
        if self._fast:
            stuck = all(each.out for each in self._fast) and not self._due
            return self._epoll.poll(None if stuck else 0)
        if not self._due:
            return self._epoll.poll()
        wait = self._due[0][0] - time.monotonic()
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
                self._peers[connection.fileno()] = _Peer(connection)
                self._epoll.register(connection, select.EPOLLIN)
        except BlockingIOError:
            return

    def _serve(self, peer: _Peer, event: int) -> None:
        if event & select.EPOLLOUT:
            self._epoll.modify(peer.socket, select.EPOLLIN)
            self._flush(peer)
        if event & ~select.EPOLLOUT and not peer.closed:
            try:
                data = peer.socket.recv(_RECEIVED)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._receive(peer, data)

    def _receive(self, peer: _Peer, data: bytes) -> None:
        if not data:
            self._close(peer)
        elif peer.missing:
            peer.parts.append(data)
            peer.missing -= len(data)
            if peer.missing <= 0:
                self._answer(peer, b"".join(peer.parts))
        else:
            peer.received += data
            self._begin(peer)

    def _begin(self, peer: _Peer) -> None:
        """Read the head of a request if it is here."""
        end = peer.received.find(b"\r\n\r\n")
        if end < 0:
            return
        request, peer.received = peer.received, b""
        head = request[: end + 2]
        length = _LENGTH.search(head)
        peer.closing = _CLOSE.search(head) is not None
        peer.parts = [request]
        peer.missing = end + 4 + (int(length[1]) if length else 0) - len(request)
        if peer.missing <= 0:
            self._answer(peer, request)

    def _answer(self, peer: _Peer, request: bytes) -> None:
        peer.missing, peer.parts = 0, []
        peer.frames, peer.next = [], 0
        script = Script.find(request) if request.startswith(b"POST") else None
        if script is None:
            found = request.startswith(b"GET /v1/models ")
            status, body = (b"200 OK", _MODELS) if found else (b"404 Not Found", b'{"detail":"?"}')
            self._send(peer, _JSON % (status, len(body), body))
        elif script.kind == WHOLE:
            body = whole(script.cut, script.frames)
            self._send(peer, _JSON % (b"200 OK", len(body), body))
        else:
            self._stream(peer, script, usage=b'"include_usage"' in request)

    def _stream(self, peer: _Peer, script: Script, *, usage: bool) -> None:
        peer.script = script
        parts = frames(script.kind, script.cut, script.frames, script.fault, usage=usage)
        peer.closing = peer.closing or script.fault == "cut"
        peer.frames, peer.next = parts, 2
        now = time.monotonic()
        self._times.forget(script.slot)
        self._times.set(script.slot, 0, now)
        self._times.set(script.slot, 1, now)
        self._send(peer, _STREAM + parts[0] + parts[1])
        if script.pace == FAST:
            self._fast.append(peer)
        elif script.pace != IDLE:
            interval = 1 / script.pace
            phase = script.slot * _SPREAD % 1 * interval
            peer.due = now - now % interval + interval + phase
            heapq.heappush(self._due, (peer.due, id(peer), peer))

    def _send_next(self, peer: _Peer) -> None:
        """Send the frame of a paced stream that is due."""
        if peer.closed:
            return
        at, peer.next = peer.next, peer.next + 1
        if peer.next < len(peer.frames):
            peer.due += 1 / peer.script.pace
            heapq.heappush(self._due, (peer.due, id(peer), peer))
        self._times.set(peer.script.slot, at, time.monotonic())
        self._send(peer, peer.frames[at])

    def _send_fast(self) -> None:
        """Send one frame of each fast stream whose socket takes one."""
        for peer in self._fast:
            if not peer.out and not peer.closed:
                peer.next += 1
                self._send(peer, peer.frames[peer.next - 1])
        self._fast = [each for each in self._fast if each.next < len(each.frames)]

    def _send(self, peer: _Peer, data: bytes) -> None:
        waiting = bool(peer.out)
        peer.out = memoryview(bytes(peer.out) + data if waiting else data)
        if not waiting:
            self._flush(peer)

    def _flush(self, peer: _Peer) -> None:
        try:
            while peer.out:
                peer.out = peer.out[peer.socket.send(peer.out) :]
        except BlockingIOError:
            self._epoll.modify(peer.socket, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._close(peer)
        else:
            if peer.closing and peer.next >= len(peer.frames):
                self._close(peer)

    def _close(self, peer: _Peer) -> None:
        if not peer.closed:
            peer.closed = True
            peer.frames = []
            del self._peers[peer.socket.fileno()]
            peer.socket.close()

    def _close_all(self) -> None:
        for peer in list(self._peers.values()):
            self._close(peer)
        for each in (self._listener, self._stopped, self._stop, self._epoll):
            each.close()


def main() -> None:
    port, times = sys.argv[1:]
    gc.disable()
    Backend(int(port), Times(times)).run()


if __name__ == "__main__":
    main()
