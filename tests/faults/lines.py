"""Lines: connections that scripts are played on, over sockets and in memory."""

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

#: Seconds between two bytes, where they are read one by one.
SIP = 0.001


class Waiting:
    """Who waits for something to be received."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._waiting: list[tuple[bytes | int, Deferred[None]]] = []

    @property
    def closed(self) -> bool:
        raise NotImplementedError

    def until(self, pattern: bytes | int) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append((pattern, waiting))
        self._look()
        return waiting

    def _has(self, pattern: bytes | int) -> bool:
        if isinstance(pattern, int):
            return len(self.received) >= pattern
        return pattern in self.received

    def _look(self) -> None:
        for each in list(self._waiting):
            if (self.closed or self._has(each[0])) and each in self._waiting:
                self._waiting.remove(each)
                each[1].callback(None)


@implementer(IHalfCloseableProtocol, IPushProducer)
class Socket(Protocol, Waiting):
    """
    One end of a connection over sockets.

    :ivar received: all that came
    :ivar over: fires when the connection is closed
    """

    def __init__(self, clock: IReactorTime) -> None:
        Waiting.__init__(self)
        self.clock = clock
        self.over: Deferred[None] = Deferred()
        self._lost = False
        self._most: int | None = None
        self._room: Deferred[None] | None = None

    @property
    def closed(self) -> bool:
        return self._lost

    @property
    def _tcp(self) -> Any:
        return cast("ITCPTransport", self.transport)

    def connectionMade(self) -> None:
        # Whoever sends faster than the other end reads, waits.
        cast("IConsumer", self.transport).registerProducer(self, streaming=True)
        self._tcp.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._most:
            self._tcp.pauseProducing()
            deferLater(self.clock, SIP).addCallback(self._sip)
        self._look()

    def _sip(self, _: object) -> None:
        if not self.closed and self._most != 0:
            self._tcp.resumeProducing()

    def readConnectionLost(self) -> None:
        """Take note of the other end's half-close as real servers do: by closing."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Nothing to do: it was our half."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._lost = True
        self.resumeProducing()
        self._look()
        self.over.callback(None)

    def play(self, script: Script) -> Deferred[None]:
        """Play `script`. Fires when it is at its end, or the connection is closed."""
        playing = play(self, script).addErrback(lambda _: None)

        def ended(result: object) -> Any:
            playing.cancel()
            return result

        self.over.addBoth(ended)
        return playing

    # A line.

    def send(self, data: bytes) -> Deferred[None] | None:
        self._tcp.write(data)
        return self._room

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

    def read(self, most: int | None) -> None:
        self._most = most
        # The transport reads as much at once as its class says, if it does not say so itself.
        if most:
            self._tcp.bufferSize = most
        if most == 0:
            self._tcp.pauseProducing()
        else:
            self._tcp.resumeProducing()

    # What the transport is fed by.

    def pauseProducing(self) -> None:
        if self._room is None:
            self._room = Deferred()

    def resumeProducing(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()


class InMemory(Waiting):
    """
    One end of a connection in memory.

    To send is to be read there: what blockops does is done when `send` returns.
    """

    def __init__(self, world: World, peer: Peer) -> None:
        super().__init__()
        self.clock: IReactorTime = world.reactor
        self._peer = peer
        write = peer.wire.write

        def written(data: bytes) -> None:
            write(data)
            self.received += data
            self._look()

        peer.wire.write = written  # type: ignore[method-assign]
        self.received += peer.received()

    @property
    def closed(self) -> bool:
        return self._peer.wire.closed

    def send(self, data: bytes) -> None:
        self._peer.send(data)

    def close(self) -> None:
        self._peer.wire.lose(ConnectionDone())

    # To a protocol that knows nothing of half-closed connections, one is closed.
    half_close = close

    def reset(self) -> None:
        self._peer.wire.lose(ConnectionLost())

    def read(self, most: int | None) -> None:
        if most == 0:
            self._peer.pause()
        elif most is None:
            self._peer.resume()
        else:
            self._peer.fills_at(most)
