"""
Translates responses for clients that request no stream.

The choices of a non-streaming response are translated as if each were sent in one chunk. Some
backends notice a disconnected client only while they stream, so blockops may request a stream where
the client did not, and aggregates it.
"""

from __future__ import annotations

from collections.abc import Callable

from blockops.api.answer import AnswerEvent
from blockops.api.chat.aggregate import ChunkAggregator
from blockops.api.chat.chunks import ChunkChoice
from blockops.api.chat.decoder import MAX_EVENT
from blockops.api.chat.encoder import rewrite_response
from blockops.api.notice import Notice
from blockops.api.request import ChatRequest, GenerationRequest
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choices import random_call_id
from blockops.translation.stream import StreamTranslator

#: Upper bound of the stream that is aggregated to one response, in bytes.
MAX_ANSWER = 64 * 1024 * 1024


class ResponseTranslator(StreamTranslator):
    """
    Translates one response, a stream or a JSON document, to a non-streaming response.

    :param max_answer: upper bound of the backend's stream, in bytes
    """

    def __init__(
        self,
        request: GenerationRequest,
        options: TranslationOptions,
        *,
        max_event: int = MAX_EVENT,
        max_answer: int = MAX_ANSWER,
        notice: Notice | None = None,
        new_id: Callable[[], str] = random_call_id,
    ) -> None:
        is_chat, model = isinstance(request, ChatRequest), request.model or ""
        self._aggregator = ChunkAggregator(is_chat=is_chat, model=model, max_answer=max_answer)
        super().__init__(
            request,
            options,
            max_event=max_event,
            notice=notice,
            new_id=new_id,
            encoder=self._aggregator,
        )

    def end(self, *, is_truncated: bool) -> bytes:
        """
        Return the JSON of the response, after the backend has closed or its stream has ended.

        :raises ApiError: 502 if the response is incomplete or too large; the backend's own error
        """
        super().end(is_truncated=is_truncated)
        return self._aggregator.response()

    def receive_body(self, body: bytes) -> bytes:
        """Return the JSON of the response for a non-streaming response of the backend."""
        data, chunk = self._decoder.decode_response(body, is_chat=self._is_chat)
        self.report.chunks = 1
        self.report.usage = chunk.usage_counts()
        choices = chunk.choices or []
        rewrites = [self._translate(part) for part in choices]
        if not self._is_chat or not any(rewrites):
            return data
        return rewrite_response(data, choices, rewrites)

    def _translate(self, part: ChunkChoice) -> list[AnswerEvent] | None:
        """Return the events for a complete choice, or None if it passes unchanged."""
        choice, notice = self._choices.create(part.index or 0), list[AnswerEvent]()
        if not part.index:
            choice, notice = self._with_notice(choice)
        events = choice.receive(part)
        if not self._is_chat or (choice.is_finished and not notice):
            return events
        if events is None:
            events = part.events()
        return [*notice, *events, *choice.finish()]
