"""
One request of a client with its response, from the start of its handler to the last byte.

The stages of an exchange, for a handler that sends a request to the backend:

| stage | begins with | heartbeats | deadlines |
| --- | --- | --- | --- |
| waiting | `run` | yes | of what it waits for: a slot, the tokenizer, a cache purge |
| sent | `timeline.sent` is set | yes | first byte (upload: idle), duration |
| responding | `timeline.first_byte` is set | yes | idle, duration |
| sending | `response.is_closed`: it is finished | no | of a client that does not read |
| done | `response.when_done` has fired | no | none |

The notice about a long prefill is possible in `sent` and `responding`, until the answer has
content. While the client does not read (`response.stalled_since`), its own deadline replaces
heartbeats and the backend's deadlines in each stage, except for the duration. Three events cancel
the handler in any stage: the client disconnects, a deadline passes, or the daemon stops. Before a
retry, `reset_for_retry` leads back to `waiting`.

The deadlines:

| from | to | setting | error |
| --- | --- | --- | --- |
| the request was sent | the first byte of the response's body | `--first-byte-timeout` | 504 |
| the last byte of an upload, or of the response's body | the next one | `--idle-timeout` | 504 |
| the request was sent | the end of the response | `--max-duration` | 504 |
| the client stopped reading | the client reads again | `--client-timeout` | 408, only in the log |

The first one is checked once the whole request has arrived, the idle one of an upload before that.
The time that a request waits in the queue is limited by `blockops.upstream.admission`.

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
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from blockops.api.report import AnswerReport
from blockops.conversation.turn import AnswerFeedback
from blockops.errors import ApiError
from blockops.operations.traffic_log.log import NoTrafficLog, TrafficLog
from blockops.operations.traffic_log.records import RequestRecord, ResponseRecord
from blockops.proxy.response_modes import ResponseMode
from blockops.server.request import ClientRequest
from blockops.server.response import ClientResponse
from blockops.settings.table import Settings


@dataclass(slots=True)
class Timeline:
    """
    When something happened to a request, in seconds of the reactor's clock; None if it has not yet.

    It is the only source of times: for the log, the metrics, and the deadlines.

    :param received: the request arrived; for an upload, its headers
    :param sent: the request was sent to the backend; the bytes are those of its response's body
    """

    received: float
    sent: float | None = None
    first_byte: float | None = None
    last_byte: float | None = None


class Exchange:
    """
    One request of a client and its response.

    :ivar id: the id of both records in the traffic log, and the header `X-Request-Id`
    :ivar address: the client's address; None for a Unix socket
    :ivar body: the request's body, until the request is logged; empty for an upload
    :ivar mode: how the response sends heartbeats and failures
    :ivar feedback: learns from the answer; None if nothing is to be learnt
    :ivar backend_response: the backend's response, until its body is read
    :ivar captured: the beginning of the backend's body, for the traffic log
    :ivar bytes_in: the size of the backend's body
    :ivar done: fires when the response is done; never fails
    """

    __slots__ = (
        "_cancel_reason",
        "_last_progress",
        "_traffic_log",
        "_upload_size",
        "address",
        "backend_response",
        "body",
        "bytes_in",
        "captured",
        "clock",
        "done",
        "error",
        "feedback",
        "heartbeats",
        "id",
        "is_logged",
        "mode",
        "request",
        "response",
        "settings",
        "timeline",
    )

    _log = Logger()

    def __init__(
        self,
        request: ClientRequest,
        clock: IReactorTime,
        settings: Settings,
        traffic_log: TrafficLog | NoTrafficLog,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.address: str | None = getattr(request.connection.client_address, "host", None)
        self.request = request
        self.body = request.pop_body()
        self.response = ClientResponse(request, clock)
        self.mode = ResponseMode()
        self.feedback: AnswerFeedback | None = None
        self.backend_response: IResponse | None = None
        self.captured = bytearray()
        self.bytes_in = 0
        self.error: ApiError | None = None
        self.heartbeats = 0
        self.is_logged = False
        self.done: Deferred[None] = Deferred()
        self.clock = clock
        self.settings = settings
        self.timeline = Timeline(clock.seconds())
        self._traffic_log = traffic_log
        self._cancel_reason: ApiError | None = None
        # Of an upload: its size, and when it last grew or the client was paused.
        self._upload_size = 0
        self._last_progress = self.timeline.received
        request.responseHeaders.setRawHeaders("X-Request-Id", [self.id])

    async def run(self, handler: Handler) -> None:
        """
        Run `handler`, and make sure that the client gets a response; return when it is done.

        A client that disconnects cancels the handler.
        """
        self.request.on_disconnect = self._on_disconnect
        if self.request.upload is not None:
            self.request.upload.on_failure = self.cancel_with
            self.request.upload.capture(self.settings.log_body)
        try:
            await handler(self)
            if not self.response.is_closed:
                raise RuntimeError(  # noqa: TRY301 - reported below, like any failure
                    f"the handler of {self.request!r} did not respond"
                )
        except Exception:  # noqa: BLE001 - each failure is reported to the client
            self._fail(Failure())
        try:
            await self.response.when_done()
        except CancelledError:
            self.response.abort()

    def reset_for_retry(self) -> None:
        """Forget the backend's response, because the request is sent again with another body."""
        self.timeline = Timeline(self.timeline.received)
        self.captured.clear()
        self.bytes_in = 0

    def cancel_with(self, error: ApiError) -> None:
        """Cancel the handler, and send `error` to the client; further calls have no effect."""
        if self._cancel_reason is None:
            self._cancel_reason = error
            self.done.cancel()

    def log_request(self, **fields: Any) -> None:
        """
        Write the record of the request to the traffic log.

        :param fields: further fields of the record, from the parsed body
        """
        self.is_logged = True
        request, upload = self.request, self.request.upload
        body, self.body = self.body, b""
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

        def milliseconds_until(moment: float | None) -> float | None:
            return None if moment is None else round(1000 * (moment - self.timeline.received), 3)

        response, report = self.response, self.mode.report or AnswerReport()
        error = report.error if self.error is None else self.error.message
        return ResponseRecord(
            id=self.id,
            status=response.status or None,
            outcome="failed" if error else "client left" if response.has_client_left else "done",
            queued_ms=milliseconds_until(self.timeline.sent),
            first_byte_ms=milliseconds_until(self.timeline.first_byte),
            last_byte_ms=milliseconds_until(self.clock.seconds()),
            bytes_in=self.bytes_in,
            bytes_out=response.bytes_sent,
            usage=report.usage,
            calls=report.tool_names,
            formats=report.calls_by_dialect,
            finish_reasons=list(report.finish_reasons.values()),
            tally=report.counters,
            error=error,
            body=bytes(self.captured),
        )

    def tick(self, now: float) -> None:
        """Send a heartbeat if one is due, and enforce the deadlines."""
        settings, response, sent = self.settings, self.response, self.timeline.sent
        if sent is not None and now - sent >= settings.max_duration and not response.is_closed:
            self.cancel_with(
                _backend_timeout(
                    f"The backend did not complete its response within {settings.max_duration:g} "
                    "seconds. Raise --max-duration if responses may take longer."
                )
            )
        if response.stalled_since is not None:
            self._last_progress = now  # the backend is paused, because the client is
            stalled = response.seconds_stalled(now)
            if stalled >= settings.client_timeout and not response.has_client_left:
                self.error = ApiError(
                    408,
                    f"The client read nothing for {settings.client_timeout:g} seconds. Raise "
                    "--client-timeout if clients may pause that long.",
                )
                response.abort()
            return
        if response.is_closed:
            return
        if sent is not None:
            missed = self._missed_backend_deadline(now, sent)
            if missed is not None:
                self.cancel_with(missed)
                return
            self._send(self.mode.prefill_notice(now - sent))
        if now - response.last_write >= settings.heartbeat:
            heartbeat = self.mode.heartbeat()
            self._send(heartbeat)
            self.heartbeats += bool(heartbeat)

    def _missed_backend_deadline(self, now: float, sent: float) -> ApiError | None:
        """Return the error of the first-byte or the idle timeout, if one has passed."""
        upload = self.request.upload
        name, timeout = "idle", self.settings.idle_timeout
        if self.timeline.last_byte is not None:
            since = max(self.timeline.last_byte, self._last_progress)
        elif upload is None or upload.is_complete:
            name, timeout, since = "first-byte", self.settings.first_byte_timeout, sent
        else:
            # The client has its own deadline for the upload. This one is for a backend that does
            # not read it.
            if upload.size != self._upload_size:
                self._upload_size, self._last_progress = upload.size, now
            since = max(sent, self._last_progress)
        if now - since < timeout:
            return None
        return _backend_timeout(
            f"The backend sent nothing for {timeout:g} seconds. Check whether it is overloaded, or "
            f"raise --{name}-timeout."
        )

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
        self.done.cancel()

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


def _backend_timeout(message: str) -> ApiError:
    return ApiError(504, message, type="server_error", code="backend_timeout")


#: The handler of an endpoint: a coroutine function that serves one exchange.
Handler = Callable[[Exchange], Coroutine[Deferred[Any], Any, None]]
