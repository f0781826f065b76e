"""
Translates a stream: the backend's bytes in, the client's bytes out.

There is one `StreamTranslator` for each response. It has no sockets and no clock: the caller
reports that the backend has closed (`end`), that the client needs a heartbeat (`heartbeat`), that
the backend is still reading the prompt (`prefill_notice`), or that something failed (`fail`).

    state           begins with             event of the backend    prefill_notice  heartbeat
    --------------  ----------------------  ----------------------  --------------  ---------
    waiting         the start               passes or is rewritten  sent            sent
    `_has_content`  a chunk with content,   passes or is rewritten  nothing         sent
                    reasoning or a call
    `has_ended`     `[DONE]` or an error    ignored                 nothing         nothing
                    event to the client

A stream ends with `[DONE]` or with an error event, and nothing is sent after either:

    the backend                                    the client gets
    ---------------------------------------------  ----------------------------------------------
    sends `[DONE]`                                 each missing finish reason, then `[DONE]`
    closes after all finish reasons                `[DONE]`
    closes after a JSON body instead of a stream   its answer as a stream, then `[DONE]`
    closes anywhere else                           the text held back, then an error event
    sends an error, or something invalid           the text held back, then an error event
    (or the caller reports an error with `fail`)

So each choice of a stream with `[DONE]` has exactly one finish reason, and a truncated answer never
looks complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from blockops.api.answer import AnswerEvent, ReasoningDelta
from blockops.api.backend_errors import (
    invalid_response,
    looks_like_error,
    to_error_event,
    truncated_response,
)
from blockops.api.chat.chunks import messages_to_deltas
from blockops.api.chat.decoder import (
    MAX_EVENT,
    BackendEvent,
    ChunkDecoder,
    ReceivedChunk,
    StreamError,
    has_content,
    receive_chunk,
)
from blockops.api.chat.encoder import (
    ChunkEncoder,
    only_usage,
    response_as_chunk,
    rewrite_chunk,
    without_usage,
)
from blockops.api.lenient_json import is_strict
from blockops.api.notice import Notice
from blockops.api.report import AnswerReport
from blockops.api.request import ChatRequest, GenerationRequest
from blockops.api.sse import HEARTBEAT, Event, encode_event
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choice import ChoiceTranslator
from blockops.translation.choices import AnswerChoice, Choices, random_call_id
from blockops.translation.notice_insertion import NoticeInserter


class StreamTranslator:
    """
    Translates the event stream of one response.

    :param max_event: upper bound of one event of the backend, in bytes
    :param heartbeat_style: "chunk" for clients whose idle timers do not count comments
    :param notice: inserted into the first choice
    :param is_usage_hidden: True to remove `usage` from chunks without choices
    :param encoder: the encoder of the client's response, if that is not a stream of chunks
    :ivar has_ended: True once `[DONE]` or an error event was sent
    :ivar report: the contents of the answer so far
    """

    __slots__ = (
        "_choices",
        "_decoder",
        "_encoder",
        "_has_content",
        "_heartbeat_style",
        "_include_usage",
        "_is_chat",
        "_is_prefilled",
        "_is_steady",
        "_is_usage_hidden",
        "_last_non_chunk",
        "_notice",
        "_usage_sent",
        "has_ended",
        "report",
    )

    def __init__(
        self,
        request: GenerationRequest,
        options: TranslationOptions,
        *,
        max_event: int = MAX_EVENT,
        heartbeat_style: Literal["comment", "chunk"] = "comment",
        notice: Notice | None = None,
        is_usage_hidden: bool = False,
        new_id: Callable[[], str] = random_call_id,
        encoder: ChunkEncoder | None = None,
    ) -> None:
        self.has_ended = False
        self.report = AnswerReport()
        self._is_chat = isinstance(request, ChatRequest)
        self._encoder = encoder or ChunkEncoder(is_chat=self._is_chat, model=request.model or "")
        alias = None if request.model == request.backend_model else request.model
        self._decoder = ChunkDecoder(max_event, self.report.counters, alias)
        self._choices = Choices(request, options, new_id, self.report)
        self._notice = notice
        self._is_prefilled = options.think_prefilled
        self._heartbeat_style = heartbeat_style
        self._include_usage = request.include_usage
        self._is_usage_hidden = is_usage_hidden
        self._usage_sent: dict[str, Any] | None = None  # in a chunk with choices
        # The last event that was not a chunk, and the number of chunks at that time.
        self._last_non_chunk = (b"", 0)
        self._has_content = False
        self._is_steady = False  # the answer has content, and the notice is inserted

    def receive_data(self, data: bytes) -> bytes:
        """Return the events that `data` completes, translated; an error event for any failure."""
        if self.has_ended:
            return b""
        out: list[bytes] = []
        try:
            for event in self._decoder.receive_data(data):
                if self._is_steady and isinstance(event, ReceivedChunk) and event.only_part:
                    # Nearly every chunk: as `_on_chunk`, with few calls.
                    self.report.chunks += 1
                    part = event.only_part
                    events = self._choices[part.index or 0].receive(part)
                    if events is not None:
                        out.append(self._encoder.rewrite(event, [events]))
                    elif self._encoder.forwards_chunks:
                        out.append(event.event)
                    else:
                        self._encoder.pass_through(event)
                    continue
                out.append(self._on_event(event))
                if self.has_ended:
                    break
        except ApiError as error:
            out.append(self.fail(error))
        return out[0] if len(out) == 1 else b"".join(out)

    def receive_body(self, body: bytes) -> bytes:
        """
        Return the complete stream for a non-streaming response.

        :raises ApiError: 502 if `body` is not a response; the backend's error if it is one
        """
        data, _ = self._decoder.decode_response(body, is_chat=self._is_chat)
        chunk = response_as_chunk(data) if self._is_chat else data
        chunks = [without_usage(chunk), only_usage(chunk)] if self._include_usage else [chunk]
        out = [self._on_chunk(receive_chunk(each)) for each in chunks]
        return b"".join([*out, self._on_done()])

    def heartbeat(self) -> bytes:
        """Return a heartbeat: a comment or an empty delta; empty once the stream has ended."""
        if self.has_ended:
            return b""
        if self._heartbeat_style == "comment":
            return HEARTBEAT
        choice = self._choices[0]
        return (not choice.is_finished and self._encoder.encode(choice.start())) or (
            self._encoder.heartbeat(has_choice=not choice.is_finished)
        )

    def prefill_notice(self, text: str) -> bytes:
        """Return an event with `text` as `reasoning_content`; empty once the answer has content."""
        if self.has_ended or self._has_content or (choice := self._choices[0]).is_finished:
            return b""
        return self._encoder.encode([*choice.start(), ReasoningDelta(0, text)])

    def end(self, *, is_truncated: bool) -> bytes:
        """
        End the stream after the backend has closed; return the remaining events.

        :param is_truncated: True if the transport reports that bytes are missing
        """
        if self.has_ended:
            return b""
        if self._choices and all(choice.is_finished for choice in self._choices.values()):
            self.has_ended = True
            return self._encoder.done()
        pending, chunks = self._decoder.pending, self.report.chunks
        if not is_truncated and not chunks and pending.startswith(b"{") and is_strict(pending):
            return self._on_json_body(pending)
        non_chunk, chunks_before = self._last_non_chunk
        if not pending and chunks_before == chunks:
            pending = non_chunk
        return self.fail(truncated_response(pending, chunks, is_connection_lost=is_truncated))

    def _on_json_body(self, body: bytes) -> bytes:
        try:
            event = self._decoder.decode(Event(body, encode_event(body)))
            events = self._on_event(event) if event is not None else b""
        except ApiError as error:
            return self.fail(error)
        return events if self.has_ended else events + self._on_done()

    def fail(self, error: ApiError) -> bytes:
        """End the stream: return the text held back, and `error` as the last event."""
        return self._end_with_error(error.message, error.body())

    def _end_with_error(self, message: str, json: bytes) -> bytes:
        if self.has_ended:
            return b""
        surrogates = self._flush_surrogates()
        self.has_ended = True
        self.report.error = message
        flushed = [self._encoder.encode(choice.flush()) for choice in self._choices.values()]
        return b"".join([surrogates, *flushed, self._encoder.error(json)])

    def _flush_surrogates(self) -> bytes:
        if not self._decoder.has_surrogates:
            return b""
        return self._on_chunk(self._decoder.flush(self._encoder.envelope()))

    def _on_event(self, event: BackendEvent) -> bytes:
        if isinstance(event, ReceivedChunk):
            return self._on_chunk(event)
        if isinstance(event, StreamError):
            return self._end_with_error(event.message, event.json)
        return self._on_done()

    def _on_chunk(self, chunk: ReceivedChunk) -> bytes:
        self.report.chunks += 1
        fields = chunk.fields
        choices = fields.choices or []
        usage = fields.usage_counts()
        if usage is not None:
            if fields.choices == [] and usage == self._usage_sent:
                # vllm-mlx repeats the usage of the chunk with the finish reason, and some clients
                # add up every usage that they get.
                self.report.counters["usage_again"] += 1
                return self._encoder.rewrite(receive_chunk(without_usage(chunk.data)), [])
            self.report.usage = usage
            self._usage_sent = usage if choices else None
        if not choices or fields.error:
            return self._on_bare_chunk(chunk, usage)
        if choices[0].message and messages_to_deltas(choices):
            chunk = receive_chunk(response_as_chunk(chunk.data))
            choices = chunk.fields.choices or []
        encoder = self._encoder
        encoder.source = encoder.source or chunk
        if not self._has_content:
            self._has_content = has_content(chunk.fields)
        before = b""
        if self._notice is not None and any(not part.index for part in choices):
            before = self._begin_notice()
        self._is_steady = self._has_content and self._notice is None
        rewrites = [self._choices[part.index or 0].receive(part) for part in choices]
        if rewrites.count(None) == len(rewrites):
            return before + encoder.pass_through(chunk)
        return before + encoder.rewrite(chunk, rewrites)

    def _with_notice(self, choice: AnswerChoice) -> tuple[AnswerChoice, list[AnswerEvent]]:
        """Return the first choice, into which the notice is inserted, or events that precede it."""
        notice, self._notice = self._notice, None
        if notice is None or not notice.text or not isinstance(choice, ChoiceTranslator):
            return choice, []
        if notice.place == "reasoning":
            notice.is_delivered = True
            return choice, [ReasoningDelta(0, notice.text)]
        return NoticeInserter(choice, notice, is_prefilled=self._is_prefilled), []

    def _begin_notice(self) -> bytes:
        choice, notice = self._with_notice(self._choices[0])
        self._choices[0] = choice
        return self._encoder.encode([*choice.start(), *notice]) if notice else b""

    def _on_bare_chunk(self, chunk: ReceivedChunk, usage: dict[str, Any] | None) -> bytes:
        """Return the events for a chunk without choices, or for an error."""
        fields, data = chunk.fields, chunk.data
        has_usage = usage is not None
        has_choices = isinstance(fields.choices, list)
        if fields.error or (not has_choices and looks_like_error(data)):
            return self._end_with_error(*to_error_event(data))
        if self._is_usage_hidden and has_usage:
            data = without_usage(data)
        elif has_choices:
            return self._encoder.pass_through(chunk)  # usage, and fields that belong to no choice
        if not has_usage and rewrite_chunk(data, (), ()):
            self._last_non_chunk = (data, self.report.chunks)
        return self._encoder.rewrite(receive_chunk(data), [])

    def _on_done(self) -> bytes:
        non_chunk, _ = self._last_non_chunk
        if non_chunk and self._encoder.source is None:
            return self.fail(invalid_response(non_chunk))
        surrogates = self._flush_surrogates()
        # An answer without choices gets the first one.
        has_first = not self._choices or 0 in self._choices
        notice = self._begin_notice() if has_first else b""
        ends = [self._encoder.encode(choice.finish()) for choice in self._choices.values()]
        self.has_ended = True
        return b"".join([surrogates, notice, *ends, self._encoder.done()])
