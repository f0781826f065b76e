"""
One request of a client with its response, from the start of its handler to the last byte.

The stages of an exchange, for a handler that sends a request to the backend:

| stage | begins with | heartbeats | deadlines |
| --- | --- | --- | --- |
| waiting | `run` | yes | of what it waits for: a slot, the tokenizer, a cache purge |
| sent | `timeline.sent` is set | yes | first byte (upload: idle), duration |
| responding | `timeline.first_byte` is set | yes | idle, duration |
| sending | `response.is_closed`: it is finished | no | of a client that does not read |
| done | `response.is_done` | no | none |

The notice about a long prefill is possible in `sent` and `responding`, until the answer has
content. While the client does not read (`response.stalled_since`), its own deadline replaces
heartbeats and the backend's deadlines in each stage, except for the duration. Three events cancel
the handler in any stage: the client disconnects, a deadline passes, or the daemon stops. Before a
retry, `reset_for_retry` leads back to `waiting`.

How a failure reaches the client depends on its response alone:

| response | effect of a failure |
| --- | --- |
| not begun | an error response |
| begun | the failure of its mode: an error event, a document with the error, or an abort |
| closed, but not done | an abort; internal errors are logged |
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from blockops.api.report import AnswerReport
from blockops.conversation.feedback import AnswerFeedback
from blockops.errors import ApiError
from blockops.operations.traffic_log.log import NoTrafficLog, TrafficLog
from blockops.operations.traffic_log.records import RequestRecord, ResponseRecord
from blockops.proxy.deadlines import (
    BackendDeadlines,
    Timeline,
    duration_error,
    stalled_client_error,
)
from blockops.proxy.response_modes import ResponseMode
from blockops.server.request import ClientRequest
from blockops.server.response import ClientResponse
from blockops.settings.table import Settings


class BackendCapture:
    """
    The size of a backend's body, and its beginning for the traffic log.

    :param max_body: the maximum size of `body`
    """

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self.body = bytearray()
        self.size = 0


class Exchange:
    """
    One request of a client and its response.

    :ivar id: the id of both records in the traffic log, and the header `X-Request-Id`
    :ivar response: the response to the client
    :ivar timeline: when what happened
    :ivar mode: how the response sends heartbeats and failures
    :ivar report: the contents of the answer, or None
    :ivar feedback: learns from the answer; None if nothing is to be learnt
    :ivar capture: records the backend's body
    :ivar backend_response: the backend's response, until its body is read
    :ivar error: the error that the request failed with; None if it did not fail
    :ivar heartbeats: the number of heartbeats that were sent
    :ivar is_logged: the traffic log contains the request
    """

    _log = Logger()

    def __init__(
        self,
        request: ClientRequest,
        clock: IReactorTime,
        settings: Settings,
        traffic_log: TrafficLog | NoTrafficLog,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.request = request
        self.response = ClientResponse(request, clock)
        self.timeline = Timeline(clock.seconds())
        self.mode = ResponseMode()
        self.report: AnswerReport | None = None
        self.feedback: AnswerFeedback | None = None
        self.capture = BackendCapture(settings.log_body)
        self.backend_response: IResponse | None = None
        self.error: ApiError | None = None
        self.heartbeats = 0
        self.is_logged = False
        self.clock = clock
        self.settings = settings
        self._traffic_log = traffic_log
        self._unlogged_body = b""
        self._deadlines = BackendDeadlines(settings, self.timeline, request.upload)
        self._cancel_reason: ApiError | None = None
        self._handler: Deferred[None] = Deferred()

    def run(self, handler: Handler) -> Deferred[None]:
        """
        Run `handler`, and make sure that the client gets a response.

        Fires when the response is done; never fails. A client that disconnects cancels the handler.
        Call it once.
        """
        self.request.on_disconnect = self._on_disconnect
        if self.request.upload is not None:
            self.request.upload.on_failure = self.cancel_with
            self.request.upload.capture(self.settings.log_body)
        self._handler = Deferred.fromCoroutine(self._run(handler))
        return self._handler

    async def _run(self, handler: Handler) -> None:
        try:
            await handler(self)
            if not self.response.is_closed:
                raise RuntimeError(  # noqa: TRY301 - reported below, like any failure
                    f"the handler of {self.request!r} did not respond"
                )
            await self.response.when_done()
        except Exception:  # noqa: BLE001 - each failure is reported to the client
            self._fail(Failure())
        try:
            await self.response.when_done()
        except CancelledError:
            self.response.abort()

    def respond_in(self, mode: ResponseMode, feedback: AnswerFeedback | None = None) -> None:
        """
        Set how the response sends heartbeats and failures, and where its contents are reported.

        :param feedback: learns from the answer
        """
        self.mode, self.report, self.feedback = mode, mode.report, feedback

    def reset_for_retry(self) -> None:
        """Forget the backend's response, because the request is sent again with another body."""
        self.timeline.reset_for_retry()
        self.capture = BackendCapture(self.settings.log_body)

    def cancel_with(self, error: ApiError) -> None:
        """Cancel the handler, and send `error` to the client; further calls have no effect."""
        if self._cancel_reason is None:
            self._cancel_reason = error
            self._handler.cancel()

    @property
    def address(self) -> str | None:
        """The client's address; None for a Unix socket."""
        return getattr(self.request.getClientAddress(), "host", None)

    def pop_body(self) -> bytes:
        """Return the request's body and release it; only `log_request` still needs it."""
        self._unlogged_body = self.request.pop_body()
        return self._unlogged_body

    def log_request(self, **fields: Any) -> None:
        """
        Write the record of the request to the traffic log.

        :param fields: further fields of the record, from the parsed body
        """
        self.is_logged = True
        request, upload = self.request, self.request.upload
        body, self._unlogged_body = self._unlogged_body, b""
        if upload is not None:
            body = upload.captured_bytes()
        self._traffic_log.write(
            RequestRecord(
                id=self.id,
                client=self.address,
                key=request.api_key_owner or None,
                method=request.method.decode("latin-1"),
                path=request.uri.decode("latin-1"),
                headers={
                    name.decode("latin-1").lower(): values[0].decode("latin-1")
                    for name, values in request.requestHeaders.getAllRawHeaders()
                },
                size=len(body) if upload is None else upload.size,
                body=body,
                **fields,
            )
        )

    def response_record(self) -> ResponseRecord:
        """Return the record of the response for the traffic log; call it once it has ended."""
        response, timeline = self.response, self.timeline
        report = self.report or AnswerReport()
        error = report.error if self.error is None else self.error.message
        return ResponseRecord(
            id=self.id,
            status=response.status or None,
            outcome="failed" if error else "client left" if response.has_client_left else "done",
            queued_ms=timeline.milliseconds_until(timeline.sent),
            first_byte_ms=timeline.milliseconds_until(timeline.first_byte),
            last_byte_ms=timeline.milliseconds_until(timeline.ended),
            bytes_in=self.capture.size,
            bytes_out=response.bytes_sent,
            usage=report.usage,
            calls=report.tool_names,
            formats=report.calls_by_dialect,
            finish_reasons=list(report.finish_reasons.values()),
            tally=report.counters,
            error=error,
            body=bytes(self.capture.body),
        )

    def tick(self, now: float) -> None:
        """Send a heartbeat if one is due, and enforce the deadlines."""
        settings, response, sent = self.settings, self.response, self.timeline.sent
        if sent is not None and now - sent >= settings.max_duration and not response.is_closed:
            self.cancel_with(duration_error(settings.max_duration))
        if response.stalled_since is not None:
            self._deadlines.restart_idle_timeout(now)
            stalled = response.seconds_stalled(now)
            if stalled >= settings.client_timeout and not response.has_client_left:
                self.error = stalled_client_error(settings.client_timeout)
                response.abort()
            return
        if response.is_closed:
            return
        missed = self._deadlines.check(now)
        if missed is not None:
            self.cancel_with(missed)
            return
        if sent is not None:
            self._send(self.mode.prefill_notice(now - sent))
        if now - response.last_write >= settings.heartbeat:
            heartbeat = self.mode.heartbeat()
            self._send(heartbeat)
            self.heartbeats += bool(heartbeat)

    def begin(self) -> None:
        """Send status and headers, unless a heartbeat has sent them."""
        if not self.response.has_begun:
            self.response.begin(200, self.mode.headers)

    def _send(self, data: bytes) -> None:
        if data:
            self.begin()
            self.response.write(data)

    def finish(self, data: bytes) -> None:
        """Send the last data of the body, after status and headers unless they were sent."""
        if self.response.has_begun:
            self.response.finish(data)
        else:
            self.response.send(200, data, self.mode.headers)

    def _on_disconnect(self) -> None:
        self.response.mark_disconnected()
        self._handler.cancel()

    def _fail(self, failure: Failure) -> None:
        """
        End the response with a failure.

        A cancelled request to the backend fails in different ways, depending on its progress, so
        the reason for the cancellation takes precedence over `failure`.
        """
        response = self.response
        if response.is_closed:
            if not response.has_client_left and failure.check(CancelledError, ApiError) is None:
                self._internal_error(failure)  # the client cannot get it: its response is complete
            response.abort()
            return
        if self._cancel_reason is not None:
            self.error = self._cancel_reason
        elif isinstance(failure.value, ApiError):
            self.error = failure.value
        else:
            self.error = self._internal_error(failure)
        try:
            if not response.has_begun:
                response.send_error(self.error)
            elif (data := self.mode.failure(self.error)) is not None:
                response.finish(data)
            else:
                response.abort()
        except Exception:  # noqa: BLE001 - without an end, the client would wait forever
            self._log.failure("A failure could not be sent to the client")
            response.abort()

    def _internal_error(self, failure: Failure) -> ApiError:
        """Log an internal error, and return the 500 for the client."""
        self._log.failure("A request to {path} failed", failure, path=self.request.path)
        return ApiError(
            500,
            "blockops failed to process this request; its log shows the reason. Please report it.",
            type="server_error",
            code="internal_error",
        )


#: The handler of an endpoint: a coroutine function that serves one exchange.
Handler = Callable[[Exchange], Coroutine[Deferred[Any], Any, None]]
