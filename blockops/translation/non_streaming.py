"""
Translates a non-streaming response.

Its choices are translated like those of a stream, as if each were sent in one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

from blockops.api.backend_errors import invalid_response, looks_like_error, to_api_error
from blockops.api.chat.chunks import ChoiceRewrite, Chunk, ChunkChoice, messages_to_deltas
from blockops.api.chat.decoder import decode_chunk_leniently
from blockops.api.chat.encoder import response_as_chunk, rewrite_response, split_usage
from blockops.api.chat.request import ChatRequest
from blockops.api.completions import CompletionRequest
from blockops.api.lenient_json import JsonRepairer, is_strict
from blockops.api.notice import Notice
from blockops.api.report import AnswerReport
from blockops.api.sse import encode_event
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choice import to_deltas
from blockops.translation.choice_factory import AnswerChoice, ChoiceFactory, random_call_id
from blockops.translation.stream import DONE_EVENT, StreamTranslator


def translate_response(
    body: bytes,
    request: ChatRequest | CompletionRequest,
    options: TranslationOptions,
    *,
    notice: Notice | None = None,
    new_id: Callable[[], str] = random_call_id,
) -> tuple[bytes, AnswerReport]:
    """
    Return the client's response, and the report on its contents.

    :param body: the backend's response
    :param notice: inserted into the first choice
    :param new_id: returns a new id for a call
    :raises ApiError: 502 if `body` is not a response; the backend's error if it is one
    """
    data, chunk, choices = _read_response(body, request)
    report = AnswerReport(chunks=1, usage=chunk.usage)
    if isinstance(request, CompletionRequest):
        for choice in choices:
            if choice.finish_reason:
                report.finish_reasons[choice.index or 0] = choice.finish_reason
        return data, report
    factory = ChoiceFactory(request, options, new_id, report, notice)
    rewrites = [_translate_choice(factory.create(choice.index or 0), choice) for choice in choices]
    if not any(rewrites):
        return data, report
    return rewrite_response(data, choices, rewrites), report


def response_as_stream(
    body: bytes,
    request: ChatRequest | CompletionRequest,
    options: TranslationOptions,
    *,
    notice: Notice | None = None,
    new_id: Callable[[], str] = random_call_id,
) -> tuple[bytes, AnswerReport]:
    """
    Return the client's response as a complete event stream, and the report on its contents.

    :param body: the backend's non-streaming response
    :param notice: inserted into the first choice
    :param new_id: returns a new id for a call
    :raises ApiError: 502 if `body` is not a response; the backend's error if it is one
    """
    data, _, _ = _read_response(body, request)
    chunk, usage = response_as_chunk(data) if isinstance(request, ChatRequest) else data, b""
    if request.include_usage:
        chunk, usage = split_usage(chunk)
    events = [encode_event(part) for part in (chunk, usage) if part]
    max_event = sum(map(len, events)) + len(DONE_EVENT)
    translator = StreamTranslator(
        request, options, notice=notice, new_id=new_id, max_event=max_event
    )
    return translator.receive_data(b"".join(events) + DONE_EVENT), translator.report


def _read_response(
    body: bytes, request: ChatRequest | CompletionRequest
) -> tuple[bytes, Chunk, list[ChunkChoice]]:
    """
    Return a response as strict JSON, its decoded fields, and its choices as those of a chunk.

    :raises ApiError: 502 if `body` is not a response; the backend's error if it is one
    """
    try:
        data = body if is_strict(body) else JsonRepairer().repair(body)
        chunk = decode_chunk_leniently(data)
    except ValueError:
        raise invalid_response(body) from None
    if chunk.error or (chunk.choices is None and looks_like_error(data)):
        raise to_api_error(data)
    is_completion = isinstance(request, CompletionRequest)
    choices = chunk.choices if is_completion else messages_to_deltas(chunk.choices)
    if not choices:
        raise invalid_response(body)
    return data, chunk, choices


def _translate_choice(translator: AnswerChoice, choice: ChunkChoice) -> ChoiceRewrite | None:
    rewrite = translator.receive(choice)
    if translator.is_finished:
        return rewrite
    deltas = to_deltas(choice) if rewrite is None else rewrite.deltas
    return ChoiceRewrite([*deltas, *translator.finish()])
