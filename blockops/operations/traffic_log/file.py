"""
The file that the traffic log is written to.

What the standard library's rotating file does not do is added here: only its owner may read it,
whatever the umask; it is opened anew when somebody moved or removed it; a line that was torn by a
crash or a full disk does not tear the next one; and failures are raised instead of printed.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from io import TextIOWrapper
from itertools import accumulate
from logging.handlers import RotatingFileHandler
from pathlib import Path


class LogFile(RotatingFileHandler):
    """
    Lines of text in a file that rotates; nothing is opened before the first line.

    :param path: the file; its folder is made where it is missing
    :param rotate_at: bytes at which it becomes `path`.1, `path`.1 becomes `path`.2, and so on
    :param keep: how many of these there are
    :ivar written: lines that were, since this was made
    """

    def __init__(self, path: Path, *, rotate_at: int, keep: int) -> None:
        super().__init__(path, maxBytes=rotate_at, backupCount=keep, encoding="utf-8", delay=True)
        self._full = False
        self.written = 0

    def ready(self) -> None:
        """
        Open the file unless it is open.

        :raises OSError: that is not possible
        """
        if self.stream is not None and self._moved():
            self._drop()
        if self.stream is None:
            self.stream = self._open()

    def write(self, *lines: str) -> None:
        """
        Write lines: those that go into the same file in one piece.

        Each call of the system gives the interpreter's lock away and waits to have it back, which
        costs the thread that serves requests as much as this one.

        :raises OSError: one of them was not written, or not to its end; `written` tells which
        """
        self.ready()
        rest = [line.encode() + b"\n" for line in lines]
        try:
            while rest:
                fitting = self._fitting(rest)
                if not fitting:
                    self.doRollover()
                    self.ready()
                    # What is longer than a file may be has one to itself.
                    fitting = self._fitting(rest) or 1
                self._put(rest[:fitting])
                del rest[:fitting]
        except OSError:
            # The rest of a line must not follow later: it counts as lost.
            self._drop()
            raise

    def _put(self, lines: list[bytes]) -> None:
        # Not by `emit`: to make a record of each line, lock and format it costs twice its writing.
        assert self.stream is not None
        raw = self.stream.fileno()
        piece = b"".join(lines)
        while piece:
            size = os.write(raw, piece)
            self.written += piece.count(b"\n", 0, size)
            piece = piece[size:]

    def _fitting(self, lines: list[bytes]) -> int:
        """
        Return how many of `lines` go into the file; pipes and devices take all.

        One look at the open file tells, where the standard library takes five for each line.

        What was full stays so until it is rotated: where that cannot be, shorter lines would find
        room and longer ones not, and the log would be told to break and to work with each of them.
        """
        if self._full:
            return 0
        assert self.stream is not None
        here = os.fstat(self.stream.fileno())
        if not stat.S_ISREG(here.st_mode) or self.maxBytes <= 0:
            return len(lines)
        sizes = accumulate(map(len, lines), initial=here.st_size)
        fitting = sum(size < self.maxBytes for size in sizes) - 1
        self._full = fitting <= 0
        return max(fitting, 0)

    def doRollover(self) -> None:
        """
        Rotate.

        :raises OSError: that is not possible; the next line tries again
        """
        super().doRollover()
        self._full = False

    def close(self) -> None:
        """Close the file, whatever that says."""
        self._drop()
        super().close()

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        torn = _torn(path)
        stream = open(path, "a", encoding="utf-8", opener=_private)  # noqa: SIM115
        if torn:
            try:
                # Not into the stream's buffer: what cannot leave it keeps the stream from closing.
                os.write(stream.fileno(), b"\n")
            except OSError:
                stream.close()
                raise
        return stream

    def _moved(self) -> bool:
        assert self.stream is not None
        here = os.fstat(self.stream.fileno())
        try:
            there = os.stat(self.baseFilename)  # noqa: PTH116
        except OSError:
            return True
        return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)

    def _drop(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    # The umask may have been wide when an older one made it. A device is nobody's own.
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o600)
    return descriptor


def _torn(path: Path) -> bool:
    """Say whether the file at `path` ends in the middle of a line."""
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return False
        with path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"
    except OSError:
        return False
