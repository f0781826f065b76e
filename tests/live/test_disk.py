"""
The disk under the traffic log fails, fills up, is taken away, or the process dies in mid-write.

Whatever it is, requests are served, what is lost is counted, and the daemon's log says it once.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live import backends
from tests.live.backends import Backend
from tests.live.harness import LONG, Daemon, ask, check_peace, question, start_daemon
from tests.live.harness import wait_for as wait

BROKEN = "The traffic log cannot be written"
WELL_AGAIN = "The traffic log is written again"
ROOT_HERE = os.geteuid() == 0

#: Run a program without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: permissions then bind root too.
#: Another user could not even read the Python that belongs to root.
_BOUND = """
import ctypes, os, sys
if sys.platform == "linux":
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Bound(Daemon):
    """blockops as one whom the permissions of a folder bind, though we may be root."""

    twistd = (sys.executable, "-c", _BOUND, *Daemon.twistd)


class Case(SynchronousTestCase):
    def setUp(self):
        self.backend = Backend(backends.says("hello"))
        self.addCleanup(self.backend.stop)
        self.folder = Path(tempfile.mkdtemp(prefix="blockops-disk-")).resolve()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        self.path = self.folder / "logs" / "proxy.log"

    def start(self, *options: str, kind: type[Daemon] = Daemon) -> Daemon:
        path = ("--log-file", str(self.path))
        return start_daemon(self, "--backend", self.backend.url, *path, *options, kind=kind)

    def serve(self, daemon: Daemon, *questions: str) -> None:
        """Ask `daemon` each of `questions`, and assert that it answers as if all were well."""
        for text in questions:
            reply = ask(daemon.url, question(text, stream=True))
            self.assertEqual(reply.status, 200)
            self.assertTrue(reply.body.endswith(b"data: [DONE]\n\n"), reply.body)

    def lost(self, daemon: Daemon) -> int:
        return int(ask(daemon.url, method="GET", path="/health").json()["log_lines_lost"])

    def until(self, daemon: Daemon, lost: int) -> None:
        """Wait until `daemon` says that `lost` lines are lost: its log is written later."""
        wait(lambda: self.lost(daemon) >= lost, f"{lost} lines are not lost")

    def assert_told(self, daemon: Daemon, what: str, times: int, why: str = "") -> None:
        def told() -> list[str]:
            return [line for line in daemon.logged().splitlines() if what in line]

        # What is lost is counted before it is told.
        wait(lambda: len(told()) >= times, f"{what!r} is not told")
        self.assertEqual(len(told()), times, daemon.logged())
        for line in told():
            self.assertIn(why, line)

    def written(self) -> list[dict[str, Any]]:
        """Return what the file holds, which must be whole lines."""
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def until_written(self, text: str) -> None:
        """Wait until the answer to the question `text` is in the file."""

        def there() -> bool:
            lines = self.written() if whole() else []
            asked = [one["id"] for one in lines if text in one["body"]]
            return any(one["event"] == "response" and one["id"] in asked for one in lines)

        def whole() -> bool:
            return self.path.exists() and self.path.read_bytes().endswith(b"\n")

        wait(there, f"{text} is not in the log")


class FullDisk(Case):
    def test_a_device_that_is_always_full(self):
        self.path = Path("/dev/full")
        if not self.path.exists():
            raise SkipTest("there is no /dev/full here")
        daemon = self.start()
        self.serve(daemon, *("hi",) * 20)
        self.until(daemon, lost=40)
        self.assert_told(daemon, BROKEN, 1, "No space left on device")
        self.assert_told(daemon, WELL_AGAIN, 0)

    def test_a_small_disk_that_fills_up_and_is_emptied_again(self):
        self.mount(self.path.parent, "128k")
        daemon = self.start("--log-size", "64m")
        self.serve(daemon, "the first")
        self.until_written("the first")
        # What else is on the disk grows until nothing is left; the log must not go on in mid-line.
        filler = self.path.with_name("filler")
        _fill(filler)
        self.serve(daemon, *("x" * 2000 for _ in range(20)))
        self.until(daemon, lost=20)
        self.assert_told(daemon, BROKEN, 1, "No space left on device")
        self.assert_told(daemon, WELL_AGAIN, 0)

        filler.unlink()
        wait(lambda: self.is_served_and_logged(daemon), "the log is not written again")
        self.assert_told(daemon, WELL_AGAIN, 1)
        lost = self.lost(daemon)
        self.serve(daemon, "the last")
        wait(lambda: "the last" in self.tail(), "no last line")
        self.assertEqual(self.lost(daemon), lost)
        self.assert_torn(at_most=1)

    def mount(self, folder: Path, size: str) -> None:
        """Mount a file system of `size` on `folder`."""
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if sys.platform != "linux" or not ROOT_HERE:
            raise SkipTest("only root may mount a small disk")
        if (ended := subprocess.run(command, capture_output=True, check=False)).returncode:
            raise SkipTest(f"a small disk cannot be mounted here: {ended.stderr.decode()}")
        self.addCleanup(subprocess.run, ["umount", "-l", str(folder)], check=True)

    def is_served_and_logged(self, daemon: Daemon) -> bool:
        self.serve(daemon, "again")
        return WELL_AGAIN in daemon.logged()

    def tail(self) -> str:
        return self.path.read_text("utf-8", "replace")[-8000:]

    def assert_torn(self, at_most: int) -> None:
        """Assert that all lines are JSON but for `at_most`, and that all is ended by a newline."""
        text = self.path.read_bytes()
        self.assertTrue(text.endswith(b"\n"))
        self.assertLessEqual(_torn(text), at_most, text.decode())


def _fill(path: Path) -> None:
    """Write to `path` until the disk is full, to the last byte."""
    size = 65536
    with path.open("ab", buffering=0) as file:
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2


def _torn(text: bytes) -> int:
    """Return how many lines of `text` are no JSON object."""
    torn = 0
    for line in text.splitlines():
        try:
            torn += not isinstance(json.loads(line), dict)
        except ValueError:
            torn += 1
    return torn


class Folder(Case):
    def test_a_folder_that_is_not_writable(self):
        self.path.parent.mkdir()
        self.path.parent.chmod(0o555)
        daemon = self.start(kind=Bound)
        wait(lambda: BROKEN in daemon.logged(), "it is not told before the first request")
        self.serve(daemon, *("hi",) * 10)
        self.until(daemon, lost=20)
        self.assert_told(daemon, BROKEN, 1, "Permission denied")

        self.path.parent.chmod(0o755)
        wait(lambda: self.comes_back(daemon), "the log is not written again")
        self.assert_told(daemon, WELL_AGAIN, 1)
        self.assert_told(daemon, BROKEN, 1)

    def comes_back(self, daemon: Daemon) -> bool:
        self.serve(daemon, "hi")
        return self.path.exists() and WELL_AGAIN in daemon.logged()

    def test_a_folder_that_cannot_be_made(self):
        self.path.parent.write_text("a file is in the way")
        daemon = self.start()
        self.serve(daemon, "hi", "hi")
        self.until(daemon, lost=4)
        self.assert_told(daemon, BROKEN, 1, str(self.path.parent))

    def test_a_file_that_may_not_be_rotated_loses_lines_and_no_traffic(self):
        """The file may be written, its folder not: it stays as long as it is, and says so."""
        self.path.parent.mkdir()
        self.path.touch()
        self.path.parent.chmod(0o555)
        daemon = self.start("--log-size", "4096", kind=Bound)
        self.serve(daemon, *("x" * 500 for _ in range(20)))
        self.until(daemon, lost=20)
        self.assert_told(daemon, BROKEN, 1, "Permission denied")
        self.assertLessEqual(self.path.stat().st_size, 4096)
        self.assert_told(daemon, WELL_AGAIN, 0)

        self.path.parent.chmod(0o755)
        wait(lambda: self.comes_back(daemon), "the log is not written again")
        self.assertTrue(self.path.with_name("proxy.log.1").exists())
        self.assert_told(daemon, WELL_AGAIN, 1)

    def test_removed_underneath(self):
        daemon = self.start()
        self.serve(daemon, "before")
        self.until_written("before")
        self.path.unlink()
        self.serve(daemon, "between")
        self.until_written("between")
        shutil.rmtree(self.path.parent)
        self.serve(daemon, "after")
        self.until_written("after")
        self.assertNotIn("between", self.path.read_text())
        self.assertEqual(self.lost(daemon), 0)
        self.assert_told(daemon, BROKEN, 0)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)


class Killed(Case):
    """`kill -9` with the log in full flight: at most one line is torn, and it tears no other."""

    skip = LONG
    times = 8

    def test_killed_and_started_again(self):
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")  # noqa: T201 - to be able to run the same kills again
        dice = random.Random(seed)
        self.backend.script = backends.says("y" * 20_000, piece=2000)
        for number in range(1, self.times + 1):
            before = self.path.stat().st_size if self.path.exists() else 0
            daemon = self.run_until_killed(records=before + dice.randrange(100_000, 400_000))
            self.assert_no_worse(torn=number)
            daemon.process.wait()
        torn = _torn(self.path.read_bytes())
        daemon = self.start("--log-size", "1g")
        self.serve(daemon, "and a whole life")
        wait(lambda: b"and a whole life" in self.path.read_bytes(), "nothing is logged")
        check_peace(self, daemon)
        text = self.path.read_bytes()
        self.assertTrue(text.endswith(b"\n"))
        self.assertEqual(_torn(text), torn, "a life in peace tears no line")
        # Each life's first record stands on a line of its own, whatever the one before left.
        ids = [json.loads(one)["id"] for one in text.splitlines() if _torn(one) == 0]
        self.assertGreater(len(ids), 10 * self.times)

    def run_until_killed(self, records: int) -> Daemon:
        """Start a daemon, let a crowd ask it, and kill it when the log has `records` bytes."""
        daemon = self.start_doomed()
        crowd = [threading.Thread(target=self.ask_on, args=(daemon,)) for _ in range(8)]
        for each in crowd:
            each.start()
        wait(lambda: self.path.exists() and self.path.stat().st_size > records, "no log", 120)
        daemon.process.kill()
        for each in crowd:
            each.join(120)
        return daemon

    def start_doomed(self) -> Daemon:
        options = ("--backend", self.backend.url, "--log-file", str(self.path))
        daemon = Daemon(Path(self.mktemp()).resolve(), *options, "--log-size", "1g")
        self.addCleanup(daemon.process.kill)
        daemon.wait_for_port(("127.0.0.1", daemon.port))
        return daemon

    def ask_on(self, daemon: Daemon) -> None:
        while daemon.process.poll() is None:
            try:
                ask(daemon.url, question("x" * 30_000, stream=True))
            except (OSError, ValueError, http.client.HTTPException):
                return

    def assert_no_worse(self, torn: int) -> None:
        self.assertLessEqual(_torn(self.path.read_bytes()), torn)

    def test_behind_a_torn_line(self):
        """The same where the kill certainly came in the middle of a line."""
        daemon = self.start_doomed()
        self.serve(daemon, "before")
        self.until_written("before")
        daemon.process.kill()
        daemon.process.wait()
        whole = self.path.read_bytes()
        self.path.write_bytes(whole[:-50])
        daemon = self.start()
        self.serve(daemon, "behind it")
        wait(lambda: b"behind it" in self.path.read_bytes(), "nothing is logged")
        check_peace(self, daemon)
        text = self.path.read_bytes()
        self.assertTrue(text.startswith(whole[:-50] + b"\n"))
        self.assertEqual(_torn(text), 1)
