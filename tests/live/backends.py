"""
Backends that do one thing each, well or badly: HTTP over plain sockets, in threads.

Nothing of Twisted is in here, so that a fault of Twisted's cannot hide behind itself.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

DONE = b"data: [DONE]\n\n"


class Exchange:
    """One request, read whole, and the connection to answer it on."""

    def __init__(self, connection: socket.socket) -> None:
        self.sent = 0
        self.answered = False
        self._connection = connection
        self._file = connection.makefile("rb")
        self.method, self.path, _ = self._file.readline().decode().split(" ", 2)
        self.headers = dict(self._read_headers())
        self.body = self._read_body()

    def _read_headers(self) -> Any:
        while line := self._file.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            yield name.lower(), value.strip()

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self._file.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return body

    def json(self) -> Any:
        return json.loads(self.body)

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)
        self.sent += len(data)

    def begin(self, status: str = "200 OK", content_type: str = "text/event-stream") -> None:
        """Send the head of an answer whose body comes in chunks."""
        self.send(
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        )

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.answered = True
        self.send(b"0\r\n\r\n")

    def whole(
        self, body: bytes, status: str = "200 OK", content_type: str = "application/json"
    ) -> None:
        self.answered = True
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nConnection: close\r\n"
        self.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def close(self) -> None:
        # A socket stays open as long as a file made of it does.
        self._file.close()
        self._connection.close()

    def at_work(self) -> bool:
        """Say whether somebody still waits for the rest of this answer."""
        return not (self.answered or self.peer_is_gone(within=0))

    def peer_is_gone(self, within: float) -> bool:
        """Wait at most `within` seconds for the other side to close the connection."""
        if self._connection.fileno() < 0:
            return True
        end = time.monotonic() + within
        while True:
            left = max(0, end - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return False
            try:
                if not self._connection.recv(4096):
                    return True
            except OSError:
                return True


class Backend:
    """
    A server that answers every request by calling `script`, in a thread each.

    :param script: may be replaced at any time; its connection is closed when it returns
    :param tls: what to wrap connections in, if they are to be encrypted
    :ivar requests: all that came, but those for `/v1/models`, which it answers by itself
    :ivar open: connections that are open
    :ivar most_at_work: requests that somebody waited for at the same time
    """

    def __init__(
        self, script: Callable[[Exchange], None], tls: ssl.SSLContext | None = None
    ) -> None:
        self.script = script
        self.requests: list[Exchange] = []
        self.open = 0
        self.most_at_work = 0
        self._tls = tls
        self._at_work: list[Exchange] = []
        self._changed = threading.Condition()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        # Closing alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def wait_until(self, condition: Callable[[Backend], bool], within: float = 60) -> bool:
        """Wait until `condition` holds: it is asked whenever a connection comes or goes."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), within)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._changed:
            self.open += 1
            self._changed.notify_all()
        try:
            self._answer(connection)
        except (OSError, ValueError):
            pass  # The other side went away, or spoke no HTTP (as a probe for the port does).
        finally:
            connection.close()
            with self._changed:
                self.open -= 1
                self._changed.notify_all()

    def _answer(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        exchange = Exchange(connection)
        try:
            if exchange.path == "/v1/models":
                exchange.whole(b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
                return
            with self._changed:
                self.requests.append(exchange)
                self._at_work = [one for one in self._at_work if one.at_work()] + [exchange]
                self.most_at_work = max(self.most_at_work, len(self._at_work))
                self._changed.notify_all()
            self.script(exchange)
        finally:
            # Not while another thread asks whether its other side is there.
            with self._changed:
                exchange.close()


def event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    """Return one event of a chat stream."""
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def says(text: str, *, pause: float = 0, piece: int = 4) -> Callable[[Exchange], None]:
    """Return a script that streams `text` in pieces, with `pause` seconds before each."""

    def script(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(event({"role": "assistant", "content": ""}))
        for start in range(0, len(text), piece):
            time.sleep(pause)
            exchange.chunk(event({"content": text[start : start + piece]}))
        exchange.chunk(event({}, "stop"))
        exchange.chunk(DONE)
        exchange.end()

    return script


def says_whole(text: str, *, pause: float = 0) -> Callable[[Exchange], None]:
    """Return a script that answers with one JSON document after `pause` seconds."""
    message = {"role": "assistant", "content": text}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }

    def script(exchange: Exchange) -> None:
        time.sleep(pause)
        exchange.whole(json.dumps(answer).encode())

    return script


def never_answers(exchange: Exchange) -> None:
    exchange.peer_is_gone(within=60)


def fails_in_html(exchange: Exchange) -> None:
    page = b"<html><body><h1>Internal error</h1><p>out of memory on device</p></body></html>"
    exchange.whole(page, "500 Internal Server Error", "text/html")


def refuses_in_json(exchange: Exchange) -> None:
    error = {"message": "too long", "type": "invalid_request_error", "code": "too_long"}
    exchange.whole(json.dumps({"error": error, "extra": 1}).encode(), "400 Bad Request")


def closes_in_midstream(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(event({"role": "assistant", "content": "Hel"}))


def closes_before_the_head(exchange: Exchange) -> None:
    """Return, and so close the connection."""


def sends_garbage(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(b"\x00\xff\xfe this is no event stream\n\ndata: {{{\n\n")
    exchange.end()


def stalls_in_midstream(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(event({"role": "assistant", "content": "Hel"}))
    exchange.peer_is_gone(within=60)


class Gate:
    """
    Holds scripts up until the test lets them go on, one at a time.

    A script that waits for the clock instead says something else on a machine that is slow.
    """

    def __init__(self) -> None:
        self._open = threading.Semaphore(0)

    def open(self, times: int = 1) -> None:
        """Let so many scripts go on, or one so many times."""
        self._open.release(times)

    def wait(self) -> None:
        if not self._open.acquire(timeout=60):
            raise OSError("nobody opened the gate")


_FLOOD = 8192


def letters(size: int) -> int:
    """Return how often "~" is in the content of `floods(size)`."""
    return _FLOOD * (size // _FLOOD + 1)


def floods(size: int) -> Callable[[Exchange], None]:
    """Return a script that streams a bit more than `size` bytes, as fast as they are taken."""
    one = event({"content": "~" * _FLOOD})

    def script(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(event({"role": "assistant", "content": ""}))
        for _ in range(size // _FLOOD + 1):
            exchange.chunk(one)
        exchange.chunk(event({}, "stop"))
        exchange.chunk(DONE)
        exchange.end()

    return script
