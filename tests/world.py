"""
blockops in memory, with its real HTTP parsers on both sides.

There are no sockets and no threads, and the test advances the clock:

    world = World(heartbeat=10)
    client = world.client()
    client.post("/v1/chat/completions", {"messages": [...], "stream": True})
    backend = world.backend()            # accepts the connection that blockops makes
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
    """Return a chat request for a stream that offers a tool, with further `fields`."""
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


#: The clients' address.
CLIENT_ADDRESS = "192.0.2.1"
DONE = "data: [DONE]\n\n"


@implementer(IHostnameResolver, IHostResolution)
class _AddressResolver:
    """Resolves IP addresses to themselves, and no names."""

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
        """Do nothing: each resolution is complete at once."""


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    """Time and connections in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = _AddressResolver()

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        listening = super().listenTCP(port, factory, backlog, interface)
        if ":" not in interface:
            # MemoryReactor reports 0.0.0.0 for every interface.
            address = IPv4Address("TCP", interface or "0.0.0.0", port)
            listening.getHost = lambda: address
        return listening

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        raise NotImplementedError


class Wire(StringTransport):
    """A transport in memory that reports its end to its protocol."""

    def __init__(self, reactor: Reactor, protocol: IProtocol, host: str = CLIENT_ADDRESS) -> None:
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
        self._reactor.callLater(0, self.connection_lost, ConnectionDone())

    def loseWriteConnection(self) -> None:
        """Half-close the connection."""
        self.half_closed = True

    @property
    def is_write_closed(self) -> bool:
        """Return True if blockops sends no more; it may still read."""
        return self.closed or self.half_closed

    def abortConnection(self) -> None:
        self.aborted = True
        self._reactor.callLater(0, self.connection_lost, ConnectionAborted())

    def connection_lost(self, reason: Exception) -> None:
        """Close the connection from the other end."""
        if not self.closed:
            self.closed = True
            self._protocol.connectionLost(Failure(reason))


class Peer:
    """The other end of a connection of blockops."""

    def __init__(self, reactor: Reactor, protocol: IProtocol, host: str = CLIENT_ADDRESS) -> None:
        self.reactor = reactor
        self.protocol = protocol
        self.wire = Wire(reactor, protocol, host)
        protocol.makeConnection(self.wire)

    def send(self, data: bytes | str) -> None:
        """Send `data` to blockops."""
        if not self.wire.closed:
            self.protocol.dataReceived(data.encode() if isinstance(data, str) else data)

    def pause(self) -> None:
        """Stop reading: blockops receives `pauseProducing`."""
        self.wire.producer.pauseProducing()  # type: ignore[union-attr]

    def resume(self) -> None:
        """Read again."""
        self.wire.producer.resumeProducing()  # type: ignore[union-attr]

    def pause_every(self, size: int) -> None:
        """Pause, from now on, after each `size` bytes that blockops sends."""
        wire, write, written = self.wire, self.wire.write, [0]

        def counted(data: bytes) -> None:
            write(data)
            written[0] += len(data)
            if written[0] >= size:
                written[0] = 0
                self.pause()

        wire.write = counted  # type: ignore[method-assign]

    def received(self) -> bytes:
        """Return all bytes that blockops has sent."""
        return cast("bytes", self.wire.value())

    def disconnect(self) -> None:
        """Disconnect."""
        self.wire.connection_lost(ConnectionLost())


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
        """Return the status of the response; 0 if it has not begun."""
        line = self.received().partition(b"\r\n")[0]
        return int(line.split(b" ")[1]) if line else 0

    def headers(self) -> dict[str, str]:
        head = self.received().partition(b"\r\n\r\n")[0].decode()
        return {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])
        }

    def body(self) -> bytes:
        """Return the part of the response's body that has arrived."""
        rest = self.received().partition(b"\r\n\r\n")[2]
        return b"".join(_dechunked(rest)[0]) if self._chunked() else rest

    def is_complete(self) -> bool:
        """Return True if the response has reached its announced end."""
        rest = self.received().partition(b"\r\n\r\n")[2]
        if self._chunked():
            return _dechunked(rest)[1]
        return len(rest) == int(self.headers()["content-length"])

    def json(self) -> Any:
        return json.loads(self.body())

    def error(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.json()["error"])

    def events(self) -> list[str]:
        """Return the data of the events that have arrived."""
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
        """Return the bytes of the request."""
        return self.received()

    def request_json(self) -> Any:
        """Return the JSON body of the request."""
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
        self.reactor.advance(0)

    def respond(
        self, body: bytes | Any, status: str = "200 OK", kind: str = "application/json"
    ) -> None:
        """Send a complete response."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        self.send(head.encode() + data)
        self.reactor.advance(0)


class MemoryTrafficLog(NoTrafficLog):
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

    There is one at a time: the next one cancels the requests of this one. Otherwise the garbage
    collector would close their coroutines in an arbitrary order, and resume some of them.
    """

    _now: ClassVar[World | None] = None
    reactor: Reactor
    daemon: Daemon

    def __init__(self, **settings: Any) -> None:
        """
        Start the daemon with `settings`.

        `signals` and `read_settings` among them are the daemon's own parameters.
        """
        if World._now is not None:
            World._now.daemon.in_flight.cancel_all()
            World._now.reactor.advance(0)
        World._now = self
        self.reactor = Reactor()
        settings = {"backend": "http://127.0.0.1:8082", "log_file": None, **settings}
        self.traffic = MemoryTrafficLog()
        own = ("signals", "read_settings")
        parts = {name: settings.pop(name) for name in own if name in settings}
        self.daemon = Daemon(Settings(**settings), self.reactor, traffic_log=self.traffic, **parts)
        self.daemon.privilegedStartService()
        self.daemon.startService()

    def client(self, host: str = CLIENT_ADDRESS, *, to: str = "192.0.2.9") -> Client:
        """Connect a client at `host` to blockops, at its address `to`."""
        address = IPv4Address("TCP", host, 50000)
        client = Client(self.reactor, self.daemon.site.buildProtocol(address), host)
        client.wire.hostAddr = IPv4Address("TCP", to, 8080)
        return client

    def connection_attempts(self) -> int:
        """Return the number of connections to the backend that blockops has started."""
        return len(self.reactor.tcpClients)

    def backend(self, which: int = -1) -> Backend:
        """Accept a connection of blockops to its backend: by default the one started last."""
        host, port, factory, *_ = self.reactor.tcpClients[which]
        protocol = factory.buildProtocol(IPv4Address("TCP", host, port))
        assert protocol is not None
        backend = Backend(self.reactor, protocol)
        self.reactor.advance(0)
        return backend

    def refuse_connection(self, which: int = -1, reason: Exception | None = None) -> None:
        """Refuse a connection of blockops to its backend: by default the one started last."""
        factory = self.reactor.tcpClients[which][2]
        failure = Failure(reason or ConnectionRefusedError())
        factory.clientConnectionFailed(self.reactor.connectors[which], failure)
        self.reactor.advance(0)

    def wanted_connections(self) -> list[int]:
        """Return the indexes of the connection attempts that were not cancelled."""
        connectors = self.reactor.connectors
        return [n for n, connector in enumerate(connectors) if not connector.stoppedConnecting]

    def start_chat(self, **fields: Any) -> tuple[Client, Backend]:
        """Send a chat request, and accept the connection for it."""
        client = self.client()
        client.post("/v1/chat/completions", chat(**fields))
        return client, self.backend()

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Advance the clock in steps."""
        self.reactor.pump([step] * round(seconds / step))

    def load(self) -> dict[str, Any]:
        """Return the load: all of it is zero if nothing was leaked."""
        health = self.client()
        health.get("/health")
        status = health.json()
        health.disconnect()
        return {
            "running": status["running"],
            "waiting": status["waiting"],
            "exchanges": len(self.daemon.in_flight),
        }

    def stop(self) -> Callable[[], bool]:
        """Start to stop the daemon; return a function that returns True once it has stopped."""
        results: list[None] = []
        self.daemon.stopService().addCallback(results.append)
        return lambda: bool(results)


IDLE = {"running": 0, "waiting": 0, "exchanges": 0}
