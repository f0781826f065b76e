"""
A backend over plain sockets, in threads, and its scripts: good responses and single faults.

It does not use Twisted: a bug of Twisted in the backend could mask the same bug in the daemon.
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
    """
    One complete request, and the connection for its response.

    :ivar bytes_sent: bytes of the response sent so far
    :ivar is_complete: True once the response is sent to its end
    """

    def __init__(self, connection: socket.socket) -> None:
        self.bytes_sent = 0
        self.is_complete = False
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
        self.bytes_sent += len(data)

    def start_chunked(
        self, status: str = "200 OK", content_type: str = "text/event-stream"
    ) -> None:
        """Send the head of a chunked response."""
        self.send(
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        )

    def send_chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def send_last_chunk(self) -> None:
        self.is_complete = True
        self.send(b"0\r\n\r\n")

    def respond(
        self, body: bytes, status: str = "200 OK", content_type: str = "application/json"
    ) -> None:
        self.is_complete = True
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nConnection: close\r\n"
        self.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def close(self) -> None:
        # A socket stays open until the files made from it are closed.
        self._file.close()
        self._connection.close()

    def is_active(self) -> bool:
        """Return True if the client still waits for the rest of the response."""
        return not (self.is_complete or self.wait_for_disconnect(timeout=0))

    def wait_for_disconnect(self, timeout: float) -> bool:
        """Return True if the peer closes the connection within `timeout` seconds."""
        if self._connection.fileno() < 0:
            return True
        end = time.monotonic() + timeout
        while True:
            remaining = max(0, end - time.monotonic())
            if not select.select([self._connection], [], [], remaining)[0]:
                return False
            try:
                if not self._connection.recv(4096):
                    return True
            except OSError:
                return True


class Backend:
    """
    A server that calls `script` for each request, in one thread per connection.

    :param script: sends the response; the connection is closed when it returns. It may be replaced
        at any time
    :param tls: the context for encrypted connections, or None for plain HTTP
    :ivar requests: all requests except those for `/v1/models`, which have a fixed response
    :ivar open_connections: the number of open connections
    :ivar max_active: the largest number of requests that clients waited for at the same time
    """

    def __init__(
        self, script: Callable[[Exchange], None], tls: ssl.SSLContext | None = None
    ) -> None:
        self.script = script
        self.requests: list[Exchange] = []
        self.open_connections = 0
        self.max_active = 0
        self._tls = tls
        self._active: list[Exchange] = []
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop accepting connections."""
        # close() alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def wait_until(self, condition: Callable[[Backend], bool], timeout: float = 60) -> bool:
        """Wait until `condition` is true; it is checked when a connection opens or closes."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._changed:
            self.open_connections += 1
            self._changed.notify_all()
        try:
            self._handle(connection)
        except (OSError, ValueError):
            pass  # The peer disconnected or sent no HTTP, as a probe of the port does.
        finally:
            connection.close()
            with self._changed:
                self.open_connections -= 1
                self._changed.notify_all()

    def _handle(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        exchange = Exchange(connection)
        try:
            if exchange.path == "/v1/models":
                exchange.respond(b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
                return
            with self._changed:
                self.requests.append(exchange)
                self._active = [exchange for exchange in self._active if exchange.is_active()] + [
                    exchange
                ]
                self.max_active = max(self.max_active, len(self._active))
                self._changed.notify_all()
            self.script(exchange)
        finally:
            # Under the lock, because another thread may call `is_active` on this exchange.
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


def stream_text(text: str, *, pause: float = 0, piece_size: int = 4) -> Callable[[Exchange], None]:
    """
    Return a script that streams `text`.

    :param pause: seconds before each delta
    :param piece_size: characters per delta
    """

    def script(exchange: Exchange) -> None:
        exchange.start_chunked()
        exchange.send_chunk(event({"role": "assistant", "content": ""}))
        for start in range(0, len(text), piece_size):
            time.sleep(pause)
            exchange.send_chunk(event({"content": text[start : start + piece_size]}))
        exchange.send_chunk(event({}, "stop"))
        exchange.send_chunk(DONE)
        exchange.send_last_chunk()

    return script


def respond_with_text(text: str, *, pause: float = 0) -> Callable[[Exchange], None]:
    """Return a script that sends a non-streaming response after `pause` seconds."""
    message = {"role": "assistant", "content": text}
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }

    def script(exchange: Exchange) -> None:
        time.sleep(pause)
        exchange.respond(json.dumps(completion).encode())

    return script


def never_respond(exchange: Exchange) -> None:
    exchange.wait_for_disconnect(timeout=60)


def send_html_error(exchange: Exchange) -> None:
    page = b"<html><body><h1>Internal error</h1><p>out of memory on device</p></body></html>"
    exchange.respond(page, "500 Internal Server Error", "text/html")


def send_json_error(exchange: Exchange) -> None:
    error = {"message": "too long", "type": "invalid_request_error", "code": "too_long"}
    exchange.respond(json.dumps({"error": error, "extra": 1}).encode(), "400 Bad Request")


def close_mid_stream(exchange: Exchange) -> None:
    exchange.start_chunked()
    exchange.send_chunk(event({"role": "assistant", "content": "Hel"}))


def close_before_headers(exchange: Exchange) -> None:
    """Return without a response, which closes the connection."""


def send_garbage(exchange: Exchange) -> None:
    exchange.start_chunked()
    exchange.send_chunk(b"\x00\xff\xfe not an event stream\n\ndata: {{{\n\n")
    exchange.send_last_chunk()


def stall_mid_stream(exchange: Exchange) -> None:
    exchange.start_chunked()
    exchange.send_chunk(event({"role": "assistant", "content": "Hel"}))
    exchange.wait_for_disconnect(timeout=60)


class Gate:
    """
    Blocks scripts until the test opens it, once for each wait.

    Unlike a pause, it gives the same order of events on a slow machine.
    """

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)

    def open(self, times: int = 1) -> None:
        """Permit `times` waits."""
        self._permits.release(times)

    def wait(self) -> None:
        if not self._permits.acquire(timeout=60):
            raise OSError("The gate was not opened within 60 s")


_FLOOD_DELTA = 8192


def flood_length(size: int) -> int:
    """Return the number of "~" characters in the content of `stream_flood(size)`."""
    return _FLOOD_DELTA * (size // _FLOOD_DELTA + 1)


def stream_flood(size: int) -> Callable[[Exchange], None]:
    """Return a script that streams slightly more than `size` bytes as fast as possible."""
    flood_event = event({"content": "~" * _FLOOD_DELTA})

    def script(exchange: Exchange) -> None:
        exchange.start_chunked()
        exchange.send_chunk(event({"role": "assistant", "content": ""}))
        for _ in range(size // _FLOOD_DELTA + 1):
            exchange.send_chunk(flood_event)
        exchange.send_chunk(event({}, "stop"))
        exchange.send_chunk(DONE)
        exchange.send_last_chunk()

    return script
