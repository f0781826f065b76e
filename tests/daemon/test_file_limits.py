"""File descriptors: provided as far as the system allows, and what happens when there are none."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.daemon.file_limits import needed, provide
from blockops.daemon.service import make_service
from blockops.server.limits import MAX_TURNED_AWAY
from blockops.settings.table import Settings
from tests.world import Reactor

ROOT = Path(__file__).parent.parent.parent


class Limits(SynchronousTestCase):
    def limit(self, soft: int, hard: int, *, forbidden: bool = False) -> list[tuple[int, int]]:
        """Let the process have these limits; return where a change of them is noted."""
        changes: list[tuple[int, int]] = []

        def change(_: int, limits: tuple[int, int]) -> None:
            if forbidden:
                raise PermissionError
            changes.append(limits)

        self.patch(resource, "getrlimit", lambda _: (soft, hard))
        self.patch(resource, "setrlimit", change)
        return changes

    def test_enough(self) -> None:
        for soft in (100, 200, resource.RLIM_INFINITY):
            changes = self.limit(soft, resource.RLIM_INFINITY)
            self.assertEqual(provide(100), 100)
            self.assertEqual(changes, [])

    def test_as_many_as_are_needed(self) -> None:
        for hard in (100, 200, resource.RLIM_INFINITY):
            changes = self.limit(99, hard)
            self.assertEqual(provide(100), 100)
            self.assertEqual(changes, [(100, hard)])

    def test_as_many_as_are_allowed(self) -> None:
        changes = self.limit(50, 99)
        self.assertEqual(provide(100), 99)
        self.assertEqual(changes, [(99, 99)])

    def test_a_sandbox(self) -> None:
        self.limit(50, 200, forbidden=True)
        self.assertEqual(provide(100), 50)

    def test_each_connection_may_have_one_to_the_backend(self) -> None:
        self.assertGreater(needed(1000), 2000 + MAX_TURNED_AWAY)

    def warnings(self, **settings: int) -> list[str]:
        with capturedLogs() as events:
            wished = Settings(log_file=None, **settings)  # type: ignore[arg-type]
            make_service(wished, Reactor(), lambda: wished)
        return [event["log_format"].format(**event) for event in events]

    def test_too_few_are_told_of_at_the_start(self) -> None:
        self.limit(256, 256)
        (said,) = self.warnings(max_connections=200)
        self.assertEqual(
            said,
            f"Only 256 files may be open, and --max-connections=200 can need {needed(200)}: lower"
            " it, or raise the limit (ulimit -n, LimitNOFILE= in the unit)",
        )

    def test_enough_are_not_worth_a_word(self) -> None:
        self.limit(256, 100_000)
        self.assertEqual(self.warnings(), [])


#: Opens connections until the process has no descriptor left, and asks how blockops is afterwards.
EXHAUSTED = """
import errno, os, resource, socket
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred
from blockops.daemon.service import Daemon
from blockops.settings.table import Settings
from tests.faults.client import FaultyClient
from tests.faults.steps import Send, Until

async def run():
    daemon = Daemon(Settings(log_file=None, listen=(f"unix:{os.getcwd()}/x",)), reactor)
    daemon.privilegedStartService()
    daemon.startService()
    port = reactor.listenTCP(0, daemon.site, interface="127.0.0.1")
    clients = [socket.socket() for _ in range(20)]
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE
    for client in clients:
        client.connect(("127.0.0.1", port.getHost().port))
    await task.deferLater(reactor, 0.2)
    held = len(daemon.site.channels)
    for number in taken:
        os.close(number)
    for client in clients:
        client.close()
    client = await FaultyClient.connect(reactor, "127.0.0.1", port.getHost().port)
    await client.play([Send(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"), Until(b"}")])
    print(held, bytes(client.received).partition(b"\\r\\n")[0].decode())
    await daemon.stopService()

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
task.react(lambda reactor: Deferred.fromCoroutine(run()))
"""


class Exhausted(SynchronousTestCase):
    def test_it_serves_again_when_there_are_some(self) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", EXHAUSTED],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(ended.stdout, "0 HTTP/1.1 200 OK\n", ended.stderr)
