"""
Connects to a server on this machine without a turn of the reactor.

On the loopback interface a connection exists when `connect` returns, unless the server's queue is
full. Twisted waits for epoll first, as it must for other addresses: two turns of the loop, nine
system calls and two timers, which are a tenth of the cost of a small request.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, SOCK_STREAM, AddressFamily, socket
from typing import Any

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.posixbase import PosixReactorBase

from blockops.net.addresses import parse_ip


def loopback_family(reactor: object, host: str) -> AddressFamily | None:
    """
    Return the address family of `host` for `connect_now`, or None if that cannot be used.

    It can be used for a loopback address, and if the reactor's connections are sockets.
    """
    address = parse_ip(host)
    if address is None or not address.is_loopback or not isinstance(reactor, PosixReactorBase):
        return None
    return {4: AF_INET, 6: AF_INET6}[address.version]


def connect_now(
    reactor: Any, family: AddressFamily, host: str, port: int, factory: IProtocolFactory
) -> bool:
    """
    Connect a protocol of `factory` to a server; return False if that is not possible at once.

    Then no protocol was built, and a regular connection attempt will report the reason.

    :param host: a loopback address
    """
    try:
        connecting = socket(family, SOCK_STREAM)
    except OSError:
        return False
    with connecting:
        connecting.settimeout(0)
        # The result is not conclusive; `getpeername` below shows whether the connection exists.
        connecting.connect_ex((host, port))
        try:
            connecting.getpeername()
            # The reactor duplicates the descriptor; this one is closed at the end of the block.
            reactor.adoptStreamConnection(connecting.fileno(), family, factory)
        except OSError:
            return False
    return True
