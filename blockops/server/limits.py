"""What a client may send, and how long it may take, as far as no setting says it."""

from __future__ import annotations

from blockops.errors import ApiError

#: Bytes a second below which a client that sends a body is taken for one that never will.
SLOWEST_BODY = 16 * 1024
#: Bytes of a request line or of one header, and of all headers together: nginx's
#: large_client_header_buffers.
MAX_LINE = 8 * 1024
MAX_HEAD = 4 * MAX_LINE
#: Bytes of a header's name. Twisted keeps up to 10,000 names that clients made up, for good.
MAX_NAME = 256
#: Bytes of further requests that are read while one is answered: so much shows soon when the client
#: leaves, and is no burden.
MAX_HELD = 16 * 1024
#: Requests of one connection that are taken before it is others' turn: 64 KiB that came at once can
#: hold 2,000, which take half a second if they are answered at once.
MAX_IN_A_ROW = 16
#: Digits of a body's declared length: what is longer is no length of anything.
MAX_DIGITS = 18
#: Seconds that a connection may be idle between two requests: nginx's keepalive_timeout.
KEEP_ALIVE = 75.0
#: Seconds that a refused client may go on sending: it reads the refusal only when it has sent all.
LINGER = 30.0
#: Connections beyond the bound that are given a moment to read that they are refused, and seconds
#: that the moment has.
MAX_TURNED_AWAY = 64
PARTING = 2.0
#: Seconds after which they may try again, and between two lines of the log that tell of them.
FULL_FOR = 5
NOTED_EVERY = 60.0


def too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request's body is larger than {limit} bytes. Send less, or start blockops with a "
        "higher --max-body.",
        code="request_too_large",
    )
