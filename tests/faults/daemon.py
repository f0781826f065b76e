"""A daemon over real sockets, within the test's process, between a faulty backend and clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from blockops.daemon.service import Daemon
from blockops.settings.table import Settings
from tests.faults.backend import Choose, FaultyBackend
from tests.faults.client import FaultyClient
from tests.world import Traffic

CLOCK = cast("IReactorTime", reactor)
#: Seconds after which what should have happened is said not to have.
PATIENCE = 20.0


class House:
    """
    A daemon, its backend and its port.

    :ivar traffic: its traffic log
    """

    def __init__(self, test: TestCase, choose: Choose, **settings: Any) -> None:
        self.backend = FaultyBackend(CLOCK, choose)
        self._behind = _listen(0, self.backend)
        self._there = self._behind.getHost().port
        self.traffic = Traffic()
        url = f"http://127.0.0.1:{self._there}"
        self.settings = Settings(
            **{"backend": url, "port": 0, "log_file": None, "drain": 0.0, **settings}
        )
        self.daemon = Daemon(self.settings, reactor, traffic=self.traffic)
        self.daemon.privilegedStartService()
        self.daemon.startService()
        self._port = _listen(0, self.daemon.site)
        self.port = self._port.getHost().port
        test.addCleanup(self._end)

    async def _end(self) -> None:
        await self._port.stopListening()
        await self.daemon.stopService()
        self.backend.close()
        await self.backend.ended
        await self._behind.stopListening()

    async def pause_backend(self) -> None:
        """Let the backend refuse connections."""
        await self._behind.stopListening()

    def resume_backend(self) -> None:
        """Let it listen again, where it did."""
        self._behind = _listen(self._there, self.backend)

    async def client(self) -> FaultyClient:
        return await FaultyClient.connect(reactor, "127.0.0.1", self.port)

    def left(self) -> dict[str, int]:
        """Return what is under way: all of it zero when nothing is left behind."""
        return {
            "requests": len(self.daemon.gateway),
            "channels": len(self.daemon.site.channels),
            "unread": len(self.daemon.site.unread),
            "bytes": self.daemon.site.room.taken,
            "connections": self.daemon.site.crowd.size,
            "backend": self.backend.open,
        }

    async def empty(self) -> None:
        """Wait until nothing is left behind."""
        await until(lambda: not any(self.left().values()), self.left)


def _listen(port: int, factory: Any) -> Any:
    return cast("Any", reactor).listenTCP(port, factory, interface="127.0.0.1")


async def until(condition: Callable[[], object], tell: Callable[[], object] = str) -> None:
    """
    Wait for `condition` to be true.

    :raises AssertionError: it does not come true in `PATIENCE`; `tell` says how things are
    """
    end = CLOCK.seconds() + PATIENCE
    while not condition():
        if CLOCK.seconds() > end:
            raise AssertionError(f"not within {PATIENCE} s: {tell()}")
        await deferLater(CLOCK, 0.005)
