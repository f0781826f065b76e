"""What systemd is told, and the unit that it starts."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from blockops.daemon.systemd import Supervisor
from blockops.settings.table import TABLE, Settings, resolve

UNIT = Path(__file__).parents[2] / "blockops.service"


class SupervisorTests(SynchronousTestCase):
    """Datagrams on real sockets."""

    def listen(self, address: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listener.close)
        listener.bind(address)
        listener.settimeout(10)
        return listener

    def setUp(self):
        # The path of a socket has 107 bytes at most.
        self.path = os.path.relpath(Path(self.mktemp()))
        self.listener = self.listen(self.path)
        self.supervisor = Supervisor(self.path, watchdog=20.0)

    def heard(self) -> str:
        return self.listener.recv(4096).decode()

    def test_ready(self):
        self.supervisor.ready("serves http://127.0.0.1:8082")
        self.assertEqual(self.heard(), "READY=1\nSTATUS=serves http://127.0.0.1:8082")

    def test_stopping(self):
        self.supervisor.stopping()
        self.assertEqual(self.heard(), "STOPPING=1")

    def test_reloading(self):
        before = time.monotonic_ns() // 1000
        self.supervisor.reloading()
        first, _, second = self.heard().partition("\n")
        self.assertEqual(first, "RELOADING=1")
        name, _, when = second.partition("=")
        self.assertEqual(name, "MONOTONIC_USEC")
        self.assertTrue(before <= int(when) <= time.monotonic_ns() // 1000)

    def test_status_is_one_line(self):
        self.supervisor.status("3 running,\n2 waiting ✓")
        self.assertEqual(self.heard(), "STATUS=3 running, 2 waiting ✓")

    def test_alive(self):
        self.supervisor.alive()
        self.assertEqual(self.heard(), "WATCHDOG=1")

    def test_nobody_waits_for_a_sign_of_life(self):
        Supervisor(self.path).alive()
        Supervisor(self.path).status("next")
        self.assertEqual(self.heard(), "STATUS=next")

    def test_an_abstract_name(self):
        if not sys.platform.startswith("linux"):
            raise SkipTest("abstract names are Linux's own")
        name = f"blockops-test-{os.getpid()}"
        listener = self.listen(f"\0{name}")
        Supervisor(f"@{name}").ready()
        self.assertEqual(listener.recv(4096), b"READY=1")

    def test_nobody_listens(self):
        for address in (None, "", "/nowhere/notify", "@blockops-nobody", "x" * 500, "a\0b"):
            Supervisor(address, watchdog=1).alive()

    def test_a_supervisor_that_does_not_read_holds_up_nobody(self):
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(5000):
            self.supervisor.alive()
        self.assertEqual(self.heard(), "WATCHDOG=1")


class EnvironmentTests(SynchronousTestCase):
    def test_a_service_of_systemd(self):
        environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "7"}
        supervisor = Supervisor.from_environment(environ, pid=7)
        self.assertEqual(supervisor.watchdog, 20.0)
        self.assertEqual(environ, {})

    def test_no_service(self):
        self.assertIsNone(Supervisor.from_environment({}).watchdog)

    def test_our_own_process_is_meant_by_default(self):
        environ = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}
        self.assertEqual(Supervisor.from_environment(environ).watchdog, 0.5)
        self.assertEqual(Supervisor.from_environment({"WATCHDOG_USEC": "500000"}).watchdog, 0.5)

    def test_a_watchdog_for_another_process(self):
        environ = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}
        self.assertIsNone(Supervisor.from_environment(environ, pid=7).watchdog)

    def test_nonsense(self):
        for text in ("", "0", "-5", "soon", "1.5"):
            self.assertIsNone(Supervisor.from_environment({"WATCHDOG_USEC": text}).watchdog)


def directives(name: str) -> list[str]:
    """Return the values of a directive of the unit, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)


class UnitTests(SynchronousTestCase):
    """`blockops.service`."""

    def test_it_agrees_with_the_daemon(self):
        self.assertEqual(directives("Type"), ["notify"])
        self.assertEqual(directives("DynamicUser"), ["yes"])
        self.assertEqual(directives("LogsDirectory"), ["blockops"])
        self.assertEqual(directives("Restart"), ["on-failure"])

    def test_the_time_to_stop_is_longer_than_the_drain(self):
        (stop,) = directives("TimeoutStopSec")
        # What clients get to read their ends, and the log to be written, comes on top.
        self.assertGreaterEqual(int(stop), Settings().drain + 15)

    def test_its_environment_is_understood(self):
        words = " ".join(directives("Environment")).split()
        environ = dict(each.split("=", 1) for each in words)
        known = {each.environ for each in TABLE}
        self.assertEqual(
            [each for each in environ if each not in known and "PYTHON" not in each], []
        )
        self.assertEqual(str(resolve({}, environ).log_file), "%L/blockops/proxy.log")

    def test_tls_is_not_broken_by_hardening(self):
        # OpenSSL's callbacks from Python are made in memory that is written and executed: with
        # this, each https backend and each ssl: endpoint fails in its first handshake.
        self.assertEqual(directives("MemoryDenyWriteExecute"), [])

    def test_secrets_are_suggested_as_credentials_only(self):
        text = UNIT.read_text("utf-8")
        self.assertIn("LoadCredential=backend-key:", text)
        self.assertIn("BLOCKOPS_BACKEND_KEY_FILE=%d/backend-key", text)


class AnalyzeTests(SynchronousTestCase):
    """systemd's own opinion of the unit."""

    def setUp(self):
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            raise SkipTest("SKIPPED, NOT PROVEN: systemd-analyze is missing (package systemd)")
        self.analyze = analyze
        # Wherever it is installed on this machine: the path of the unit is that of its comment.
        twistd = Path(self.mktemp()).absolute()
        twistd.write_text("#!/bin/sh\n")
        twistd.chmod(0o755)
        self.unit = Path(self.mktemp()).absolute() / "blockops.service"
        self.unit.parent.mkdir()
        text, replaced = re.subn(
            r"(?m)^ExecStart=\S+", f"ExecStart={twistd}", UNIT.read_text("utf-8")
        )
        self.assertEqual(replaced, 1)
        self.unit.write_text(text)

    def run_analyze(self, *line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.analyze, *line],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"},
        )

    def test_it_is_a_correct_unit(self):
        ended = self.run_analyze("verify", "--man=no", str(self.unit))
        self.assertEqual((ended.returncode, ended.stderr.strip()), (0, ""))

    def test_a_wrong_unit_would_be_noticed(self):
        self.unit.write_text(self.unit.read_text().replace("DynamicUser=", "DynamikUser="))
        self.assertIn("DynamikUser", self.run_analyze("verify", "--man=no", str(self.unit)).stderr)

    def test_it_is_hardened(self):
        ended = self.run_analyze("security", "--offline=true", str(self.unit))
        found = re.search(r"Overall exposure level.*?: ([0-9.]+)", ended.stdout)
        assert found is not None, ended.stdout + ended.stderr
        self.assertLess(float(found[1]), 2.5)
