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

import secrets
from collections.abc import Callable
from typing import Any, Literal

from blockops.api.backend_errors import (
    invalid_response,
    looks_like_error,
    to_error_event,
    truncated_response,
)
from blockops.api.chat.chunks import (
    Chunk,
    OutgoingDelta,
    messages_to_deltas,
)
from blockops.api.chat.decoder import (
    decode_chunk,
    decode_chunk_leniently,
    envelope,
    has_content,
)
from blockops.api.chat.encoder import (
    encode_chunk,
    response_as_chunk,
    rewrite_chunk,
    split_usage,
)
from blockops.api.chat.request import ChatRequest
from blockops.api.completions import CompletionRequest
from blockops.api.lenient_json import DECODE_ERRORS, JsonRepairer, is_strict
from blockops.api.notice import Notice
from blockops.api.report import AnswerReport
from blockops.api.sse import HEARTBEAT, Event, EventDecoder, EventTooLong, encode_event
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choice_factory import AnswerChoice, ChoiceFactory, random_call_id

#: Upper bound of one event of the backend, in bytes: enough for a complete answer with images.
MAX_EVENT = 8 * 1024 * 1024
#: The last event of a stream.
DONE_EVENT = b"data: [DONE]\n\n"

# Upper bound of the choices of one answer. OpenAI allows 128 for each of a completion's prompts.
_MAX_CHOICES = 4096
_DATA, _BLANK_LINE = b"data: ", b"\n\n"
_FRAMING_LENGTH = len(_DATA) + len(_BLANK_LINE)


class StreamTranslator:
    """
    Translates the event stream of one response.

    :param request: the client's request
    :param max_event: upper bound of one event of the backend, in bytes
    :param heartbeat_style: "chunk" for clients whose idle timers do not count comments
    :param notice: inserted into the first choice
    :param is_usage_hidden: True to remove `usage` from chunks without choices
    :param new_id: returns a new id for a call
    :ivar has_ended: True once `[DONE]` or an error event was sent
    :ivar report: the contents of the answer so far
    """

    __slots__ = (
        "_choice_factory",
        "_choices",
        "_decoder",
        "_envelope",
        "_has_content",
        "_heartbeat_style",
        "_is_usage_hidden",
        "_last_non_chunk",
        "_max_event",
        "_repairer",
        "_usage_sent",
        "has_ended",
        "report",
    )

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        options: TranslationOptions,
        *,
        max_event: int = MAX_EVENT,
        heartbeat_style: Literal["comment", "chunk"] = "comment",
        notice: Notice | None = None,
        is_usage_hidden: bool = False,
        new_id: Callable[[], str] = random_call_id,
    ) -> None:
        self.has_ended = False
        self.report = AnswerReport()
        self._choice_factory = ChoiceFactory(request, options, new_id, self.report, notice)
        self._choices: dict[int, AnswerChoice] = {}
        self._is_usage_hidden = is_usage_hidden
        self._usage_sent: dict[str, Any] | None = None  # in a chunk with choices
        # The last event that was not a chunk, and the number of chunks at that time.
        self._last_non_chunk = (b"", 0)
        self._has_content = False
        self._decoder = EventDecoder(max_event)
        self._max_event = max_event
        self._repairer = JsonRepairer()
        self._heartbeat_style = heartbeat_style
        self._envelope = _Envelope(request)

    def receive_data(self, data: bytes) -> bytes:
        """Return the events that `data` completes, translated; an error event for any failure."""
        out: list[bytes] = []
        if self.has_ended:
            return b""
        try:
            for event in self._decoder.receive_data(data):
                out.append(self._on_event(event))
                if self.has_ended:
                    break
        except EventTooLong:
            out.append(self.fail(_event_too_large(self._max_event)))
        except ApiError as error:
            out.append(self.fail(error))
        return out[0] if len(out) == 1 else b"".join(out)

    def heartbeat(self) -> bytes:
        """Return a heartbeat: a comment or an empty delta; empty once the stream has ended."""
        if self.has_ended:
            return b""
        if self._heartbeat_style == "comment":
            return HEARTBEAT
        choice = self._choice(0)
        if choice.is_finished:
            return encode_event(encode_chunk(self._envelope.fields, []))
        return self._encode(choice, choice.start() or [OutgoingDelta({})])

    def prefill_notice(self, text: str) -> bytes:
        """Return an event with `text` as `reasoning_content`; empty once the answer has content."""
        if self.has_ended or self._has_content:
            return b""
        choice = self._choice(0)
        if choice.is_finished:
            return b""
        return self._encode(choice, [*choice.start(), OutgoingDelta({"reasoning_content": text})])

    def end(self, *, is_truncated: bool) -> bytes:
        """
        End the stream after the backend has closed; return the remaining events.

        :param is_truncated: True if the transport reports that bytes are missing
        """
        if self.has_ended:
            return b""
        if self._choices and all(choice.is_finished for choice in self._choices.values()):
            self.has_ended = True
            return DONE_EVENT
        pending, chunks = self._decoder.pending, self.report.chunks
        if not is_truncated and not chunks and pending.startswith(b"{") and is_strict(pending):
            return self._on_json_body(pending)
        non_chunk, chunks_before = self._last_non_chunk
        if not pending and chunks_before == chunks:
            pending = non_chunk
        return self.fail(truncated_response(pending, chunks, is_connection_lost=is_truncated))

    def _on_json_body(self, body: bytes) -> bytes:
        """Return the stream for a JSON body (a response or an error) that came instead of one."""
        try:
            events = self._on_event(Event(body, encode_event(body)))
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
        flushed = [self._encode(choice, choice.flush()) for choice in self._choices.values()]
        return b"".join([surrogates, *flushed, encode_event(json)])

    def _flush_surrogates(self) -> bytes:
        """Return the events with U+FFFD for each surrogate half without a second half."""
        choices = self._repairer.flush()
        if not choices:
            return b""
        data = encode_chunk(self._envelope.fields, choices)
        return self._on_chunk(decode_chunk_leniently(data), data, encode_event(data))

    def _on_event(self, event: Event) -> bytes:
        """
        Return the events for the client for one event of the backend.

        :raises ApiError: 502 if it is not an event of the OpenAI API
        """
        data = event.data
        try:
            chunk = decode_chunk(data)
        except DECODE_ERRORS:
            return self._on_special_event(event)
        if event.name or self._repairer.pending:
            return self._on_special_event(event)
        raw = event.raw
        if len(raw) != len(data) + _FRAMING_LENGTH:
            # Other fields mean nothing here, and some clients need the space after "data:".
            raw = encode_event(data)
        return self._on_chunk(chunk, data, raw)

    def _on_special_event(self, event: Event) -> bytes:
        """Return the events for an event that has a name, is not a chunk, or needs repair."""
        data = event.data.strip()
        if event.name == b"error":
            return self._end_with_error(*to_error_event(event.lenient_data()))
        if data == b"[DONE]":
            return self._on_done()
        if not data:
            return b""  # some backends send an event without data as a heartbeat
        is_named = event.name not in {b"", b"message"}
        chunk, raw = None, b""
        try:
            data, raw = self._repair(event)
            chunk = decode_chunk_leniently(data)
        except ValueError:
            if not is_named:
                raise invalid_response(event.data) from None
        if chunk is None or (is_named and not chunk.choices and not chunk.error):
            # An event of another format, such as "ping": clients would fail to decode it.
            self.report.counters["foreign_event"] += 1
            return b""
        return self._on_chunk(chunk, data, raw)

    def _repair(self, event: Event) -> tuple[bytes, bytes]:
        """
        Return an event's data as strict JSON, and the event with this data.

        :raises ValueError: the data is not JSON, even if read leniently
        """
        if not self._repairer.pending and is_strict(event.data):
            return event.data, encode_event(event.data)
        try:
            data = self._repairer.repair(event.data)
        except ValueError:
            data = self._repairer.repair(event.lenient_data())
        return data, encode_event(data)

    def _on_chunk(self, chunk: Chunk, data: bytes, raw: bytes) -> bytes:
        """
        Return the events for the client for one chunk.

        :param data: its JSON
        :param raw: the event to send if the chunk passes unchanged
        """
        self.report.chunks += 1
        choices = chunk.choices
        if chunk.usage is not None:
            if choices == [] and chunk.usage == self._usage_sent:
                # vllm-mlx repeats the usage of the chunk with the finish reason, and some clients
                # add up every usage that they get.
                self.report.counters["usage_again"] += 1
                rest, _ = split_usage(data)
                return b"".join(map(encode_event, rewrite_chunk(rest, [], [])))
            self.report.usage = chunk.usage
            self._usage_sent = chunk.usage if choices else None
        if not choices or chunk.error:
            return self._on_bare_chunk(chunk, data, raw)
        if choices[0].message is not None and messages_to_deltas(choices):
            data = response_as_chunk(data)
            raw = encode_event(data)
            choices = decode_chunk_leniently(data).choices or []
        self._envelope.source = data
        if not self._has_content:
            self._has_content = has_content(data)
        rewrites = [self._choice(choice.index or 0).receive(choice) for choice in choices]
        if not any(rewrites):
            return raw
        return b"".join(map(encode_event, rewrite_chunk(data, choices, rewrites)))

    def _on_bare_chunk(self, chunk: Chunk, data: bytes, raw: bytes) -> bytes:
        """Return the events for a chunk without choices, or for an error."""
        if chunk.error or (chunk.choices is None and looks_like_error(data)):
            return self._end_with_error(*to_error_event(data))
        if self._is_usage_hidden and chunk.usage is not None and not chunk.choices:
            data, _ = split_usage(data)
        elif chunk.choices is not None:
            return raw  # usage, and other fields that belong to no choice
        chunks = rewrite_chunk(data, [], [])
        if chunks and chunk.usage is None:
            self._last_non_chunk = (data, self.report.chunks)
        return b"".join(map(encode_event, chunks))

    def _on_done(self) -> bytes:
        non_chunk, _ = self._last_non_chunk
        if non_chunk and self._envelope.source is None:
            return self.fail(invalid_response(non_chunk))
        if not self._choices:
            self._choice(0)
        surrogates = self._flush_surrogates()
        ends = [self._encode(choice, choice.finish()) for choice in self._choices.values()]
        self.has_ended = True
        return b"".join([surrogates, *ends, DONE_EVENT])

    def _choice(self, index: int) -> AnswerChoice:
        """
        Return the choice `index`; create it at its first use.

        :raises ApiError: 502 if there would be more than `_MAX_CHOICES`
        """
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) == _MAX_CHOICES:
                raise ApiError(
                    502,
                    f"The backend sent more than {_MAX_CHOICES} choices. Check its log.",
                    type="server_error",
                    code="backend_invalid_response",
                )
            choice = self._choices[index] = self._choice_factory.create(index)
        return choice

    def _encode(self, choice: AnswerChoice, deltas: list[OutgoingDelta]) -> bytes:
        """Return one event for each delta; these deltas replace no part of the backend's chunks."""
        if not deltas:
            return b""
        fields = self._envelope.fields
        chunks = [encode_chunk(fields, [choice.make_choice(delta)]) for delta in deltas]
        return b"".join(map(encode_event, chunks))


class _Envelope:
    """
    The fields that all chunks of an answer share.

    :ivar source: the JSON of the backend's last chunk, which has them; None until there is one
    """

    __slots__ = ("_is_chat", "_model", "_own", "source")

    def __init__(self, request: ChatRequest | CompletionRequest) -> None:
        self.source: bytes | None = None
        self._is_chat = isinstance(request, ChatRequest)
        self._model = request.model or ""
        self._own: dict[str, Any] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The backend's fields; those that it has not sent are generated once."""
        if self._own is None:
            self._own = {
                "id": ("chatcmpl-" if self._is_chat else "cmpl-") + secrets.token_hex(12),
                "object": "chat.completion.chunk" if self._is_chat else "text_completion",
                "created": 0,  # this package has no clock, and no client is known to read the time
                "model": self._model,
            }
        if self.source is None:
            return self._own
        return {**self._own, **envelope(self.source)}


def _event_too_large(limit: int) -> ApiError:
    return ApiError(
        502,
        f"The backend sent an event of more than {limit} bytes. Raise --max-event to allow it.",
        type="server_error",
        code="backend_event_too_large",
    )
