"""
Listening sockets, and the refusal to listen on a public address without API keys.

Without keys, everybody who can reach the address can use the backend. The address is known only
after `listen()`, because a systemd socket brings its own. So it is checked there, before the first
connection is accepted.
"""

# twisted.application.service has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from twisted.logger import Logger

from blockops.net.addresses import format_address, is_local


class PublicAddressError(ValueError):
    """An address that other machines can reach would be served without keys; a one-line message."""


def require_local(address: IAddress) -> None:
    """Raise `PublicAddressError` if other machines can reach `address`."""
    if not is_local(address):
        raise PublicAddressError(
            f"{format_address(address)} can be reached from other machines, and no API keys are"
            " set: give --api-keys-file, or --insecure-public to serve all clients without a key"
        )


def allow_any(address: IAddress) -> None:
    """Accept `address`."""


class Listener(Service):
    """
    Listens on an endpoint while it runs.

    :param description: the endpoint, as Twisted's endpoint string
    :param check_address: is called with the address of the socket; raises `PublicAddressError` to
        close it again
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        description: str,
        factory: IProtocolFactory,
        check_address: Callable[[IAddress], object],
    ) -> None:
        self._description = description
        self._endpoint = serverFromString(reactor, description)
        self._factory = factory
        self._check_address = check_address
        self._port: Deferred[IListeningPort | None] | None = None
        self._error: Exception | None = None
        self._closed: Deferred[object] = succeed(None)

    def privilegedStartService(self) -> None:
        """Listen, and raise the endpoint's error if it fails at once; a later one is logged."""
        super().privilegedStartService()
        self._port = Deferred.fromCoroutine(self._listen())
        if self._error is not None:
            self._port = None
            raise self._error

    async def _listen(self) -> IListeningPort | None:
        """Return the open port, or None after a failure, which is then in `_error`."""
        try:
            port: IListeningPort = await self._endpoint.listen(self._factory)
            try:
                self._check_address(port.getHost())
            except PublicAddressError:
                self._closed = maybeDeferred(port.stopListening)
                raise
        except Exception as error:  # noqa: BLE001 - each type of endpoint has its own
            self._error = error
            if self.running:
                self._log.failure("Cannot listen on {endpoint}", endpoint=self._description)
            return None
        return port

    def startService(self) -> None:
        if self._port is None:
            self.privilegedStartService()
        super().startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        port_ready, self._port = self._port, None
        if port_ready is not None:
            port_ready.cancel()
            port = await port_ready
            if port is not None:
                await maybeDeferred(port.stopListening)
        await self._closed
