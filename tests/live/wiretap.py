"""
A relay for bytes between two programs, in threads: it remembers them, and can slow answers down.
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

#: Bytes of an answer that pass at once where answers are slowed down: some five deltas.
PIECE = 1500


class Wiretap:
    """
    Listens, and passes each connection on to `url`.

    :param pause: seconds before each piece of what comes back
    :ivar asked: all bytes that clients sent
    :ivar answered: all bytes that they got
    """

    def __init__(self, url: str, pause: float = 0) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._pause = pause
        self.asked = bytearray()
        self.answered = bytearray()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # Closing alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            try:
                far = socket.create_connection(self._target)
            except OSError:
                return
            with far:
                back = threading.Thread(target=_pass_on, args=(far, near, self._heard), daemon=True)
                back.start()
                _pass_on(near, far, self.asked.extend)
                back.join()

    def _heard(self, data: bytes) -> None:
        self.answered.extend(data)
        time.sleep(self._pause)


def _pass_on(source: socket.socket, target: socket.socket, seen: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE):
            seen(data)
            target.sendall(data)
    # Who hangs up here hangs up there: the other direction may still have something to say.
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
