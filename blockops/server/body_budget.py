"""
The upper bound for the bytes of all request bodies in memory.

A queue that is bounded in requests is not bounded in bytes: 64 requests of 64 MiB each would take
4 GiB. The budget counts received bytes and not announced ones, so that a large Content-Length alone
reserves nothing.
"""

from __future__ import annotations

from blockops.errors import ApiError
from blockops.server.limits import RETRY_AFTER


class BodyBudget:
    """Counts the bytes of buffered request bodies: at most `limit` at the same time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reserved_size = 0
        self.rejections = 0

    def status(self) -> dict[str, object]:
        """Return the fields for `/health`."""
        return {"body_bytes": self.reserved_size, "bodies_refused": self.rejections}

    def reserve(self, size: int) -> ApiError | None:
        """Reserve `size` more bytes and return None, or return the 503 if they do not fit."""
        if self.reserved_size + size <= self.limit:
            self.reserved_size += size
            return None
        self.rejections += 1
        return ApiError(
            503,
            "The request body does not fit into the memory for request bodies:"
            f" {self.reserved_size} bytes are in use, and --max-queued-bytes allows {self.limit}."
            " Retry later.",
            type="server_error",
            code="body_budget_exceeded",
            retry_after=RETRY_AFTER,
        )

    def release(self, size: int) -> None:
        self.reserved_size -= size
