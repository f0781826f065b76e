"""The limits for connections, and the connections that are rejected."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IAddress, IReactorTime, ISSLTransport
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import alsoProvides

from blockops.errors import ApiError
from blockops.server import connection
from blockops.server.connection import ClientConnection
from blockops.server.connection_limit import ConnectionLimiter
from blockops.server.limits import MAX_LINGERING, REJECTION_LINGER, RETRY_AFTER
from tests.faults.client import FaultyClient
from tests.faults.responses import judge, parse_response
from tests.faults.steps import Send
from tests.world import IDLE, Client, Wire, World, chat


def tcp(host: str) -> IAddress:
    kind = IPv6Address if ":" in host else IPv4Address
    return kind("TCP", host, 1)


class Limits(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.limiter = ConnectionLimiter(self.clock, limit=6, limit_per_client=2)

    def open_connections(self, address: IAddress, times: int = 1) -> None:
        for _ in range(times):
            self.assertIsNone(self.limiter.add(address))

    def assert_rejected(self, address: IAddress) -> ApiError:
        error = self.limiter.add(address)
        assert error is not None
        self.assertEqual((error.status, error.code), (503, "too_many_connections"))
        self.assertEqual(error.retry_after, RETRY_AFTER)
        return error

    def test_the_limit_per_client(self) -> None:
        for host in ("192.0.2.1", "2001:db8::1", "192.0.2.2"):
            self.open_connections(tcp(host), 2)
        self.limiter.remove(tcp("192.0.2.2"))
        self.assertIn(
            "2 connections from 192.0.2.1 ", self.assert_rejected(tcp("192.0.2.1")).message
        )
        self.limiter.remove(tcp("192.0.2.1"))
        self.open_connections(tcp("192.0.2.1"))

    def test_the_limit(self) -> None:
        for number in range(6):
            self.open_connections(tcp(f"192.0.2.{number}"))
        self.assertIn("6 connections are open", self.assert_rejected(tcp("192.0.2.9")).message)
        self.limiter.remove(tcp("192.0.2.5"))
        self.open_connections(tcp("192.0.2.9"))

    def test_local_addresses_have_no_limit_per_client(self) -> None:
        """All clients of a reverse proxy on this machine have its address."""
        for address in (
            tcp("127.0.0.1"),
            tcp("::1"),
            tcp("::ffff:127.0.0.1"),
            UNIXAddress("/run/x"),
        ):
            self.limiter = ConnectionLimiter(self.clock, limit=6, limit_per_client=2)
            self.open_connections(address, 6)
            self.assert_rejected(address)

    def test_no_limit_per_client(self) -> None:
        self.limiter = ConnectionLimiter(self.clock, limit=6, limit_per_client=0)
        self.open_connections(tcp("192.0.2.1"), 6)
        self.assert_rejected(tcp("192.0.2.1"))

    def test_status(self) -> None:
        self.open_connections(tcp("192.0.2.1"), 2)
        self.assert_rejected(tcp("192.0.2.1"))
        self.assertEqual(self.limiter.status(), {"connections": 2, "connections_refused": 1})

    def test_one_log_line_a_minute(self) -> None:
        self.open_connections(tcp("192.0.2.1"), 2)
        with capturedLogs() as events:
            for _ in range(61):
                for _ in range(10):
                    self.assert_rejected(tcp("192.0.2.1"))
                self.clock.advance(1)
        self.assertEqual([event["count"] for event in events], [1, 600])


class RejectedConnections(SynchronousTestCase):
    """Connections over the limit."""

    def rejected(self, world: World) -> Client:
        client = world.client()
        self.assertEqual(judge(client.received()).outcome, "503 too_many_connections")
        self.assertEqual(parse_response(client.received()).headers["retry-after"], str(RETRY_AFTER))
        return client

    def test_the_response_is_sent_before_a_request(self) -> None:
        world = World(max_connections=2)
        clients = [world.client(), world.client()]
        rejected = self.rejected(world)
        self.assertTrue(rejected.wire.half_closed)
        rejected.post("/v1/chat/completions", chat())
        self.assertEqual(world.connection_attempts(), 0)
        rejected.disconnect()
        clients[0].disconnect()
        clients[1].get("/health")
        status = clients[1].json()
        self.assertEqual((status["connections"], status["connections_refused"]), (1, 1))

    def test_exactly_at_the_limit(self) -> None:
        world = World(max_connections=3)
        clients = [world.client() for _ in range(3)]
        self.rejected(world)
        for client in clients:
            client.get("/health")
            self.assertEqual(client.status(), 200)

    def test_exactly_at_the_limit_per_client(self) -> None:
        world = World(max_connections_per_client=3)
        for _ in range(3):
            world.client()
        self.rejected(world)
        other = world.client("192.0.2.2")
        other.get("/health")
        self.assertEqual(other.status(), 200)

    def test_time_to_read_the_response(self) -> None:
        world = World(max_connections=1)
        world.client()
        rejected = self.rejected(world)
        world.pass_time(REJECTION_LINGER - 0.5)
        self.assertFalse(rejected.wire.closed)
        world.pass_time(0.5)
        self.assertTrue(rejected.wire.aborted)

    def test_a_client_that_acknowledges_nothing_gets_no_more_time(self) -> None:
        self.patch(connection, "unsent_bytes", lambda _: 100)
        world = World(max_connections=1)
        world.client()
        rejected = self.rejected(world)
        world.pass_time(REJECTION_LINGER)
        self.assertTrue(rejected.wire.aborted)

    def test_a_disconnect_makes_room(self) -> None:
        world = World(max_connections=1)
        world.client()
        for _ in range(MAX_LINGERING + 1):
            rejected = self.rejected(world)
            self.assertFalse(rejected.wire.disconnecting)
            rejected.disconnect()
        self.assertEqual(world.daemon.site.rejected_connections, set())

    def test_only_some_may_linger(self) -> None:
        world = World(max_connections=1)
        world.client()
        for _ in range(MAX_LINGERING):
            self.assertFalse(self.rejected(world).wire.disconnecting)
        self.assertTrue(self.rejected(world).wire.disconnecting)
        world.pass_time(REJECTION_LINGER)
        self.assertFalse(self.rejected(world).wire.disconnecting)

    def test_tls(self) -> None:
        """TLS has no half-close, and the handshake may never end."""
        world = World(max_connections=1)
        world.client()
        wires = []
        for _ in range(MAX_LINGERING + 1):
            protocol = world.daemon.site.buildProtocol(tcp("192.0.2.1"))
            wires.append(Wire(world.reactor, protocol))
            alsoProvides(wires[-1], ISSLTransport)
            wires[-1].setTcpNoDelay = lambda _: None  # type: ignore[attr-defined]
            protocol.makeConnection(wires[-1])
        for wire in wires[:-1]:
            self.assertEqual(judge(wire.value()).outcome, "503 too_many_connections")
            self.assertTrue(wire.disconnecting)
            self.assertFalse(wire.half_closed)
        self.assertTrue(wires[-1].aborted)

    def test_lost_connections_do_not_count(self) -> None:
        world = World(max_connections=2)
        for _ in range(5):
            client, _ = world.start_chat()
            client.disconnect()
            world.client().disconnect()
        self.assertEqual(world.load(), IDLE)


class RealSockets(TestCase):
    timeout = 30

    async def test_the_response_arrives_although_the_client_has_sent_much(self) -> None:
        world = World(max_connections=1)
        # A real socket sends a reset if it is closed with unread input.
        limiter = ConnectionLimiter(cast("IReactorTime", reactor), limit=1, limit_per_client=0)
        limiter.add(tcp("127.0.0.1"))
        ended: list[Deferred[None]] = [Deferred() for _ in range(5)]
        remaining, site = iter(ended), world.daemon.site
        on_closed = site.on_closed

        def note(connection: ClientConnection) -> None:
            on_closed(connection)
            next(remaining).callback(None)

        self.patch(site, "on_closed", note)
        site.connection_limiter = limiter
        port = cast("Any", reactor).listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        clients = [
            await FaultyClient.connect(reactor, "127.0.0.1", port.getHost().port) for _ in range(5)
        ]
        for client in clients:
            client.play([Send(1_000_000 * b"x")])
        for client in clients:
            await client.when_closed
            self.assertEqual(judge(bytes(client.received)).outcome, "503 too_many_connections")
        await DeferredList(ended)
