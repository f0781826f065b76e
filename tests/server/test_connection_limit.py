"""Too many connections: who is one too many, and what becomes of them."""

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
from blockops.server.connection_limit import Crowd, TurnedAway
from blockops.server.limits import FULL_FOR, MAX_TURNED_AWAY, PARTING
from tests.faults.client import FaultyClient
from tests.faults.reading import judge, read
from tests.faults.steps import Send
from tests.world import NOTHING_LEFT, Client, Wire, World, chat


def tcp(host: str) -> IAddress:
    kind = IPv6Address if ":" in host else IPv4Address
    return kind("TCP", host, 1)


class Counting(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.crowd = Crowd(self.clock, most=6, most_per_client=2)

    def enter(self, address: IAddress, times: int = 1) -> None:
        for _ in range(times):
            self.assertIsNone(self.crowd.full(address))
            self.crowd.enter(address)

    def refusal(self, address: IAddress) -> ApiError:
        error = self.crowd.full(address)
        assert error is not None
        self.assertEqual((error.status, error.code), (503, "too_many_connections"))
        self.assertEqual(error.retry_after, FULL_FOR)
        return error

    def test_from_one_address(self) -> None:
        for host in ("192.0.2.1", "2001:db8::1", "192.0.2.2"):
            self.enter(tcp(host), 2)
        self.crowd.leave(tcp("192.0.2.2"))
        self.assertIn("2 connections from 192.0.2.1 ", self.refusal(tcp("192.0.2.1")).message)
        self.crowd.leave(tcp("192.0.2.1"))
        self.enter(tcp("192.0.2.1"))

    def test_in_all(self) -> None:
        for number in range(6):
            self.enter(tcp(f"192.0.2.{number}"))
        self.assertIn("6 connections are open", self.refusal(tcp("192.0.2.9")).message)
        self.crowd.leave(tcp("192.0.2.5"))
        self.enter(tcp("192.0.2.9"))

    def test_this_machine_is_many(self) -> None:
        """Behind a proxy beside blockops all clients come from its address."""
        for address in (
            tcp("127.0.0.1"),
            tcp("::1"),
            tcp("::ffff:127.0.0.1"),
            UNIXAddress("/run/x"),
        ):
            self.crowd = Crowd(self.clock, most=6, most_per_client=2)
            self.enter(address, 6)
            self.refusal(address)

    def test_as_many_from_one_as_there_may_be(self) -> None:
        self.crowd = Crowd(self.clock, most=6, most_per_client=0)
        self.enter(tcp("192.0.2.1"), 6)
        self.refusal(tcp("192.0.2.1"))

    def test_vitals(self) -> None:
        self.enter(tcp("192.0.2.1"), 2)
        self.refusal(tcp("192.0.2.1"))
        self.assertEqual(self.crowd.vitals(), {"connections": 2, "connections_refused": 1})

    def test_one_line_a_minute(self) -> None:
        self.enter(tcp("192.0.2.1"), 2)
        with capturedLogs() as events:
            for _ in range(61):
                for _ in range(10):
                    self.refusal(tcp("192.0.2.1"))
                self.clock.advance(1)
        self.assertEqual([event["count"] for event in events], [1, 600])


class Refused(SynchronousTestCase):
    """Those who are one too many."""

    def refused(self, world: World) -> Client:
        client = world.client()
        self.assertEqual(judge(client.received()).outcome, "503 too_many_connections")
        self.assertEqual(read(client.received()).headers["retry-after"], str(FULL_FOR))
        return client

    def test_they_are_told_before_they_ask(self) -> None:
        world = World(max_connections=2)
        clients = [world.client(), world.client()]
        refused = self.refused(world)
        self.assertTrue(refused.wire.half_closed)
        refused.post("/v1/chat/completions", chat())
        self.assertEqual(world.connecting(), 0)
        refused.leave()
        clients[0].leave()
        clients[1].get("/health")
        told = clients[1].json()
        self.assertEqual((told["connections"], told["connections_refused"]), (1, 1))

    def test_exactly_at_the_bound(self) -> None:
        world = World(max_connections=3)
        clients = [world.client() for _ in range(3)]
        self.refused(world)
        for client in clients:
            client.get("/health")
            self.assertEqual(client.status(), 200)

    def test_exactly_at_the_bound_of_one_client(self) -> None:
        world = World(max_connections_per_client=3)
        for _ in range(3):
            world.client()
        self.refused(world)
        other = world.client("192.0.2.2")
        other.get("/health")
        self.assertEqual(other.status(), 200)

    def test_they_have_a_moment_to_read_it(self) -> None:
        world = World(max_connections=1)
        world.client()
        refused = self.refused(world)
        world.pass_time(PARTING - 0.5)
        self.assertFalse(refused.wire.closed)
        world.pass_time(0.5)
        self.assertTrue(refused.wire.aborted)

    def test_those_who_go_leave_no_timer_behind(self) -> None:
        world = World(max_connections=1)
        world.client()
        before = len(world.reactor.getDelayedCalls())
        self.refused(world).leave()
        self.assertEqual(len(world.reactor.getDelayedCalls()), before)

    def test_not_all_of_a_throng_have_it(self) -> None:
        world = World(max_connections=1)
        world.client()
        for _ in range(MAX_TURNED_AWAY):
            self.assertFalse(self.refused(world).wire.disconnecting)
        self.assertTrue(self.refused(world).wire.disconnecting)
        world.pass_time(PARTING)
        self.assertFalse(self.refused(world).wire.disconnecting)

    def test_behind_tls(self) -> None:
        """Half of a connection cannot be closed there, and a handshake may never come."""
        world = World(max_connections=1)
        world.client()
        wires = []
        for _ in range(MAX_TURNED_AWAY + 1):
            protocol = world.daemon.site.buildProtocol(tcp("192.0.2.1"))
            wires.append(Wire(world.reactor, protocol))
            alsoProvides(wires[-1], ISSLTransport)
            protocol.makeConnection(wires[-1])
        for wire in wires[:-1]:
            self.assertEqual(judge(wire.value()).outcome, "503 too_many_connections")
            self.assertTrue(wire.disconnecting)
            self.assertFalse(wire.half_closed)
        self.assertTrue(wires[-1].aborted)

    def test_room_is_made_when_connections_are_lost(self) -> None:
        world = World(max_connections=2)
        for _ in range(5):
            client, _ = world.ask()
            client.leave()
            world.client().leave()
        self.assertEqual(world.idle(), NOTHING_LEFT)


class OverSockets(TestCase):
    timeout = 30

    async def test_the_refusal_arrives_though_the_client_has_sent_much(self) -> None:
        world = World(max_connections=1)
        # In real sockets, what is left unread turns the end of a connection into a reset.
        crowd = Crowd(cast("IReactorTime", reactor), most=1, most_per_client=0)
        crowd.enter(tcp("127.0.0.1"))
        ended: list[Deferred[None]] = [Deferred() for _ in range(5)]
        ends, gone = iter(ended), crowd.gone

        def note(leaving: TurnedAway) -> None:
            gone(leaving)
            next(ends).callback(None)

        self.patch(crowd, "gone", note)
        world.daemon.site.crowd = crowd
        port = cast("Any", reactor).listenTCP(0, world.daemon.site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        clients = [
            await FaultyClient.connect(reactor, "127.0.0.1", port.getHost().port) for _ in range(5)
        ]
        for client in clients:
            client.play([Send(1_000_000 * b"x")])
        for client in clients:
            await client.over
            self.assertEqual(judge(bytes(client.received)).outcome, "503 too_many_connections")
        await DeferredList(ended)
