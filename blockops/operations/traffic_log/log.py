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
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from blockops.operations.traffic_log.file import LogFile
from blockops.operations.traffic_log.records import Record
from blockops.operations.traffic_log.writer import MAX_QUEUED_BYTES, Writer

#: Seconds that writing the queued records may take when blockops stops.
CLOSE_TIMEOUT = 5.0

_log = Logger()


class NoTrafficLog:
    """A traffic log that is switched off: discards all records."""

    lines_lost = 0

    def start(self) -> None:
        pass

    def write(self, record: Record) -> None:
        pass

    def reopen(self, secrets: tuple[str, ...] | None = None) -> None:
        pass

    def close(self) -> Deferred[None]:
        return succeed(None)


class TrafficLog:
    """
    Writes requests and responses to a rotated file.

    All methods are called in the reactor's thread; none of them raises or blocks.

    :param reactor: provides `IReactorTime` and `IReactorFromThreads`
    :param max_body: bytes of a body that are written
    :param secrets: texts that are masked in each record
    """

    def __init__(
        self,
        reactor: Any,
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
        self._writer = Writer(
            LogFile(path, rotate_at=rotate_at, keep=keep),
            secrets,
            warn=lambda *arguments: reactor.callFromThread(_warn, *arguments),
        )
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._thread_ended: Deferred[None] = Deferred()
        self._records_dropped = 0
        self._is_lagging = False

    @property
    def lines_lost(self) -> int:
        """The number of records that were not written."""
        return self._records_dropped + self._writer.lines_lost

    def start(self) -> None:
        """
        Start the thread, which opens the file, so that a bad path is logged at once.

        A process that daemonizes must do so first: threads do not survive a fork.
        """
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._run, name="traffic log", daemon=True)
            self._thread.start()

    def write(self, record: Record) -> None:
        """Queue the record of a request or a response; count it as lost if the queue is full."""
        if self._is_closed:
            self._records_dropped += 1
            return
        self.start()
        truncated = msgspec.structs.replace(record, body=bytes(record.body[: self._max_body]))
        if not self._writer.put(truncated, self._now()):
            self._records_dropped += 1
            if not self._is_lagging:
                self._is_lagging = True
                _warn("The traffic log loses lines: the disk is too slow", self.lines_lost)
        elif self._is_lagging and self._writer.pending_bytes < MAX_QUEUED_BYTES // 2:
            self._is_lagging = False
            _warn("The traffic log keeps up again", self.lines_lost)

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
            self._writer.check_file()

    def close(self) -> Deferred[None]:
        """
        Write the queued records and close the file; later records are lost.

        The Deferred fires after `CLOSE_TIMEOUT` seconds at the latest, and never fails.
        """
        self._is_closed = True
        if self._thread is None:
            return succeed(None)
        self._writer.close()
        return self._thread_ended.addTimeout(CLOSE_TIMEOUT, self._reactor, self._close_timed_out)

    def _run(self) -> None:
        self._writer.run()
        self._reactor.callFromThread(self._thread_ended.callback, None)

    def _close_timed_out(self, _failure: object, _timeout: float) -> None:
        self._records_dropped += self._writer.discard()
        _warn("The traffic log is incomplete: the disk did not respond in time", self.lines_lost)


def _warn(text: str, lost: int) -> None:
    # Not "message": Twisted's legacy logging reserves that key.
    _log.warn("{text}. Lines lost so far: {lost}", text=text, lost=lost)
