"""
blockops in memory: its real HTTP parsers on both sides, no sockets, no threads, time in hand.

    world = World(heartbeat=10)
    client = world.client()
    client.post("/v1/chat/completions", {"messages": [...], "stream": True})
    backend = world.backend()            # the connection that blockops has made
    backend.begin_stream()
    backend.send("data: ...")
    client.body()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any, ClassVar, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,  # noqa: A004
)
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from blockops.daemon.service import Daemon
from blockops.operations.traffic_log.log import NoTrafficLog
from blockops.operations.traffic_log.records import Record, RequestRecord, ResponseRecord
from blockops.settings.table import Settings

MESSAGES = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def chat(**fields: Any) -> dict[str, Any]:
    """Return a chat request that asks for a stream and offers a tool, with `fields` besides."""
    return {"messages": MESSAGES, "stream": True, "tools": [WEATHER], **fields}


def chunk(content: str | None = None, *, finish: str | None = None, **delta: Any) -> str:
    """Return one event of a backend's stream."""
    if content is not None:
        delta["content"] = content
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
    }
    return f"data: {json.dumps(body)}\n\n"


#: Where clients come from.
ADDRESS = "192.0.2.1"
DONE = "data: [DONE]\n\n"


@implementer(IHostnameResolver, IHostResolution)
class _Numbers:
    """Resolves addresses to themselves, at once, and nothing else."""

    name = ""

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        resolutionReceiver.resolutionBegan(self)
        address = str(ip_address(hostName))
        resolutionReceiver.addressResolved(IPv4Address("TCP", address, portNumber))
        resolutionReceiver.resolutionComplete()
        return self

    def cancel(self) -> None:
        """Nothing is ever under way."""


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    """Time and connections in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = _Numbers()

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        listening = super().listenTCP(port, factory, backlog, interface)
        if ":" not in interface:
            # The one it is made of says 0.0.0.0, whatever it was told.
            address = IPv4Address("TCP", interface or "0.0.0.0", port)
            listening.getHost = lambda: address
        return listening

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        raise NotImplementedError


class Wire(StringTransport):
    """One end of a connection in memory, which tells its protocol when it is lost."""

    def __init__(self, reactor: Reactor, protocol: IProtocol, host: str = ADDRESS) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, 50000))
        self._reactor = reactor
        self._protocol = protocol
        self.aborted = False
        self.half_closed = False
        self.closed = False
        self.writes = 0

    def write(self, data: bytes) -> None:
        super().write(data)
        self.writes += 1

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        super().loseConnection()
        self._reactor.callLater(0, self.lose, ConnectionDone())

    def loseWriteConnection(self) -> None:
        """Say that nothing more comes."""
        self.half_closed = True

    @property
    def ended(self) -> bool:
        """Say whether nothing more is said on it, be it that it is still read from."""
        return self.closed or self.half_closed

    def abortConnection(self) -> None:
        self.aborted = True
        self._reactor.callLater(0, self.lose, ConnectionAborted())

    def lose(self, reason: Exception) -> None:
        """End the connection, as the peer or the network does."""
        if not self.closed:
            self.closed = True
            self._protocol.connectionLost(Failure(reason))


class Peer:
    """Somebody at the other end of a connection."""

    def __init__(self, reactor: Reactor, protocol: IProtocol, host: str = ADDRESS) -> None:
        self.reactor = reactor
        self.protocol = protocol
        self.wire = Wire(reactor, protocol, host)
        protocol.makeConnection(self.wire)

    def send(self, data: bytes | str) -> None:
        """Let blockops receive `data`."""
        if not self.wire.closed:
            self.protocol.dataReceived(data.encode() if isinstance(data, str) else data)

    def pause(self) -> None:
        """Let what blockops sends pile up, until it is asked to stop."""
        self.wire.producer.pauseProducing()  # type: ignore[union-attr]

    def resume(self) -> None:
        """Take what has piled up."""
        self.wire.producer.resumeProducing()  # type: ignore[union-attr]

    def fills_at(self, size: int) -> None:
        """Ask blockops to pause, from now on, whenever it has written `size` bytes."""
        wire, write, written = self.wire, self.wire.write, [0]

        def counted(data: bytes) -> None:
            write(data)
            written[0] += len(data)
            if written[0] >= size:
                written[0] = 0
                self.pause()

        wire.write = counted  # type: ignore[method-assign]

    def received(self) -> bytes:
        """Return all that blockops has sent."""
        return cast("bytes", self.wire.value())

    def leave(self) -> None:
        """Break the connection."""
        self.wire.lose(ConnectionLost())


class Client(Peer):
    """A client of blockops."""

    def request(self, method: str, target: str, body: bytes | None = None, **headers: str) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: blockops"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None and "Transfer_Encoding" not in headers:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        self.reactor.advance(0)

    def post(self, target: str, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.request("POST", target, data, **headers)

    def get(self, target: str, **headers: Any) -> None:
        self.request("GET", target, **headers)

    def status(self) -> int:
        """Return the status of the answer; 0 if it has not begun."""
        line = self.received().partition(b"\r\n")[0]
        return int(line.split(b" ")[1]) if line else 0

    def headers(self) -> dict[str, str]:
        head = self.received().partition(b"\r\n\r\n")[0].decode()
        return {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])
        }

    def body(self) -> bytes:
        """Return what has come of the answer's body."""
        rest = self.received().partition(b"\r\n\r\n")[2]
        return b"".join(_dechunked(rest)[0]) if self._chunked() else rest

    def complete(self) -> bool:
        """Say whether the answer has come to its announced end."""
        rest = self.received().partition(b"\r\n\r\n")[2]
        if self._chunked():
            return _dechunked(rest)[1]
        return len(rest) == int(self.headers()["content-length"])

    def json(self) -> Any:
        return json.loads(self.body())

    def error(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.json()["error"])

    def events(self) -> list[str]:
        """Return the data of the events that have come."""
        lines = self.body().decode().split("\n")
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]

    def _chunked(self) -> bool:
        return self.headers().get("transfer-encoding") == "chunked"


def _dechunked(data: bytes) -> tuple[list[bytes], bool]:
    pieces: list[bytes] = []
    while data:
        size, _, data = data.partition(b"\r\n")
        if int(size, 16) == 0:
            return pieces, True
        pieces.append(data[: int(size, 16)])
        data = data[int(size, 16) + 2 :]
    return pieces, False


class Backend(Peer):
    """The backend's end of one connection."""

    def request(self) -> bytes:
        """Return what blockops has asked."""
        return self.received()

    def asked(self) -> Any:
        """Return the JSON body of what blockops has asked."""
        return json.loads(self.received().partition(b"\r\n\r\n")[2])

    def begin_stream(self) -> None:
        self.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )

    def stream(self, *events: str) -> None:
        """Send pieces of a chunked body."""
        for event in events:
            data = event.encode()
            self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self.send("0\r\n\r\n")

    def answer(
        self, body: bytes | Any, status: str = "200 OK", kind: str = "application/json"
    ) -> None:
        """Send a whole answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        self.send(head.encode() + data)
        self.reactor.advance(0)


class Traffic(NoTrafficLog):
    """A traffic log in memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def requests(self) -> list[RequestRecord]:
        return [record for record in self.records if isinstance(record, RequestRecord)]

    def responses(self) -> list[ResponseRecord]:
        return [record for record in self.records if isinstance(record, ResponseRecord)]


class World:
    """
    A daemon in memory, its clients and its backend.

    There is one at a time: the next one ends what is under way in this one. Else the garbage
    collector would, in an order of its own, and wake those that it has just put to sleep.
    """

    _now: ClassVar[World | None] = None
    reactor: Reactor
    daemon: Daemon

    def __init__(self, **settings: Any) -> None:
        """
        Start the daemon with `settings`; `signals` and `read` among them are for the daemon itself.
        """
        if World._now is not None:
            World._now.daemon.gateway.hasten()
            World._now.reactor.advance(0)
        World._now = self
        self.reactor = Reactor()
        settings = {"backend": "http://127.0.0.1:8082", "log_file": None, **settings}
        self.traffic = Traffic()
        parts = {name: settings.pop(name) for name in ("signals", "read") if name in settings}
        self.daemon = Daemon(Settings(**settings), self.reactor, traffic=self.traffic, **parts)
        self.daemon.privilegedStartService()
        self.daemon.startService()

    def client(self, host: str = ADDRESS, *, to: str = "192.0.2.9") -> Client:
        """Let somebody at `host` connect to blockops, at its address `to`."""
        address = IPv4Address("TCP", host, 50000)
        client = Client(self.reactor, self.daemon.site.buildProtocol(address), host)
        client.wire.hostAddr = IPv4Address("TCP", to, 8080)
        return client

    def connecting(self) -> int:
        """Return how often blockops has begun to connect to the backend."""
        return len(self.reactor.tcpClients)

    def backend(self, which: int = -1) -> Backend:
        """Accept a connection of blockops to its backend: the last one that it began."""
        host, port, factory, *_ = self.reactor.tcpClients[which]
        protocol = factory.buildProtocol(IPv4Address("TCP", host, port))
        assert protocol is not None
        backend = Backend(self.reactor, protocol)
        self.reactor.advance(0)
        return backend

    def refuse(self, which: int = -1, reason: Exception | None = None) -> None:
        """Refuse a connection of blockops to its backend: the last one that it began."""
        factory = self.reactor.tcpClients[which][2]
        failure = Failure(reason or ConnectionRefusedError())
        factory.clientConnectionFailed(self.reactor.connectors[which], failure)
        self.reactor.advance(0)

    def wanted(self) -> list[int]:
        """Return which of the connections that blockops began it still wants."""
        connectors = self.reactor.connectors
        return [n for n, connector in enumerate(connectors) if not connector.stoppedConnecting]

    def ask(self, **fields: Any) -> tuple[Client, Backend]:
        """Let a client ask for a chat, and the backend accept the connection."""
        client = self.client()
        client.post("/v1/chat/completions", chat(**fields))
        return client, self.backend()

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass, in steps, as a clock does."""
        self.reactor.pump([step] * round(seconds / step))

    def idle(self) -> dict[str, Any]:
        """Return what is under way: all of it zero when nothing is left behind."""
        health = self.client()
        health.get("/health")
        told = health.json()
        health.leave()
        return {
            "running": told["running"],
            "waiting": told["waiting"],
            "exchanges": len(self.daemon.gateway),
        }

    def stop(self) -> Callable[[], bool]:
        """Begin to stop the daemon; call what is returned to learn whether it has."""
        stopped: list[None] = []
        self.daemon.stopService().addCallback(lambda _: stopped.append(None))
        return lambda: bool(stopped)


NOTHING_LEFT = {"running": 0, "waiting": 0, "exchanges": 0}
