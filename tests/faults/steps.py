"""The steps of a script, which a peer plays one after the other on a connection."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater


class Connection(Protocol):
    """
    One end of a connection: the interface that steps use.

    :ivar closed: True once the connection is closed; all methods then have no effect
    """

    clock: IReactorTime

    @property
    def closed(self) -> bool: ...

    def send(self, data: bytes) -> Deferred[None] | None:
        """Send `data`; return None or a Deferred that fires when more may be sent."""

    def close(self) -> None:
        """Close the connection after all data is sent."""

    def half_close(self) -> None:
        """Close the sending half; keep reading."""

    def reset(self) -> None:
        """Reset the connection; data sent before may be lost."""

    def wait_for(self, pattern: bytes | int) -> Deferred[None]:
        """Fire when `pattern`, or that many bytes, are received, or the connection is closed."""

    def set_read_size(self, size: int | None) -> None:
        """Set the bytes per read; 0 stops reading, None removes the bound."""


class Step(Protocol):
    """One action of a peer."""

    def play(self, connection: Connection) -> Coroutine[Deferred[Any], Any, None]: ...


Script = Iterable[Step]


@dataclass(frozen=True)
class Send:
    """
    Send bytes.

    :param piece_size: bytes to send before each pause, or None to send all at once
    :param pause: seconds after each piece
    """

    data: bytes
    piece_size: int | None = None
    pause: float = 0.0

    async def play(self, connection: Connection) -> None:
        size = self.piece_size or len(self.data) or 1
        for start in range(0, len(self.data), size):
            if connection.closed:
                return
            writable = connection.send(self.data[start : start + size])
            if writable is not None:
                await writable
            if self.piece_size is not None:
                await deferLater(connection.clock, self.pause)


@dataclass(frozen=True)
class Flood:
    """
    Send the same bytes repeatedly until the connection is closed.

    :param pause: seconds after each repetition
    """

    data: bytes
    pause: float = 0.0

    async def play(self, connection: Connection) -> None:
        while not connection.closed:
            await Send(self.data).play(connection)
            await deferLater(connection.clock, self.pause)


@dataclass(frozen=True)
class Wait:
    """Pause for a number of seconds."""

    seconds: float

    async def play(self, connection: Connection) -> None:
        await deferLater(connection.clock, self.seconds)


@dataclass(frozen=True)
class WaitFor:
    """Wait until a pattern, or a number of bytes, is received."""

    pattern: bytes | int

    async def play(self, connection: Connection) -> None:
        await connection.wait_for(self.pattern)


@dataclass(frozen=True)
class SetReadSize:
    """Set the bytes per read; 0 stops reading and keeps the connection open."""

    size: int | None

    async def play(self, connection: Connection) -> None:
        connection.set_read_size(self.size)


@dataclass(frozen=True)
class Close:
    """Close the connection after all data is sent (FIN)."""

    async def play(self, connection: Connection) -> None:
        connection.close()


@dataclass(frozen=True)
class HalfClose:
    """Close the sending half (FIN) and keep reading."""

    async def play(self, connection: Connection) -> None:
        connection.half_close()


@dataclass(frozen=True)
class Reset:
    """Reset the connection (RST)."""

    async def play(self, connection: Connection) -> None:
        connection.reset()


def play(connection: Connection, script: Script) -> Deferred[None]:
    """
    Play `script` on `connection`; cancel the Deferred to stop it.

    The connection stays open and silent after the last step, unless that step closes it.
    """
    return Deferred.fromCoroutine(_play_steps(connection, script))


async def _play_steps(connection: Connection, script: Script) -> None:
    for step in script:
        if connection.closed:
            return
        await step.play(connection)
