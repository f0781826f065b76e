"""A daemon in the test's process, over real sockets, between a faulty backend and clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from blockops.daemon.service import Daemon
from blockops.settings.table import Settings
from tests.faults.backend import ChooseScript, FaultyBackend
from tests.faults.client import FaultyClient
from tests.world import MemoryTrafficLog

CLOCK = cast("IReactorTime", reactor)
#: Seconds after which a condition that has not come true fails the test.
TIMEOUT = 20.0


class RunningDaemon:
    """
    A daemon, its backend and its port.

    :ivar traffic: its traffic log
    """

    def __init__(self, test: TestCase, choose: ChooseScript, **settings: Any) -> None:
        self.backend = FaultyBackend(CLOCK, choose)
        self._backend_port = _listen(0, self.backend)
        self._backend_port_number = self._backend_port.getHost().port
        self.traffic = MemoryTrafficLog()
        url = f"http://127.0.0.1:{self._backend_port_number}"
        self.settings = Settings(
            **{"backend": url, "port": 0, "log_file": None, "drain": 0.0, **settings}
        )
        self.daemon = Daemon(self.settings, reactor, traffic_log=self.traffic)
        self.daemon.privilegedStartService()
        self.daemon.startService()
        self._port = _listen(0, self.daemon.site)
        self.port = self._port.getHost().port
        test.addCleanup(self._stop)

    async def _stop(self) -> None:
        await self._port.stopListening()
        await self.daemon.stopService()
        self.backend.reset_all()
        await self.backend.all_closed
        await self._backend_port.stopListening()

    async def pause_backend(self) -> None:
        """Stop the backend from accepting connections."""
        await self._backend_port.stopListening()

    def resume_backend(self) -> None:
        """Let the backend listen again on the same port."""
        self._backend_port = _listen(self._backend_port_number, self.backend)

    async def connect(self) -> FaultyClient:
        return await FaultyClient.connect(reactor, "127.0.0.1", self.port)

    def open_resources(self) -> dict[str, int]:
        """Return the number of open resources by kind; all are 0 if nothing leaked."""
        return {
            "requests": len(self.daemon.in_flight),
            "connections": len(self.daemon.site.connections),
            "paused connections": len(self.daemon.site.paused_connections),
            "bytes": self.daemon.site.body_budget.reserved_size,
            "counted connections": self.daemon.site.connection_limiter.count,
            "backend connections": self.backend.open_connections,
        }

    async def wait_until_idle(self) -> None:
        """Wait until all resources are released."""
        await wait_until(lambda: not any(self.open_resources().values()), self.open_resources)


def _listen(port: int, factory: Any) -> Any:
    return cast("Any", reactor).listenTCP(port, factory, interface="127.0.0.1")


async def wait_until(condition: Callable[[], object], describe: Callable[[], object] = str) -> None:
    """
    Wait until `condition` returns a true value.

    :param describe: returns the state to report if it does not
    :raises AssertionError: `condition` is still false after `TIMEOUT` seconds
    """
    end = CLOCK.seconds() + TIMEOUT
    while not condition():
        if CLOCK.seconds() > end:
            raise AssertionError(f"The condition is false after {TIMEOUT} s: {describe()}")
        await deferLater(CLOCK, 0.005)
