"""
`Writer`: the thread of the traffic log, and the queue of its records.

It needs no lock: each attribute is changed by one thread only, the queue excepted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from blockops.operations.traffic_log.file import LogFile
from blockops.operations.traffic_log.records import Record, to_json_line

#: Bound of the queue. A record holds at most `log_body` bytes of a body.
MAX_QUEUED_BYTES = 16 << 20

#: Approximate bytes of a record without its body.
RECORD_OVERHEAD = 2048

#: Bytes of records that are written together, unless a single one is larger.
BATCH_BYTES = 256 << 10

#: Seconds that the thread waits after a smaller batch: to wake it costs the reactor's thread more
#: than a record does.
PAUSE = 0.05

#: The time of a record, in seconds since 1970, and the record.
TimedRecord = tuple[float, Record]


class Writer:
    """
    Writes records to a file, in its own thread.

    :param warn: called with a message and the number of lines lost: at the first failure, and when
        writing succeeds again
    :ivar secrets: texts that are masked in each record; the reactor's thread may replace them
    """

    def __init__(
        self, file: LogFile, secrets: tuple[str, ...], warn: Callable[[str, int], object]
    ) -> None:
        self._file = file
        self._warn = warn
        self.secrets = secrets
        self.lines_lost = 0
        self._is_failing = False
        # None only wakes the thread.
        self._queue: SimpleQueue[TimedRecord | None] = SimpleQueue()
        self._is_closing = threading.Event()
        self._bytes_queued = 0
        self._bytes_done = 0

    # Called by the reactor's thread

    @property
    def pending_bytes(self) -> int:
        """Approximate bytes of the records that are not written yet."""
        return self._bytes_queued - self._bytes_done

    def put(self, record: Record, when: float) -> bool:
        """Queue `record` of `when`, in seconds since 1970; return False if the queue is full."""
        size = _size_of(record)
        if self.pending_bytes + size > MAX_QUEUED_BYTES:
            return False
        self._bytes_queued += size
        self._queue.put((when, record))
        return True

    def check_file(self) -> None:
        """Reopen the file if it was moved or removed, not only at the next record."""
        self._queue.put(None)

    def close(self) -> None:
        """End the thread after the queued records."""
        self._is_closing.set()
        self._queue.put(None)

    def discard(self) -> int:
        """Discard the queued records; return their number."""
        items = []
        with suppress(Empty):
            while True:
                items.append(self._queue.get_nowait())
        return len(items) - items.count(None)

    # Called by the thread itself

    def run(self) -> None:
        """Write records until the queue is closed and empty, then close the file."""
        self._write([])
        while not (self._is_closing.is_set() and self._queue.empty()):
            batch, size = self._get_batch()
            self._write(batch)
            self._bytes_done += size
            if size < BATCH_BYTES:
                self._is_closing.wait(PAUSE)
        self._file.close()

    def _get_batch(self) -> tuple[list[TimedRecord], int]:
        """Wait until the queue is not empty; return its oldest records and their size."""
        batch: list[TimedRecord] = []
        size = 0
        is_complete = False
        while not is_complete:
            item = self._queue.get()
            if item is not None:
                batch.append(item)
                size += _size_of(item[1])
            is_complete = size >= BATCH_BYTES or self._queue.empty()
        return batch, size

    def _write(self, batch: list[TimedRecord]) -> None:
        """Write `batch`. Also an empty one reopens the file if it was moved."""
        written_before = self._file.lines_written
        try:
            self._file.write(*(to_json_line(each, when, self.secrets) for when, each in batch))
        except Exception as error:  # noqa: BLE001 - a bug must not end the thread either
            if not self._is_failing:
                self._is_failing = True
                self._warn(f"The traffic log cannot be written: {error}", self.lines_lost)
            self.lines_lost += len(batch) - (self._file.lines_written - written_before)
        else:
            if self._is_failing and batch:
                self._is_failing = False
                self._warn("The traffic log is written again", self.lines_lost)


def _size_of(record: Record) -> int:
    return len(record.body) + RECORD_OVERHEAD
