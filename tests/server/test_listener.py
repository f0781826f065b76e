"""Where blockops listens, and on which addresses it does not without being told to."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from blockops.daemon.service import Daemon
from blockops.server.listener import Listening, TooOpen, is_local, only_local, wherever
from blockops.settings.table import Settings
from tests.world import Reactor, World


class Addresses(SynchronousTestCase):
    def test_local_ones(self) -> None:
        for address in (
            IPv4Address("TCP", "127.0.0.1", 80),
            IPv4Address("TCP", "127.8.9.1", 80),
            IPv6Address("TCP", "::1", 80),
            IPv6Address("TCP", "::ffff:127.0.0.1", 80),
            UNIXAddress(b"/run/x"),
            UNIXAddress(None),
        ):
            self.assertTrue(is_local(address), address)
            only_local(address)

    def test_others(self) -> None:
        for address in (
            IPv4Address("TCP", "0.0.0.0", 80),
            IPv4Address("TCP", "192.168.1.2", 80),
            IPv4Address("TCP", "10.0.0.1", 80),
            IPv4Address("TCP", "localhost", 80),
            IPv6Address("TCP", "::", 80),
            IPv6Address("TCP", "fe80::1", 80),
            IPv6Address("TCP", "::ffff:10.0.0.1", 80),
            None,
        ):
            self.assertFalse(is_local(address), address)
        error = str(self.assertRaises(TooOpen, only_local, IPv6Address("TCP", "::", 80)))
        self.assertIn("[::]:80", error)
        for words in ("--api-keys-file", "--insecure-public"):
            self.assertIn(words, error)
        self.assertNotIn("\n", error)

    def test_an_address_of_another_kind(self) -> None:
        self.assertIn("Strange", str(self.assertRaises(TooOpen, only_local, Strange())))


class Strange:
    def __repr__(self) -> str:
        return "Strange()"


class Refusing(SynchronousTestCase):
    def refusal(self, *listen: str, **settings: Any) -> str:
        memory = Reactor()
        daemon = Daemon(Settings(log_file=None, listen=listen, **settings), memory)
        return str(self.assertRaises(SystemExit, daemon.privilegedStartService))

    def test_where_others_reach_it(self) -> None:
        for endpoint in (
            "tcp:8080",
            "tcp:8080:interface=0.0.0.0",
            "tcp:8080:interface=192.168.1.2",
            r"tcp6:8080:interface=\:\:",
            "tcp6:8080",
        ):
            refusal = self.refusal("tcp:1:interface=127.0.0.1", endpoint)
            self.assertIn(":8080 can be reached from other machines", refusal)
            self.assertTrue(refusal.startswith("blockops: "))
        self.assertIn("10.0.0.1:8080", self.refusal(interface="10.0.0.1"))

    def test_where_only_this_machine_does(self) -> None:
        for endpoint in ("tcp:1:interface=127.0.0.1", r"tcp6:1:interface=\:\:1", "unix:/x.sock"):
            World(listen=(endpoint,))

    def test_when_it_was_told_to(self) -> None:
        World(interface="0.0.0.0", insecure_public=True)
        path = Path(self.mktemp())
        path.write_text("alice: sk-1")
        World(interface="0.0.0.0", api_keys_file=path)


class Nowhere(TestCase):
    def test_a_folder_that_is_not_there(self) -> None:
        where = Path(self.mktemp()).resolve() / "http"
        settings = Settings(log_file=None, listen=(f"unix:{where}",))
        refused = self.assertRaises(SystemExit, Daemon(settings, reactor).privilegedStartService)
        self.assertEqual(
            str(refused),
            f"blockops: cannot listen on {where}: No such file or directory. Its folder has to be "
            "there, and writable.",
        )


class Sockets(TestCase):
    """Real ones."""

    def listening(self, description: str, accept: Any = only_local) -> Listening:
        service = Listening(reactor, description, Factory.forProtocol(Protocol), accept)
        parent = MultiService()
        service.setServiceParent(parent)
        self.addCleanup(parent.stopService)
        self.addCleanup(service.stopService)
        self.service = parent
        return service

    def test_a_socket_that_is_bound_already(self) -> None:
        for host, fine in (("127.0.0.1", True), ("0.0.0.0", False)):
            listener = socket.create_server((host, 0))
            listening = self.listening("tcp:0")
            listening._endpoint = AdoptedStreamServerEndpoint(
                reactor, listener.detach(), socket.AF_INET
            )
            if fine:
                listening.privilegedStartService()
            else:
                self.assertRaises(TooOpen, listening.privilegedStartService)

    async def test_from_start_to_stop(self) -> None:
        seen: list[IAddress] = []
        self.listening("tcp:0:interface=127.0.0.1", seen.append)
        self.service.privilegedStartService()
        self.service.startService()
        (address,) = seen
        assert isinstance(address, IPv4Address)
        socket.create_connection((address.host, address.port)).close()
        await self.service.stopService()
        self.assertRaises(OSError, socket.create_connection, (address.host, address.port))

    def test_a_port_that_is_taken(self) -> None:
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        port = taken.getsockname()[1]
        listening = self.listening(f"tcp:{port}:interface=127.0.0.1", wherever)
        self.assertRaises(CannotListenError, listening.privilegedStartService)

    def test_what_becomes_known_late_is_in_the_log(self) -> None:
        late: Deferred[Any] = Deferred()
        listening = self.listening("tcp:0")
        listening._endpoint = _Late(late)
        self.service.startService()
        late.errback(CannotListenError("x", 1, OSError("taken")))
        self.assertEqual(len(self.flushLoggedErrors(CannotListenError)), 1)

    async def test_stopped_before_it_listens(self) -> None:
        late: Deferred[Any] = Deferred()
        listening = self.listening("tcp:0")
        listening._endpoint = _Late(late)
        self.service.privilegedStartService()
        await listening.stopService()
        self.assertTrue(late.called)


class _Late:
    def __init__(self, listening: Deferred[Any]) -> None:
        self._listening = listening

    def listen(self, factory: Factory) -> Deferred[Any]:
        return self._listening
