"""The framing of a request body: a fixed length, or chunks (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

import re
from collections.abc import Callable

from blockops.errors import ApiError
from blockops.server.limits import MAX_HEAD

#: Bytes of the line before a chunk: its size and its extensions, which are ignored.
MAX_SIZE_LINE = 256
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e]*)?")
#: The same form as a header.
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class FixedLengthBody:
    """A body whose length was declared: `length` bytes, at least one."""

    def __init__(self, length: int) -> None:
        self._remaining = length

    def receive(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Return the next data of the body, and the bytes after its end or None before that."""
        size = len(data)
        if size < self._remaining:
            self._remaining -= size
            return data, None
        return data[: self._remaining], data[self._remaining :]


class ChunkedBody:
    """
    A body in chunks (RFC 9112, section 7.1). Its trailers are checked and discarded.

    States, in order; each is a method that returns False if it needs more data:

    ================== ============================== =========================================
    state              reads                          next state
    ================== ============================== =========================================
    `_read_size`       the line before a chunk        `_read_data`; `_read_trailer` for size 0
    `_read_data`       the data of the chunk          `_read_chunk_end`
    `_read_chunk_end`  CRLF after the data            `_read_size`
    `_read_trailer`    one trailer or an empty line   `_read_trailer`; None after an empty line
    ================== ============================== =========================================
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        # The bytes before `_position` are processed.
        self._buffer = b""
        self._position = 0
        self._remaining = 0  # bytes of the current chunk that have not arrived yet
        self._trailer_size = 0  # bytes of the trailers so far
        self._state: Callable[[], bool] | None = self._read_size

    def receive(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Do the same as `FixedLengthBody.receive`; 400 if the framing is invalid."""
        self._buffer, self._position = self._buffer[self._position :] + data, 0
        while self._state is not None:
            if not self._state():
                break
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces), None if self._state else self._buffer[self._position :]

    def _read_size(self) -> bool:
        line = self._read_line(MAX_SIZE_LINE)
        if line is None:
            return False
        size = _SIZE.fullmatch(line)
        if size is None:
            raise _bad_chunk()
        self._remaining = int(size[1], 16)
        self._state = self._read_data if self._remaining else self._read_trailer
        return True

    def _read_data(self) -> bool:
        piece = self._buffer[self._position : self._position + self._remaining]
        self._pieces.append(piece)
        self._position += len(piece)
        self._remaining -= len(piece)
        if not self._remaining:
            self._state = self._read_chunk_end
        return not self._remaining

    def _read_chunk_end(self) -> bool:
        end = self._buffer[self._position : self._position + 2]
        if not b"\r\n".startswith(end):
            raise _bad_chunk()
        if len(end) < len(b"\r\n"):
            return False
        self._position += 2
        self._state = self._read_size
        return True

    def _read_trailer(self) -> bool:
        # All trailers together may be as long as a head.
        line = self._read_line(MAX_HEAD - self._trailer_size)
        if line is None:
            return False
        self._trailer_size += len(line)
        if not line:
            self._state = None
        elif not _TRAILER.fullmatch(line):
            raise _bad_chunk()
        return True

    def _read_line(self, limit: int) -> bytes | None:
        """Return the next line without its end, or None before that; 400 above `limit` bytes."""
        end = self._buffer.find(b"\r\n", self._position, self._position + limit + 2)
        if end < 0:
            if len(self._buffer) - self._position > limit + 1:
                raise _bad_chunk()
            return None
        line = self._buffer[self._position : end]
        self._position = end + 2
        return line


def _bad_chunk() -> ApiError:
    return ApiError(
        400,
        "The request declares Transfer-Encoding: chunked, but its body is not valid chunked data."
        " Encode it in chunks, or send a Content-Length instead.",
    )
