"""Connections that scripts are played on, over sockets and in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.faults.steps import Script, play

if TYPE_CHECKING:
    from tests.world import Peer, World

#: Seconds between two reads while a read size is set.
READ_INTERVAL = 0.001


class Receiver:
    """Keep the bytes received and fire Deferreds when an expected part has arrived."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._waiters: list[tuple[bytes | int, Deferred[None]]] = []

    @property
    def closed(self) -> bool:
        raise NotImplementedError

    def wait_for(self, pattern: bytes | int) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._waiters.append((pattern, waiter))
        self._fire_waiters()
        return waiter

    def _has(self, pattern: bytes | int) -> bool:
        if isinstance(pattern, int):
            return len(self.received) >= pattern
        return pattern in self.received

    def _fire_waiters(self) -> None:
        for each in list(self._waiters):
            if (self.closed or self._has(each[0])) and each in self._waiters:
                self._waiters.remove(each)
                each[1].callback(None)


@implementer(IHalfCloseableProtocol, IPushProducer)
class SocketConnection(Protocol, Receiver):
    """
    One end of a connection over sockets.

    :ivar received: all bytes received so far
    :ivar when_closed: fires when the connection is closed
    """

    def __init__(self, clock: IReactorTime) -> None:
        Receiver.__init__(self)
        self.clock = clock
        self.when_closed: Deferred[None] = Deferred()
        self._is_closed = False
        self._read_size: int | None = None
        self._writable: Deferred[None] | None = None

    @property
    def closed(self) -> bool:
        return self._is_closed

    @property
    def _tcp(self) -> Any:
        return cast("ITCPTransport", self.transport)

    def connectionMade(self) -> None:
        # Backpressure: `send` waits when the other end reads more slowly than this end sends.
        cast("IConsumer", self.transport).registerProducer(self, streaming=True)
        self._tcp.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._read_size:
            self._tcp.pauseProducing()
            deferLater(self.clock, READ_INTERVAL).addCallback(self._resume_reading)
        self._fire_waiters()

    def _resume_reading(self, _: object) -> None:
        if not self.closed and self._read_size != 0:
            self._tcp.resumeProducing()

    def readConnectionLost(self) -> None:
        """Close after the other end's half-close, as real servers do."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Do nothing: this end half-closed the connection itself."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._is_closed = True
        self.resumeProducing()
        self._fire_waiters()
        self.when_closed.callback(None)

    def play(self, script: Script) -> Deferred[None]:
        """Play `script`; the Deferred fires when it ends or the connection is closed."""
        playing = play(self, script).addErrback(lambda _: None)

        def stop_playing(result: object) -> Any:
            playing.cancel()
            return result

        self.when_closed.addBoth(stop_playing)
        return playing

    # The `Connection` interface of the steps.

    def send(self, data: bytes) -> Deferred[None] | None:
        self._tcp.write(data)
        return self._writable

    def close(self) -> None:
        if not self.closed:
            self._tcp.unregisterProducer()
            self._tcp.loseConnection()

    def half_close(self) -> None:
        if not self.closed:
            self._tcp.unregisterProducer()
            self._tcp.loseWriteConnection()

    def reset(self) -> None:
        if not self.closed:
            self._tcp.abortConnection()

    def set_read_size(self, size: int | None) -> None:
        self._read_size = size
        # An instance attribute overrides the read size that the transport's class sets.
        if size:
            self._tcp.bufferSize = size
        if size == 0:
            self._tcp.pauseProducing()
        else:
            self._tcp.resumeProducing()

    # IPushProducer: called by the transport.

    def pauseProducing(self) -> None:
        if self._writable is None:
            self._writable = Deferred()

    def resumeProducing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()


class MemoryConnection(Receiver):
    """
    One end of a connection in memory.

    `send` delivers the data at once: blockops has handled it when `send` returns.
    """

    def __init__(self, world: World, peer: Peer) -> None:
        super().__init__()
        self.clock: IReactorTime = world.reactor
        self._peer = peer
        write = peer.wire.write

        def write_and_record(data: bytes) -> None:
            write(data)
            self.received += data
            self._fire_waiters()

        peer.wire.write = write_and_record  # type: ignore[method-assign]
        self.received += peer.received()

    @property
    def closed(self) -> bool:
        return self._peer.wire.closed

    def send(self, data: bytes) -> None:
        self._peer.send(data)

    def close(self) -> None:
        self._peer.wire.connection_lost(ConnectionDone())

    # A protocol without IHalfCloseableProtocol sees a half-close as a lost connection.
    half_close = close

    def reset(self) -> None:
        self._peer.wire.connection_lost(ConnectionLost())

    def set_read_size(self, size: int | None) -> None:
        if size == 0:
            self._peer.pause()
        elif size is None:
            self._peer.resume()
        else:
            self._peer.pause_every(size)
