"""The traffic log: its lines, its file, its thread, and the disks that fail it."""

from __future__ import annotations

import errno
import gc
import json
import os
import queue
import resource
import stat
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.traffic_log import log as trafficlog
from blockops.operations.traffic_log.file import LogFile
from blockops.operations.traffic_log.log import (
    Backlog,
    NoTrafficLog,
    TrafficLog,
    Writer,
    traffic_log,
)
from blockops.operations.traffic_log.records import RequestRecord, ResponseRecord, line
from blockops.settings.table import Settings

#: Seconds after which a thread that should have ended has hung.
PATIENCE = 30

NOON = 1_750_000_000.1234


def request(number: int = 1, **more: Any) -> RequestRecord:
    return RequestRecord(id=f"r{number}", method="POST", path="/v1/chat/completions", **more)


def lines(path: Path) -> list[Any]:
    return [json.loads(each) for each in path.read_text("utf-8").splitlines()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def largest_file(size: int):
    """Let no file of this process grow over `size` bytes: what a full disk does to a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def texts(events: Sequence[LogEvent]) -> list[str]:
    return [each["what"] for each in events if "what" in each]


class RecordTests(SynchronousTestCase):
    """One record as one line."""

    def written(self, record: RequestRecord | ResponseRecord, *secrets: str) -> Any:
        text = line(record, NOON, secrets)
        self.assertEqual(len(text.splitlines()), 1)
        return json.loads(text)

    def test_a_request(self):
        body = b'{"messages": []}'
        record = RequestRecord(
            id="r1",
            client="10.0.0.7",
            key="alice",
            method="POST",
            path="/v1/chat/completions",
            model="qwen",
            stream=True,
            session="s",
            messages=3,
            tools=2,
            headers={"User-Agent": "curl/8"},
            size=len(body),
            body=body,
        )
        self.assertEqual(
            self.written(record),
            {
                "time": "2025-06-15T15:06:40.123Z",
                "event": "request",
                "id": "r1",
                "client": "10.0.0.7",
                "key": "alice",
                "method": "POST",
                "path": "/v1/chat/completions",
                "model": "qwen",
                "stream": True,
                "session": "s",
                "messages": 3,
                "tools": 2,
                "headers": {"user-agent": "curl/8"},
                "size": 16,
                "body": '{"messages": []}',
            },
        )

    def test_a_response(self):
        record = ResponseRecord(
            id="r1",
            status=200,
            outcome="done",
            queued_ms=0.5,
            first_byte_ms=812.25,
            last_byte_ms=4000.0,
            bytes_in=1000,
            bytes_out=1200,
            usage={"prompt_tokens": 7, "completion_tokens": 5},
            calls=["get_weather", "get_weather"],
            finish_reasons=["tool_calls"],
            tally={"calls": 2},
            error=None,
            body=b"data: [DONE]\n\n",
        )
        written = self.written(record)
        self.assertEqual(
            (written["event"], written["time"]), ("response", "2025-06-15T15:06:40.123Z")
        )
        for name in ResponseRecord.__struct_fields__:
            expected = getattr(record, name)
            self.assertEqual(
                written[name], expected.decode() if isinstance(expected, bytes) else expected
            )

    def test_secrets_stay_out(self):
        headers = {"Authorization": "Bearer zq7", "Cookie": "zq7", "X-Api-Key": "zq7"}
        record = request(headers=headers, body=b'{"api_key": "zq7", "user": "me"}')
        record = RequestRecord(
            id="1", method="POST", path="/v1/x?api_key=zq7", headers=headers, body=record.body
        )
        text = line(record, NOON)
        self.assertNotIn("zq7", text)
        self.assertIn("me", text)

    def test_secrets_in_what_is_shown_stay_out(self):
        headers = {"User-Agent": "curl hunter2", "X-Session-Id": "Bearer zq7zq7zq7"}
        record = RequestRecord(
            id="1", method="GET", path="/v1/hunter2#api_key=zq7zq7zq7", headers=headers
        )
        text = line(record, NOON, ["hunter2"])
        self.assertNotIn("zq7", text)
        self.assertNotIn("hunter2", text)
        self.assertIn("curl", text)

    def test_the_backends_key_stays_out_of_bodies_and_errors(self):
        record = ResponseRecord(
            id="1", error="401: wrong key hunter2", body=b"no such key: hunter2"
        )
        self.assertNotIn("hunter2", line(record, NOON, ["hunter2"]))

    def test_half_a_surrogate_pair_and_odd_numbers(self):
        record = ResponseRecord(id="1", calls=["\ud83d"], usage={"x": float("inf"), "y": object})
        written = json.loads(line(record, NOON))
        self.assertEqual(written["calls"], ["\ud83d"])

    @given(body=st.binary(), text=st.text(), number=st.floats())
    def test_whatever_it_holds_it_is_one_line_of_json(self, body, text, number):
        came = RequestRecord(
            id=text, method=text, path=text, model=text, headers={text: text}, body=body
        )
        ended = ResponseRecord(
            id=text, error=text, calls=[text], usage={text: number}, queued_ms=number, body=body
        )
        for record in (came, ended):
            written = line(record, NOON)
            self.assertNotIn("\n", written)
            self.assertEqual(json.loads(written)["id"], text)


class LogFileTests(SynchronousTestCase):
    """The file."""

    def setUp(self):
        self.path = Path(self.mktemp()).absolute() / "proxy.log"
        self.file = self.open()

    def open(self, rotate_at: int = 1 << 20, keep: int = 3) -> LogFile:
        file = LogFile(self.path, rotate_at=rotate_at, keep=keep)
        self.addCleanup(file.close)
        return file

    def test_nothing_is_made_before_the_first_line(self):
        self.assertFalse(self.path.parent.exists())

    def test_lines(self):
        self.file.write("one")
        self.file.write("zwölf ✓")
        self.assertEqual(self.path.read_text("utf-8"), "one\nzwölf ✓\n")

    def test_lines_are_there_at_once(self):
        self.file.write("one")
        self.assertEqual(self.path.read_bytes(), b"one\n")

    def test_several_are_one_piece(self):
        with mock.patch("os.write", wraps=os.write) as write:
            self.file.write("one", "two", "three")
        self.assertEqual(write.call_count, 1)
        self.assertEqual(self.path.read_text("utf-8"), "one\ntwo\nthree\n")
        self.assertEqual(self.file.written, 3)

    def test_several_are_as_many_pieces_as_files(self):
        for longest in (10, 30, 100, 1000):
            self.path = Path(self.mktemp()).absolute() / "proxy.log"
            one_by_one = self.open(rotate_at=100, keep=9)
            lines_ = [str(n) * (n * 7 % longest) for n in range(9)]
            for each in lines_:
                one_by_one.write(each)
            apart = {each.name: each.read_text() for each in self.path.parent.iterdir()}
            self.path = Path(self.mktemp()).absolute() / "proxy.log"
            together = self.open(rotate_at=100, keep=9)
            together.write(*lines_)
            self.assertEqual(
                {each.name: each.read_text() for each in self.path.parent.iterdir()}, apart
            )
            self.assertEqual(together.written, 9)

    def test_private_whatever_the_umask(self):
        for mask in (0, 0o022, 0o077):
            with umask(mask):
                self.path = Path(self.mktemp()).absolute() / "a" / "proxy.log"
                file = self.open(rotate_at=40, keep=2)
                for _ in range(8):
                    file.write("x" * 30)
            made = sorted(each.name for each in self.path.parent.iterdir())
            self.assertEqual(made, ["proxy.log", "proxy.log.1", "proxy.log.2"])
            for each in self.path.parent.iterdir():
                self.assertEqual(mode(each), 0o600, each.name)
            self.assertEqual(mode(self.path.parent), 0o700)

    def test_a_wide_file_of_before_is_closed_up(self):
        self.path.parent.mkdir(mode=0o755)
        self.path.write_text("old\n")
        self.path.chmod(0o644)
        self.file.write("new")
        self.assertEqual(mode(self.path), 0o600)
        self.assertEqual(self.path.read_text(), "old\nnew\n")

    def test_rotation_keeps_what_is_asked_and_loses_nothing_of_it(self):
        file = self.open(rotate_at=100, keep=2)
        for number in range(10):
            file.write(f"{number:039}")
        kept = [
            self.path.with_name(name).read_text().split()
            for name in ("proxy.log.2", "proxy.log.1", "proxy.log")
        ]
        self.assertEqual([int(each) for lines_ in kept for each in lines_], [4, 5, 6, 7, 8, 9])
        self.assertFalse(self.path.with_name("proxy.log.3").exists())

    def test_what_cannot_be_rotated_takes_no_shorter_lines_either(self):
        """Else it would be told to break and to work again with each of them."""
        file = self.open(rotate_at=100, keep=1)
        file.write("x" * 80)
        in_the_way = self.path.with_name("proxy.log.1")
        (in_the_way / "full").mkdir(parents=True)
        self.assertRaises(OSError, file.write, "y" * 80)
        self.assertRaises(OSError, file.write, "z")
        self.assertEqual(self.path.read_text(), "x" * 80 + "\n")
        (in_the_way / "full").rmdir()
        in_the_way.rmdir()
        file.write("z")
        file.write("z")
        self.assertEqual(self.path.read_text(), "z\nz\n")
        self.assertEqual(in_the_way.read_text(), "x" * 80 + "\n")

    def test_a_disk_too_full_to_end_a_torn_line(self):
        self.path.parent.mkdir()
        self.path.write_text("to")
        full = OSError(errno.ENOSPC, "No space left on device")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with mock.patch("os.write", side_effect=full):
                self.assertRaises(OSError, self.file.write, "one")
            gc.collect()
        # The file is closed, not left to whoever collects it, which tells of it as it likes.
        self.assertEqual([str(each.message) for each in warned], [])
        self.file.write("one")
        self.assertEqual(self.path.read_text(), "to\none\n")

    def test_a_torn_line_does_not_tear_the_next(self):
        self.path.parent.mkdir()
        self.path.write_text('{"whole": 1}\n{"to')
        self.file.write('{"next": 1}')
        self.assertEqual(self.path.read_text(), '{"whole": 1}\n{"to\n{"next": 1}\n')

    def test_an_empty_file_gets_no_empty_line(self):
        self.path.parent.mkdir()
        self.path.touch()
        self.file.write("one")
        self.assertEqual(self.path.read_text(), "one\n")

    def test_removed_underneath(self):
        self.file.write("one")
        self.path.unlink()
        self.file.write("two")
        self.assertEqual(self.path.read_text(), "two\n")

    def test_moved_by_somebody_else(self):
        self.file.write("one")
        self.path.rename(self.path.with_name("elsewhere"))
        self.file.write("two")
        self.assertEqual(self.path.read_text(), "two\n")
        self.assertEqual(self.path.with_name("elsewhere").read_text(), "one\n")

    def test_the_folder_removed_underneath(self):
        self.file.write("one")
        self.path.unlink()
        self.path.parent.rmdir()
        self.file.write("two")
        self.assertEqual(self.path.read_text(), "two\n")

    def test_a_full_disk(self):
        device = Path("/dev/full")
        before = mode(device)
        file = LogFile(device, rotate_at=100, keep=1)
        for _ in range(2):
            error = self.assertRaises(OSError, file.write, "one")
            self.assertIn("No space left", str(error))
        file.close()
        self.assertEqual(mode(device), before)

    def test_a_disk_that_fills_up_within_a_line_and_is_emptied_again(self):
        self.file.write("one")
        with largest_file(20):
            self.assertRaises(OSError, self.file.write, "two" * 20)
            self.assertRaises(OSError, self.file.write, "three")
            self.assertEqual(self.file.written, 1)
        self.file.write("four")
        one, torn, four = self.path.read_text().splitlines()
        self.assertEqual((one, four), ("one", "four"))
        # What was lost does not come late.
        self.assertTrue(("two" * 20).startswith(torn))
        self.assertLess(len(torn), 60)
        self.assertEqual(len(self.path.read_text().splitlines()), 3)

    def test_a_folder_that_cannot_be(self):
        self.path.parent.write_text("a file is in the way")
        self.assertRaises(OSError, self.file.ready)
        self.assertRaises(OSError, self.file.write, "one")
        self.path.parent.unlink()
        self.file.write("two")
        self.assertEqual(self.path.read_text(), "two\n")

    def test_closed_twice_and_never_opened(self):
        self.file.close()
        self.file.close()


def stamp(backlog: Backlog) -> float:
    """Take a record and return its time, which is what these tests tell them apart by."""
    (taken,) = backlog.take()
    return taken[0]


class BacklogTests(SynchronousTestCase):
    """What waits for the thread."""

    def test_first_in_first_out(self):
        backlog = Backlog(100, 10)
        for number in range(3):
            self.assertTrue(backlog.put((number, request()), 1))
        backlog.release()
        self.assertEqual([each[0] for each in backlog.take()], [0, 1, 2])

    def test_as_many_are_taken_as_are_written_together(self):
        most = trafficlog.TOGETHER
        backlog = Backlog(10 * most, 10)
        for number, size in enumerate((most - 1, 1, 1, 2 * most, 0, most, 1)):
            backlog.put((number, request()), size)
        backlog.close()
        taken = iter(backlog.take, [])
        self.assertEqual(
            [[number for number, _ in each] for each in taken], [[0, 1], [2], [3], [4, 5], [6]]
        )

    def test_bytes_are_bounded(self):
        backlog = Backlog(100, 10)
        self.assertTrue(backlog.put((0, request()), 60))
        self.assertFalse(backlog.put((0, request()), 41))
        self.assertTrue(backlog.put((0, request()), 40))
        backlog.take()
        self.assertTrue(backlog.put((0, request()), 60))

    def test_records_are_bounded(self):
        backlog = Backlog(100, 2)
        self.assertEqual([backlog.put((0, request()), 0) for _ in range(3)], [True, True, False])

    def test_calm(self):
        backlog = Backlog(100, 4)
        self.assertTrue(backlog.calm)
        backlog.put((0, request()), 50)
        self.assertFalse(backlog.calm)
        backlog.take()
        backlog.put((0, request()), 0)
        self.assertTrue(backlog.calm)
        backlog.put((0, request()), 0)
        self.assertFalse(backlog.calm)

    def test_after_the_end_what_waits_is_still_given_out(self):
        backlog = Backlog(100, 2)
        backlog.put((7, request()), 0)
        backlog.close()
        self.assertFalse(backlog.put((8, request()), 0))
        self.assertEqual((stamp(backlog), backlog.take(), backlog.take()), (7, [], []))

    def test_abandoned(self):
        backlog = Backlog(100, 2)
        backlog.put((7, request()), 90)
        self.assertEqual(backlog.abandon(), 1)
        self.assertTrue(backlog.put((7, request()), 90))

    def test_a_thread_that_waits_is_woken(self):
        for end in (lambda log: log.put((7, request()), 50), lambda log: log.close()):
            backlog = Backlog(100, 2)
            taken: queue.Queue[Any] = queue.Queue()
            thread = threading.Thread(target=lambda: taken.put(backlog.take()), daemon=True)  # noqa: B023
            thread.start()
            end(backlog)
            taken.get(timeout=PATIENCE)
            thread.join(PATIENCE)

    def waited_for(self) -> tuple[Backlog, queue.Queue[Any]]:
        """Return a backlog, and what a thread takes of it that waits already."""
        backlog = Backlog(100, 4)
        taken: queue.Queue[Any] = queue.Queue()
        thread = threading.Thread(target=lambda: taken.put(backlog.take()), daemon=True)
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        self.addCleanup(backlog.close)
        end = time.monotonic() + PATIENCE
        while not getattr(backlog._changed, "_waiters") and time.monotonic() < end:  # noqa: B009
            pass
        return backlog, taken

    def test_the_first_waits_for_others(self):
        backlog, taken = self.waited_for()
        backlog.put((7, request()), 10)
        self.assertTrue(getattr(backlog._changed, "_waiters"))  # noqa: B009 - nobody was woken
        backlog.put((8, request()), 10)
        # Half of the room is taken.
        self.assertEqual([when for when, _ in taken.get(timeout=PATIENCE)], [7, 8])

    def test_the_first_does_not_wait_beyond_the_end_or_its_release(self):
        for end in (Backlog.close, Backlog.release):
            backlog, taken = self.waited_for()
            backlog.put((7, request()), 10)
            end(backlog)
            self.assertEqual([when for when, _ in taken.get(timeout=PATIENCE)], [7])

    def test_where_nothing_waits_nothing_is_released(self):
        backlog, taken = self.waited_for()
        backlog.release()
        backlog.put((7, request()), 10)
        self.assertFalse(backlog._due)
        backlog.put((8, request()), 40)
        self.assertEqual([when for when, _ in taken.get(timeout=PATIENCE)], [7, 8])

    def test_what_is_released_is_taken_to_its_end(self):
        backlog = Backlog(10 * trafficlog.TOGETHER, 100)
        for number in range(3):
            backlog.put((number, request()), trafficlog.TOGETHER)
        backlog.release()
        self.assertEqual([stamp(backlog) for _ in range(3)], [0, 1, 2])
        # It was once: what comes now waits again.
        backlog.put((3, request()), 1)
        self.assertFalse(backlog._due)


class BadFile:
    """A file whose writes go as scripted: an exception is raised, None is well."""

    def __init__(self, *script: Exception | None) -> None:
        self._script = list(script)
        self.lines: list[str] = []
        self.pieces = 0
        self.closed = False

    def ready(self) -> None:
        self._next()

    @property
    def written(self) -> int:
        return len(self.lines)

    def write(self, *lines: str) -> None:
        self.pieces += 1
        for each in lines:
            self._next()
            self.lines.append(each)

    def close(self) -> None:
        self.closed = True

    def _next(self) -> None:
        outcome = self._script.pop(0)
        if outcome is not None:
            raise outcome


class WriterTests(SynchronousTestCase):
    """The thread's work, done here without a thread."""

    def run_with(self, *script: Exception | None) -> tuple[Writer, BadFile, list[tuple[str, int]]]:
        file = BadFile(*script)
        told: list[tuple[str, int]] = []
        backlog = Backlog(10_000, 100)
        for number in range(len(script) - 1):
            backlog.put((NOON, request(number)), 1)
        backlog.close()
        writer = Writer(backlog, file, (), lambda *words: told.append(words))  # type: ignore[arg-type]
        writer.run()
        self.assertTrue(file.closed)
        return writer, file, told

    def test_all_is_well(self):
        writer, file, told = self.run_with(None, None, None)
        self.assertEqual((writer.lost, file.written, file.pieces, told), (0, 2, 1, []))

    def test_the_reason_is_told_once_and_the_recovery_once(self):
        full = OSError(28, "No space left on device")
        writer, file, told = self.run_with(None, None, full, full, full, None, None)
        self.assertEqual((writer.lost, file.written), (3, 3))
        self.assertEqual(
            told,
            [
                ("The traffic log cannot be written: [Errno 28] No space left on device", 0),
                ("The traffic log is written again", 3),
            ],
        )

    def test_broken_again(self):
        full = OSError("full")
        with mock.patch.object(trafficlog, "TOGETHER", 1):
            _, _, told = self.run_with(None, full, None, full, None)
        self.assertEqual(len(told), 4)

    def test_broken_from_the_start(self):
        denied = PermissionError("denied")
        writer, _, told = self.run_with(denied, denied, denied)
        self.assertEqual((writer.lost, len(told)), (2, 1))

    def test_the_file_is_looked_at_between_two_lines(self):
        # The second one looks in vain, which costs no line.
        file = BadFile(None, None, None, OSError("gone"), None)
        backlog = Backlog(10_000, 100)
        for record in (request(1), None, None, request(2)):
            backlog.put((NOON, record), 0)
        backlog.close()
        writer = Writer(backlog, file, (), lambda *_: None)  # type: ignore[arg-type]
        writer.run()
        self.assertEqual((writer.lost, file.written, file.pieces), (0, 2, 2))
        self.assertEqual(file._script, [])

    def test_secrets_may_change(self):
        file = BadFile(None, None)
        backlog = Backlog(10_000, 100)
        backlog.put((NOON, request(body=b"it is hunter2")), 0)
        backlog.close()
        writer = Writer(backlog, file, (), lambda *_: None)  # type: ignore[arg-type]
        writer.secrets = ("hunter2",)
        writer.run()
        self.assertIn("it is ***", file.lines[0])

    def test_a_bug_costs_a_line_and_not_the_thread(self):
        writer, file, told = self.run_with(None, ZeroDivisionError("oh"), None)
        self.assertEqual((writer.lost, file.written, len(told)), (1, 1, 2))

    def test_what_cannot_be_a_line_costs_one_too(self):
        with mock.patch.object(trafficlog, "line", side_effect=[ZeroDivisionError("oh"), "two"]):
            writer, file, told = self.run_with(None, None, None)
        self.assertEqual((writer.lost, file.lines, len(told)), (1, ["two"], 2))


class FakeReactor(Clock):
    """Time in hand, and calls from threads that wait until they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.Queue()

    def callFromThread(self, callable: Callable[..., Any], /, *args: Any) -> None:  # noqa: A002
        self._calls.put((callable, args))

    def one_call(self) -> None:
        function, args = self._calls.get(timeout=PATIENCE)
        function(*args)

    def run_calls(self) -> None:
        while not self._calls.empty():
            self.one_call()


class TrafficLogTests(SynchronousTestCase):
    """The whole, with its real thread and real files."""

    def setUp(self):
        self.reactor = FakeReactor()
        self.path = Path(self.mktemp()).absolute() / "proxy.log"

    def make(self, path: Path | None = None, **more: Any) -> TrafficLog:
        return TrafficLog(self.reactor, path or self.path, now=lambda: NOON, **more)

    def finish(self, log: TrafficLog) -> None:
        """Close `log`, which must work."""
        closed = log.close()
        if log._thread is not None:
            log._thread.join(PATIENCE)
            self.assertFalse(log._thread.is_alive())
        self.reactor.run_calls()
        self.successResultOf(closed)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_records_become_lines_in_order(self):
        log = self.make()
        for number in range(100):
            log.write(request(number))
            log.write(ResponseRecord(id=f"r{number}"))
        self.finish(log)
        self.assertEqual(
            [(each["event"], each["id"]) for each in lines(self.path)],
            [(event, f"r{number}") for number in range(100) for event in ("request", "response")],
        )
        self.assertEqual(log.lost, 0)
        self.assertEqual(mode(self.path), 0o600)

    def test_they_gather_for_a_moment(self):
        log = self.make()
        log.write(request(1))
        self.reactor.advance(trafficlog.GATHERING / 2)
        log.write(request(2))
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.reactor.advance(trafficlog.GATHERING / 2)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        end = time.monotonic() + PATIENCE
        while not (self.path.exists() and len(lines(self.path)) == 2) and time.monotonic() < end:
            pass  # until the thread has written them
        self.assertEqual([each["id"] for each in lines(self.path)], ["r1", "r2"])
        self.finish(log)

    def test_bodies_are_cut(self):
        log = self.make(keep_body=10)
        log.write(request(body=b"x" * 1000, size=1000))
        log.write(request(body=memoryview(b"y" * 1000)))
        self.finish(log)
        self.assertEqual([each["body"] for each in lines(self.path)], ["x" * 10, "y" * 10])
        self.assertEqual(lines(self.path)[0]["size"], 1000)

    def test_no_bodies(self):
        log = self.make(keep_body=0)
        log.write(request(body=b"x" * 1000))
        self.finish(log)
        self.assertEqual(lines(self.path)[0]["body"], "")

    def test_rotates(self):
        log = self.make(rotate_at=4096, keep=2)
        for number in range(200):
            log.write(request(number))
        self.finish(log)
        files = sorted(self.path.parent.iterdir())
        self.assertEqual([each.name for each in files], ["proxy.log", "proxy.log.1", "proxy.log.2"])
        for each in files:
            self.assertLessEqual(each.stat().st_size, 4096)
            self.assertEqual(mode(each), 0o600)
        self.assertEqual(lines(self.path)[-1]["id"], "r199")

    def test_a_secret_that_was_replaced_stays_hidden(self):
        log = self.make(secrets=("hunter2",))
        log.write(request(1, body=b"I am hunter2"))  # waits while the secret is replaced
        log.reopen(("swordfish",))
        log.reopen(("swordfish",))
        for number, said in enumerate((b"not hunter2", b"but swordfish"), 2):
            log.write(ResponseRecord(id=f"r{number}", body=said))
        self.finish(log)
        bodies = [each["body"] for each in lines(self.path)]
        self.assertEqual(bodies, ["I am ***", "not ***", "but ***"])

    def test_of_replaced_secrets_one_is_kept(self):
        log = self.make(secrets=("first",))
        for secret in ("second", "third"):
            log.reopen((secret,))
        self.assertEqual(set(log._writer.secrets), {"second", "third"})

    def test_reopened_before_it_was_opened(self):
        log = self.make()
        log.reopen(())
        self.finish(log)
        self.assertFalse(self.path.exists())

    def test_goes_on_in_the_same_file_after_a_crash(self):
        self.path.parent.mkdir()
        self.path.write_text('{"torn": "by kill -')
        log = self.make()
        log.write(request())
        self.finish(log)
        torn, whole = self.path.read_text().splitlines()
        self.assertEqual((torn, json.loads(whole)["id"]), ('{"torn": "by kill -', "r1"))

    def test_a_full_disk_costs_lines_and_is_told_of_once(self):
        with capturedLogs() as events:
            log = self.make(Path("/dev/full"))
            for number in range(5):
                log.write(request(number))
            self.finish(log)
        self.assertEqual(log.lost, 5)
        (text,) = texts(events)
        self.assertIn("No space left on device", text)

    def test_a_bad_path_is_told_of_at_the_start(self):
        self.path.parent.write_text("in the way")
        with capturedLogs() as events:
            log = self.make()
            log.start()
            self.reactor.one_call()
        (text,) = texts(events)
        self.assertIn(str(self.path.parent), text)
        self.finish(log)
        self.assertEqual(log.lost, 0)

    def test_nothing_was_logged(self):
        log = self.make()
        self.finish(log)
        self.assertFalse(self.path.exists())

    def test_after_the_end_records_are_lost_quietly(self):
        log = self.make()
        log.write(request())
        self.finish(log)
        with capturedLogs() as events:
            log.write(request())
            log.start()
        self.assertEqual((log.lost, texts(events), len(lines(self.path))), (1, [], 1))

    def test_closed_before_anything_and_then_used(self):
        log = self.make()
        self.finish(log)
        log.write(request())
        self.assertEqual((log.lost, self.path.exists()), (1, False))

    def test_closed_twice(self):
        log = self.make()
        log.start()
        first, second = log.close(), log.close()
        assert log._thread is not None
        log._thread.join(PATIENCE)
        self.reactor.run_calls()
        self.successResultOf(first)
        self.successResultOf(second)
        self.finish(log)

    def stuck(self, records: int) -> TrafficLog:
        """Return a log whose thread hangs at a disk that does not answer, with 10 records' room."""
        self.path.parent.mkdir()
        os.mkfifo(self.path)  # to open it waits until somebody reads
        with mock.patch.object(trafficlog, "MAX_WAITING_RECORDS", 10):
            log = self.make()
        for number in range(records):
            log.write(request(number))
        return log

    def read_fifo(self) -> queue.Queue[str]:
        """Read what comes, until the other side closes."""
        text: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: text.put(self.path.read_text()), daemon=True).start()
        return text

    def test_a_hanging_disk_holds_up_nobody_and_what_finds_no_room_is_lost(self):
        with capturedLogs() as events:
            log = self.stuck(records=15)
        self.assertEqual(log.lost, 5)
        self.assertEqual(texts(events), ["The traffic log loses lines: the disk is too slow"])
        reader = self.read_fifo()
        self.finish(log)
        kept = [json.loads(each)["id"] for each in reader.get(timeout=PATIENCE).splitlines()]
        self.assertEqual(kept, [f"r{number}" for number in range(10)])

    def test_it_keeps_up_again(self):
        log = self.stuck(records=11)
        with self.path.open() as reader:
            for _ in range(10):
                reader.readline()
            with capturedLogs() as events:
                log.write(request(99))
            self.assertEqual(texts(events), ["The traffic log keeps up again"])
            self.reactor.advance(trafficlog.GATHERING)
            self.assertEqual(json.loads(reader.readline())["id"], "r99")
            self.finish(log)
        self.assertEqual(log.lost, 1)

    def test_the_end_does_not_wait_for_a_hanging_disk(self):
        log = self.stuck(records=10)
        closed = log.close()
        self.assertNoResult(closed)
        with capturedLogs() as events:
            self.reactor.advance(trafficlog.CLOSE_WITHIN)
        self.successResultOf(closed)
        self.assertEqual(log.lost, 10)
        self.assertEqual(texts(events), ["The traffic log was not written to its end"])
        reader = self.read_fifo()
        assert log._thread is not None
        log._thread.join(PATIENCE)
        self.reactor.run_calls()
        self.assertEqual(reader.get(timeout=PATIENCE), "")

    def test_the_thread_does_not_keep_the_process(self):
        log = self.make()
        log.start()
        assert log._thread is not None
        self.assertTrue(log._thread.daemon)
        self.finish(log)


class MadeFromSettingsTests(SynchronousTestCase):
    def test_off(self):
        log = traffic_log(Settings(log_file=None), FakeReactor())
        self.assertIsInstance(log, NoTrafficLog)
        log.start()
        log.write(request())
        self.successResultOf(log.close())
        self.assertEqual(log.lost, 0)

    def test_on(self):
        reactor = FakeReactor()
        path = Path(self.mktemp()).absolute()
        settings = Settings(
            log_file=path, log_body=30, log_size=4096, log_keep=1, backend_key="hunter2"
        )
        log = traffic_log(settings, reactor)
        assert isinstance(log, TrafficLog)
        for number in range(100):
            log.write(request(number, body=b"hunter2 " + b"x" * 100))
        closed = log.close()
        assert log._thread is not None
        log._thread.join(PATIENCE)
        reactor.run_calls()
        self.successResultOf(closed)
        self.assertEqual(lines(path)[-1]["body"], "*** " + "x" * 22)
        self.assertTrue(path.with_name(f"{path.name}.1").exists())
        self.assertFalse(path.with_name(f"{path.name}.2").exists())
