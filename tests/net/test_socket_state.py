"""What the system tells of the other end, over real sockets."""

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

from blockops.net import socket_state as peer
from blockops.net.socket_state import departed, unread


class Departures(TestCase):
    """A transport that is not read from does not tell that its peer has left."""

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

    async def test_somebody_who_is_there(self) -> None:
        protocol, client = await self.connected()
        client.sendall(b"unread")
        self.assertFalse(departed(protocol.transport))

    async def test_somebody_who_has_left(self) -> None:
        protocol, client = await self.connected()
        client.sendall(b"unread")
        client.close()
        self.assertTrue(departed(protocol.transport))

    async def test_behind_tls(self) -> None:
        protocol, client = await self.connected()
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.transport = protocol.transport
        client.close()
        self.assertTrue(departed(wrapper))

    def test_what_is_no_socket(self) -> None:
        self.assertFalse(departed(StringTransport()))


@implementer(ISystemHandle)
class Bare:
    """A transport that is a socket and nothing else."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def getHandle(self) -> Any:
        return self._handle


class Unread(SynchronousTestCase):
    """How much the other end has still to take."""

    def connected(self) -> tuple[socket, socket]:
        """Return two ends, which hold little between them."""
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
        """Write until nothing more is taken, nor moves; return how much that was."""
        sent = 0
        while select([], [ours], [], 0.2)[1]:
            with contextlib.suppress(BlockingIOError):
                sent += ours.send(b"x" * 1024)
        return sent

    def test_it_falls_as_the_other_end_reads(self) -> None:
        ours, theirs = self.connected()
        sent = self.fill(ours)
        held = unread(Bare(ours))
        assert held is not None
        self.assertGreater(held, 0)
        received = 0
        while received < sent:
            received += len(theirs.recv(sent))
        # The last acknowledgement may be on its way for a moment.
        self.assertLess(unread(Bare(ours)) or 0, held)

    def test_it_stands_still_while_the_other_end_does_not_read(self) -> None:
        ours, _ = self.connected()
        self.fill(ours)
        self.assertEqual(len({unread(Bare(ours)) for _ in range(100)}), 1)

    def test_below_tls(self) -> None:
        ours, _ = self.connected()
        self.fill(ours)
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.transport = cast("Any", Bare(ours))
        self.assertEqual(unread(wrapper), unread(Bare(ours)))

    def test_as_macos_tells_it(self) -> None:
        class Mac(socket):
            def getsockopt(self, *asked: int) -> int:  # type: ignore[override]
                return 77 if asked == (SOL_SOCKET, 0x1024) else 0

        with Mac() as ours:
            self.patch(sys, "platform", "darwin")
            self.assertEqual(unread(Bare(ours)), 77)

    def test_a_system_that_does_not_tell(self) -> None:
        def refuse(*_: object) -> bytes:
            raise OSError("Inappropriate ioctl for device")

        ours, _ = self.connected()
        self.patch(peer, "ioctl", refuse)
        self.assertIsNone(unread(Bare(ours)))

    def test_what_is_no_socket(self) -> None:
        for transport in (StringTransport(), Bare(object()), None):
            self.assertIsNone(unread(transport))
