"""`EagerWriter`, compared with `transport.write`, which is slower and known to be correct."""

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

from blockops.net.writer import HIGH_WATER, EagerWriter, is_plain_socket, send_now

#: The system rounds it up, but it is still small: a few writes fill it.
SEND_BUFFER = 4096
#: Upper bound for the data in the system's buffers of both ends.
SYSTEM_BUFFERS = 64 * 1024

MakeWriter = Callable[[Any, IPushProducer], EagerWriter]


def make_indirect_writer(transport: Any, source: IPushProducer) -> EagerWriter:
    """Return a writer that passes all data to the transport, as with TLS."""
    directlyProvides(transport, ISSLTransport)
    return EagerWriter(transport, source)


class LoopReactor(Clock):
    """A reactor whose loop runs only in `turn`."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[Server] = set()
        self.writers_added = 0

    def addReader(self, reader: Server) -> None:
        """Ignore `reader`: nothing is read."""

    removeReader = addReader

    def addWriter(self, writer: Server) -> None:
        self.writers_added += 1
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
    """Records the calls to it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")

    @property
    def paused(self) -> bool:
        return self.calls[-1:] == ["pause"]


class Connection:
    """A connection over a real socket, with a writer and its source."""

    def __init__(self, make: MakeWriter) -> None:
        ours, self.peer = socketpair(AF_UNIX, SOCK_STREAM)
        ours.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
        self.peer.settimeout(0)
        self.reactor = LoopReactor()
        self.protocol = Protocol()
        self.transport = Server(
            ours, self.protocol, ("", 0), cast("Any", None), 0, cast("Any", self.reactor)
        )
        self.protocol.makeConnection(self.transport)
        self.source = Source()
        self.writer = make(self.transport, self.source)
        self.written = self.received = b""

    def write(self, size: int) -> None:
        data = b"%x," % len(self.written)
        data = (data * size)[:size]
        self.written += data
        self.writer.write(data)

    def read(self, size: int) -> bytes:
        try:
            data = self.peer.recv(size)
        except OSError:
            return b""
        self.received += data
        return data

    def drain(self) -> None:
        """Read until no more data arrives."""
        self.reactor.turn()
        while self.read(1 << 20):
            self.reactor.turn()

    def hang_up(self) -> None:
        self.peer.close()
        if hasattr(self.transport, "socket"):
            self.transport.connectionLost(Failure(ConnectionError()))


def open_connection(case: SynchronousTestCase, make: MakeWriter = EagerWriter) -> Connection:
    connection = Connection(make)
    case.addCleanup(connection.hang_up)
    return connection


class SendNow(SynchronousTestCase):
    def test_it_is_sent_at_once(self) -> None:
        connection = open_connection(self)
        send_now(connection.transport, b"hello")
        self.assertEqual((connection.read(100), connection.reactor.writers_added), (b"hello", 0))

    def test_data_that_does_not_fit_follows(self) -> None:
        connection = open_connection(self)
        data = bytes(range(256)) * 4096
        send_now(connection.transport, data)
        connection.drain()
        self.assertEqual(connection.received, data)

    def test_a_lost_connection(self) -> None:
        connection = open_connection(self)
        connection.peer.close()
        send_now(connection.transport, b"hello")
        self.assertEqual(connection.reactor.writers_added, 1)

    def test_without_a_socket(self) -> None:
        transport = StringTransport()
        send_now(transport, b"hello")
        self.assertEqual(transport.value(), b"hello")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 300) | st.integers(0, HIGH_WATER)),
        st.tuples(st.just("read"), st.integers(1, 200_000)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=30,
)


class SameAsTransports(SynchronousTestCase):
    @given(STEPS)
    def test_order_completeness_and_limit(self, steps: list[tuple[str, int]]) -> None:
        connections = [Connection(EagerWriter), Connection(make_indirect_writer)]
        for connection in connections:
            for what, size in steps:
                if what == "write" and not connection.source.paused:
                    connection.write(size)
                elif what == "read":
                    connection.read(size)
                elif what == "turn":
                    connection.reactor.turn()
                unread_size = len(connection.written) - len(connection.received)
                self.assertLessEqual(unread_size, 2 * HIGH_WATER + SYSTEM_BUFFERS)
            connection.drain()
            self.assertEqual(connection.received, connection.written)
            self.assertFalse(connection.source.paused)
            self.assertEqual(
                connection.source.calls[::2], ["pause"] * (len(connection.source.calls) // 2)
            )
            connection.write(7)
            connection.drain()
            self.assertEqual(connection.received, connection.written)
            connection.hang_up()

    @given(STEPS)
    def test_close_sends_written_data_first(self, steps: list[tuple[str, int]]) -> None:
        for make in (EagerWriter, make_indirect_writer):
            connection = Connection(make)
            for what, size in steps:
                if what == "write":
                    connection.write(size)
            connection.writer.close()
            connection.drain()
            self.assertEqual(connection.received, connection.written)
            self.assertTrue(connection.transport.disconnected)
            connection.peer.close()


class ImmediateSends(SynchronousTestCase):
    def test_the_reactor_is_not_used_if_nothing_waits(self) -> None:
        connection = open_connection(self)
        for _ in range(3):
            connection.write(100)
            self.assertEqual(len(connection.read(1000)), 100)
        self.assertEqual(connection.reactor.writers_added, 0)

    def test_nor_after_data_had_to_wait(self) -> None:
        connection = open_connection(self)
        connection.write(HIGH_WATER)
        self.assertEqual(connection.reactor.writers_added, 1)
        connection.drain()
        connection.write(100)
        self.assertEqual(connection.reactor.writers_added, 1)

    def test_order_after_a_full_socket(self) -> None:
        connection = open_connection(self)
        connection.write(HIGH_WATER)
        connection.read(HIGH_WATER)
        # The socket is writable again, but the transport does not know it yet.
        connection.write(100)
        connection.drain()
        self.assertEqual(connection.received, connection.written)

    def test_an_empty_write(self) -> None:
        connection = open_connection(self)
        connection.write(0)
        self.assertEqual((connection.reactor.writers_added, connection.read(1)), (0, b""))


class LostConnections(SynchronousTestCase):
    def test_a_peer_that_has_closed(self) -> None:
        for make in (EagerWriter, make_indirect_writer):
            connection = open_connection(self, make)
            connection.peer.close()
            connection.write(10)
            self.assertEqual(connection.source.calls, [])
            connection.reactor.turn()
            self.assertEqual(connection.source.calls, ["stop"])
            connection.write(10)
            connection.reactor.turn()
            self.assertEqual(connection.source.calls, ["stop"])

    def test_a_peer_that_closes_while_data_waits(self) -> None:
        connection = open_connection(self)
        connection.write(3 * HIGH_WATER)
        connection.peer.close()
        connection.reactor.turn()
        self.assertEqual(connection.source.calls, ["pause", "stop"])

    def test_a_connection_that_is_already_lost(self) -> None:
        connection = open_connection(self)
        connection.transport.connectionLost(Failure(ConnectionError()))
        self.assertEqual(connection.source.calls, ["stop"])

    def test_nothing_is_sent_after_an_abort(self) -> None:
        for make in (EagerWriter, make_indirect_writer):
            connection = open_connection(self, make)
            connection.write(10)
            connection.reactor.turn()
            connection.writer.abort()
            connection.writer.write(b"late")
            connection.drain()
            self.assertEqual(connection.received, connection.written)
            self.assertEqual(connection.source.calls, ["stop"])


class PlainSockets(SynchronousTestCase):
    def test_a_socket(self) -> None:
        self.assertTrue(is_plain_socket(open_connection(self).transport))

    def test_not_a_wrapper(self) -> None:
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.makeConnection(open_connection(self).transport)
        self.assertTrue(ISystemHandle.providedBy(wrapper))
        self.assertFalse(is_plain_socket(wrapper))

    def test_not_tls(self) -> None:
        transport = open_connection(self).transport
        directlyProvides(transport, ISSLTransport)
        self.assertFalse(is_plain_socket(transport))

    def test_not_a_transport_in_memory(self) -> None:
        transport, source = StringTransport(), Source()
        self.assertFalse(is_plain_socket(transport))
        writer = EagerWriter(transport, source)
        writer.write(b"abc")
        self.assertEqual((transport.value(), transport.producer), (b"abc", source))
        writer.close()
        self.assertEqual((transport.disconnecting, transport.producer), (True, None))

    def test_not_a_blocking_socket(self) -> None:
        transport = open_connection(self).transport
        transport.getHandle().settimeout(None)
        self.assertFalse(is_plain_socket(transport))

    def test_not_another_handle(self) -> None:
        @implementer(ISystemHandle)
        class Other:
            def getHandle(self) -> socket:
                return cast("socket", object())

        self.assertFalse(is_plain_socket(Other()))
