"""
Connects to a server on the same machine without a turn of the reactor.

There a connection exists when `connect` returns, unless the server's queue is full: what it needs
of the network is a call of the kernel's own. Twisted asks epoll first, as it must for all others:
two turns of the loop, nine system calls and two timers, which are a tenth of a small request.
"""

from __future__ import annotations

from ipaddress import ip_address
from socket import AF_INET, AF_INET6, SOCK_STREAM, AddressFamily, socket
from typing import Any

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.posixbase import PosixReactorBase


def family_if_near(reactor: object, host: str) -> AddressFamily | None:
    """
    Return what `connected` takes; None if it is not worth trying.

    :param reactor: one whose connections are sockets, or another one
    """
    if not isinstance(reactor, PosixReactorBase):
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    family = {4: AF_INET, 6: AF_INET6}[address.version]
    return family if address.is_loopback else None


def connected(
    reactor: Any, family: AddressFamily, host: str, port: int, factory: IProtocolFactory
) -> bool:
    """
    Connect a protocol of `factory` to a server; False if that takes longer, or cannot be.

    Then nothing was built and nothing is under way: the usual way tells what is the matter.

    :param host: an address of this machine
    """
    try:
        near = socket(family, SOCK_STREAM)
    except OSError:
        return False
    with near:
        near.settimeout(0)
        # Its result says nothing: what it has begun is over when it returns.
        near.connect_ex((host, port))
        try:
            near.getpeername()
            # The reactor takes a descriptor of its own: this one is closed behind it.
            reactor.adoptStreamConnection(near.fileno(), family, factory)
        except OSError:
            return False
    return True
