"""Connections to this machine without a turn of the reactor."""

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

from blockops.upstream.http.agent import SingleUseAgent
from blockops.upstream.http.loopback import connect_now, loopback_family

HERE = "127.0.0.1"
FACTORY = cast("IProtocolFactory", Factory())


class AdoptingReactor:
    """A reactor that records adopted sockets, or fails with `failure`."""

    def __init__(self, failure: OSError | None = None) -> None:
        self.adopted: list[socket] = []
        self.failure = failure

    def adoptStreamConnection(self, descriptor: int, family: int, factory: object) -> None:
        if self.failure is not None:
            raise self.failure
        self.adopted.append(fromfd(descriptor, family, SOCK_STREAM))


class ConnectNowTests(SynchronousTestCase):
    def listen(self, family: AddressFamily = AF_INET, host: str = HERE, queue: int = 5) -> socket:
        server = socket(family, SOCK_STREAM)
        self.addCleanup(server.close)
        server.bind((host, 0))
        server.listen(queue)
        return server

    def connect(
        self,
        port: int,
        reactor: AdoptingReactor,
        host: str = HERE,
        family: AddressFamily = AF_INET,
    ) -> bool:
        connected = connect_now(reactor, family, host, port, FACTORY)
        for connection in reactor.adopted:
            self.addCleanup(connection.close)
        return connected

    def test_connects_at_once(self) -> None:
        for family, host in ((AF_INET, HERE), (AF_INET6, "::1")):
            with self.subTest(host=host):
                server, reactor = self.listen(family, host), AdoptingReactor()
                self.assertTrue(self.connect(server.getsockname()[1], reactor, host, family))
                (ours,) = reactor.adopted
                self.assertFalse(os.get_blocking(ours.fileno()))
                ours.sendall(b"hello")
                theirs, _ = server.accept()
                self.addCleanup(theirs.close)
                self.assertEqual(theirs.recv(5), b"hello")

    def test_connection_refused(self) -> None:
        server, reactor = self.listen(), AdoptingReactor()
        port = server.getsockname()[1]
        server.close()
        self.assertFalse(self.connect(port, reactor))
        self.assertEqual(reactor.adopted, [])

    def test_a_full_listen_queue(self) -> None:
        server, reactor = self.listen(queue=0), AdoptingReactor()
        port = server.getsockname()[1]
        connected = [self.connect(port, reactor) for _ in range(8)]
        self.assertEqual(len(reactor.adopted), sum(connected))
        self.assertFalse(connected[-1])

    def test_no_descriptor_leaks(self) -> None:
        server, reactor = self.listen(), AdoptingReactor(OSError(24, "Too many open files"))
        self.assertFalse(self.connect(server.getsockname()[1], reactor))
        theirs, _ = server.accept()
        self.addCleanup(theirs.close)
        self.assertEqual(theirs.recv(1), b"")

    def test_loopback_family(self) -> None:
        for host, family in (
            (HERE, AF_INET),
            ("127.3.4.5", AF_INET),
            ("::1", AF_INET6),
            ("192.0.2.1", None),
            ("2001:db8::1", None),
            ("localhost", None),
        ):
            with self.subTest(host=host):
                self.assertEqual(loopback_family(reactor, host), family)

    def test_reactors_without_sockets(self) -> None:
        self.assertIsNone(loopback_family(MemoryReactorClock(), HERE))


class AgentTests(TestCase):
    """The agent over real sockets, with and without `connect_now`."""

    def request(self, port: int) -> Any:
        agent = SingleUseAgent(reactor, BrowserLikePolicyForHTTPS(), 5, lambda: None)
        return agent.request(b"GET", b"http://127.0.0.1:%d/v1/models" % port)

    async def test_the_request_is_sent_at_once(self) -> None:
        with socket(AF_INET, SOCK_STREAM) as server:
            server.bind((HERE, 0))
            server.listen()
            server.settimeout(10)
            result = self.request(server.getsockname()[1])
            theirs, _ = server.accept()
            with theirs:
                theirs.settimeout(10)
                self.assertIn(b"GET /v1/models HTTP/1.1\r\n", theirs.recv(65536))
                theirs.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                response = await result
        self.assertEqual(response.code, 204)

    async def test_connection_refused(self) -> None:
        with socket(AF_INET, SOCK_STREAM) as server:
            server.bind((HERE, 0))
            port = server.getsockname()[1]
        with self.assertRaises(ConnectionRefusedError):
            await self.request(port)
