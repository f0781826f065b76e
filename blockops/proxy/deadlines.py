"""
The times of a request, its deadlines at the backend, and that of a client that does not read.

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
from blockops.server.upload import StreamingUpload
from blockops.settings.table import Settings


class Timeline:
    """
    The only source of times for the log, the metrics and the deadlines.

    All are seconds of the reactor's clock, and None before the event.

    :ivar received: the request arrived; for an upload, its headers
    :ivar sent: the request was sent to the backend
    :ivar first_byte: the first byte of the backend's body arrived
    :ivar last_byte: the last byte of the backend's body arrived
    :ivar ended: the response to the client has ended
    """

    def __init__(self, received: float) -> None:
        self.received = received
        self.sent: float | None = None
        self.first_byte: float | None = None
        self.last_byte: float | None = None
        self.ended: float | None = None

    def milliseconds_until(self, moment: float | None) -> float | None:
        """Return the milliseconds from `received` to `moment`; None if that is None."""
        return None if moment is None else round(1000 * (moment - self.received), 3)

    def reset_for_retry(self) -> None:
        """Forget the times of the first attempt, because the request is sent again."""
        self.sent = self.first_byte = self.last_byte = None


class BackendDeadlines:
    """
    Checks the first-byte and idle timeouts of the backend for one request.

    :param upload: the body of the request, if it is forwarded as it arrives
    """

    def __init__(
        self, settings: Settings, timeline: Timeline, upload: StreamingUpload | None
    ) -> None:
        self._settings = settings
        self._timeline = timeline
        self._upload = upload
        self._uploaded = 0
        # When data of the upload arrived, or the backend was paused.
        self._last_progress = timeline.received

    def check(self, now: float) -> ApiError | None:
        """Return the error of a deadline that has passed, or None."""
        settings, timeline, upload = self._settings, self._timeline, self._upload
        if timeline.sent is None:
            return None
        if timeline.last_byte is not None:
            last_progress = max(timeline.last_byte, self._last_progress)
            return _check_timeout(now - last_progress, "idle", settings.idle_timeout)
        if upload is None or upload.is_complete:
            waited = now - timeline.sent
            return _check_timeout(waited, "first-byte", settings.first_byte_timeout)
        # The client has its own deadline for the upload. This one is for a backend that does not
        # read it.
        if upload.size != self._uploaded:
            self._uploaded, self._last_progress = upload.size, now
        last_progress = max(timeline.sent, self._last_progress)
        return _check_timeout(now - last_progress, "idle", settings.idle_timeout)

    def restart_idle_timeout(self, now: float) -> None:
        """Count no silence before `now`: the backend is paused, because the client is."""
        self._last_progress = now


def _check_timeout(seconds: float, name: str, timeout: float) -> ApiError | None:
    if seconds < timeout:
        return None
    return _backend_timeout(
        f"The backend sent nothing for {timeout:g} seconds. Check whether it is overloaded, or "
        f"raise --{name}-timeout."
    )


def duration_error(seconds: float) -> ApiError:
    """Return the 504 for a response that is not complete after `--max-duration`."""
    return _backend_timeout(
        f"The backend did not complete its response within {seconds:g} seconds. Raise "
        "--max-duration if responses may take longer."
    )


def _backend_timeout(message: str) -> ApiError:
    return ApiError(504, message, type="server_error", code="backend_timeout")


def stalled_client_error(seconds: float) -> ApiError:
    """Return the error that the traffic log reports for a client that read nothing."""
    return ApiError(
        408,
        f"The client read nothing for {seconds:g} seconds. Raise --client-timeout if clients may "
        "pause that long.",
    )
