"""
What a response sends for a heartbeat, and for a failure after it has begun.

| mode | heartbeat | failure after the response has begun |
| --- | --- | --- |
| `ResponseMode` | nothing: the body's format is unknown | the connection is aborted |
| `StreamMode`, `AnswerStreamMode` | a comment, or an empty chunk | an error event |
| `JsonMode` | a newline before the document, if enabled | the error as the document |

Before the response has begun, each mode sends a failure as an error response with its own status.
After that the status can no longer change: it is 200, or the backend's for a response that is
passed through.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockops.api.passthrough import PassThrough
from blockops.api.report import AnswerReport
from blockops.conversation.feedback import PrefillNotice
from blockops.errors import ApiError
from blockops.server.response import JSON_HEADERS, STREAM_HEADERS, Header
from blockops.translation.non_streaming import ResponseTranslator
from blockops.translation.stream import StreamTranslator


class ResponseMode:
    """
    The mode of a response in an unknown format.

    :ivar headers: those of a response with the status 200
    :ivar report: the contents of the answer; None if they are not known
    """

    headers: Sequence[Header] = ()
    report: AnswerReport | None = None

    def heartbeat(self) -> bytes:
        """Return a heartbeat; empty if none is possible."""
        return b""

    def prefill_notice(self, seconds: float) -> bytes:
        """
        Return a notice about a long prefill; empty if none is possible, or due.

        :param seconds: the time since the request was sent to the backend
        """
        return b""

    def failure(self, error: ApiError) -> bytes | None:
        """Return the last data of a response that failed; None to abort the connection."""
        return None


class StreamMode(ResponseMode):
    """A response of the type `text/event-stream`."""

    headers = STREAM_HEADERS

    def __init__(self, translator: StreamTranslator | PassThrough) -> None:
        self.translator = translator
        self.report = translator.report

    def heartbeat(self) -> bytes:
        return self.translator.heartbeat()

    def failure(self, error: ApiError) -> bytes:
        return self.translator.fail(error)


class AnswerStreamMode(StreamMode):
    """
    The stream of a model's answer.

    :param notice: the notice about a long prefill, returned once; None for none
    """

    translator: StreamTranslator
    is_stream = True

    def __init__(self, translator: StreamTranslator, notice: PrefillNotice | None = None) -> None:
        super().__init__(translator)
        self._notice = notice

    def prefill_notice(self, seconds: float) -> bytes:
        notice = self._notice
        if notice is None or seconds < notice.after:
            return b""
        self._notice = None
        return self.translator.prefill_notice(notice.text(seconds))


class JsonMode(ResponseMode):
    """
    A model's answer as one JSON document.

    :param has_heartbeats: send newlines before the document; the status is then 200 even if the
        request fails later
    """

    headers = JSON_HEADERS
    is_stream = False

    def __init__(self, translator: ResponseTranslator, *, has_heartbeats: bool) -> None:
        self.translator = translator
        self.report = translator.report
        self._has_heartbeats = has_heartbeats

    def heartbeat(self) -> bytes:
        return b"\n" if self._has_heartbeats else b""

    def failure(self, error: ApiError) -> bytes:
        return error.body()


#: The modes of a model's answer.
AnswerMode = AnswerStreamMode | JsonMode
