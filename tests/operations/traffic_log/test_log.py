"""The traffic log: its lines, its file, its thread, and failing disks."""

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
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.traffic_log import log as log_module
from blockops.operations.traffic_log import writer as writer_module
from blockops.operations.traffic_log.file import LogFile
from blockops.operations.traffic_log.log import TrafficLog
from blockops.operations.traffic_log.records import RequestRecord, ResponseRecord, to_json_line
from blockops.operations.traffic_log.writer import LogQueue, Writer
from tests.operations.traffic_log.fake_reactor import THREAD_TIMEOUT, FakeReactor, lines

NOON = 1_750_000_000.1234


def request(number: int = 1, **more: Any) -> RequestRecord:
    return RequestRecord(id=f"r{number}", method="POST", path="/v1/chat/completions", **more)


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
    """Limit the files of this process to `size` bytes: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def messages(events: Sequence[LogEvent]) -> list[str]:
    return [event["text"] for event in events if "text" in event]


class RecordTests(SynchronousTestCase):
    """One record as one line."""

    def written(self, record: RequestRecord | ResponseRecord, *secrets: str) -> Any:
        text = to_json_line(record, NOON, secrets)
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

    def test_secrets_are_not_logged(self):
        headers = {"Authorization": "Bearer zq7", "Cookie": "zq7", "X-Api-Key": "zq7"}
        record = request(headers=headers, body=b'{"api_key": "zq7", "user": "me"}')
        record = RequestRecord(
            id="1", method="POST", path="/v1/x?api_key=zq7", headers=headers, body=record.body
        )
        text = to_json_line(record, NOON)
        self.assertNotIn("zq7", text)
        self.assertIn("me", text)

    def test_secrets_in_logged_fields_are_masked(self):
        headers = {"User-Agent": "curl hunter2", "X-Session-Id": "Bearer zq7zq7zq7"}
        record = RequestRecord(
            id="1", method="GET", path="/v1/hunter2#api_key=zq7zq7zq7", headers=headers
        )
        text = to_json_line(record, NOON, ["hunter2"])
        self.assertNotIn("zq7", text)
        self.assertNotIn("hunter2", text)
        self.assertIn("curl", text)

    def test_the_backends_key_is_masked_in_bodies_and_errors(self):
        record = ResponseRecord(
            id="1", error="401: wrong key hunter2", body=b"no such key: hunter2"
        )
        self.assertNotIn("hunter2", to_json_line(record, NOON, ["hunter2"]))

    def test_half_a_surrogate_pair_and_odd_numbers(self):
        record = ResponseRecord(id="1", calls=["\ud83d"], usage={"x": float("inf"), "y": object})
        written = json.loads(to_json_line(record, NOON))
        self.assertEqual(written["calls"], ["\ud83d"])

    @given(body=st.binary(), text=st.text(), number=st.floats())
    def test_any_record_is_one_line_of_json(self, body, text, number):
        request_record = RequestRecord(
            id=text, method=text, path=text, model=text, headers={text: text}, body=body
        )
        response_record = ResponseRecord(
            id=text, error=text, calls=[text], usage={text: number}, queued_ms=number, body=body
        )
        for record in (request_record, response_record):
            written = to_json_line(record, NOON)
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

    def test_the_file_is_created_with_the_first_line(self):
        self.assertFalse(self.path.parent.exists())

    def test_lines(self):
        self.file.write("one")
        self.file.write("zwölf ✓")
        self.assertEqual(self.path.read_text("utf-8"), "one\nzwölf ✓\n")

    def test_lines_are_written_at_once(self):
        self.file.write("one")
        self.assertEqual(self.path.read_bytes(), b"one\n")

    def test_several_lines_take_one_system_call(self):
        with mock.patch("os.write", wraps=os.write) as write:
            self.file.write("one", "two", "three")
        self.assertEqual(write.call_count, 1)
        self.assertEqual(self.path.read_text("utf-8"), "one\ntwo\nthree\n")
        self.assertEqual(self.file.lines_written, 3)

    def test_several_lines_are_rotated_as_single_ones(self):
        for max_length in (10, 30, 100, 1000):
            self.path = Path(self.mktemp()).absolute() / "proxy.log"
            one_by_one = self.open(rotate_at=100, keep=9)
            lines_ = [str(n) * (n * 7 % max_length) for n in range(9)]
            for line in lines_:
                one_by_one.write(line)
            expected = {each.name: each.read_text() for each in self.path.parent.iterdir()}
            self.path = Path(self.mktemp()).absolute() / "proxy.log"
            together = self.open(rotate_at=100, keep=9)
            together.write(*lines_)
            self.assertEqual(
                {each.name: each.read_text() for each in self.path.parent.iterdir()}, expected
            )
            self.assertEqual(together.lines_written, 9)

    def test_private_for_any_umask(self):
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

    def test_permissions_of_an_existing_file_are_narrowed(self):
        self.path.parent.mkdir(mode=0o755)
        self.path.write_text("old\n")
        self.path.chmod(0o644)
        self.file.write("new")
        self.assertEqual(mode(self.path), 0o600)
        self.assertEqual(self.path.read_text(), "old\nnew\n")

    def test_rotation_keeps_the_configured_number_of_files(self):
        file = self.open(rotate_at=100, keep=2)
        for number in range(10):
            file.write(f"{number:039}")
        kept = [
            self.path.with_name(name).read_text().split()
            for name in ("proxy.log.2", "proxy.log.1", "proxy.log")
        ]
        self.assertEqual([int(each) for lines_ in kept for each in lines_], [4, 5, 6, 7, 8, 9])
        self.assertFalse(self.path.with_name("proxy.log.3").exists())

    def test_a_file_that_cannot_be_rotated_takes_no_shorter_lines(self):
        """Otherwise a failure and a recovery would be reported with each of them."""
        file = self.open(rotate_at=100, keep=1)
        file.write("x" * 80)
        obstacle = self.path.with_name("proxy.log.1")
        (obstacle / "full").mkdir(parents=True)
        self.assertRaises(OSError, file.write, "y" * 80)
        self.assertRaises(OSError, file.write, "z")
        self.assertEqual(self.path.read_text(), "x" * 80 + "\n")
        (obstacle / "full").rmdir()
        obstacle.rmdir()
        file.write("z")
        file.write("z")
        self.assertEqual(self.path.read_text(), "z\nz\n")
        self.assertEqual(obstacle.read_text(), "x" * 80 + "\n")

    def test_a_disk_too_full_to_end_a_truncated_line(self):
        self.path.parent.mkdir()
        self.path.write_text("to")
        full = OSError(errno.ENOSPC, "No space left on device")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with mock.patch("os.write", side_effect=full):
                self.assertRaises(OSError, self.file.write, "one")
            gc.collect()
        # The file was closed: the garbage collector issues no ResourceWarning.
        self.assertEqual([str(each.message) for each in warned], [])
        self.file.write("one")
        self.assertEqual(self.path.read_text(), "to\none\n")

    def test_a_truncated_line_does_not_damage_the_next(self):
        self.path.parent.mkdir()
        self.path.write_text('{"whole": 1}\n{"to')
        self.file.write('{"next": 1}')
        self.assertEqual(self.path.read_text(), '{"whole": 1}\n{"to\n{"next": 1}\n')

    def test_an_empty_file_gets_no_empty_line(self):
        self.path.parent.mkdir()
        self.path.touch()
        self.file.write("one")
        self.assertEqual(self.path.read_text(), "one\n")

    def test_removed_while_open(self):
        self.file.write("one")
        self.path.unlink()
        self.file.write("two")
        self.assertEqual(self.path.read_text(), "two\n")

    def test_moved_while_open(self):
        self.file.write("one")
        self.path.rename(self.path.with_name("elsewhere"))
        self.file.write("two")
        self.assertEqual(self.path.read_text(), "two\n")
        self.assertEqual(self.path.with_name("elsewhere").read_text(), "one\n")

    def test_directory_removed_while_open(self):
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

    def test_a_disk_that_is_full_for_a_while(self):
        self.file.write("one")
        with largest_file(20):
            self.assertRaises(OSError, self.file.write, "two" * 20)
            self.assertRaises(OSError, self.file.write, "three")
            self.assertEqual(self.file.lines_written, 1)
        self.file.write("four")
        one, truncated, four = self.path.read_text().splitlines()
        self.assertEqual((one, four), ("one", "four"))
        # The rest of the lost line is not written later.
        self.assertTrue(("two" * 20).startswith(truncated))
        self.assertLess(len(truncated), 60)
        self.assertEqual(len(self.path.read_text().splitlines()), 3)

    def test_a_directory_that_cannot_be_created(self):
        self.path.parent.write_text("a file is in the way")
        self.assertRaises(OSError, self.file.ensure_open)
        self.assertRaises(OSError, self.file.write, "one")
        self.path.parent.unlink()
        self.file.write("two")
        self.assertEqual(self.path.read_text(), "two\n")

    def test_closed_twice_without_being_opened(self):
        self.file.close()
        self.file.close()


def next_time(log_queue: LogQueue) -> float:
    """Get one record; return its time, by which these tests distinguish records."""
    ((when, _),) = log_queue.get_batch()
    return when


class LogQueueTests(SynchronousTestCase):
    """The queue of the thread."""

    def test_first_in_first_out(self):
        log_queue = LogQueue(100, 10)
        for number in range(3):
            self.assertTrue(log_queue.put((number, request()), 1))
        log_queue.flush()
        self.assertEqual([each[0] for each in log_queue.get_batch()], [0, 1, 2])

    def test_batches_are_bounded(self):
        limit = writer_module.BATCH_BYTES
        log_queue = LogQueue(10 * limit, 10)
        for number, size in enumerate((limit - 1, 1, 1, 2 * limit, 0, limit, 1)):
            log_queue.put((number, request()), size)
        log_queue.close()
        batches = iter(log_queue.get_batch, [])
        self.assertEqual(
            [[number for number, _ in each] for each in batches], [[0, 1], [2], [3], [4, 5], [6]]
        )

    def test_bytes_are_bounded(self):
        log_queue = LogQueue(100, 10)
        self.assertTrue(log_queue.put((0, request()), 60))
        self.assertFalse(log_queue.put((0, request()), 41))
        self.assertTrue(log_queue.put((0, request()), 40))
        log_queue.get_batch()
        self.assertTrue(log_queue.put((0, request()), 60))

    def test_records_are_bounded(self):
        log_queue = LogQueue(100, 2)
        self.assertEqual([log_queue.put((0, request()), 0) for _ in range(3)], [True, True, False])

    def test_has_room(self):
        log_queue = LogQueue(100, 4)
        self.assertTrue(log_queue.has_room)
        log_queue.put((0, request()), 50)
        self.assertFalse(log_queue.has_room)
        log_queue.get_batch()
        log_queue.put((0, request()), 0)
        self.assertTrue(log_queue.has_room)
        log_queue.put((0, request()), 0)
        self.assertFalse(log_queue.has_room)

    def test_queued_records_are_available_after_close(self):
        log_queue = LogQueue(100, 2)
        log_queue.put((7, request()), 0)
        log_queue.close()
        self.assertFalse(log_queue.put((8, request()), 0))
        self.assertEqual(
            (next_time(log_queue), log_queue.get_batch(), log_queue.get_batch()), (7, [], [])
        )

    def test_discarded(self):
        log_queue = LogQueue(100, 2)
        log_queue.put((7, request()), 90)
        self.assertEqual(log_queue.discard(), 1)
        self.assertTrue(log_queue.put((7, request()), 90))

    def test_a_waiting_thread_is_woken(self):
        for wake in (lambda log: log.put((7, request()), 50), lambda log: log.close()):
            log_queue = LogQueue(100, 2)
            batch: queue.Queue[Any] = queue.Queue()
            thread = threading.Thread(target=lambda: batch.put(log_queue.get_batch()), daemon=True)  # noqa: B023
            thread.start()
            wake(log_queue)
            batch.get(timeout=THREAD_TIMEOUT)
            thread.join(THREAD_TIMEOUT)

    def waiting_thread(self) -> tuple[LogQueue, queue.Queue[Any]]:
        """Return a queue, and the result of a thread that already waits for its next batch."""
        log_queue = LogQueue(100, 4)
        batch: queue.Queue[Any] = queue.Queue()
        thread = threading.Thread(target=lambda: batch.put(log_queue.get_batch()), daemon=True)
        thread.start()
        self.addCleanup(thread.join, THREAD_TIMEOUT)
        self.addCleanup(log_queue.close)
        end = time.monotonic() + THREAD_TIMEOUT
        while not getattr(log_queue._changed, "_waiters") and time.monotonic() < end:  # noqa: B009
            pass
        return log_queue, batch

    def test_the_first_record_waits_for_others(self):
        log_queue, batch = self.waiting_thread()
        log_queue.put((7, request()), 10)
        self.assertTrue(getattr(log_queue._changed, "_waiters"))  # noqa: B009 - the thread still waits
        log_queue.put((8, request()), 10)
        # The queue is half full.
        self.assertEqual([when for when, _ in batch.get(timeout=THREAD_TIMEOUT)], [7, 8])

    def test_close_and_flush_make_records_available(self):
        for method in (LogQueue.close, LogQueue.flush):
            log_queue, batch = self.waiting_thread()
            log_queue.put((7, request()), 10)
            method(log_queue)
            self.assertEqual([when for when, _ in batch.get(timeout=THREAD_TIMEOUT)], [7])

    def test_flush_of_an_empty_queue(self):
        log_queue, batch = self.waiting_thread()
        log_queue.flush()
        log_queue.put((7, request()), 10)
        self.assertFalse(log_queue._is_flushing)
        log_queue.put((8, request()), 40)
        self.assertEqual([when for when, _ in batch.get(timeout=THREAD_TIMEOUT)], [7, 8])

    def test_a_flush_makes_all_batches_available(self):
        log_queue = LogQueue(10 * writer_module.BATCH_BYTES, 100)
        for number in range(3):
            log_queue.put((number, request()), writer_module.BATCH_BYTES)
        log_queue.flush()
        self.assertEqual([next_time(log_queue) for _ in range(3)], [0, 1, 2])
        # The flush is over: later records wait again.
        log_queue.put((3, request()), 1)
        self.assertFalse(log_queue._is_flushing)


class BadFile:
    """A file whose operations go as scripted: an exception is raised, None succeeds."""

    def __init__(self, *script: Exception | None) -> None:
        self._script = list(script)
        self.lines: list[str] = []
        self.calls = 0
        self.closed = False

    def ensure_open(self) -> None:
        self._next()

    @property
    def lines_written(self) -> int:
        return len(self.lines)

    def write(self, *lines: str) -> None:
        self.calls += 1
        for line in lines:
            self._next()
            self.lines.append(line)

    def close(self) -> None:
        self.closed = True

    def _next(self) -> None:
        outcome = self._script.pop(0)
        if outcome is not None:
            raise outcome


class WriterTests(SynchronousTestCase):
    """The writer, run without a thread."""

    def run_with(self, *script: Exception | None) -> tuple[Writer, BadFile, list[tuple[str, int]]]:
        file = BadFile(*script)
        reports: list[tuple[str, int]] = []
        log_queue = LogQueue(10_000, 100)
        for number in range(len(script) - 1):
            log_queue.put((NOON, request(number)), 1)
        log_queue.close()
        writer = Writer(log_queue, file, (), lambda *arguments: reports.append(arguments))  # type: ignore[arg-type]
        writer.run()
        self.assertTrue(file.closed)
        return writer, file, reports

    def test_no_failure(self):
        writer, file, reports = self.run_with(None, None, None)
        self.assertEqual(
            (writer.lines_lost, file.lines_written, file.calls, reports), (0, 2, 1, [])
        )

    def test_one_report_of_the_failure_and_one_of_the_recovery(self):
        full = OSError(28, "No space left on device")
        writer, file, reports = self.run_with(None, None, full, full, full, None, None)
        self.assertEqual((writer.lines_lost, file.lines_written), (3, 3))
        self.assertEqual(
            reports,
            [
                ("The traffic log cannot be written: [Errno 28] No space left on device", 0),
                ("The traffic log is written again", 3),
            ],
        )

    def test_a_second_failure(self):
        full = OSError("full")
        with mock.patch.object(writer_module, "BATCH_BYTES", 1):
            _, _, reports = self.run_with(None, full, None, full, None)
        self.assertEqual(len(reports), 4)

    def test_failing_from_the_start(self):
        denied = PermissionError("denied")
        writer, _, reports = self.run_with(denied, denied, denied)
        self.assertEqual((writer.lines_lost, len(reports)), (2, 1))

    def test_the_file_is_reopened_between_two_lines(self):
        # The second reopening fails, which costs no line.
        file = BadFile(None, None, None, OSError("moved"), None)
        log_queue = LogQueue(10_000, 100)
        for record in (request(1), None, None, request(2)):
            log_queue.put((NOON, record), 0)
        log_queue.close()
        writer = Writer(log_queue, file, (), lambda *_: None)  # type: ignore[arg-type]
        writer.run()
        self.assertEqual((writer.lines_lost, file.lines_written, file.calls), (0, 2, 2))
        self.assertEqual(file._script, [])

    def test_secrets_can_be_replaced(self):
        file = BadFile(None, None)
        log_queue = LogQueue(10_000, 100)
        log_queue.put((NOON, request(body=b"it is hunter2")), 0)
        log_queue.close()
        writer = Writer(log_queue, file, (), lambda *_: None)  # type: ignore[arg-type]
        writer.secrets = ("hunter2",)
        writer.run()
        self.assertIn("it is ***", file.lines[0])

    def test_a_bug_costs_a_line_and_not_the_thread(self):
        writer, file, reports = self.run_with(None, ZeroDivisionError("oh"), None)
        self.assertEqual((writer.lines_lost, file.lines_written, len(reports)), (1, 1, 2))

    def test_a_record_that_cannot_be_encoded_costs_a_line(self):
        with mock.patch.object(
            writer_module, "to_json_line", side_effect=[ZeroDivisionError("oh"), "two"]
        ):
            writer, file, reports = self.run_with(None, None, None)
        self.assertEqual((writer.lines_lost, file.lines, len(reports)), (1, ["two"], 2))


class TrafficLogTests(SynchronousTestCase):
    """The complete log, with a real thread and real files."""

    def setUp(self):
        self.reactor = FakeReactor()
        self.path = Path(self.mktemp()).absolute() / "proxy.log"

    def make(self, path: Path | None = None, **more: Any) -> TrafficLog:
        return TrafficLog(self.reactor, path or self.path, now=lambda: NOON, **more)

    def finish(self, log: TrafficLog) -> None:
        """Close `log`, and check that it succeeds."""
        closed = log.close()
        if log._thread is not None:
            log._thread.join(THREAD_TIMEOUT)
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
        self.assertEqual(log.lines_lost, 0)
        self.assertEqual(mode(self.path), 0o600)

    def test_records_are_flushed_together(self):
        log = self.make()
        log.write(request(1))
        self.reactor.advance(log_module.FLUSH_INTERVAL / 2)
        log.write(request(2))
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.reactor.advance(log_module.FLUSH_INTERVAL / 2)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        end = time.monotonic() + THREAD_TIMEOUT
        while not (self.path.exists() and len(lines(self.path)) == 2) and time.monotonic() < end:
            pass  # wait for the thread to write them
        self.assertEqual([each["id"] for each in lines(self.path)], ["r1", "r2"])
        self.finish(log)

    def test_bodies_are_truncated(self):
        log = self.make(max_body=10)
        log.write(request(body=b"x" * 1000, size=1000))
        log.write(request(body=memoryview(b"y" * 1000)))
        self.finish(log)
        self.assertEqual([each["body"] for each in lines(self.path)], ["x" * 10, "y" * 10])
        self.assertEqual(lines(self.path)[0]["size"], 1000)

    def test_no_bodies(self):
        log = self.make(max_body=0)
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

    def test_a_replaced_secret_stays_masked(self):
        log = self.make(secrets=("hunter2",))
        log.write(request(1, body=b"I am hunter2"))  # queued while the secret is replaced
        log.reopen(("swordfish",))
        log.reopen(("swordfish",))
        for number, body in enumerate((b"not hunter2", b"but swordfish"), 2):
            log.write(ResponseRecord(id=f"r{number}", body=body))
        self.finish(log)
        bodies = [each["body"] for each in lines(self.path)]
        self.assertEqual(bodies, ["I am ***", "not ***", "but ***"])

    def test_only_the_last_replaced_secret_is_kept(self):
        log = self.make(secrets=("first",))
        for secret in ("second", "third"):
            log.reopen((secret,))
        self.assertEqual(set(log._writer.secrets), {"second", "third"})

    def test_reopened_before_the_first_record(self):
        log = self.make()
        log.reopen(())
        self.finish(log)
        self.assertFalse(self.path.exists())

    def test_appends_to_the_file_after_a_crash(self):
        self.path.parent.mkdir()
        self.path.write_text('{"truncated": "by kill -')
        log = self.make()
        log.write(request())
        self.finish(log)
        truncated, whole = self.path.read_text().splitlines()
        self.assertEqual((truncated, json.loads(whole)["id"]), ('{"truncated": "by kill -', "r1"))

    def test_a_full_disk_costs_lines_and_is_logged_once(self):
        with capturedLogs() as events:
            log = self.make(Path("/dev/full"))
            for number in range(5):
                log.write(request(number))
            self.finish(log)
        self.assertEqual(log.lines_lost, 5)
        (text,) = messages(events)
        self.assertIn("No space left on device", text)

    def test_a_bad_path_is_logged_at_the_start(self):
        self.path.parent.write_text("in the way")
        with capturedLogs() as events:
            log = self.make()
            log.start()
            self.reactor.run_one_call()
        (text,) = messages(events)
        self.assertIn(str(self.path.parent), text)
        self.finish(log)
        self.assertEqual(log.lines_lost, 0)

    def test_no_records(self):
        log = self.make()
        self.finish(log)
        self.assertFalse(self.path.exists())

    def test_records_after_close_are_lost_silently(self):
        log = self.make()
        log.write(request())
        self.finish(log)
        with capturedLogs() as events:
            log.write(request())
            log.start()
        self.assertEqual((log.lines_lost, messages(events), len(lines(self.path))), (1, [], 1))

    def test_used_after_close_without_records(self):
        log = self.make()
        self.finish(log)
        log.write(request())
        self.assertEqual((log.lines_lost, self.path.exists()), (1, False))

    def test_closed_twice(self):
        log = self.make()
        log.start()
        first, second = log.close(), log.close()
        assert log._thread is not None
        log._thread.join(THREAD_TIMEOUT)
        self.reactor.run_calls()
        self.successResultOf(first)
        self.successResultOf(second)
        self.finish(log)

    def hung_log(self, records: int) -> TrafficLog:
        """Return a log for 10 records whose thread hangs in `open`."""
        self.path.parent.mkdir()
        os.mkfifo(self.path)  # `open` waits for a reader
        with mock.patch.object(log_module, "MAX_QUEUED_RECORDS", 10):
            log = self.make()
        for number in range(records):
            log.write(request(number))
        return log

    def read_fifo(self) -> queue.Queue[str]:
        """Read until the other side closes."""
        text: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: text.put(self.path.read_text()), daemon=True).start()
        return text

    def test_a_hung_disk_blocks_nothing_and_costs_lines(self):
        with capturedLogs() as events:
            log = self.hung_log(records=15)
        self.assertEqual(log.lines_lost, 5)
        self.assertEqual(messages(events), ["The traffic log loses lines: the disk is too slow"])
        reader = self.read_fifo()
        self.finish(log)
        kept = [json.loads(each)["id"] for each in reader.get(timeout=THREAD_TIMEOUT).splitlines()]
        self.assertEqual(kept, [f"r{number}" for number in range(10)])

    def test_keeps_up_again(self):
        log = self.hung_log(records=11)
        with self.path.open() as reader:
            for _ in range(10):
                reader.readline()
            with capturedLogs() as events:
                log.write(request(99))
            self.assertEqual(messages(events), ["The traffic log keeps up again"])
            self.reactor.advance(log_module.FLUSH_INTERVAL)
            self.assertEqual(json.loads(reader.readline())["id"], "r99")
            self.finish(log)
        self.assertEqual(log.lines_lost, 1)

    def test_close_does_not_wait_for_a_hung_disk(self):
        log = self.hung_log(records=10)
        closed = log.close()
        self.assertNoResult(closed)
        with capturedLogs() as events:
            self.reactor.advance(log_module.CLOSE_TIMEOUT)
        self.successResultOf(closed)
        self.assertEqual(log.lines_lost, 10)
        self.assertEqual(
            messages(events), ["The traffic log is incomplete: the disk did not respond in time"]
        )
        reader = self.read_fifo()
        assert log._thread is not None
        log._thread.join(THREAD_TIMEOUT)
        self.reactor.run_calls()
        self.assertEqual(reader.get(timeout=THREAD_TIMEOUT), "")

    def test_the_thread_does_not_keep_the_process_alive(self):
        log = self.make()
        log.start()
        assert log._thread is not None
        self.assertTrue(log._thread.daemon)
        self.finish(log)
