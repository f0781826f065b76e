"""The traffic log: its lines, its file, its thread, and failing disks."""

from __future__ import annotations

import errno
import json
import os
import queue
import resource
import stat
import threading
import time
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
from blockops.operations.traffic_log.writer import MAX_QUEUED_BYTES, RECORD_OVERHEAD, Writer
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
        with mock.patch("os.write", side_effect=full), mock.patch("os.close") as close:
            self.assertRaises(OSError, self.file.write, "one")
        # The file was closed.
        close.assert_called_once()
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


class BadFile:
    """A file whose `write` goes as scripted: an exception is raised, None succeeds."""

    def __init__(self, *script: Exception | None) -> None:
        self.script = list(script)
        self.lines: list[str] = []
        self.calls: list[int] = []
        self.closed = False

    @property
    def lines_written(self) -> int:
        return len(self.lines)

    def write(self, *lines: str) -> None:
        self.calls.append(len(lines))
        outcome = self.script.pop(0)
        if outcome is not None:
            self.lines.extend(lines[:-2])
            raise outcome
        self.lines.extend(lines)

    def close(self) -> None:
        self.closed = True


class WriterTests(SynchronousTestCase):
    """The writer, run without a thread."""

    def setUp(self):
        self.reports: list[tuple[str, int]] = []

    def make(self, *script: Exception | None) -> tuple[Writer, BadFile]:
        """Return a writer, and its file: the first call of `write` opens it."""
        file = BadFile(*script)
        return Writer(file, (), lambda *arguments: self.reports.append(arguments)), file  # type: ignore[arg-type]

    def run_one_by_one(self, *script: Exception | None) -> tuple[Writer, BadFile]:
        """Write a record for each result in `script` but the first, each separately."""
        self.patch(writer_module, "BATCH_BYTES", 1)
        # `close` checks the file once more.
        writer, file = self.make(*script, None)
        for number in range(len(script) - 1):
            self.assertTrue(writer.put(request(number), NOON))
        writer.close()
        writer.run()
        self.assertTrue(file.closed)
        self.assertEqual(file.script, [])
        return writer, file

    def run_batch(self, writer: Writer) -> None:
        """Write the queued records together."""
        writer.close()
        writer.run()

    def test_records_are_written_together(self):
        writer, file = self.make(None, None)
        for number in range(3):
            writer.put(request(number), NOON)
        self.run_batch(writer)
        self.assertEqual([json.loads(line)["id"] for line in file.lines], ["r0", "r1", "r2"])
        self.assertEqual(file.calls, [0, 3])
        self.assertEqual((writer.lines_lost, self.reports, writer.pending_bytes), (0, [], 0))

    def test_batches_are_bounded(self):
        writer, file = self.make(*[None] * 4)
        body = bytes(writer_module.BATCH_BYTES // 2)
        for number, size in enumerate((1, 1, 1, 3)):
            writer.put(request(number, body=body * size), NOON)
        self.run_batch(writer)
        self.assertEqual(file.calls, [0, 2, 2, 0])

    def test_one_report_of_the_failure_and_one_of_the_recovery(self):
        full = OSError(28, "No space left on device")
        writer, file = self.run_one_by_one(None, None, full, full, full, None, None)
        self.assertEqual((writer.lines_lost, len(file.lines), writer.pending_bytes), (3, 3, 0))
        self.assertEqual(
            self.reports,
            [
                ("The traffic log cannot be written: [Errno 28] No space left on device", 0),
                ("The traffic log is written again", 3),
            ],
        )

    def test_lines_written_before_the_failure_are_not_lost(self):
        writer, file = self.make(None, OSError("full"))
        for number in range(5):
            writer.put(request(number), NOON)
        self.run_batch(writer)
        self.assertEqual((writer.lines_lost, len(file.lines)), (2, 3))

    def test_opening_the_file_is_no_recovery(self):
        """A full disk can be opened."""
        writer, _ = self.make(OSError("denied"), None)
        self.run_batch(writer)
        self.assertEqual((writer.lines_lost, len(self.reports)), (0, 1))

    def test_a_second_failure(self):
        full = OSError("full")
        self.run_one_by_one(None, full, None, full, None)
        self.assertEqual(len(self.reports), 4)

    def test_failing_from_the_start(self):
        denied = PermissionError("denied")
        writer, _ = self.run_one_by_one(denied, denied, denied)
        self.assertEqual((writer.lines_lost, len(self.reports)), (2, 1))

    def test_the_file_is_checked_without_a_record(self):
        # The second check fails, which costs no line.
        writer, file = self.make(None, OSError("moved"), None)
        writer.check_file()
        thread = threading.Thread(target=writer.run, daemon=True)
        thread.start()
        end = time.monotonic() + THREAD_TIMEOUT
        while len(file.script) > 1 and time.monotonic() < end:
            pass
        writer.close()
        thread.join(THREAD_TIMEOUT)
        self.assertEqual((writer.lines_lost, len(self.reports), file.script), (0, 1, []))

    def test_secrets_can_be_replaced(self):
        writer, file = self.make(None, None)
        writer.put(request(body=b"it is hunter2"), NOON)
        writer.secrets = ("hunter2",)
        self.run_batch(writer)
        self.assertIn("it is ***", file.lines[0])

    def test_a_bug_costs_a_line_and_not_the_thread(self):
        writer, file = self.run_one_by_one(None, ZeroDivisionError("oh"), None)
        self.assertEqual((writer.lines_lost, len(file.lines), len(self.reports)), (1, 1, 2))

    def test_a_record_that_cannot_be_encoded_costs_a_line(self):
        self.patch(writer_module, "BATCH_BYTES", 1)
        writer, file = self.make(*[None] * 3)
        for number in range(2):
            writer.put(request(number), NOON)
        with mock.patch.object(
            writer_module, "to_json_line", side_effect=[ZeroDivisionError("oh"), "two"]
        ):
            self.run_batch(writer)
        self.assertEqual((writer.lines_lost, file.lines, len(self.reports)), (1, ["two"], 2))

    def test_the_queue_is_bounded(self):
        writer, file = self.make(None, None)
        body = bytes(MAX_QUEUED_BYTES // 2 - RECORD_OVERHEAD)
        self.assertTrue(writer.put(request(body=body), NOON))
        self.assertFalse(writer.put(request(body=body + b"x"), NOON))
        self.assertTrue(writer.put(request(body=body), NOON))
        self.assertFalse(writer.put(request(), NOON))
        self.assertEqual(writer.discard(), 2)
        self.run_batch(writer)
        self.assertEqual(file.lines, [])

    def test_bytes_are_counted_until_they_are_written(self):
        writer, _ = self.make(None, None)
        writer.put(request(body=b"x" * 50), NOON)
        self.assertEqual(writer.pending_bytes, 50 + RECORD_OVERHEAD)
        self.run_batch(writer)
        self.assertEqual(writer.pending_bytes, 0)


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

    def test_records_are_written_in_time(self):
        log = self.make()
        log.write(request(1))
        log.write(request(2))
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

    def hung_log(self, records: int) -> TrafficLog:
        """Return a log for 10 records whose thread hangs in `open`."""
        self.path.parent.mkdir()
        os.mkfifo(self.path)  # `open` waits for a reader
        self.patch(writer_module, "MAX_QUEUED_BYTES", 10 * RECORD_OVERHEAD)
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
            while log._writer.pending_bytes:  # counted by the thread after each write
                os.sched_yield()
            with capturedLogs() as events:
                log.write(request(99))
            self.assertEqual(messages(events), ["The traffic log keeps up again"])
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
