"""
A TCP proxy in threads that records all bytes and can slow responses down.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes per read, about five deltas; with a pause, responses pass in pieces of this size.
READ_SIZE = 1500


class RecordingProxy:
    """
    Listens, and relays each connection to `url`.

    :param pause: seconds before each piece of a response
    :ivar request_bytes: all bytes from the clients
    :ivar response_bytes: all bytes from the server
    """

    def __init__(self, url: str, pause: float = 0) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._pause = pause
        self.request_bytes = bytearray()
        self.response_bytes = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # close() alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._target)
            except OSError:
                return
            with server:
                response_thread = threading.Thread(
                    target=_relay, args=(server, client, self._record_response), daemon=True
                )
                response_thread.start()
                _relay(client, server, self.request_bytes.extend)
                response_thread.join()

    def _record_response(self, data: bytes) -> None:
        self.response_bytes.extend(data)
        time.sleep(self._pause)


def _relay(source: socket.socket, target: socket.socket, record: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(READ_SIZE):
            record(data)
            target.sendall(data)
    # Pass on the half-close: the other direction may still carry data.
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
