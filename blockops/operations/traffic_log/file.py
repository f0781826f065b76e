"""
`LogFile`: the rotated file of the traffic log.

It is rotated as the standard library's `RotatingFileHandler` does it, and reopened as
`WatchedFileHandler` does. Neither is used: they cannot be combined, print errors instead of raising
them, count characters instead of bytes, and write the rest of a failed line later.
"""

from __future__ import annotations

import math
import os
import stat
from contextlib import suppress
from pathlib import Path


class LogFile:
    """
    A rotated file of lines, which is opened when the first line is written.

    Only the owner can read it, whatever the umask. A line truncated by a crash or a full disk does
    not damage the next one.

    :param rotate_at: size in bytes at which it becomes `path`.1, `path`.1 becomes `path`.2, and so
        on
    :param keep: number of these rotated files
    :ivar lines_written: number of complete lines written by this object
    """

    def __init__(self, path: Path, *, rotate_at: int, keep: int) -> None:
        self._path = path.absolute()  # twistd changes its directory later
        self._rotate_at = rotate_at
        self._keep = keep
        self.lines_written = 0
        self._must_rotate = False
        # None while the file is closed.
        self._descriptor: int | None = None

    def ensure_open(self) -> os.stat_result:
        """Open the file if it is not open, or was moved or removed; return its status."""
        if self._descriptor is not None:
            status = os.fstat(self._descriptor)
            with suppress(OSError):
                if os.path.samestat(status, self._path.stat()):
                    return status
            self.close()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_truncated = _ends_mid_line(self._path)
        self._descriptor = _open_private(self._path)
        if is_truncated:
            self._write_now(b"\n")
        return os.fstat(self._descriptor)

    def write(self, *lines: str) -> None:
        """
        Write `lines`; rotate the file before each that does not fit.

        Lines for the same file take one system call: each call releases the interpreter's lock and
        waits for it again, which costs the reactor's thread as much time as this one.

        :raises OSError: not all lines were written; `lines_written` counts those that were
        """
        status = self.ensure_open()
        size = status.st_size
        limit = self._rotate_at if stat.S_ISREG(status.st_mode) else math.inf
        fitting: list[bytes] = []
        for line in lines:
            data = line.encode() + b"\n"
            # A file that cannot be rotated takes no shorter lines either: the log would report a
            # failure and a recovery with each of them.
            is_full = self._must_rotate or size + len(data) >= limit
            self._must_rotate = size > 0 and is_full
            if self._must_rotate:
                self._write_lines(fitting)
                self._rotate()
                self._must_rotate = False
                fitting = []
                size = self.ensure_open().st_size
            fitting.append(data)
            size += len(data)
        self._write_lines(fitting)

    def close(self) -> None:
        """Close the file; errors are ignored."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _write_lines(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        while data:
            size = self._write_now(data)
            self.lines_written += data.count(b"\n", 0, size)
            data = data[size:]

    def _write_now(self, data: bytes) -> int:
        assert self._descriptor is not None
        try:
            return os.write(self._descriptor, data)
        except OSError:
            # Opening the file again ends the truncated line.
            self.close()
            raise

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep - 1, 0, -1):
            with suppress(FileNotFoundError):
                self._rotated(number).replace(self._rotated(number + 1))
        self._path.replace(self._rotated(1))

    def _rotated(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _open_private(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    # An existing file may have wider permissions. Those of a device are left alone.
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o600)
    return descriptor


def _ends_mid_line(path: Path) -> bool:
    try:
        # To open a pipe would wait for its other end.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)  # fails for an empty file
            return file.read(1) != b"\n"
    except OSError:
        return False
