"""
`LogFile`: the rotated file of the traffic log.

It extends the standard library's `RotatingFileHandler`: only the owner can read the file, whatever
the umask; it is reopened if it was moved or removed; a line truncated by a crash or a full disk
does not damage the next one; and errors are raised instead of printed.
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
    A rotated file of lines, which is opened when the first line is written.

    :param path: the file; its directory is created if it does not exist
    :param rotate_at: size in bytes at which it becomes `path`.1, `path`.1 becomes `path`.2, and so
        on
    :param keep: number of these rotated files
    :ivar lines_written: number of complete lines written by this object
    """

    def __init__(self, path: Path, *, rotate_at: int, keep: int) -> None:
        super().__init__(path, maxBytes=rotate_at, backupCount=keep, encoding="utf-8", delay=True)
        self._is_full = False
        self.lines_written = 0

    def ensure_open(self) -> None:
        """
        Open the file if it is not open, or was moved or removed.

        :raises OSError: the file cannot be opened
        """
        if self.stream is not None and self._was_moved():
            self._close_stream()
        if self.stream is None:
            self.stream = self._open()

    def write(self, *lines: str) -> None:
        """
        Write `lines`, and rotate the file as needed.

        Lines for the same file take one system call: each call releases the interpreter's lock and
        waits for it again, which costs the reactor's thread as much time as this one.

        :raises OSError: a line was not written completely; `lines_written` counts those before it
        """
        self.ensure_open()
        remaining = [line.encode() + b"\n" for line in lines]
        try:
            while remaining:
                fitting = self._lines_that_fit(remaining)
                if not fitting:
                    self.doRollover()
                    self.ensure_open()
                    # A line longer than `rotate_at` gets its own file.
                    fitting = self._lines_that_fit(remaining) or 1
                self._write_lines(remaining[:fitting])
                del remaining[:fitting]
        except OSError:
            # The stream must not write the rest of a line later: that line counts as lost.
            self._close_stream()
            raise

    def _write_lines(self, lines: list[bytes]) -> None:
        # `emit` would make a record of each line, lock and format it: twice the cost of writing.
        assert self.stream is not None
        descriptor = self.stream.fileno()
        data = b"".join(lines)
        while data:
            size = os.write(descriptor, data)
            self.lines_written += data.count(b"\n", 0, size)
            data = data[size:]

    def _lines_that_fit(self, lines: list[bytes]) -> int:
        """
        Return how many of `lines` fit into the file; all of them if it is a pipe or a device.

        This takes one system call; the standard library makes five for each line.

        After a line that did not fit, no line fits until the file is rotated. Otherwise, while it
        cannot be rotated, short lines would be written and long ones not, and the log would report
        a failure and a recovery each time.
        """
        if self._is_full:
            return 0
        assert self.stream is not None
        status = os.fstat(self.stream.fileno())
        if not stat.S_ISREG(status.st_mode) or self.maxBytes <= 0:
            return len(lines)
        sizes = accumulate(map(len, lines), initial=status.st_size)
        fitting = sum(size < self.maxBytes for size in sizes) - 1
        self._is_full = fitting <= 0
        return max(fitting, 0)

    def doRollover(self) -> None:
        """
        Rotate the file.

        :raises OSError: it cannot be rotated; the next line tries again
        """
        super().doRollover()
        self._is_full = False

    def close(self) -> None:
        """Close the file; errors are ignored."""
        self._close_stream()
        super().close()

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_truncated = _ends_mid_line(path)
        stream = open(path, "a", encoding="utf-8", opener=_open_private)  # noqa: SIM115
        if is_truncated:
            try:
                # Not through the stream's buffer: if it cannot be flushed, `close` fails.
                os.write(stream.fileno(), b"\n")
            except OSError:
                stream.close()
                raise
        return stream

    def _was_moved(self) -> bool:
        assert self.stream is not None
        opened = os.fstat(self.stream.fileno())
        try:
            current = os.stat(self.baseFilename)  # noqa: PTH116
        except OSError:
            return True
        return (opened.st_dev, opened.st_ino) != (current.st_dev, current.st_ino)

    def _close_stream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _open_private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    # An existing file may have wider permissions. Those of a device are left alone.
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o600)
    return descriptor


def _ends_mid_line(path: Path) -> bool:
    """Return True if the file at `path` ends within a line."""
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return False
        with path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"
    except OSError:
        return False
