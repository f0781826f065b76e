"""
`TrafficLog`: one JSON object per line for each request and each response.

The reactor's thread only queues records; the log's own thread turns them into text and writes them.
Records that cannot be written, or not in time, are lost. The loss is counted, and logged once: a
full or slow disk costs lines, never traffic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from blockops.operations.traffic_log.file import LogFile
from blockops.operations.traffic_log.records import Record
from blockops.operations.traffic_log.writer import LogQueue, Writer

#: Bounds of the queue for the disk. A record holds at most `log_body` bytes of a body.
MAX_QUEUED_BYTES = 16 << 20
MAX_QUEUED_RECORDS = 10_000

#: Approximate bytes of a record without its body.
_RECORD_OVERHEAD = 1024

#: Seconds between the first queued record and the flush: few large batches, since the reactor waits
#: for the interpreter's lock while the log's thread works.
FLUSH_INTERVAL = 0.05

#: Seconds that writing the queued records may take when blockops stops.
CLOSE_TIMEOUT = 5.0

_log = Logger()


class Reactor(Protocol):
    """The methods of a reactor that the log calls."""

    def callFromThread(self, callable: Callable[..., Any], /, *args: Any) -> Any: ...  # noqa: A002

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> Any: ...  # noqa: A002


class NoTrafficLog:
    """A traffic log that is switched off: discards all records."""

    lines_lost = 0

    def start(self) -> None:
        """Do nothing."""

    def write(self, record: Record) -> None:
        """Do nothing."""

    def reopen(self, secrets: tuple[str, ...] | None = None) -> None:
        """Do nothing."""

    def close(self) -> Deferred[None]:
        """Return a Deferred that has fired."""
        return succeed(None)


class TrafficLog:
    """
    Writes requests and responses to a rotated file.

    All methods are called in the reactor's thread; none of them raises or blocks.

    :param path: the file; it and its directory are created if they do not exist
    :param max_body: bytes of a body that are written
    :param rotate_at: size in bytes at which the file is rotated
    :param keep: number of rotated files
    :param secrets: texts that are masked in each record
    :param now: returns the time in seconds since 1970
    """

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        *,
        max_body: int = 65536,
        rotate_at: int = 10 << 20,
        keep: int = 5,
        secrets: tuple[str, ...] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._max_body = max_body
        self._now = now
        self._secrets = secrets
        self._queue = LogQueue(MAX_QUEUED_BYTES, MAX_QUEUED_RECORDS)
        self._writer = Writer(
            self._queue,
            LogFile(path, rotate_at=rotate_at, keep=keep),
            secrets,
            warn=lambda *arguments: reactor.callFromThread(_warn, *arguments),
        )
        self._thread: threading.Thread | None = None
        self._close_waiters: list[Deferred[None]] = []
        self._records_dropped = 0
        self._is_lagging = False
        # The pending flush of the queue, or None.
        self._flush_call: IDelayedCall | None = None
        # Ends `close` if the thread does not; None before `close` is called.
        self._close_timeout: IDelayedCall | None = None

    @property
    def lines_lost(self) -> int:
        """The number of records that were not written."""
        return self._records_dropped + self._writer.lines_lost

    def start(self) -> None:
        """
        Start the thread, which opens the file, so that a bad path is logged at once.

        If this is not called, the first `write` does it. A process that daemonizes must do so
        first: threads do not survive a fork.
        """
        if self._thread is None and not self._queue.is_closed:
            self._thread = threading.Thread(target=self._run, name="traffic log", daemon=True)
            self._thread.start()

    def write(self, record: Record) -> None:
        """Queue the record of a request or a response; count it as lost if the queue is full."""
        self.start()
        truncated = msgspec.structs.replace(record, body=bytes(record.body[: self._max_body]))
        if self._queue.put((self._now(), truncated), len(truncated.body) + _RECORD_OVERHEAD):
            if self._flush_call is None:
                self._flush_call = self._reactor.callLater(FLUSH_INTERVAL, self._flush)
            if self._is_lagging and self._queue.has_room:
                self._is_lagging = False
                _warn("The traffic log keeps up again", self.lines_lost)
            return
        self._records_dropped += 1
        if not self._is_lagging and not self._queue.is_closed:
            self._is_lagging = True
            _warn("The traffic log loses lines: the disk is too slow", self.lines_lost)

    def _flush(self) -> None:
        self._flush_call = None
        self._queue.flush()

    def reopen(self, secrets: tuple[str, ...] | None = None) -> None:
        """
        Reopen the file now if it was moved or removed, not only at the next line.

        :param secrets: texts that are masked from now on; the previous ones stay masked too, since
            responses to earlier requests may still contain them. None changes nothing
        """
        if secrets is not None and secrets != self._secrets:
            masked = {*secrets, *self._secrets}
            # The longest first: a secret may be part of another.
            self._writer.secrets = tuple(sorted(masked, key=len, reverse=True))
            self._secrets = secrets
        if self._thread is not None:
            self._queue.put((self._now(), None), 0)
            self._queue.flush()

    def close(self) -> Deferred[None]:
        """
        Write the queued records and close the file; return a Deferred that fires afterwards.

        It fires after `CLOSE_TIMEOUT` seconds at the latest, and never fails. Later records are
        lost.
        """
        self._queue.close()
        flush_call, self._flush_call = self._flush_call, None
        if flush_call is not None:
            flush_call.cancel()
        if self._thread is None or not self._thread.is_alive():
            return succeed(None)
        if not self._close_waiters:
            self._close_timeout = self._reactor.callLater(CLOSE_TIMEOUT, self._close_timed_out)
        closed: Deferred[None] = Deferred()
        self._close_waiters.append(closed)
        return closed

    def _run(self) -> None:
        self._writer.run()
        self._reactor.callFromThread(self._thread_ended)

    def _thread_ended(self) -> None:
        if self._close_waiters:
            assert self._close_timeout is not None
            self._close_timeout.cancel()
            self._fire_close_waiters()

    def _close_timed_out(self) -> None:
        self._records_dropped += self._queue.discard()
        _warn("The traffic log is incomplete: the disk did not respond in time", self.lines_lost)
        self._fire_close_waiters()

    def _fire_close_waiters(self) -> None:
        waiters, self._close_waiters = self._close_waiters, []
        for closed in waiters:
            closed.callback(None)


def _warn(text: str, lost: int) -> None:
    # Not "message": Twisted's legacy logging reserves that key.
    _log.warn("{text}. Lines lost so far: {lost}", text=text, lost=lost)
