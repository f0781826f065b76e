"""
The steps that chats and completions have in common.

Both send a body to the backend, and send its answer to the client in the form that the client
requested, as a stream or as one JSON document, even if the backend uses the other form. If the
backend rejects a feature that can be left out, the request is sent again without it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.iweb import IResponse

from blockops.api.chat.request import ChatRequest
from blockops.api.completions import CompletionRequest
from blockops.api.notice import Notice
from blockops.api.request_fields import change_to_stream
from blockops.conversation.feedback import PrefillNotice
from blockops.net.http_headers import media_type
from blockops.proxy.exchange import Exchange
from blockops.proxy.relay import forward, read_body, read_error, relay
from blockops.proxy.response_modes import AnswerMode, AnswerStreamMode, JsonMode
from blockops.settings.table import Settings
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
from blockops.translation.stream import StreamTranslator
from blockops.upstream.backend import Backend, BackendError
from blockops.upstream.body import check_encoding

GenerationRequest = ChatRequest | CompletionRequest


def never_retry(_: BackendError) -> None:
    """Return None: nothing can be left out of the request."""


def make_mode(
    request: GenerationRequest,
    settings: Settings,
    options: TranslationOptions,
    notice: Notice | None = None,
    prefill_notice: PrefillNotice | None = None,
) -> AnswerMode:
    """
    Return the mode of the response, with the translator of the answer.

    :param options: how tool calls are translated
    """
    if not request.stream:
        translator = ResponseTranslator(
            request,
            options,
            max_event=settings.max_event,
            max_answer=settings.max_answer,
            notice=notice,
        )
        return JsonMode(translator, has_heartbeats=settings.heartbeat_json)
    stream_translator = StreamTranslator(
        request,
        options,
        max_event=settings.max_event,
        heartbeat_style=settings.heartbeat_style,
        notice=notice,
        is_usage_hidden=isinstance(request, ChatRequest) and not request.include_usage,
    )
    return AnswerStreamMode(stream_translator, prefill_notice)


async def send(
    exchange: Exchange,
    backend: Backend,
    request: GenerationRequest,
    body: bytes,
    retry_body: Callable[[BackendError], bytes | None] = never_retry,
) -> IResponse:
    """
    Send the request with `body`, and return the response if its status is below 400.

    :param retry_body: returns the body for a retry after an error, or None if nothing can be
        left out
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
                next_body = retry_body(error)
                if next_body is None:
                    raise
                body = next_body
        exchange.reset_for_retry()


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
