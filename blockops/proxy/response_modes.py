"""
What a response sends for a heartbeat, and for a failure after it has begun.

| mode | heartbeat | failure after the response has begun |
| --- | --- | --- |
| `ResponseMode` | nothing: the body's format is unknown | the connection is aborted |
| `PassThroughMode` | a comment | an error event |
| `AnswerMode`, as a stream | a comment, or an empty chunk | an error event |
| `AnswerMode`, as a document | a newline before it, if enabled | the error as the document |

Before the response has begun, each mode sends a failure as an error response with its own status.
After that the status can no longer change: it is 200, or the backend's for a response that is
passed through.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockops.api.passthrough import PassThrough
from blockops.api.report import AnswerReport
from blockops.api.request import ChatRequest, GenerationRequest
from blockops.conversation.turn import AnswerFeedback
from blockops.errors import ApiError
from blockops.server.response import JSON_HEADERS, STREAM_HEADERS, Header
from blockops.settings.table import Settings
from blockops.toolcalls.options import TranslationOptions
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


class PassThroughMode(ResponseMode):
    """A response of the type `text/event-stream` that is not translated."""

    def __init__(self, events: PassThrough) -> None:
        self._events = events
        self.report = events.report

    def heartbeat(self) -> bytes:
        return self._events.heartbeat()

    def failure(self, error: ApiError) -> bytes:
        return self._events.fail(error)


class AnswerMode(ResponseMode):
    """
    A model's answer, as the client requested it: a stream, or one JSON document.

    With heartbeats before the document, its status is 200 even if the request fails later.

    :param options: how tool calls are translated
    :param feedback: of the turn; None for an answer without notices
    :ivar translator: of the backend's answer
    """

    def __init__(
        self,
        request: GenerationRequest,
        settings: Settings,
        options: TranslationOptions,
        feedback: AnswerFeedback | None = None,
    ) -> None:
        notice = None if feedback is None else feedback.notice
        self.is_stream = request.stream
        self._json_heartbeat = b"\n" if settings.heartbeat_json else b""
        self._feedback = None if notice is None else feedback
        # Seconds without a first token; 0 once the notice is sent, and if it is off.
        self._prefill_notice_after = settings.cold_start_notice
        self.translator: StreamTranslator
        if request.stream:
            self.headers = STREAM_HEADERS
            self.translator = StreamTranslator(
                request,
                options,
                max_event=settings.max_event,
                heartbeat_style=settings.heartbeat_style,
                notice=notice,
                is_usage_hidden=isinstance(request, ChatRequest) and not request.include_usage,
            )
        else:
            self.headers = JSON_HEADERS
            self.translator = ResponseTranslator(
                request,
                options,
                max_event=settings.max_event,
                max_answer=settings.max_answer,
                notice=notice,
            )
        self.report = self.translator.report

    def heartbeat(self) -> bytes:
        return self.translator.heartbeat() if self.is_stream else self._json_heartbeat

    def prefill_notice(self, seconds: float) -> bytes:
        is_due = 0 < self._prefill_notice_after <= seconds
        if not is_due or not self.is_stream or self._feedback is None:
            return b""
        self._prefill_notice_after = 0
        return self.translator.prefill_notice(self._feedback.prefill_notice(seconds))

    def failure(self, error: ApiError) -> bytes:
        return self.translator.fail(error) if self.is_stream else error.body()
