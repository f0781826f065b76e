"""
The traffic log on a disk that fails, fills up or is removed, and after a process killed mid-write.

In each case requests are served, lost lines are counted, and the daemon's log reports it once.
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
from tests.live.harness import (
    SKIP_UNLESS_LIVE,
    Daemon,
    assert_clean_exit,
    chat_body,
    send_request,
    start_daemon,
)
from tests.live.harness import wait_for as wait

WRITE_FAILED = "The traffic log cannot be written"
WRITE_RECOVERED = "The traffic log is written again"
IS_ROOT = os.geteuid() == 0

#: Run a program without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that permissions apply to root
#: too. Another user might not be able to read a Python installed by root.
_DROP_CAPABILITIES = """
import ctypes, os, sys
if sys.platform == "linux":
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class UnprivilegedDaemon(Daemon):
    """blockops to which the permissions of a folder apply, even if the tests run as root."""

    twistd = (sys.executable, "-c", _DROP_CAPABILITIES, *Daemon.twistd)


class DiskTestCase(SynchronousTestCase):
    def setUp(self):
        self.backend = Backend(backends.stream_text("hello"))
        self.addCleanup(self.backend.stop)
        self.folder = Path(tempfile.mkdtemp(prefix="blockops-disk-")).resolve()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        self.path = self.folder / "logs" / "proxy.log"

    def start(self, *options: str, kind: type[Daemon] = Daemon) -> Daemon:
        path = ("--log-file", str(self.path))
        return start_daemon(self, "--backend", self.backend.url, *path, *options, kind=kind)

    def send_all(self, daemon: Daemon, *questions: str) -> None:
        """Send each of `questions` and assert that its response is complete."""
        for text in questions:
            reply = send_request(daemon.url, chat_body(text, stream=True))
            self.assertEqual(reply.status, 200)
            self.assertTrue(reply.body.endswith(b"data: [DONE]\n\n"), reply.body)

    def lost_lines(self, daemon: Daemon) -> int:
        return int(send_request(daemon.url, method="GET", path="/health").json()["log_lines_lost"])

    def wait_for_lost_lines(self, daemon: Daemon, count: int) -> None:
        """Wait until /health counts `count` lost lines; the log is written with a delay."""
        wait(lambda: self.lost_lines(daemon) >= count, f"fewer than {count} lines are lost")

    def assert_logged(self, daemon: Daemon, message: str, times: int, reason: str = "") -> None:
        def matching_lines() -> list[str]:
            return [line for line in daemon.read_log().splitlines() if message in line]

        # Lost lines are counted before they are logged.
        wait(lambda: len(matching_lines()) >= times, f"{message!r} is not logged")
        self.assertEqual(len(matching_lines()), times, daemon.read_log())
        for line in matching_lines():
            self.assertIn(reason, line)

    def logged_records(self) -> list[dict[str, Any]]:
        """Return the records in the file, all of whose lines must be complete."""
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def wait_until_logged(self, text: str) -> None:
        """Wait until the response to the question `text` is in the file."""

        def is_logged() -> bool:
            if not self.path.exists() or not self.path.read_bytes().endswith(b"\n"):
                return False
            records = self.logged_records()
            ids = [record["id"] for record in records if text in record["body"]]
            return any(record["event"] == "response" and record["id"] in ids for record in records)

        wait(is_logged, f"{text} is not in the log")


class FullDiskTests(DiskTestCase):
    def test_a_full_device(self):
        self.path = Path("/dev/full")
        if not self.path.exists():
            raise SkipTest("There is no /dev/full here")
        daemon = self.start()
        self.send_all(daemon, *("hi",) * 20)
        self.wait_for_lost_lines(daemon, count=40)
        self.assert_logged(daemon, WRITE_FAILED, 1, "No space left on device")
        self.assert_logged(daemon, WRITE_RECOVERED, 0)

    def test_a_small_disk_that_fills_up_and_is_emptied(self):
        self.mount(self.path.parent, "128k")
        daemon = self.start("--log-size", "64m")
        self.send_all(daemon, "the first")
        self.wait_until_logged("the first")
        # Another file fills the disk. The log must not continue in the middle of a line.
        filler = self.path.with_name("filler")
        _fill_disk(filler)
        self.send_all(daemon, *("x" * 2000 for _ in range(20)))
        self.wait_for_lost_lines(daemon, count=20)
        self.assert_logged(daemon, WRITE_FAILED, 1, "No space left on device")
        self.assert_logged(daemon, WRITE_RECOVERED, 0)

        filler.unlink()
        wait(lambda: self.serve_and_check_log(daemon), "the log is not written again")
        self.assert_logged(daemon, WRITE_RECOVERED, 1)
        before = self.lost_lines(daemon)
        self.send_all(daemon, "the last")
        wait(lambda: "the last" in self.tail(), "no last line")
        self.assertEqual(self.lost_lines(daemon), before)
        self.assert_torn(at_most=1)

    def mount(self, folder: Path, size: str) -> None:
        """Mount a file system of `size` on `folder`."""
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if sys.platform != "linux" or not IS_ROOT:
            raise SkipTest("Only root may mount a small disk")
        if (mounted := subprocess.run(command, capture_output=True, check=False)).returncode:
            raise SkipTest(f"A small disk cannot be mounted here: {mounted.stderr.decode()}")
        self.addCleanup(subprocess.run, ["umount", "-l", str(folder)], check=True)

    def serve_and_check_log(self, daemon: Daemon) -> bool:
        self.send_all(daemon, "again")
        return WRITE_RECOVERED in daemon.read_log()

    def tail(self) -> str:
        return self.path.read_text("utf-8", "replace")[-8000:]

    def assert_torn(self, at_most: int) -> None:
        """Assert that at most `at_most` lines are torn and that the file ends with a newline."""
        text = self.path.read_bytes()
        self.assertTrue(text.endswith(b"\n"))
        self.assertLessEqual(_count_torn(text), at_most, text.decode())


def _fill_disk(path: Path) -> None:
    """Write to `path` until the disk is full, to the last byte."""
    size = 65536
    with path.open("ab", buffering=0) as file:
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2


def _count_torn(text: bytes) -> int:
    """Return the number of lines of `text` that are not a JSON object."""
    count = 0
    for line in text.splitlines():
        try:
            count += not isinstance(json.loads(line), dict)
        except ValueError:
            count += 1
    return count


class FolderTests(DiskTestCase):
    def test_a_read_only_folder(self):
        self.path.parent.mkdir()
        self.path.parent.chmod(0o555)
        daemon = self.start(kind=UnprivilegedDaemon)
        wait(lambda: WRITE_FAILED in daemon.read_log(), "it is not logged before the first request")
        self.send_all(daemon, *("hi",) * 10)
        self.wait_for_lost_lines(daemon, count=20)
        self.assert_logged(daemon, WRITE_FAILED, 1, "Permission denied")

        self.path.parent.chmod(0o755)
        wait(lambda: self.serve_and_check_recovery(daemon), "the log is not written again")
        self.assert_logged(daemon, WRITE_RECOVERED, 1)
        self.assert_logged(daemon, WRITE_FAILED, 1)

    def serve_and_check_recovery(self, daemon: Daemon) -> bool:
        self.send_all(daemon, "hi")
        return self.path.exists() and WRITE_RECOVERED in daemon.read_log()

    def test_a_folder_that_cannot_be_created(self):
        self.path.parent.write_text("a file is in the way")
        daemon = self.start()
        self.send_all(daemon, "hi", "hi")
        self.wait_for_lost_lines(daemon, count=4)
        self.assert_logged(daemon, WRITE_FAILED, 1, str(self.path.parent))

    def test_a_file_that_cannot_be_rotated_loses_lines_only(self):
        """The file is writable, its folder is not: the file stays below its size, and is logged."""
        self.path.parent.mkdir()
        self.path.touch()
        self.path.parent.chmod(0o555)
        daemon = self.start("--log-size", "4096", kind=UnprivilegedDaemon)
        self.send_all(daemon, *("x" * 500 for _ in range(20)))
        self.wait_for_lost_lines(daemon, count=20)
        self.assert_logged(daemon, WRITE_FAILED, 1, "Permission denied")
        self.assertLessEqual(self.path.stat().st_size, 4096)
        self.assert_logged(daemon, WRITE_RECOVERED, 0)

        self.path.parent.chmod(0o755)
        wait(lambda: self.serve_and_check_recovery(daemon), "the log is not written again")
        self.assertTrue(self.path.with_name("proxy.log.1").exists())
        self.assert_logged(daemon, WRITE_RECOVERED, 1)

    def test_file_and_folder_removed_while_open(self):
        daemon = self.start()
        self.send_all(daemon, "before")
        self.wait_until_logged("before")
        self.path.unlink()
        self.send_all(daemon, "between")
        self.wait_until_logged("between")
        shutil.rmtree(self.path.parent)
        self.send_all(daemon, "after")
        self.wait_until_logged("after")
        self.assertNotIn("between", self.path.read_text())
        self.assertEqual(self.lost_lines(daemon), 0)
        self.assert_logged(daemon, WRITE_FAILED, 0)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)


class KillTests(DiskTestCase):
    """`kill -9` while the log is written: at most one line is torn, and no other is affected."""

    skip = SKIP_UNLESS_LIVE
    kills = 8

    def test_killed_and_started_again(self):
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")  # noqa: T201 - to repeat the same kills
        dice = random.Random(seed)
        self.backend.script = backends.stream_text("y" * 20_000, piece_size=2000)
        for number in range(1, self.kills + 1):
            before = self.path.stat().st_size if self.path.exists() else 0
            daemon = self.kill_under_load(log_size=before + dice.randrange(100_000, 400_000))
            self.assert_torn_at_most(count=number)
            daemon.process.wait()
        torn = _count_torn(self.path.read_bytes())
        daemon = self.start("--log-size", "1g")
        self.send_all(daemon, "the clean run")
        wait(lambda: b"the clean run" in self.path.read_bytes(), "nothing is logged")
        assert_clean_exit(self, daemon)
        text = self.path.read_bytes()
        self.assertTrue(text.endswith(b"\n"))
        self.assertEqual(_count_torn(text), torn, "a clean run tears no line")
        # The first record of each run is on a separate line, even after a torn one.
        ids = [json.loads(line)["id"] for line in text.splitlines() if _count_torn(line) == 0]
        self.assertGreater(len(ids), 10 * self.kills)

    def kill_under_load(self, log_size: int) -> Daemon:
        """Start a daemon, send requests, and kill it when the log is larger than `log_size`."""
        daemon = self.start_daemon_to_kill()
        clients = [threading.Thread(target=self.send_requests, args=(daemon,)) for _ in range(8)]
        for client in clients:
            client.start()
        wait(lambda: self.path.exists() and self.path.stat().st_size > log_size, "no log", 120)
        daemon.process.kill()
        for client in clients:
            client.join(120)
        return daemon

    def start_daemon_to_kill(self) -> Daemon:
        options = ("--backend", self.backend.url, "--log-file", str(self.path))
        daemon = Daemon(Path(self.mktemp()).resolve(), *options, "--log-size", "1g")
        self.addCleanup(daemon.process.kill)
        daemon.wait_for_port(("127.0.0.1", daemon.port))
        return daemon

    def send_requests(self, daemon: Daemon) -> None:
        while daemon.process.poll() is None:
            try:
                send_request(daemon.url, chat_body("x" * 30_000, stream=True))
            except (OSError, ValueError, http.client.HTTPException):
                return

    def assert_torn_at_most(self, count: int) -> None:
        self.assertLessEqual(_count_torn(self.path.read_bytes()), count)

    def test_after_a_torn_line(self):
        """The last line is certainly torn."""
        daemon = self.start_daemon_to_kill()
        self.send_all(daemon, "before")
        self.wait_until_logged("before")
        daemon.process.kill()
        daemon.process.wait()
        complete = self.path.read_bytes()
        self.path.write_bytes(complete[:-50])
        daemon = self.start()
        self.send_all(daemon, "after it")
        wait(lambda: b"after it" in self.path.read_bytes(), "nothing is logged")
        assert_clean_exit(self, daemon)
        text = self.path.read_bytes()
        self.assertTrue(text.startswith(complete[:-50] + b"\n"))
        self.assertEqual(_count_torn(text), 1)
