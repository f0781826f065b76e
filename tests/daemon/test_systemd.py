"""Notifications of systemd, and the unit."""

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

from blockops.daemon.systemd import SystemdNotifier
from blockops.settings.sources import resolve
from blockops.settings.table import TABLE, Settings

UNIT = Path(__file__).parents[2] / "blockops.service"


class NotifierTests(SynchronousTestCase):
    """Datagrams on real sockets."""

    def listen(self, address: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listener.close)
        listener.bind(address)
        listener.settimeout(10)
        return listener

    def setUp(self):
        # The path of a Unix socket has at most 107 bytes.
        self.path = os.path.relpath(Path(self.mktemp()))
        self.listener = self.listen(self.path)
        self.notifier = SystemdNotifier(self.path, watchdog=20.0)

    def receive(self) -> str:
        return self.listener.recv(4096).decode()

    def test_ready(self):
        self.notifier.ready("serves http://127.0.0.1:8082")
        self.assertEqual(self.receive(), "READY=1\nSTATUS=serves http://127.0.0.1:8082")

    def test_stopping(self):
        self.notifier.stopping()
        self.assertEqual(self.receive(), "STOPPING=1")

    def test_reloading(self):
        before = time.monotonic_ns() // 1000
        self.notifier.reloading()
        first, _, second = self.receive().partition("\n")
        self.assertEqual(first, "RELOADING=1")
        name, _, time_ = second.partition("=")
        self.assertEqual(name, "MONOTONIC_USEC")
        self.assertTrue(before <= int(time_) <= time.monotonic_ns() // 1000)

    def test_status_is_one_line(self):
        self.notifier.stopping("3 running,\n2 waiting ✓")
        self.assertEqual(self.receive(), "STOPPING=1\nSTATUS=3 running, 2 waiting ✓")

    def test_ping_watchdog(self):
        self.notifier.ping_watchdog()
        self.assertEqual(self.receive(), "WATCHDOG=1")

    def test_no_watchdog(self):
        SystemdNotifier(self.path).ping_watchdog()
        SystemdNotifier(self.path).stopping()
        self.assertEqual(self.receive(), "STOPPING=1")

    def test_an_abstract_name(self):
        if not sys.platform.startswith("linux"):
            raise SkipTest("abstract names exist only on Linux")
        name = f"blockops-test-{os.getpid()}"
        listener = self.listen(f"\0{name}")
        SystemdNotifier(f"@{name}").ready()
        self.assertEqual(listener.recv(4096), b"READY=1")

    def test_no_listener(self):
        for address in (None, "", "/missing/notify", "@blockops-missing", "x" * 500, "a\0b"):
            SystemdNotifier(address, watchdog=1).ping_watchdog()

    def test_a_full_socket_buffer_does_not_block(self):
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(5000):
            self.notifier.ping_watchdog()
        self.assertEqual(self.receive(), "WATCHDOG=1")


class EnvironmentTests(SynchronousTestCase):
    def test_service_with_a_watchdog(self):
        environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "7"}
        notifier = SystemdNotifier.from_environment(environ, pid=7)
        self.assertEqual(notifier.watchdog, 20.0)
        self.assertEqual(environ, {})

    def test_outside_systemd(self):
        self.assertIsNone(SystemdNotifier.from_environment({}).watchdog)

    def test_this_process_is_the_default_target(self):
        environ = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}
        self.assertEqual(SystemdNotifier.from_environment(environ).watchdog, 0.5)
        self.assertEqual(
            SystemdNotifier.from_environment({"WATCHDOG_USEC": "500000"}).watchdog, 0.5
        )

    def test_a_watchdog_for_another_process(self):
        environ = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}
        self.assertIsNone(SystemdNotifier.from_environment(environ, pid=7).watchdog)

    def test_invalid_watchdog(self):
        for text in ("", "0", "-5", "soon", "1.5"):
            self.assertIsNone(SystemdNotifier.from_environment({"WATCHDOG_USEC": text}).watchdog)


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
        # Clients need time to read the end of their responses, and the log to be written.
        self.assertGreaterEqual(int(stop), Settings().drain + 15)

    def test_its_environment_is_valid(self):
        words = " ".join(directives("Environment")).split()
        environ = dict(each.split("=", 1) for each in words)
        known = {each.env_var for each in TABLE}
        self.assertEqual(
            [each for each in environ if each not in known and "PYTHON" not in each], []
        )
        self.assertEqual(str(resolve({}, environ).log_file), "%L/blockops/proxy.log")

    def test_tls_is_not_broken_by_hardening(self):
        # OpenSSL's callbacks from Python are allocated in memory that is written and executed:
        # with this directive, https backends and ssl: endpoints fail in the first handshake.
        self.assertEqual(directives("MemoryDenyWriteExecute"), [])

    def test_secrets_are_suggested_only_as_credentials(self):
        text = UNIT.read_text("utf-8")
        self.assertIn("LoadCredential=backend-key:", text)
        self.assertIn("BLOCKOPS_BACKEND_KEY_FILE=%d/backend-key", text)


class AnalyzeTests(SynchronousTestCase):
    """The unit, checked by systemd."""

    def setUp(self):
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            raise SkipTest("SKIPPED, NOT PROVEN: systemd-analyze is missing (package systemd)")
        self.analyze = analyze
        # The unit's path of twistd need not exist on this machine.
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

    def test_the_unit_is_valid(self):
        result = self.run_analyze("verify", "--man=no", str(self.unit))
        self.assertEqual((result.returncode, result.stderr.strip()), (0, ""))

    def test_an_invalid_unit_is_detected(self):
        self.unit.write_text(self.unit.read_text().replace("DynamicUser=", "DynamikUser="))
        self.assertIn("DynamikUser", self.run_analyze("verify", "--man=no", str(self.unit)).stderr)

    def test_hardening(self):
        result = self.run_analyze("security", "--offline=true", str(self.unit))
        found = re.search(r"Overall exposure level.*?: ([0-9.]+)", result.stdout)
        assert found is not None, result.stdout + result.stderr
        self.assertLess(float(found[1]), 2.5)
