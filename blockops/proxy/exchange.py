"""
One request of a client with its response, from the start of its handler to the last byte.

The stages of an exchange, for a handler that sends a request to the backend:

| stage | begins with | heartbeats | deadlines |
| --- | --- | --- | --- |
| waiting | `run` | yes | of what it waits for: a slot, the tokenizer, a cache purge |
| sent | `sent_at` is set: `forward` sends the request | yes | first byte (upload: idle), duration |
| responding | `capture.first_byte_at` is set | yes | idle, duration |
| sending | `client_response.is_closed`: it is finished | no | of a client that does not read |
| done | `client_response.is_done` | no | none |

The notice about a long prefill is possible in `sent` and `responding`, until the answer has
content. While the client does not read (`client_response.stalled_since`), its own deadline replaces
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
from enum import Enum, auto
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.api.report import AnswerReport
from blockops.conversation.feedback import AnswerFeedback
from blockops.errors import ApiError
from blockops.operations.traffic_log.records import Record, RequestRecord, ResponseRecord
from blockops.proxy.deadlines import BackendDeadlines, duration_error, stalled_client_error
from blockops.proxy.relay import BackendCapture
from blockops.proxy.response_modes import PassthroughMode, ResponseMode
from blockops.server.request import ClientRequest
from blockops.server.response import ClientResponse
from blockops.settings.table import Settings
from blockops.upstream.backend import Backend


class TrafficSink(Protocol):
    """Writes records to the traffic log."""

    def write(self, record: Record) -> None: ...


class LogState(Enum):
    """Whether the traffic log contains a request. A response is logged if its request was."""

    #: `InFlightRequests` logs the request at its end, if it is to be logged at all.
    PENDING = auto()
    #: The record of the request was made.
    LOGGED = auto()
    #: Health checks, metrics and CORS preflights are not logged.
    EXCLUDED = auto()


class Exchange:
    """
    One request of a client and its response.

    :ivar id: the id of both records in the traffic log, and the header `X-Request-Id`
    :ivar client_response: the response to the client
    :ivar target: path and query for the backend; None for those of the request
    :ivar mode: how the response sends heartbeats and failures; set by the endpoint
    :ivar capture: receives the backend's body
    :ivar report: the contents of the answer, or None
    :ivar feedback: learns from the answer; None if nothing is to be learnt
    :ivar log_state: whether the traffic log contains the request
    :ivar received_at: seconds of the reactor's clock
    :ivar sent_at: when the request was sent to the backend, by the same clock; None before
    :ivar backend_response: the backend's response; None before, and again once its body streams
    :ivar error: the error that the request failed with; None if it did not fail
    :ivar heartbeats: the number of heartbeats that were sent
    """

    _log = Logger()

    def __init__(self, request: ClientRequest, clock: IReactorTime, settings: Settings) -> None:
        self.id = secrets.token_hex(8)
        self.request = request
        self.client_response = ClientResponse(request, clock)
        self.target: str | None = None
        self.mode: ResponseMode = PassthroughMode()
        self.capture = BackendCapture(clock, settings.log_body)
        self.report: AnswerReport | None = None
        self.feedback: AnswerFeedback | None = None
        self.log_state = LogState.PENDING
        self.received_at = clock.seconds()
        self.sent_at: float | None = None
        self.error: ApiError | None = None
        self.backend_response: IResponse | None = None
        self.heartbeats = 0
        self._clock = clock
        self._settings = settings
        self._deadlines = BackendDeadlines(settings)
        self._cancel_reason: ApiError | None = None
        self._handler_deferred: Deferred[None] = Deferred()
        # The calls of `run_after_first_wait`; None once they were made.
        self._postponed_calls: list[Callable[[], object]] | None = []

    def run(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """
        Run the coroutine of a handler, and make sure that the client gets a response.

        Fires when the response is done; never fails. A client that disconnects cancels the handler.
        Call it once.
        """
        self.request.on_disconnect = self._on_disconnect
        if self.request.upload is not None:
            self.request.upload.on_failure = self.cancel_with
            self.request.upload.capture(self._settings.log_body)
        self._handler_deferred = Deferred.fromCoroutine(self._run(coroutine))
        self._run_postponed()
        return self._handler_deferred

    async def _run(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> None:
        try:
            try:
                await coroutine
            finally:
                if self.feedback is not None:
                    self.feedback.learn(self.report)
            if not self.client_response.is_closed:
                raise RuntimeError(  # noqa: TRY301 - reported below, like any failure
                    f"the handler of {self.request!r} did not respond"
                )
            if not self.client_response.is_done:
                await self.client_response.when_done()
        except Exception:  # noqa: BLE001 - each failure is reported to the client
            await self._handle_failure(Failure())

    async def _handle_failure(self, failure: Failure) -> None:
        try:
            await self._send_failure(failure)
        except Exception as error:  # noqa: BLE001 - not even the failure could be sent
            if not isinstance(error, CancelledError):
                self._log.failure("A failure could not be sent to the client", Failure())
            self.client_response.abort()

    async def forward(self, backend: Backend, body: bytes | IBodyProducer | None) -> IResponse:
        """
        Forward the request to `backend`; return the response if its status is below 400.

        :raises BackendError: the status is 400 or above
        :raises ApiError: 502, 503 or 504, there is no valid response
        """
        self.sent_at = self._clock.seconds()
        request = self.request
        response = self.backend_response = await backend.request(
            request.method.decode("ascii"),
            self.target or request.uri.decode("ascii"),
            request.requestHeaders,
            body,
        )
        await backend.check_status(response, self.capture)
        return response

    def release_request(self) -> None:
        """
        Release the request and the backend's response, once its body streams.

        They are no longer needed, and the stream may stay open for hours.
        """
        self.request.release()
        self.backend_response = None

    def run_after_first_wait(self, work: Callable[[], object]) -> None:
        """
        Call `work` once the handler waits for the first time, or has ended; at once after that.

        The first wait is usually for the backend, which has the request by then. So work for the
        log or for the response does not delay the first token.
        """
        if self._postponed_calls is None:
            work()
        else:
            self._postponed_calls.append(work)

    def _run_postponed(self) -> None:
        postponed, self._postponed_calls = self._postponed_calls, None
        try:
            for work in postponed or ():
                work()
        except Exception:  # noqa: BLE001 - it fails the request, as in the handler
            self.cancel_with(self._internal_error(Failure()))

    def reset_for_retry(self) -> None:
        """Forget the backend's response, because the request is sent again with another body."""
        self.sent_at = None
        self.capture = BackendCapture(self._clock, self._settings.log_body)

    def cancel_with(self, error: ApiError) -> None:
        """Cancel the handler, and send `error` to the client; further calls have no effect."""
        if self._cancel_reason is None:
            self._cancel_reason = error
            self._handler_deferred.cancel()

    @property
    def address(self) -> str | None:
        """The client's address; None for a Unix socket."""
        return getattr(self.request.getClientAddress(), "host", None)

    def request_record(self, body: bytes = b"", **fields: Any) -> RequestRecord:
        """
        Return the record of the request for the traffic log, and mark the request as logged.

        :param body: the request's body; for one that is forwarded as it arrives, its captured
            beginning is used instead
        :param fields: further fields of the record, from the parsed body
        """
        self.log_state = LogState.LOGGED
        request = self.request
        upload = request.upload
        if upload is not None:
            body = upload.captured_bytes()
        return RequestRecord(
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

    def response_record(self) -> ResponseRecord:
        """Return the record of the response for the traffic log; call it once it has ended."""
        client, report = self.client_response, self.report or AnswerReport()
        error = report.error if self.error is None else self.error.message
        return ResponseRecord(
            id=self.id,
            status=client.status or None,
            outcome="failed" if error else "client left" if client.has_client_left else "done",
            queued_ms=self._milliseconds_until(self.sent_at),
            first_byte_ms=self._milliseconds_until(self.capture.first_byte_at),
            last_byte_ms=self._milliseconds_until(self._clock.seconds()),
            bytes_in=self.capture.size,
            bytes_out=client.bytes_sent,
            usage=report.usage,
            calls=report.tool_names,
            formats=report.calls_by_dialect,
            finish_reasons=list(report.finish_reasons.values()),
            tally=report.counters,
            error=error,
            body=self.capture.body(),
        )

    def _milliseconds_until(self, moment: float | None) -> float | None:
        """Return the milliseconds from the receipt of the request to `moment`."""
        return None if moment is None else round(1000 * (moment - self.received_at), 3)

    def set_notice_header(self, text: str) -> None:
        """Set the header `X-Blockops-Notice` of a response that has not begun."""
        self.request.setHeader("X-Blockops-Notice", text.encode("ascii", "replace"))

    def tick(self, now: float) -> None:
        """Send a heartbeat if one is due, and enforce the deadlines."""
        settings, client = self._settings, self.client_response
        if (
            self.sent_at is not None
            and now - self.sent_at >= settings.max_duration
            and not client.is_closed
        ):
            self.cancel_with(duration_error(settings.max_duration))
        if client.stalled_since is not None:
            # The backend is paused meanwhile, so its silence is no reason for a timeout.
            self.capture.last_byte_at = now
            stalled = client.seconds_stalled(now)
            if stalled >= settings.client_timeout and not client.has_client_left:
                self.error = stalled_client_error(settings.client_timeout)
                client.abort()
            return
        if client.is_closed:
            return
        if self.sent_at is not None:
            missed = self._deadlines.check(now, self.sent_at, self.capture, self.request.upload)
            if missed is not None:
                self.cancel_with(missed)
                return
            self.mode.send_prefill_notice(client, now - self.sent_at)
        if now - client.last_write >= settings.heartbeat:
            self.mode.send_heartbeat(client)
            if client.last_write == now:
                self.heartbeats += 1

    def _on_disconnect(self) -> None:
        self.client_response.mark_disconnected()
        self._handler_deferred.cancel()

    def _send_failure(self, failure: Failure) -> Deferred[None]:
        """
        End the response with a failure. Fires when the response is done.

        A cancelled request to the backend fails in different ways, depending on its progress, so
        the reason for the cancellation takes precedence over `failure`.
        """
        client = self.client_response
        if client.is_closed:
            if not client.has_client_left and failure.check(CancelledError, ApiError) is None:
                self._internal_error(failure)  # the client cannot get it: its response is complete
            client.abort()
            return client.when_done()
        if self._cancel_reason is not None:
            self.error = self._cancel_reason
        elif isinstance(failure.value, ApiError):
            self.error = failure.value
        else:
            self.error = self._internal_error(failure)
        self.mode.fail(client, self.error)
        return client.when_done()

    def _internal_error(self, failure: Failure) -> ApiError:
        """Log an internal error, and return the 500 for the client."""
        self._log.failure("A request to {path} failed", failure, path=self.request.path)
        return ApiError(
            500,
            "blockops failed to process this request; its log shows the reason. Please report it.",
            type="server_error",
            code="internal_error",
        )
