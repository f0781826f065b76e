"""
Room for bodies: how many bytes of requests may be in memory at once.

A queue that is bounded in number is not bounded in bytes: 64 requests of 64 MiB each would take
4 GiB. What is counted is what has come, not what was announced, so nobody takes room by a promise.
"""

from __future__ import annotations

from blockops.errors import ApiError
from blockops.server.limits import FULL_FOR


class Room:
    """
    Counts the bytes of bodies that are kept.

    :param size: so many there may be
    :ivar taken: so many there are
    :ivar refused: how many requests were turned away for want of room
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.refused = 0

    def vitals(self) -> dict[str, object]:
        """Return what `/health` tells."""
        return {"body_bytes": self.taken, "bodies_refused": self.refused}

    def take(self, size: int) -> ApiError | None:
        """Take room for `size` bytes more; if there is none, return what the client is told."""
        if self.taken + size <= self.size:
            self.taken += size
            return None
        self.refused += 1
        return ApiError(
            503,
            f"blockops is full: the requests that it works at have {self.taken} bytes, and there"
            f" may be {self.size} (--max-queued-bytes). Ask again later.",
            type="server_error",
            code="body_budget_exceeded",
            retry_after=FULL_FOR,
        )

    def give_back(self, size: int) -> None:
        self.taken -= size
