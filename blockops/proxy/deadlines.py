"""
The deadlines of a request that was sent to the backend, and of a client that does not read.

| from | to | setting | error |
| --- | --- | --- | --- |
| the request was sent | the first byte of the response's body | `--first-byte-timeout` | 504 |
| the last byte of an upload, or of the response's body | the next one | `--idle-timeout` | 504 |
| the request was sent | the end of the response | `--max-duration` | 504 |
| the client stopped reading | the client reads again | `--client-timeout` | 408, only in the log |

The first deadline is checked once the whole request has arrived, the idle one of an upload before
that. `BackendDeadlines` has these two and the idle one of the response, `Exchange.tick` the others.
The time that a request waits in the queue is limited by `blockops.upstream.admission`.
"""

from __future__ import annotations

from blockops.errors import ApiError
from blockops.proxy.relay import BackendCapture
from blockops.server.upload import StreamingUpload
from blockops.settings.table import Settings


class BackendDeadlines:
    """Checks the first-byte and idle timeouts of the backend for one request."""

    __slots__ = ("_last_progress", "_settings", "_uploaded")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uploaded = 0
        self._last_progress = 0.0

    def check(
        self, now: float, sent_at: float, capture: BackendCapture, upload: StreamingUpload | None
    ) -> ApiError | None:
        """
        Return the error of a deadline that has passed, or None.

        :param now: seconds of the reactor's clock, as are all times here
        :param upload: the body of the request, if it is forwarded as it arrives
        """
        settings = self._settings
        if capture.first_byte_at is not None:
            return _check_timeout(now - capture.last_byte_at, "idle", settings.idle_timeout)
        if upload is None or upload.is_complete:
            return _check_timeout(now - sent_at, "first-byte", settings.first_byte_timeout)
        # The client has its own deadline for the upload. This one is for a backend that does not
        # read it.
        if upload.size != self._uploaded:
            self._uploaded, self._last_progress = upload.size, now
        last_progress = max(sent_at, self._last_progress)
        return _check_timeout(now - last_progress, "idle", settings.idle_timeout)


def _check_timeout(seconds: float, name: str, timeout: float) -> ApiError | None:
    if seconds < timeout:
        return None
    return ApiError(
        504,
        f"The backend sent nothing for {timeout:g} seconds. Check whether it is overloaded, or "
        f"raise --{name}-timeout.",
        type="server_error",
        code="backend_timeout",
    )


def duration_error(seconds: float) -> ApiError:
    """Return the 504 for a response that is not complete after `--max-duration`."""
    return ApiError(
        504,
        f"The backend did not complete its response within {seconds:g} seconds. Raise "
        "--max-duration if responses may take longer.",
        type="server_error",
        code="backend_timeout",
    )


def stalled_client_error(seconds: float) -> ApiError:
    """Return the error that the traffic log reports for a client that read nothing."""
    return ApiError(
        408,
        f"The client read nothing for {seconds:g} seconds. Raise --client-timeout if clients may "
        "pause that long.",
    )
