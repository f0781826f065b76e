"""The state of a connection that the system knows and Twisted's transports do not report."""

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

#: The events of poll(2) for a connection that the peer has closed. Unlike a read, they are reported
#: also while unread data is left in the socket.
_HANGUP_EVENTS = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
#: macOS' counterpart of Linux' TIOCOUTQ: <sys/socket.h>.
_SO_NWRITE = 0x1024


def has_peer_closed(transport: object) -> bool:
    """Return True if poll(2) reports that the peer of `transport` has closed the connection."""
    handle = _socket_of(transport)
    if handle is None:
        return False
    poller = select.poll()
    poller.register(handle, _HANGUP_EVENTS)
    return bool(poller.poll(0))


def unsent_bytes(transport: object) -> int | None:
    """
    Return how many bytes the system still holds for the peer of `transport`, or None if unknown.

    A change shows that a slow client reads. The transport notices that only much later, because
    the system buffers megabytes for a connection.
    """
    handle = _socket_of(transport)
    try:
        if handle is None:
            return None
        if sys.platform == "darwin":
            return handle.getsockopt(SOL_SOCKET, _SO_NWRITE)
        return cast("int", struct.unpack("i", ioctl(handle, TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return None


def _socket_of(transport: object) -> socket | None:
    """Return the socket of `transport`, below TLS and other wrappers, or None."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    handle = transport.getHandle() if ISystemHandle.providedBy(transport) else None
    return handle if isinstance(handle, socket) else None
