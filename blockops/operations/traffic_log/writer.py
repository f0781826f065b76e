"""
The thread of the traffic log: `LogQueue`, which passes records to it, and `Writer`, its loop.

`LogQueue` has a lock. Of `Writer`, the reactor's thread only replaces `secrets` and reads
`lines_lost`, which needs none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from blockops.operations.traffic_log.file import LogFile
from blockops.operations.traffic_log.records import Record, to_json_line

#: Bytes of records that are written together, unless a single record is larger: about a
#: millisecond of work.
BATCH_BYTES = 256 << 10

#: A record and its time, in seconds since 1970. None instead of a record asks the writer to reopen
#: the file if it was moved.
TimedRecord = tuple[float, Record | None]


class LogQueue:
    """
    A bounded queue of records from the reactor to the writer's thread.

    Records become available in batches, when `flush` is called or the queue is half full: waking
    the thread for each record would cost the reactor more than the record itself.

    :param max_bytes: bound of the records' size
    :param max_records: bound of their number
    :ivar is_closed: no record is accepted any more
    """

    def __init__(self, max_bytes: int, max_records: int) -> None:
        self._max_bytes = max_bytes
        self._max_records = max_records
        self._records: deque[tuple[TimedRecord, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition(threading.Lock())
        # The queued records are available: `flush` was called, or a batch before them was taken.
        self._is_flushing = False
        self.is_closed = False

    @property
    def has_room(self) -> bool:
        """True if the queue is less than half full."""
        return self._bytes * 2 < self._max_bytes and len(self._records) * 2 < self._max_records

    def put(self, record: TimedRecord, size: int) -> bool:
        """Append `record` of `size` bytes; return False if the queue is full or closed."""
        with self._changed:
            full = self._bytes + size > self._max_bytes or len(self._records) >= self._max_records
            if full or self.is_closed:
                return False
            self._records.append((record, size))
            self._bytes += size
            if not self.has_room:
                self._changed.notify()
            return True

    def flush(self) -> None:
        """Make all queued records available to `get_batch`."""
        with self._changed:
            self._is_flushing = bool(self._records)
            self._changed.notify()

    def get_batch(self) -> list[TimedRecord]:
        """
        Wait until records are available, and return the oldest, at most `BATCH_BYTES` of them.

        The list is empty if the queue is closed and has no records left.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self.is_closed or (self._records and (self._is_flushing or not self.has_room))
                )
            )
            batch: list[TimedRecord] = []
            remaining = BATCH_BYTES
            while self._records and (not batch or self._records[0][1] <= remaining):
                record, size = self._records.popleft()
                self._bytes -= size
                remaining -= size
                batch.append(record)
            self._is_flushing = bool(self._records)
            return batch

    def close(self) -> None:
        """Accept no more records; the queued ones become available."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    def discard(self) -> int:
        """Discard the queued records; return their number."""
        with self._changed:
            count = len(self._records)
            self._records.clear()
            self._bytes = 0
            return count


class Writer:
    """
    Writes the records of a queue to a file; runs in its own thread.

    :param warn: called with a message and the number of lines lost: at the first failure, and when
        writing succeeds again
    :ivar secrets: texts that are masked in each record
    :ivar lines_lost: records that could not be written
    """

    def __init__(
        self,
        log_queue: LogQueue,
        file: LogFile,
        secrets: tuple[str, ...],
        warn: Callable[[str, int], object],
    ) -> None:
        self._queue = log_queue
        self._file = file
        self.secrets = secrets
        self._warn = warn
        self._is_failing = False
        self.lines_lost = 0

    def run(self) -> None:
        """Write records until the queue is closed and empty, then close the file."""
        self._attempt(self._file.ensure_open)
        while batch := self._queue.get_batch():
            lines: list[str] = []
            for when, record in batch:
                if record is None:
                    self._write(lines)
                    self._attempt(self._file.ensure_open)
                    continue
                try:
                    lines.append(to_json_line(record, when, self.secrets))
                except Exception as error:  # noqa: BLE001 - a bug; the thread must survive it
                    self.lines_lost += 1
                    self._report_failure(error)
            self._write(lines)
        self._file.close()

    def _write(self, lines: list[str]) -> None:
        """Write and clear `lines`. A line that cannot be written is lost; the next are tried."""
        while lines:
            before = self._file.lines_written
            if self._attempt(partial(self._file.write, *lines)):
                lines.clear()
            else:
                self.lines_lost += 1
                del lines[: self._file.lines_written - before + 1]

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Run `action`; return True if it succeeded."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread must survive any error
            self._report_failure(error)
            return False
        if self._is_failing:
            self._is_failing = False
            self._warn("The traffic log is written again", self.lines_lost)
        return True

    def _report_failure(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._warn(f"The traffic log cannot be written: {error}", self.lines_lost)
