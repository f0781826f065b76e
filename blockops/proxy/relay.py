"""
A request's way to the backend, and the way of the backend's response to the client.

`send` and `relay_answer` are for chats and completions. If the backend rejects a feature that can
be left out, the request is sent again without it. The answer is sent in the form that the client
requested, as a stream or as one JSON document, even if the backend uses the other form.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.api.backend_errors import response_too_large, to_error_response, truncated_response
from blockops.api.passthrough import PassThrough
from blockops.api.request import GenerationRequest, change_to_stream
from blockops.errors import ApiError
from blockops.net.http_headers import forwarded_error_headers, media_type
from blockops.proxy.exchange import Exchange
from blockops.proxy.response_modes import AnswerMode
from blockops.translation.stream import StreamTranslator
from blockops.upstream.backend import Backend, BackendError
from blockops.upstream.body import BodyTooLarge, ResponseBody, check_encoding

#: Bytes of an error response that are read: enough for a page of HTML.
MAX_ERROR = 1024 * 1024
#: The largest valid status code (RFC 9110, section 15).
MAX_STATUS = 599


class _BodyCollector:
    """A translator that keeps the body, and sends nothing; `limit` is in bytes."""

    has_ended = False

    def __init__(self, limit: int) -> None:
        self._remaining = limit
        self.pieces: list[bytes] = []

    def receive_data(self, data: bytes) -> bytes:
        self._remaining -= len(data)
        if self._remaining < 0:
            raise BodyTooLarge
        self.pieces.append(data)
        return b""


#: Turns the backend's bytes into the client's; nothing follows once it `has_ended`.
Translator = StreamTranslator | PassThrough | _BodyCollector


async def forward(
    exchange: Exchange,
    backend: Backend,
    body: bytes | IBodyProducer | None,
    target: str | None = None,
) -> IResponse:
    """
    Forward the request to `backend`; return the response if its status is below 400.

    :param target: path and query; None for those of the request
    :raises BackendError: the status is 400 or above
    :raises ApiError: 502, 503 or 504, there is no valid response
    """
    request = exchange.request
    exchange.timeline.sent = exchange.clock.seconds()
    response = exchange.backend_response = await backend.request(
        request.method.decode("ascii"),
        target or request.uri.decode("ascii"),
        request.requestHeaders,
        body,
    )
    if not HTTPStatus.OK <= response.code <= MAX_STATUS:
        raise ApiError(
            502,
            f"The backend responded with the invalid status {response.code}. Check that --backend "
            "is the URL of an HTTP server.",
            type="server_error",
            code="backend_invalid_response",
        )
    if response.code >= HTTPStatus.BAD_REQUEST:
        raise await read_error(exchange, response, response.code)
    return response


async def send(
    exchange: Exchange,
    backend: Backend,
    request: GenerationRequest,
    body: bytes,
    retry_body: Callable[[BackendError], bytes | None] | None = None,
) -> IResponse:
    """
    Send the request with `body`, and return the response if its status is below 400.

    :param retry_body: returns the body without a feature that the backend has rejected, or None
    :raises BackendError: the backend rejected the request
    :raises ApiError: 502, 503 or 504, there is no valid response
    """
    compatibility = backend.compatibility
    while True:
        # The backend gets a request for a stream, although the client gets a document: while a
        # backend streams, it notices a disconnect and stops; otherwise it may not.
        may_stream = (
            not request.stream
            and exchange.settings.whole_as_stream
            and compatibility.supports_usage
        )
        streaming_body = change_to_stream(body) if may_stream else None
        try:
            return await forward(exchange, backend, streaming_body or body)
        except BackendError as error:
            if streaming_body is None or not compatibility.detect_usage_error(error):
                next_body = None if retry_body is None else retry_body(error)
                if next_body is None:
                    raise
                body = next_body
        exchange.reset_for_retry()


class _StreamRelay(ResponseBody):
    """Sends the body on as it arrives; the client's backpressure pauses the backend."""

    def __init__(self, exchange: Exchange, translator: Translator) -> None:
        super().__init__()
        self._exchange = exchange
        self._client = exchange.response
        self._translator = translator
        # The result for `ended`, if the relay has closed the connection.
        self._result: bool | Failure | None = None

    def connectionMade(self) -> None:
        self._client.set_source(cast("IPushProducer", self.transport))

    def dataReceived(self, data: bytes) -> None:
        if self._result is not None:
            return
        exchange = self._exchange
        timeline = exchange.timeline
        timeline.last_byte = exchange.clock.seconds()
        if timeline.first_byte is None:
            timeline.first_byte = timeline.last_byte
        exchange.bytes_in += len(data)
        uncaptured = exchange.settings.log_body - len(exchange.captured)
        if uncaptured > 0:
            exchange.captured += data[:uncaptured]
        try:
            self._client.write(self._translator.receive_data(data))
        except Exception:  # noqa: BLE001 - Twisted would report it as a lost connection
            self._result = Failure()
            self.close()
            return
        if self._translator.has_ended:
            # Some servers keep the connection open after `[DONE]`: ignore the rest.
            self._result = True
            self.close()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._client.set_source(None)
        if self._result is not None and not self.ended.called:
            self.ended.callback(cast("bool", self._result))
        super().connectionLost(reason)


def relay(exchange: Exchange, response: IResponse, translator: Translator) -> Deferred[bool]:
    """
    Send the body of `response` through `translator` to the client, with backpressure.

    Fires at the end of the body: with True if it may be complete, with False if the connection was
    closed too early. Cancelling closes the backend's connection.
    """
    body = _StreamRelay(exchange, translator)
    exchange.backend_response = None
    response.deliverBody(body)
    return body.ended


async def read_body(exchange: Exchange, response: IResponse) -> bytes:
    """
    Return the body of a non-streaming response.

    :raises ApiError: 502, the body is compressed, too large or truncated
    """
    limit = exchange.settings.max_answer
    check_encoding(response)
    collector = _BodyCollector(limit)
    try:
        is_complete = await relay(exchange, response, collector)
    except BodyTooLarge:
        raise response_too_large(limit) from None
    if not is_complete:
        raise truncated_response(b"", 1, is_connection_lost=True)
    return b"".join(collector.pieces)


async def read_error(exchange: Exchange, response: IResponse, status: int) -> BackendError:
    """
    Read an error response, and return it as an error for the client.

    :param status: the status to report if the body names no other
    """
    try:
        check_encoding(response)
    except ApiError as error:
        return BackendError(status, error.body(), forwarded_error_headers(response.headers))
    collector = _BodyCollector(MAX_ERROR)
    try:
        await relay(exchange, response, collector)
    except BodyTooLarge:
        collector.pieces.clear()
    body = b"".join(collector.pieces)
    status, body = to_error_response(status, body, media_type(response.headers))
    return BackendError(status, body, forwarded_error_headers(response.headers))


async def relay_answer(exchange: Exchange, response: IResponse, mode: AnswerMode) -> None:
    """
    Translate the answer, and send it to the client.

    :raises ApiError: 502, it is not an answer; or the error that the backend sent in its place
    """
    check_encoding(response)
    translator = mode.translator
    content_type = media_type(response.headers)
    if mode.is_stream and content_type == "text/html":
        raise await read_error(exchange, response, 502)
    if content_type == "text/event-stream" or (
        mode.is_stream and content_type != "application/json"
    ):
        if mode.is_stream:
            exchange.begin()
            exchange.request.release()
        relayed = relay(exchange, response, translator)
        del response
        is_complete = await relayed
        exchange.finish(translator.end(is_truncated=not is_complete))
        return
    body = await read_body(exchange, response)
    if body.startswith(b"data:"):  # a stream with a wrong Content-Type
        out = translator.receive_data(body) + translator.end(is_truncated=False)
    else:
        out = translator.receive_body(body)
    exchange.finish(out)
