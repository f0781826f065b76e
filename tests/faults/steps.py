"""What peers do: steps, which are played one after the other."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater


class Line(Protocol):
    """
    One end of a connection, as steps use it.

    :ivar closed: it is; what is done to it then has no effect
    """

    clock: IReactorTime

    @property
    def closed(self) -> bool: ...

    def send(self, data: bytes) -> Deferred[None] | None:
        """Send; what is returned fires when there is room for more."""

    def close(self) -> None:
        """End the connection behind what was sent."""

    def half_close(self) -> None:
        """Send nothing any more, and go on to read."""

    def reset(self) -> None:
        """Break the connection: what was sent may be lost."""

    def until(self, pattern: bytes | int) -> Deferred[None]:
        """Fire when `pattern`, or so many bytes, have come, or the connection is closed."""

    def read(self, most: int | None) -> None:
        """Read so much at once from now on; 0: nothing; None: as much as there is."""


class Step(Protocol):
    """One thing that a peer does."""

    def play(self, line: Line) -> Coroutine[Deferred[Any], Any, None]: ...


Script = Iterable[Step]


@dataclass(frozen=True)
class Send:
    """
    Send bytes.

    :param at_once: of them as many as this, then a pause; None: all
    :param pause: in seconds
    """

    data: bytes
    at_once: int | None = None
    pause: float = 0.0

    async def play(self, line: Line) -> None:
        size = self.at_once or len(self.data) or 1
        for start in range(0, len(self.data), size):
            if line.closed:
                return
            room = line.send(self.data[start : start + size])
            if room is not None:
                await room
            if self.at_once is not None:
                await deferLater(line.clock, self.pause)


@dataclass(frozen=True)
class Flood:
    """
    Send the same bytes for ever, or until the connection is closed.

    :param pause: in seconds, behind each of them
    """

    data: bytes
    pause: float = 0.0

    async def play(self, line: Line) -> None:
        while not line.closed:
            await Send(self.data).play(line)
            await deferLater(line.clock, self.pause)


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float

    async def play(self, line: Line) -> None:
        await deferLater(line.clock, self.seconds)


@dataclass(frozen=True)
class Until:
    """Do nothing until a pattern, or so many bytes, have been received."""

    pattern: bytes | int

    async def play(self, line: Line) -> None:
        await line.until(self.pattern)


@dataclass(frozen=True)
class Read:
    """Read so many bytes at once from now on; 0: none any more, though the connection stays."""

    most: int | None

    async def play(self, line: Line) -> None:
        line.read(self.most)


@dataclass(frozen=True)
class Close:
    """End the connection behind what was sent (FIN)."""

    async def play(self, line: Line) -> None:
        line.close()


@dataclass(frozen=True)
class HalfClose:
    """Say that nothing more comes (FIN), and go on to read."""

    async def play(self, line: Line) -> None:
        line.half_close()


@dataclass(frozen=True)
class Reset:
    """Break the connection (RST)."""

    async def play(self, line: Line) -> None:
        line.reset()


def play(line: Line, script: Script) -> Deferred[None]:
    """
    Play `script` on `line`.

    A script that ends leaves the connection as it is: it stalls. Cancel to stop in the middle.
    """
    return Deferred.fromCoroutine(_played(line, script))


async def _played(line: Line, script: Script) -> None:
    for step in script:
        if line.closed:
            return
        await step.play(line)
