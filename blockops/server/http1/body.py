"""Where the body of a client's request ends: behind so many bytes, or behind its last chunk."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from blockops.errors import ApiError
from blockops.server.limits import MAX_HEAD

Take = Callable[[bytes], object]

#: Bytes of the line before a chunk, with its extensions, which mean nothing to anybody.
MAX_SIZE_LINE = 256
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e]*)?")
#: As a header is, and none of them longer than all headers of a request together.
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class Body(Protocol):
    """Takes a body out of what comes from the client."""

    def receive(self, data: bytes) -> bytes | None:
        """
        Take the next bytes, and return those behind the body; None while it is not at its end.

        :raises ApiError: 400, it is none
        """


class Sized:
    """
    A body of which the length was said.

    :param length: in bytes, at least one
    :param take: is given each piece of it
    """

    __slots__ = ("_left", "_take")

    def __init__(self, length: int, take: Take) -> None:
        self._left = length
        self._take = take

    def receive(self, data: bytes) -> bytes | None:
        size = len(data)
        if size < self._left:
            self._left -= size
            self._take(data)
            return None
        end, self._left = self._left, 0
        self._take(data[:end])
        return data[end:]


class Chunked:
    """
    A body in chunks (RFC 9112, section 7.1). Its trailers are read, and dropped.

    :param take: is given what of it came together, without its framing
    """

    __slots__ = ("_at", "_left", "_pieces", "_state", "_take", "_trailers", "_unread")

    def __init__(self, take: Take) -> None:
        self._take = take
        self._pieces: list[bytes] = []
        # Of what has come, what is before `_at` is done with.
        self._unread = b""
        self._at = 0
        # Bytes of the chunk that have not come yet.
        self._left = 0
        # Bytes of trailers that have.
        self._trailers = 0
        self._state: Callable[[], bool] | None = self._size

    def receive(self, data: bytes) -> bytes | None:
        self._unread, self._at = self._unread[self._at :] + data, 0
        while self._state is not None and self._state():
            """Go on while there is something to go on with."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._take(b"".join(pieces))
        return None if self._state else self._unread[self._at :]

    # What may come next: each takes it, and returns False if it is not all here.

    def _size(self) -> bool:
        line = self._line(MAX_SIZE_LINE)
        if line is None:
            return False
        size = _SIZE.fullmatch(line)
        if size is None:
            raise _no_chunk()
        self._left = int(size[1], 16)
        self._state = self._data if self._left else self._trailer
        return True

    def _data(self) -> bool:
        piece = self._unread[self._at : self._at + self._left]
        self._pieces.append(piece)
        self._at += len(piece)
        self._left -= len(piece)
        if not self._left:
            self._state = self._gap
        return not self._left

    def _gap(self) -> bool:
        end = self._unread[self._at : self._at + 2]
        if not b"\r\n".startswith(end):
            raise _no_chunk()
        if len(end) < len(b"\r\n"):
            return False
        self._at += 2
        self._state = self._size
        return True

    def _trailer(self) -> bool:
        line = self._line(MAX_HEAD - self._trailers)
        if line is None:
            return False
        self._trailers += len(line)
        if not line:
            self._state = None
        elif not _TRAILER.fullmatch(line):
            raise _no_chunk()
        return True

    def _line(self, limit: int) -> bytes | None:
        """
        Return the next line; None while it is not whole.

        :param limit: bytes that it may have
        """
        end = self._unread.find(b"\r\n", self._at, self._at + limit + 2)
        if end < 0:
            if len(self._unread) - self._at > limit + 1:
                raise _no_chunk()
            return None
        line = self._unread[self._at : end]
        self._at = end + 2
        return line


def _no_chunk() -> ApiError:
    return ApiError(400, "The request's body is not in the chunks that its headers promise.")
