"""A backend that does what scripts say, over sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory

from tests.faults.lines import Socket
from tests.faults.steps import Script


@dataclass(frozen=True)
class Asked:
    """One request, read whole."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def streams(self) -> bool:
        """Say whether a stream is asked for."""
        return bool(self.body) and self.json.get("stream") is True


Choose = Callable[[Asked], Script]


def request_in(data: bytes) -> Asked | None:
    """Return the request that `data` begins with; None while it is not whole."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if headers.get("transfer-encoding") == "chunked":
        return None if not body.endswith(b"0\r\n\r\n") else _asked(first, headers, body)
    length = int(headers.get("content-length", 0))
    return None if len(body) < length else _asked(first, headers, body[:length])


def _asked(line: str, headers: dict[str, str], body: bytes) -> Asked:
    method, target, _ = line.split(" ", 2)
    return Asked(method, target, headers, body)


class Connection(Socket):
    """One connection of a `FaultyBackend`: one request, and a script for an answer."""

    def __init__(self, backend: FaultyBackend) -> None:
        super().__init__(backend.clock)
        self._backend = backend
        self._request: Asked | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self._backend.connections.add(self)
        if self._backend.greeting is not None:
            self.play(self._backend.greeting)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._request is None and self._backend.greeting is None:
            self._request = request_in(bytes(self.received))
            if self._request is not None:
                self._backend.asked.append(self._request)
                self.play(self._backend.choose(self._request))

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        self._backend.gone(self)


class FaultyBackend(ServerFactory):
    """
    Answers each request with a script.

    :param choose: request -> script
    :param greeting: a script that is played at once instead, whatever is asked
    :ivar connections: those that are open
    :ivar asked: all requests that came whole
    """

    noisy = False

    def __init__(
        self, clock: IReactorTime, choose: Choose = lambda _: (), greeting: Script | None = None
    ) -> None:
        self.clock = clock
        self.choose = choose
        self.greeting = greeting
        self.connections: set[Connection] = set()
        self.asked: list[Asked] = []
        self._waiting: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self)

    @property
    def open(self) -> int:
        return len(self.connections)

    @property
    def ended(self) -> Deferred[None]:
        """Return what fires when no connection is open."""
        ended: Deferred[None] = Deferred()
        self._waiting.append(ended)
        self._tell()
        return ended

    def gone(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._tell()

    def _tell(self) -> None:
        if not self.connections:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def close(self) -> None:
        """Break all connections."""
        for connection in list(self.connections):
            connection.reset()
