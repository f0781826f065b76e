"""What the system knows of the other end of a connection, and no transport tells."""

from __future__ import annotations

import select
import struct
import sys
from fcntl import ioctl
from socket import SOL_SOCKET, socket
from termios import TIOCOUTQ
from typing import cast

from twisted.internet.interfaces import ISystemHandle
from twisted.protocols.policies import ProtocolWrapper

#: What poll(2) says of a connection whose other end has closed it, also where data is left to read.
_HUNG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
#: macOS' option for the same as Linux' TIOCOUTQ: <sys/socket.h>.
_SO_NWRITE = 0x1024


def departed(transport: object) -> bool:
    """Say whether the other end of `transport` has closed it, as far as the system knows."""
    handle = _handle(transport)
    if handle is None:
        return False
    poller = select.poll()
    poller.register(handle, _HUNG_UP)
    return bool(poller.poll(0))


def unread(transport: object) -> int | None:
    """
    Return how many bytes the system has taken that the other end of `transport` has not.

    A client that reads slowly shows by this, long before there is room for more: the system holds
    megabytes for it. None where the system does not tell.
    """
    handle = _handle(transport)
    try:
        if handle is None:
            return None
        if sys.platform == "darwin":
            return handle.getsockopt(SOL_SOCKET, _SO_NWRITE)
        return cast("int", struct.unpack("i", ioctl(handle, TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return None


def _handle(transport: object) -> socket | None:
    """Return the socket of `transport`, below TLS."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    handle = transport.getHandle() if ISystemHandle.providedBy(transport) else None
    return handle if isinstance(handle, socket) else None
