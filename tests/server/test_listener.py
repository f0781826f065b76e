"""Listening, and the refusal of public addresses without API keys."""

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
from blockops.net.addresses import is_local
from blockops.server.listener import Listener, PublicAddressError, allow_any, require_local
from blockops.settings.table import Settings
from tests.world import Reactor, World


class Addresses(SynchronousTestCase):
    def test_local_addresses(self) -> None:
        for address in (
            IPv4Address("TCP", "127.0.0.1", 80),
            IPv4Address("TCP", "127.8.9.1", 80),
            IPv6Address("TCP", "::1", 80),
            IPv6Address("TCP", "::ffff:127.0.0.1", 80),
            UNIXAddress(b"/run/x"),
            UNIXAddress(None),
        ):
            self.assertTrue(is_local(address), address)
            require_local(address)

    def test_public_addresses(self) -> None:
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
        address = IPv6Address("TCP", "::", 80)
        error = str(self.assertRaises(PublicAddressError, require_local, address))
        self.assertIn("[::]:80", error)
        for words in ("--api-keys-file", "--insecure-public"):
            self.assertIn(words, error)
        self.assertNotIn("\n", error)

    def test_an_unknown_address_type(self) -> None:
        error = self.assertRaises(PublicAddressError, require_local, UnknownAddress())
        self.assertIn("UnknownAddress", str(error))


class UnknownAddress:
    def __repr__(self) -> str:
        return "UnknownAddress()"


class PublicAddresses(SynchronousTestCase):
    def error_message(self, *listen: str, **settings: Any) -> str:
        reactor_in_memory = Reactor()
        daemon = Daemon(Settings(log_file=None, listen=listen, **settings), reactor_in_memory)
        return str(self.assertRaises(SystemExit, daemon.privilegedStartService))

    def test_public_endpoints(self) -> None:
        for endpoint in (
            "tcp:8080",
            "tcp:8080:interface=0.0.0.0",
            "tcp:8080:interface=192.168.1.2",
            r"tcp6:8080:interface=\:\:",
            "tcp6:8080",
        ):
            error_message = self.error_message("tcp:1:interface=127.0.0.1", endpoint)
            self.assertIn(":8080 can be reached from other machines", error_message)
            self.assertTrue(error_message.startswith("blockops: "))
        self.assertIn("10.0.0.1:8080", self.error_message(interface="10.0.0.1"))

    def test_local_endpoints(self) -> None:
        for endpoint in ("tcp:1:interface=127.0.0.1", r"tcp6:1:interface=\:\:1", "unix:/x.sock"):
            World(listen=(endpoint,))

    def test_settings_that_allow_public_endpoints(self) -> None:
        World(interface="0.0.0.0", insecure_public=True)
        path = Path(self.mktemp())
        path.write_text("alice: sk-1")
        World(interface="0.0.0.0", api_keys_file=path)


class MissingFolder(TestCase):
    def test_the_error_message(self) -> None:
        path = Path(self.mktemp()).resolve() / "http"
        settings = Settings(log_file=None, listen=(f"unix:{path}",))
        error = self.assertRaises(SystemExit, Daemon(settings, reactor).privilegedStartService)
        self.assertEqual(
            str(error),
            f"blockops: cannot listen on {path}: No such file or directory. Make sure that its "
            "folder exists and is writable.",
        )


class RealSockets(TestCase):
    def listener(self, description: str, accept: Any = require_local) -> Listener:
        service = Listener(reactor, description, Factory.forProtocol(Protocol), accept)
        parent = MultiService()
        service.setServiceParent(parent)
        self.addCleanup(parent.stopService)
        self.addCleanup(service.stopService)
        self.service = parent
        return service

    def test_an_adopted_socket(self) -> None:
        for host, accepted in (("127.0.0.1", True), ("0.0.0.0", False)):
            bound = socket.create_server((host, 0))
            listener = self.listener("tcp:0")
            listener._endpoint = AdoptedStreamServerEndpoint(
                reactor, bound.detach(), socket.AF_INET
            )
            if accepted:
                listener.privilegedStartService()
            else:
                self.assertRaises(PublicAddressError, listener.privilegedStartService)

    async def test_from_start_to_stop(self) -> None:
        addresses: list[IAddress] = []
        self.listener("tcp:0:interface=127.0.0.1", addresses.append)
        self.service.privilegedStartService()
        self.service.startService()
        (address,) = addresses
        assert isinstance(address, IPv4Address)
        socket.create_connection((address.host, address.port)).close()
        await self.service.stopService()
        self.assertRaises(OSError, socket.create_connection, (address.host, address.port))

    def test_a_port_in_use(self) -> None:
        occupied = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(occupied.close)
        port = occupied.getsockname()[1]
        listener = self.listener(f"tcp:{port}:interface=127.0.0.1", allow_any)
        self.assertRaises(CannotListenError, listener.privilegedStartService)

    def test_a_late_failure_is_logged(self) -> None:
        late: Deferred[Any] = Deferred()
        listener = self.listener("tcp:0")
        listener._endpoint = _DeferredEndpoint(late)
        self.service.startService()
        late.errback(CannotListenError("x", 1, OSError("in use")))
        self.assertEqual(len(self.flushLoggedErrors(CannotListenError)), 1)

    async def test_a_stop_before_it_listens(self) -> None:
        late: Deferred[Any] = Deferred()
        listener = self.listener("tcp:0")
        listener._endpoint = _DeferredEndpoint(late)
        self.service.privilegedStartService()
        await listener.stopService()
        self.assertTrue(late.called)


class _DeferredEndpoint:
    def __init__(self, port: Deferred[Any]) -> None:
        self._port = port

    def listen(self, factory: Factory) -> Deferred[Any]:
        return self._port
