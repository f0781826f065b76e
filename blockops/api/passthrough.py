"""Event streams that are not translated: those of `/v1/responses`, `/v1/messages` and others."""

from __future__ import annotations

from blockops.api.backend_errors import truncated_response
from blockops.api.report import AnswerReport
from blockops.api.sse import HEARTBEAT, encode_event
from blockops.errors import ApiError


class PassThrough:
    """
    Passes an event stream in any format through, byte for byte.

    It can insert heartbeats between the events, and an error event at the end.

    :ivar has_ended: True once the backend has closed, or an error event was sent
    :ivar report: contains only an error, if there was one
    """

    def __init__(self) -> None:
        self.has_ended = False
        self.report = AnswerReport()
        self._tail = b"\n\n"  # the last four bytes that were sent

    def receive_data(self, data: bytes) -> bytes:
        """Return `data`; empty once the stream has ended."""
        if self.has_ended:
            return b""
        self._tail = (self._tail + data[-4:])[-4:]
        return data

    def heartbeat(self) -> bytes:
        """Return a comment; empty within an event, or once the stream has ended."""
        return HEARTBEAT if self._is_between_events and not self.has_ended else b""

    def end(self, *, is_truncated: bool) -> bytes:
        """
        End the stream after the backend has closed; return an error event, or nothing.

        :param is_truncated: True if the transport reports that bytes are missing
        """
        if is_truncated:
            return self.fail(truncated_response(b"", 1, is_connection_lost=True))
        out = self._flush()
        self.has_ended = True
        return out

    def fail(self, error: ApiError) -> bytes:
        """
        Return `error` as the last event.

        It has the type and the fields of an error in a stream of `/v1/responses` or `/v1/messages`.
        """
        if self.has_ended:
            return b""
        out = self._flush()
        self.has_ended = True
        self.report.error = error.message
        if not self._is_between_events:
            out += b"\n\n"
        return out + b"event: error\n" + encode_event(b'{"type":"error",' + error.body()[1:])

    def _flush(self) -> bytes:
        return b""  # no bytes are held back here

    @property
    def _is_between_events(self) -> bool:
        return self._tail.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
