"""Connections to this machine that exist at once, and those that do not."""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6, SOCK_STREAM, AddressFamily, fromfd, socket
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.error import ConnectionRefusedError  # noqa: A004
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import BrowserLikePolicyForHTTPS

from blockops.upstream.http.agent import OneShotAgent
from blockops.upstream.http.nearby import connected, family_if_near

HERE = "127.0.0.1"
FACTORY = cast("IProtocolFactory", Factory())


class Adopting:
    """A reactor that keeps what it is given, unless it cannot."""

    def __init__(self, failure: OSError | None = None) -> None:
        self.adopted: list[socket] = []
        self.failure = failure

    def adoptStreamConnection(self, descriptor: int, family: int, factory: object) -> None:
        if self.failure is not None:
            raise self.failure
        self.adopted.append(fromfd(descriptor, family, SOCK_STREAM))


class Nearby(SynchronousTestCase):
    def listening(
        self, family: AddressFamily = AF_INET, host: str = HERE, queue: int = 5
    ) -> socket:
        server = socket(family, SOCK_STREAM)
        self.addCleanup(server.close)
        server.bind((host, 0))
        server.listen(queue)
        return server

    def connect(
        self,
        port: int,
        reactor: Adopting,
        host: str = HERE,
        family: AddressFamily = AF_INET,
    ) -> bool:
        made = connected(reactor, family, host, port, FACTORY)
        for connection in reactor.adopted:
            self.addCleanup(connection.close)
        return made

    def test_connected_at_once(self) -> None:
        for family, host in ((AF_INET, HERE), (AF_INET6, "::1")):
            with self.subTest(host=host):
                server, reactor = self.listening(family, host), Adopting()
                self.assertTrue(self.connect(server.getsockname()[1], reactor, host, family))
                (ours,) = reactor.adopted
                self.assertFalse(os.get_blocking(ours.fileno()))
                ours.sendall(b"hello")
                theirs, _ = server.accept()
                self.addCleanup(theirs.close)
                self.assertEqual(theirs.recv(5), b"hello")

    def test_nobody_listens(self) -> None:
        server, reactor = self.listening(), Adopting()
        port = server.getsockname()[1]
        server.close()
        self.assertFalse(self.connect(port, reactor))
        self.assertEqual(reactor.adopted, [])

    def test_the_servers_queue_is_full(self) -> None:
        server, reactor = self.listening(queue=0), Adopting()
        port = server.getsockname()[1]
        made = [self.connect(port, reactor) for _ in range(8)]
        self.assertEqual(len(reactor.adopted), sum(made))
        self.assertFalse(made[-1])

    def test_no_descriptor_is_left(self) -> None:
        server, reactor = self.listening(), Adopting(OSError(24, "Too many open files"))
        self.assertFalse(self.connect(server.getsockname()[1], reactor))
        theirs, _ = server.accept()
        self.addCleanup(theirs.close)
        self.assertEqual(theirs.recv(1), b"")

    def test_what_is_near(self) -> None:
        for host, near in (
            (HERE, AF_INET),
            ("127.3.4.5", AF_INET),
            ("::1", AF_INET6),
            ("192.0.2.1", None),
            ("2001:db8::1", None),
            ("localhost", None),
        ):
            with self.subTest(host=host):
                self.assertEqual(family_if_near(reactor, host), near)

    def test_reactors_without_sockets(self) -> None:
        self.assertIsNone(family_if_near(MemoryReactorClock(), HERE))


class OfTheAgent(TestCase):
    """Over real sockets: without a turn of the reactor, and the usual way where that cannot be."""

    def ask(self, port: int) -> Any:
        agent = OneShotAgent(reactor, BrowserLikePolicyForHTTPS(), 5, lambda: None)
        return agent.request(b"GET", b"http://127.0.0.1:%d/v1/models" % port)

    async def test_the_request_is_sent_at_once(self) -> None:
        with socket(AF_INET, SOCK_STREAM) as server:
            server.bind((HERE, 0))
            server.listen()
            server.settimeout(10)
            answered = self.ask(server.getsockname()[1])
            theirs, _ = server.accept()
            with theirs:
                theirs.settimeout(10)
                self.assertIn(b"GET /v1/models HTTP/1.1\r\n", theirs.recv(65536))
                theirs.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                response = await answered
        self.assertEqual(response.code, 204)

    async def test_nobody_listens(self) -> None:
        with socket(AF_INET, SOCK_STREAM) as server:
            server.bind((HERE, 0))
            port = server.getsockname()[1]
        with self.assertRaises(ConnectionRefusedError):
            await self.ask(port)
