"""
The steps that chats and completions have in common.

Both send a body to the backend, and send its answer to the client in the form that the client
requested, as a stream or as one JSON document, even if the backend uses the other form. If the
backend rejects a feature that can be left out, the request is sent again without it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.api.chat.request import ChatRequest
from blockops.api.completions import CompletionRequest
from blockops.api.notice import Notice
from blockops.api.request_fields import change_to_stream
from blockops.errors import ApiError
from blockops.net.http_headers import media_type
from blockops.operations.memory import MemoryGate
from blockops.proxy.exchange import Exchange, TrafficSink
from blockops.proxy.relay import relay
from blockops.proxy.response_modes import JsonMode, StreamMode
from blockops.server.response import JSON_HEADERS, STREAM_HEADERS
from blockops.settings.table import Settings
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
from blockops.translation.stream import StreamTranslator
from blockops.upstream.backend import Backend, BackendError, BackendLease
from blockops.upstream.body import check_encoding

GenerationRequest = ChatRequest | CompletionRequest
RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)

#: Returns the body for a retry after an error, or None if nothing can be left out.
RetryBody = Callable[[BackendError], bytes | None]

#: A stream that has begun, and its relay, which fires at the end of the backend's body.
OpenStream = tuple[StreamMode[StreamTranslator], Deferred[bool]]


def never_retry(_: BackendError) -> None:
    """Return None: nothing can be left out of the request."""


class Generation:
    """
    Forwards requests for answers of the model, and translates the answers.

    :param options: how tool calls are translated
    """

    def __init__(
        self,
        settings: Settings,
        options: TranslationOptions,
        *,
        backend: Backend,
        memory_gate: MemoryGate,
        traffic_log: TrafficSink,
    ) -> None:
        self._settings = settings
        self._options = options
        self._backend = backend
        self._memory_gate = memory_gate
        self._traffic_log = traffic_log

    async def serve(
        self,
        exchange: Exchange,
        respond: Callable[[Exchange, BackendLease], Awaitable[OpenStream | None]],
    ) -> None:
        """
        Call `respond` with a lease, and then wait for the end of the stream that it has opened.

        The request is released before that wait: the stream must not refer to it.

        :param respond: returns the stream, or None if it has sent a complete response
        """
        with self._backend.lease() as lease:
            stream = await respond(exchange, lease)
            if stream is not None:
                exchange.release_request()
                mode, relayed = stream
                mode.end(exchange.client_response, is_truncated=not await relayed)

    def check_availability(self) -> None:
        """
        Reject a request early, before its prompt is prepared; `send` checks the same again.

        :raises ApiError: 503, memory is critical or the backend is known to be unreachable
        """
        self._memory_gate.check()
        self._backend.check_circuit()

    def parse(self, exchange: Exchange, request_type: type[RequestT]) -> RequestT:
        """
        Return the client's request; one that is not valid is logged here.

        :raises ApiError: 400, it is not valid
        """
        body = exchange.request.pop_body()
        try:
            return request_type.parse(body, self._settings.model_alias)
        except ApiError:
            self._traffic_log.write(exchange.request_record(body))
            raise

    def log_request(self, exchange: Exchange, request: GenerationRequest, **fields: Any) -> None:
        """Write the request's record, with further `fields`, to the traffic log."""
        record = exchange.request_record(
            request.raw, model=request.model, stream=request.stream, **fields
        )
        self._traffic_log.write(record)

    def use_json_mode(self, exchange: Exchange) -> JsonMode:
        """Make the response a JSON document, and return its mode."""
        mode = exchange.mode = JsonMode(has_heartbeats=self._settings.heartbeat_json)
        return mode

    def use_stream_mode(self, exchange: Exchange, mode: StreamMode[StreamTranslator]) -> None:
        """
        Make the response a stream.

        The report on its answer is set as soon as the request is sent, because it grows with the
        stream: however the stream ends, the report has what came before.
        """
        exchange.mode = mode

        def publish_report() -> None:
            exchange.report = mode.translator.report

        exchange.run_after_first_wait(publish_report)

    def make_translator(
        self, request: GenerationRequest, notice: Notice | None = None
    ) -> StreamTranslator:
        """Return the translator for the stream that answers `request`."""
        arguments: dict[str, Any] = {
            "max_event": self._settings.max_event,
            "heartbeat_style": self._settings.heartbeat_style,
            "notice": notice,
            "is_usage_hidden": isinstance(request, ChatRequest) and not request.include_usage,
        }
        return StreamTranslator(request, self._options, **arguments)

    async def open_stream(
        self,
        exchange: Exchange,
        lease: BackendLease,
        request: GenerationRequest,
        mode: StreamMode[StreamTranslator],
        body: bytes,
        *,
        retry_body: RetryBody = never_retry,
        notice: Notice | None = None,
    ) -> OpenStream | None:
        """
        Send a request for a stream, and return the stream once the backend's headers arrive.

        None if the backend sent a complete JSON response, which was sent to the client as a stream.
        """
        while True:
            try:
                response = await self.send(exchange, lease, body)
                check_encoding(response)
                content_type = media_type(response.headers)
                if content_type == "text/html":
                    raise await self._backend.read_error(response, 502, exchange.capture)
                if content_type != "application/json":
                    client = exchange.client_response
                    mode.begin(client)
                    return mode, relay(response, client, mode.translator, exchange.capture)
                await self._send_as_stream(exchange, response, mode)
            except BackendError as error:
                body = body_for_retry(error, retry_body)
                exchange.reset_for_retry()
            else:
                return None

    async def _send_as_stream(
        self,
        exchange: Exchange,
        response: IResponse,
        mode: StreamMode[StreamTranslator],
    ) -> None:
        """Send a JSON response of the backend as a stream."""
        body = await self._backend.read_body(response, exchange.capture)
        out = mode.translator.receive_body(body)
        mode.begin(exchange.client_response)
        exchange.client_response.finish(out)

    async def send_json(
        self,
        exchange: Exchange,
        lease: BackendLease,
        request: GenerationRequest,
        mode: JsonMode,
        body: bytes,
        *,
        retry_body: RetryBody = never_retry,
        notice: Notice | None = None,
    ) -> None:
        """Send a request, and send its answer to the client as a JSON document."""
        compatibility = self._backend.compatibility
        out: bytes | None = None
        while out is None:
            # The backend gets a request for a stream, although the client gets a document: while a
            # backend streams, it notices a disconnect and stops; otherwise it may not.
            may_stream = self._settings.whole_as_stream and compatibility.supports_usage
            streaming_body = change_to_stream(body) if may_stream else None
            try:
                response = await self.send(exchange, lease, streaming_body or body)
                out = await self._read_json(exchange, response, request, notice)
            except BackendError as error:
                if streaming_body is None or not compatibility.detect_usage_error(error):
                    body = body_for_retry(error, retry_body)
                exchange.reset_for_retry()
        mode.end(exchange.client_response, out)

    async def send(
        self, exchange: Exchange, lease: BackendLease, body: bytes | IBodyProducer | None
    ) -> IResponse:
        """
        Wait for a slot, and forward the request with `body`.

        :raises BackendError: the backend responded with an error
        :raises ApiError: 429, 502, 503 or 504, there is no valid response
        """
        self._memory_gate.check()
        await lease.acquire()
        return await exchange.forward(self._backend, body)

    async def _read_json(
        self,
        exchange: Exchange,
        response: IResponse,
        request: GenerationRequest,
        notice: Notice | None,
    ) -> bytes:
        """Return the backend's answer, a stream or a JSON document, as a JSON document."""
        check_encoding(response)
        translator = ResponseTranslator(
            request,
            self._options,
            max_event=self._settings.max_event,
            max_answer=self._settings.max_answer,
            notice=notice,
        )
        exchange.report = translator.report
        if media_type(response.headers) == "text/event-stream":
            client = exchange.client_response
            is_complete = await relay(response, client, translator, exchange.capture)
            return translator.end(is_truncated=not is_complete)
        body = await self._backend.read_body(response, exchange.capture)
        if not body.startswith(b"data:"):  # a stream with a wrong Content-Type begins so
            return translator.receive_body(body)
        translator.receive_data(body)
        return translator.end(is_truncated=False)

    def send_local_response(self, exchange: Exchange, request: ChatRequest, body: bytes) -> None:
        """
        Send an answer of blockops itself.

        :param body: a `chat.completion`
        """
        translator: StreamTranslator
        if request.stream:
            translator, headers = self.make_translator(request), STREAM_HEADERS
        else:
            translator, headers = ResponseTranslator(request, self._options), JSON_HEADERS
        exchange.report = translator.report
        exchange.client_response.send(200, translator.receive_body(body), headers)


def body_for_retry(error: BackendError, retry_body: RetryBody) -> bytes:
    """
    Return the body to send after `error`.

    :raises BackendError: `error` itself, if the request cannot be sent in another way
    """
    body = retry_body(error)
    if body is None:
        raise error
    return body
