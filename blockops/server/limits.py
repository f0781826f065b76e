"""Upper bounds that are not settings; docs/limits.md lists them together with the settings."""

from __future__ import annotations

from blockops.errors import ApiError

#: Bytes a second at which a request body has to arrive. A slower client may be one that occupies
#: connections on purpose.
MIN_UPLOAD_RATE = 16 * 1024
#: Bytes of the request line or of one header, and of the whole head: nginx's
#: large_client_header_buffers.
MAX_LINE = 8 * 1024
MAX_HEAD = 4 * MAX_LINE
#: Bytes of a header's name. Twisted's `Headers` caches up to 10,000 names, also invented ones, and
#: never removes one.
MAX_NAME = 256
#: Bytes of pipelined requests that are read during a response. They take little memory, and only
#: reading shows a disconnect.
MAX_PIPELINED = 16 * 1024
#: Requests of one connection that are processed before other connections get a turn. 64 KiB that
#: arrive at once can hold 2,000 requests: half a second of work if each gets its response at once.
MAX_REQUESTS_PER_TURN = 16
#: Digits of a Content-Length: a longer one cannot be the length of a real body.
MAX_LENGTH_DIGITS = 18
#: Seconds that a connection may be idle between two requests: nginx's keepalive_timeout.
KEEP_ALIVE = 75.0
#: Seconds that a rejected client may continue to send its request. Most clients read the error
#: response only when they have sent all of it.
LINGER = 30.0
#: Rejected connections that may be open at the same time until their error response is read, and
#: seconds that each of them has.
MAX_LINGERING = 64
REJECTION_LINGER = 2.0
#: Seconds in the `Retry-After` of a rejection for lack of capacity.
RETRY_AFTER = 5
#: Seconds between two log lines about rejected connections, or about rejected requests.
LOG_INTERVAL = 60.0


def body_too_large(limit: int) -> ApiError:
    """Return the 413 for a request body of more than `limit` bytes."""
    return ApiError(
        413,
        f"The request body is larger than {limit} bytes. Send less, or start blockops with a "
        "higher --max-body.",
        code="request_too_large",
    )
