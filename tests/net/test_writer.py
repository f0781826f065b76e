"""Eager sends, against `transport.write` as the slow way that is known to be right."""

from __future__ import annotations

from collections.abc import Callable
from socket import AF_UNIX, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET, socket, socketpair
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IPushProducer, ISSLTransport, ISystemHandle
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, implementer

from blockops.net.writer import (
    ROOM,
    EagerOutlet,
    Outlet,
    QueuingOutlet,
    is_bare,
    outlet,
    send_first,
)

#: What the system makes of it is still small: a few writes fill it.
SEND_BUFFER = 4096
#: What two sides of a connection hold of it, at most.
IN_THE_SYSTEM = 64 * 1024

Kind = Callable[[Any, IPushProducer], Outlet]


class Turns(Clock):
    """A reactor that goes round its loop when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[Server] = set()
        self.asked = 0

    def addReader(self, reader: Server) -> None:
        """Nothing is ever read."""

    removeReader = addReader

    def addWriter(self, writer: Server) -> None:
        self.asked += 1
        self.writers.add(writer)

    def removeWriter(self, writer: Server) -> None:
        self.writers.discard(writer)

    def turn(self) -> None:
        for writer in list(self.writers):
            lost = writer.doWrite()
            if lost is not None:
                writer.connectionLost(Failure(lost))
        self.advance(0)


@implementer(IPushProducer)
class Source:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")

    @property
    def paused(self) -> bool:
        return self.told[-1:] == ["pause"]


class Line:
    """A connection over a real socket, and whoever writes to it by way of an outlet."""

    def __init__(self, kind: Kind) -> None:
        ours, self.peer = socketpair(AF_UNIX, SOCK_STREAM)
        ours.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
        self.peer.settimeout(0)
        self.reactor = Turns()
        self.protocol = Protocol()
        self.transport = Server(
            ours, self.protocol, ("", 0), cast("Any", None), 0, cast("Any", self.reactor)
        )
        self.protocol.makeConnection(self.transport)
        self.source = Source()
        self.out = kind(self.transport, self.source)
        self.written = self.received = b""

    def write(self, size: int) -> None:
        data = b"%x," % len(self.written)
        data = (data * size)[:size]
        self.written += data
        self.out.write(data)

    def read(self, size: int) -> bytes:
        try:
            data = self.peer.recv(size)
        except OSError:
            return b""
        self.received += data
        return data

    def drain(self) -> None:
        """Read until nothing more comes."""
        self.reactor.turn()
        while self.read(1 << 20):
            self.reactor.turn()

    def hang_up(self) -> None:
        self.peer.close()
        if hasattr(self.transport, "socket"):
            self.transport.connectionLost(Failure(ConnectionError()))


def a_line(case: SynchronousTestCase, kind: Kind = EagerOutlet) -> Line:
    line = Line(kind)
    case.addCleanup(line.hang_up)
    return line


class TheFirst(SynchronousTestCase):
    def test_it_leaves_at_once(self) -> None:
        line = a_line(self, QueuingOutlet)
        send_first(line.transport, b"hello")
        self.assertEqual((line.read(100), line.reactor.asked), (b"hello", 0))

    def test_what_the_socket_does_not_take_follows(self) -> None:
        line = a_line(self, QueuingOutlet)
        data = bytes(range(256)) * 4096
        send_first(line.transport, data)
        line.drain()
        self.assertEqual(line.received, data)

    def test_a_connection_that_is_lost(self) -> None:
        line = a_line(self, QueuingOutlet)
        line.peer.close()
        send_first(line.transport, b"hello")
        self.assertEqual(line.reactor.asked, 1)

    def test_no_socket(self) -> None:
        transport = StringTransport()
        send_first(transport, b"hello")
        self.assertEqual(transport.value(), b"hello")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 300) | st.integers(0, ROOM)),
        st.tuples(st.just("read"), st.integers(1, 200_000)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=30,
)


class AsTransportsDo(SynchronousTestCase):
    @given(STEPS)
    def test_order_completeness_and_bound(self, steps: list[tuple[str, int]]) -> None:
        lines = [Line(EagerOutlet), Line(QueuingOutlet)]
        for line in lines:
            for what, size in steps:
                if what == "write" and not line.source.paused:
                    line.write(size)
                elif what == "read":
                    line.read(size)
                elif what == "turn":
                    line.reactor.turn()
                held = len(line.written) - len(line.received)
                self.assertLessEqual(held, 2 * ROOM + IN_THE_SYSTEM)
            line.drain()
            self.assertEqual(line.received, line.written)
            self.assertFalse(line.source.paused)
            self.assertEqual(line.source.told[::2], ["pause"] * (len(line.source.told) // 2))
            line.write(7)
            line.drain()
            self.assertEqual(line.received, line.written)
            line.hang_up()

    @given(STEPS)
    def test_closed_behind_what_was_written(self, steps: list[tuple[str, int]]) -> None:
        for kind in (EagerOutlet, QueuingOutlet):
            line = Line(kind)
            for what, size in steps:
                if what == "write":
                    line.write(size)
            line.out.close()
            line.drain()
            self.assertEqual(line.received, line.written)
            self.assertTrue(line.transport.disconnected)
            line.peer.close()


class Eagerness(SynchronousTestCase):
    def test_nobody_is_asked_where_nothing_waits(self) -> None:
        line = a_line(self)
        for _ in range(3):
            line.write(100)
            self.assertEqual(len(line.read(1000)), 100)
        self.assertEqual(line.reactor.asked, 0)

    def test_nor_after_something_had_to_wait(self) -> None:
        line = a_line(self)
        line.write(ROOM)
        self.assertEqual(line.reactor.asked, 1)
        line.drain()
        line.write(100)
        self.assertEqual(line.reactor.asked, 1)

    def test_what_waits_is_not_overtaken(self) -> None:
        line = a_line(self)
        line.write(ROOM)
        line.read(ROOM)
        # The socket has room again, but the transport does not know yet.
        line.write(100)
        line.drain()
        self.assertEqual(line.received, line.written)

    def test_nothing(self) -> None:
        line = a_line(self)
        line.write(0)
        self.assertEqual((line.reactor.asked, line.read(1)), (0, b""))


class Losses(SynchronousTestCase):
    def test_a_peer_that_has_left(self) -> None:
        for kind in (EagerOutlet, QueuingOutlet):
            line = a_line(self, kind)
            line.peer.close()
            line.write(10)
            self.assertEqual(line.source.told, [])
            line.reactor.turn()
            self.assertEqual(line.source.told, ["stop"])
            line.write(10)
            line.reactor.turn()
            self.assertEqual(line.source.told, ["stop"])

    def test_a_peer_that_leaves_while_something_waits(self) -> None:
        line = a_line(self)
        line.write(3 * ROOM)
        line.peer.close()
        line.reactor.turn()
        self.assertEqual(line.source.told, ["pause", "stop"])

    def test_a_connection_that_was_lost_before(self) -> None:
        line = a_line(self)
        line.transport.connectionLost(Failure(ConnectionError()))
        self.assertEqual(line.source.told, ["stop"])

    def test_nothing_is_sent_behind_an_abort(self) -> None:
        for kind in (EagerOutlet, QueuingOutlet):
            line = a_line(self, kind)
            line.write(10)
            line.reactor.turn()
            line.out.abort()
            line.out.write(b"late")
            line.drain()
            self.assertEqual(line.received, line.written)
            self.assertEqual(line.source.told, ["stop"])


class WhereItMayBe(SynchronousTestCase):
    def test_on_sockets(self) -> None:
        line = a_line(self)
        self.assertTrue(is_bare(line.transport))
        line.transport.unregisterProducer()
        self.assertIsInstance(outlet(line.transport, line.source), EagerOutlet)

    def test_not_behind_wrappers_of_whatever_kind(self) -> None:
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.makeConnection(a_line(self).transport)
        self.assertTrue(ISystemHandle.providedBy(wrapper))
        self.assertFalse(is_bare(wrapper))

    def test_not_with_tls(self) -> None:
        transport = a_line(self).transport
        directlyProvides(transport, ISSLTransport)
        self.assertFalse(is_bare(transport))

    def test_not_in_memory(self) -> None:
        transport, source = StringTransport(), Source()
        out = outlet(transport, source)
        self.assertIsInstance(out, QueuingOutlet)
        out.write(b"abc")
        self.assertEqual((transport.value(), transport.producer), (b"abc", source))
        out.close()
        self.assertEqual((transport.disconnecting, transport.producer), (True, None))

    def test_not_on_what_would_wait_for_the_other_side(self) -> None:
        transport = a_line(self).transport
        transport.getHandle().settimeout(None)
        self.assertFalse(is_bare(transport))

    def test_not_on_what_is_no_socket(self) -> None:
        @implementer(ISystemHandle)
        class Other:
            def getHandle(self) -> socket:
                return cast("socket", object())

        self.assertFalse(is_bare(Other()))
