"""The state of a connection as the system reports it, over real sockets."""

from __future__ import annotations

import contextlib
import sys
from select import select
from socket import AF_INET, SO_RCVBUF, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET, create_connection, socket
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, ISystemHandle, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, ServerFactory
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from blockops.net import socket_state
from blockops.net.socket_state import has_peer_closed, unsent_bytes


class PeerClosed(TestCase):
    """A paused transport does not notice that its peer has closed the connection."""

    async def connected(self) -> tuple[Protocol, socket]:
        accepted: Deferred[Protocol] = Deferred()

        class Paused(Protocol):
            def connectionMade(self) -> None:
                cast("IPushProducer", self.transport).pauseProducing()
                accepted.callback(self)

        factory = ServerFactory()
        factory.protocol = Paused
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        client = create_connection(("127.0.0.1", cast("IPv4Address", port.getHost()).port))
        self.addCleanup(client.close)
        protocol = await accepted
        self.addCleanup(cast("ITCPTransport", protocol.transport).abortConnection)
        return protocol, client

    async def test_an_open_connection(self) -> None:
        protocol, client = await self.connected()
        client.sendall(b"unread")
        self.assertFalse(has_peer_closed(protocol.transport))

    async def test_a_closed_connection(self) -> None:
        protocol, client = await self.connected()
        client.sendall(b"unread")
        client.close()
        self.assertTrue(has_peer_closed(protocol.transport))

    async def test_below_a_wrapper(self) -> None:
        protocol, client = await self.connected()
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.transport = protocol.transport
        client.close()
        self.assertTrue(has_peer_closed(wrapper))

    def test_without_a_socket(self) -> None:
        self.assertFalse(has_peer_closed(StringTransport()))


@implementer(ISystemHandle)
class PlainHandle:
    """A transport that has a socket and nothing else."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def getHandle(self) -> Any:
        return self._handle


class UnsentBytes(SynchronousTestCase):
    """Bytes that the system still holds for the socket_state."""

    def connected(self) -> tuple[socket, socket]:
        """Return the two ends of a connection with small buffers."""
        with socket(AF_INET, SOCK_STREAM) as listening:
            listening.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            ours = create_connection(listening.getsockname())
            theirs, _ = listening.accept()
        for each in (ours, theirs):
            self.addCleanup(each.close)
        ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 16)
        ours.settimeout(0)
        theirs.settimeout(20)
        return ours, theirs

    def fill(self, ours: socket) -> int:
        """Write until the buffers of both ends are full; return the number of bytes."""
        sent = 0
        while select([], [ours], [], 0.2)[1]:
            with contextlib.suppress(BlockingIOError):
                sent += ours.send(b"x" * 1024)
        return sent

    def test_it_falls_while_the_peer_reads(self) -> None:
        ours, theirs = self.connected()
        sent = self.fill(ours)
        before = unsent_bytes(PlainHandle(ours))
        assert before is not None
        self.assertGreater(before, 0)
        received = 0
        while received < sent:
            received += len(theirs.recv(sent))
        # The last acknowledgement may be on its way for a moment.
        self.assertLess(unsent_bytes(PlainHandle(ours)) or 0, before)

    def test_it_is_constant_while_the_peer_does_not_read(self) -> None:
        ours, _ = self.connected()
        self.fill(ours)
        self.assertEqual(len({unsent_bytes(PlainHandle(ours)) for _ in range(100)}), 1)

    def test_below_tls(self) -> None:
        ours, _ = self.connected()
        self.fill(ours)
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.transport = cast("Any", PlainHandle(ours))
        self.assertEqual(unsent_bytes(wrapper), unsent_bytes(PlainHandle(ours)))

    def test_on_macos(self) -> None:
        class Mac(socket):
            def getsockopt(self, *option: int) -> int:  # type: ignore[override]
                return 77 if option == (SOL_SOCKET, 0x1024) else 0

        with Mac() as ours:
            self.patch(sys, "platform", "darwin")
            self.assertEqual(unsent_bytes(PlainHandle(ours)), 77)

    def test_an_unsupported_system(self) -> None:
        def fail(*_: object) -> bytes:
            raise OSError("Inappropriate ioctl for device")

        ours, _ = self.connected()
        self.patch(socket_state, "ioctl", fail)
        self.assertIsNone(unsent_bytes(PlainHandle(ours)))

    def test_without_a_socket(self) -> None:
        for transport in (StringTransport(), PlainHandle(object()), None):
            self.assertIsNone(unsent_bytes(transport))
