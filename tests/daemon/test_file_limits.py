"""The limit of file descriptors: raising it, warning, and surviving without a descriptor."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.daemon.file_limits import raise_limit, required_descriptors
from blockops.daemon.service import make_service
from blockops.server.limits import MAX_LINGERING
from blockops.settings.table import Settings
from tests.world import Reactor

ROOT = Path(__file__).parent.parent.parent


class FileLimitTests(SynchronousTestCase):
    def limit(self, soft: int, hard: int, *, forbidden: bool = False) -> list[tuple[int, int]]:
        """Set the limits of the process; return a list of their changes."""
        changes: list[tuple[int, int]] = []

        def change(_: int, limits: tuple[int, int]) -> None:
            if forbidden:
                raise PermissionError
            changes.append(limits)

        self.patch(resource, "getrlimit", lambda _: (soft, hard))
        self.patch(resource, "setrlimit", change)
        return changes

    def test_sufficient_limit(self) -> None:
        for soft in (100, 200, resource.RLIM_INFINITY):
            changes = self.limit(soft, resource.RLIM_INFINITY)
            self.assertEqual(raise_limit(100), 100)
            self.assertEqual(changes, [])

    def test_raised_to_the_required_limit(self) -> None:
        for hard in (100, 200, resource.RLIM_INFINITY):
            changes = self.limit(99, hard)
            self.assertEqual(raise_limit(100), 100)
            self.assertEqual(changes, [(100, hard)])

    def test_raised_to_the_hard_limit(self) -> None:
        changes = self.limit(50, 99)
        self.assertEqual(raise_limit(100), 99)
        self.assertEqual(changes, [(99, 99)])

    def test_a_sandbox(self) -> None:
        self.limit(50, 200, forbidden=True)
        self.assertEqual(raise_limit(100), 50)

    def test_each_connection_may_need_one_to_the_backend(self) -> None:
        self.assertGreater(required_descriptors(1000), 2000 + MAX_LINGERING)

    def warnings(self, **settings: int) -> list[str]:
        with capturedLogs() as events:
            parsed = Settings(log_file=None, **settings)  # type: ignore[arg-type]
            make_service(parsed, Reactor(), lambda: parsed)
        return [event["log_format"].format(**event) for event in events]

    def test_warning_at_start(self) -> None:
        self.limit(256, 256)
        (warning,) = self.warnings(max_connections=200)
        self.assertEqual(
            warning,
            "The process may open only 256 files; --max-connections=200 can need"
            f" {required_descriptors(200)}. Lower it, or raise the limit (ulimit -n, or"
            " LimitNOFILE= in the unit)",
        )

    def test_no_warning_for_a_sufficient_limit(self) -> None:
        self.limit(256, 100_000)
        self.assertEqual(self.warnings(), [])


#: Connects while the process has no descriptor left, and requests /health afterwards.
EXHAUSTED = """
import errno, os, resource, socket
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred
from blockops.daemon.service import Daemon
from blockops.settings.table import Settings
from tests.faults.client import FaultyClient
from tests.faults.steps import Send, WaitFor

async def run():
    daemon = Daemon(Settings(log_file=None, listen=(f"unix:{os.getcwd()}/x",)), reactor)
    daemon.privilegedStartService()
    daemon.startService()
    port = reactor.listenTCP(0, daemon.site, interface="127.0.0.1")
    clients = [socket.socket() for _ in range(20)]
    duplicates = []
    try:
        while True:
            duplicates.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE
    for client in clients:
        client.connect(("127.0.0.1", port.getHost().port))
    await task.deferLater(reactor, 0.2)
    connections = len(daemon.site.connections)
    for number in duplicates:
        os.close(number)
    for client in clients:
        client.close()
    client = await FaultyClient.connect(reactor, "127.0.0.1", port.getHost().port)
    await client.play([Send(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"), WaitFor(b"}")])
    print(connections, bytes(client.received).partition(b"\\r\\n")[0].decode())
    await daemon.stopService()

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
task.react(lambda reactor: Deferred.fromCoroutine(run()))
"""


class ExhaustionTests(SynchronousTestCase):
    def test_the_daemon_recovers(self) -> None:
        result = subprocess.run(
            [sys.executable, "-c", EXHAUSTED],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(result.stdout, "0 HTTP/1.1 200 OK\n", result.stderr)
