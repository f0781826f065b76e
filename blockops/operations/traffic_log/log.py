"""
The traffic log: one JSON object a line for each request and each response.

The reactor hands records over and goes on; one thread of the log's own turns them into text and
writes them. What it cannot write, or not in time, is lost, counted, and told of once: a full or
slow disk costs lines, never traffic.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from blockops.operations.traffic_log.file import LogFile
from blockops.operations.traffic_log.records import Record, line
from blockops.settings.table import Settings

#: What may wait for the disk; a record holds at most `log_body` bytes of a body.
MAX_WAITING_BYTES = 16 << 20
MAX_WAITING_RECORDS = 10_000

#: What a record takes besides its body, roughly.
_FRAME = 1024

#: Seconds that records gather before the log's thread is woken to write them: while it runs, the
#: reactor's does not.
GATHERING = 0.05

#: Bytes of records that are written in one piece, unless one alone has more: a millisecond's work.
TOGETHER = 256 << 10

#: Seconds that the end of the log may take when blockops stops.
CLOSE_WITHIN = 5.0

#: A record and when it was made, in seconds since 1970; None for the wish to look at the file.
Stamped = tuple[float, Record | None]

_log = Logger()


class Reactor(Protocol):
    """What the log needs of a reactor."""

    def callFromThread(self, callable: Callable[..., Any], /, *args: Any) -> Any: ...  # noqa: A002

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> Any: ...  # noqa: A002


class Backlog:
    """
    Records on their way from one thread to another, with a bound.

    :param max_bytes: what they may take together
    :param max_records: how many they may be
    """

    def __init__(self, max_bytes: int, max_records: int) -> None:
        self._max_bytes = max_bytes
        self._max_records = max_records
        self._records: deque[tuple[Stamped, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition(threading.Lock())
        # What waits has waited long enough.
        self._due = False
        self.closed = False

    @property
    def calm(self) -> bool:
        """Say whether less than half of the room is taken."""
        return self._bytes * 2 < self._max_bytes and len(self._records) * 2 < self._max_records

    def put(self, record: Stamped, size: int) -> bool:
        """Take `record` and return True, or return False where there is no room for it."""
        with self._changed:
            full = self._bytes + size > self._max_bytes or len(self._records) >= self._max_records
            if full or self.closed:
                return False
            self._records.append((record, size))
            self._bytes += size
            # To wake a thread for each record would cost the reactor more than the record itself.
            if not self.calm:
                self._changed.notify()
            return True

    def release(self) -> None:
        """Let what waits be taken; it is so without this where it takes half of the room."""
        with self._changed:
            self._due = bool(self._records)
            self._changed.notify()

    def take(self) -> list[Stamped]:
        """Return the oldest records, once they are released; none of them once all is over."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.closed or (self._records and (self._due or not self.calm))
            )
            taken: list[Stamped] = []
            room = TOGETHER
            while self._records and (not taken or self._records[0][1] <= room):
                record, size = self._records.popleft()
                self._bytes -= size
                room -= size
                taken.append(record)
            self._due = bool(self._records)
            return taken

    def close(self) -> None:
        """Take nothing more."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def abandon(self) -> int:
        """Throw away what waits; return how many records that was."""
        with self._changed:
            count = len(self._records)
            self._records.clear()
            self._bytes = 0
            return count


class Writer:
    """
    Writes the records of a backlog; lives in a thread of its own.

    :param tell: called with what is to be said, and the number of lines lost
    :ivar secrets: what is hidden wherever it stands
    :ivar lost: records that could not be written
    """

    def __init__(
        self,
        backlog: Backlog,
        file: LogFile,
        secrets: tuple[str, ...],
        tell: Callable[[str, int], object],
    ) -> None:
        self._backlog = backlog
        self._file = file
        self.secrets = secrets
        self._tell = tell
        self._broken = False
        self.lost = 0

    def run(self) -> None:
        """Write all there is and all that comes; return when the backlog is over."""
        self._attempt(self._file.ready)
        while taken := self._backlog.take():
            lines: list[str] = []
            for when, record in taken:
                if record is None:
                    self._write(lines)
                    self._attempt(self._file.ready)
                else:
                    lines += self._lines(record, when)
            self._write(lines)
        self._file.close()

    def _lines(self, record: Record, when: float) -> list[str]:
        """Return `record` as a line; none if it cannot be one, which is a bug."""
        try:
            return [line(record, when, self.secrets)]
        except Exception as error:  # noqa: BLE001 - nothing may end this thread
            self.lost += 1
            self._fail(error)
            return []

    def _write(self, lines: list[str]) -> None:
        """
        Write `lines`, and keep none of them.

        One that cannot be written is lost; those behind it are tried all the same.
        """
        while lines:
            before = self._file.written
            whole = self._attempt(partial(self._file.write, *lines))
            self.lost += not whole
            del lines[: None if whole else self._file.written - before + 1]

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Do `step` and say whether that went well; tell of the first failure and of its end."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - nothing may end this thread
            self._fail(error)
            return False
        if self._broken:
            self._broken = False
            self._tell("The traffic log is written again", self.lost)
        return True

    def _fail(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            self._tell(f"The traffic log cannot be written: {error}", self.lost)


class NoTrafficLog:
    """The traffic log that is switched off: takes everything and keeps nothing."""

    lost = 0

    def start(self) -> None:
        """Do nothing."""

    def write(self, record: Record) -> None:
        """Do nothing."""

    def reopen(self, secrets: tuple[str, ...]) -> None:
        """Do nothing."""

    def close(self) -> Deferred[None]:
        """Return what has fired."""
        return succeed(None)


class TrafficLog:
    """
    Writes requests and responses to a file that rotates.

    Nothing here raises or waits; everything is called in the reactor's thread.

    :param path: the file; it and its folder are made where they are missing
    :param keep_body: bytes of a body that are written
    :param rotate_at: bytes at which the file is rotated
    :param keep: rotated files that are kept
    :param secrets: what is hidden wherever it stands
    :param now: the time of day, in seconds since 1970
    """

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        *,
        keep_body: int = 65536,
        rotate_at: int = 10 << 20,
        keep: int = 5,
        secrets: tuple[str, ...] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._keep_body = keep_body
        self._now = now
        self._secrets = secrets
        self._backlog = Backlog(MAX_WAITING_BYTES, MAX_WAITING_RECORDS)
        self._writer = Writer(
            self._backlog,
            LogFile(path, rotate_at=rotate_at, keep=keep),
            secrets,
            tell=lambda *told: reactor.callFromThread(_tell, *told),
        )
        self._thread: threading.Thread | None = None
        self._closed: list[Deferred[None]] = []
        self._crowded_out = 0
        self._behind = False
        # Until what waits is written; None while nothing waits.
        self._gathering: IDelayedCall | None = None

    @property
    def lost(self) -> int:
        """Return how many records were not written."""
        return self._crowded_out + self._writer.lost

    def start(self) -> None:
        """
        Open the file, so that a path that cannot be is told of before the first request.

        Without this the first record does it. A process that becomes a daemon must have done so
        before: threads do not survive that.
        """
        if self._thread is None and not self._backlog.closed:
            self._thread = threading.Thread(target=self._run, name="traffic log", daemon=True)
            self._thread.start()

    def write(self, record: Record) -> None:
        """Log a request that has come, or a response that has ended."""
        self.start()
        kept = msgspec.structs.replace(record, body=bytes(record.body[: self._keep_body]))
        if self._backlog.put((self._now(), kept), len(kept.body) + _FRAME):
            if self._gathering is None:
                self._gathering = self._reactor.callLater(GATHERING, self._gathered)
            if self._behind and self._backlog.calm:
                self._behind = False
                _tell("The traffic log keeps up again", self.lost)
            return
        self._crowded_out += 1
        if not self._behind and not self._backlog.closed:
            self._behind = True
            _tell("The traffic log loses lines: the disk is too slow", self.lost)

    def _gathered(self) -> None:
        self._gathering = None
        self._backlog.release()

    def reopen(self, secrets: tuple[str, ...]) -> None:
        """
        Open the file anew if it was moved or removed, without waiting for the next line.

        :param secrets: what is hidden from now on; so is what they replace, for answers that were
            asked for with it may still name it
        """
        if secrets != self._secrets:
            known = {*secrets, *self._secrets}
            # The longest first: one of them may be a part of another.
            self._writer.secrets = tuple(sorted(known, key=len, reverse=True))
            self._secrets = secrets
        if self._thread is not None:
            self._backlog.put((self._now(), None), 0)
            self._backlog.release()

    def close(self) -> Deferred[None]:
        """
        Write what waits, within `CLOSE_WITHIN` seconds, and close the file.

        Fires when that is done or given up; never fails. Records that come later are lost.
        """
        self._backlog.close()
        gathering, self._gathering = self._gathering, None
        if gathering is not None:
            gathering.cancel()
        if self._thread is None or not self._thread.is_alive():
            return succeed(None)
        if not self._closed:
            self._deadline = self._reactor.callLater(CLOSE_WITHIN, self._give_up)
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        return closed

    def _run(self) -> None:
        self._writer.run()
        self._reactor.callFromThread(self._ended)

    def _ended(self) -> None:
        if self._closed:
            self._deadline.cancel()
            self._fire()

    def _give_up(self) -> None:
        self._crowded_out += self._backlog.abandon()
        _tell("The traffic log was not written to its end", self.lost)
        self._fire()

    def _fire(self) -> None:
        waiting, self._closed = self._closed, []
        for closed in waiting:
            closed.callback(None)


def traffic_log(settings: Settings, reactor: Reactor) -> TrafficLog | NoTrafficLog:
    """Return the log that `settings` ask for."""
    if settings.log_file is None:
        return NoTrafficLog()
    return TrafficLog(
        reactor,
        settings.log_file,
        keep_body=settings.log_body,
        rotate_at=settings.log_size,
        keep=settings.log_keep,
        secrets=secrets_of(settings),
    )


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Return what the log hides wherever it stands."""
    return (settings.backend_key,) if settings.backend_key else ()


def _tell(what: str, lost: int) -> None:
    """Say in the daemon's own log how its traffic log is."""
    _log.warn("{what}. Lines lost so far: {lost}", what=what, lost=lost)
