"""
Where the daemon listens, and on which addresses it does not without being told to.

Who listens on an address that others can reach serves everybody there. An endpoint says where only
when it listens (a socket of systemd's brings its address along), so that is when it is looked at;
nothing was accepted by then.
"""

# twisted.application.service has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.address import IPv6Address as TwistedIPv6Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from twisted.logger import Logger


class TooOpen(ValueError):
    """An address that others can reach would be served without keys; the message is one line."""


def is_local(address: IAddress | None) -> bool:
    """Say whether only this machine reaches `address`: a loopback address or a Unix socket."""
    return isinstance(address, UNIXAddress) or is_loopback(address)


def is_loopback(address: IAddress | None) -> bool:
    """Say whether `address` is one of the machine's loopback addresses."""
    if not isinstance(address, IPv4Address | TwistedIPv6Address):
        return False
    try:
        ip = ip_address(address.host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return (mapped or ip).is_loopback


def only_local(address: IAddress) -> None:
    """
    Accept `address` if only this machine reaches it.

    :raises TooOpen: others reach it too
    """
    if not is_local(address):
        raise TooOpen(
            f"{shown(address)} can be reached from other machines, and nobody is asked for a key:"
            " give --api-keys-file, or --insecure-public if all who reach it may ask"
        )


def wherever(address: IAddress) -> None:
    """Accept `address`."""


def shown(address: IAddress) -> str:
    """Return `address` as people write it."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        return repr(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listening(Service):
    """
    Listens on an endpoint while it runs.

    :param description: the endpoint, as Twisted's endpoint string
    :param accept: is asked about the address that it turned out to be; raises `TooOpen`
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        description: str,
        factory: IProtocolFactory,
        accept: Callable[[IAddress], object],
    ) -> None:
        self._description = description
        self._endpoint = serverFromString(reactor, description)
        self._factory = factory
        self._accept = accept
        self._port: Deferred[IListeningPort | None] | None = None
        self._problem: Exception | None = None
        self._closed: Deferred[object] = succeed(None)

    def privilegedStartService(self) -> None:
        """
        Listen.

        :raises Exception: that cannot be, as far as it is known at once; what becomes known later
            is in the log
        """
        super().privilegedStartService()
        self._port = Deferred.fromCoroutine(self._listen())
        if self._problem is not None:
            self._port = None
            raise self._problem

    async def _listen(self) -> IListeningPort | None:
        """Return the open port; None where there is none, for the reason in `_problem`."""
        try:
            port: IListeningPort = await self._endpoint.listen(self._factory)
            self._look_at(port)
        except Exception as problem:  # noqa: BLE001 - each type of endpoint has its own
            self._problem = problem
            if self.running:
                self._log.failure("Cannot listen on {what}", what=self._description)
            return None
        return port

    def _look_at(self, port: IListeningPort) -> None:
        try:
            self._accept(port.getHost())
        except TooOpen:
            self._closed = maybeDeferred(port.stopListening)
            raise

    def startService(self) -> None:
        if self._port is None:
            self.privilegedStartService()
        super().startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        listening, self._port = self._port, None
        if listening is not None:
            listening.cancel()
            port = await listening
            if port is not None:
                await maybeDeferred(port.stopListening)
        await self._closed
