"""A backend that responds with scripts, over sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory

from tests.faults.connections import SocketConnection
from tests.faults.steps import Script


@dataclass(frozen=True)
class ReceivedRequest:
    """One complete request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_streaming(self) -> bool:
        """Return True if the request has `stream: true`."""
        return bool(self.body) and self.json.get("stream") is True


ChooseScript = Callable[[ReceivedRequest], Script]


def parse_request(data: bytes) -> ReceivedRequest | None:
    """Return the request at the start of `data`, or None while it is incomplete."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if headers.get("transfer-encoding") == "chunked":
        return None if not body.endswith(b"0\r\n\r\n") else _make_request(first, headers, body)
    length = int(headers.get("content-length", 0))
    return None if len(body) < length else _make_request(first, headers, body[:length])


def _make_request(line: str, headers: dict[str, str], body: bytes) -> ReceivedRequest:
    method, target, _ = line.split(" ", 2)
    return ReceivedRequest(method, target, headers, body)


class BackendConnection(SocketConnection):
    """One connection of a `FaultyBackend`: one request, answered with one script."""

    def __init__(self, backend: FaultyBackend) -> None:
        super().__init__(backend.clock)
        self._backend = backend
        self._request: ReceivedRequest | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self._backend.connections.add(self)
        if self._backend.greeting is not None:
            self.play(self._backend.greeting)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._request is None and self._backend.greeting is None:
            self._request = parse_request(bytes(self.received))
            if self._request is not None:
                self._backend.requests.append(self._request)
                self.play(self._backend.choose(self._request))

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        self._backend.connection_closed(self)


class FaultyBackend(ServerFactory):
    """
    Respond to each request with a script.

    :param choose: returns the script for a request
    :param greeting: a script to play as soon as a client connects, instead of reading a request
    :ivar connections: the open connections
    :ivar requests: all complete requests, in order of arrival
    """

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        choose: ChooseScript = lambda _: (),
        greeting: Script | None = None,
    ) -> None:
        self.clock = clock
        self.choose = choose
        self.greeting = greeting
        self.connections: set[BackendConnection] = set()
        self.requests: list[ReceivedRequest] = []
        self._idle_waiters: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> BackendConnection:
        return BackendConnection(self)

    @property
    def open_connections(self) -> int:
        return len(self.connections)

    @property
    def all_closed(self) -> Deferred[None]:
        """Return a new Deferred that fires when no connection is open."""
        closed: Deferred[None] = Deferred()
        self._idle_waiters.append(closed)
        self._fire_if_idle()
        return closed

    def connection_closed(self, connection: BackendConnection) -> None:
        self.connections.discard(connection)
        self._fire_if_idle()

    def _fire_if_idle(self) -> None:
        if not self.connections:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def reset_all(self) -> None:
        """Reset all open connections."""
        for connection in list(self.connections):
            connection.reset()
