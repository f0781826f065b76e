"""
The core's door: the backend's bytes in, the client's bytes out.

One object a response. Nothing here knows of sockets or time: the shell says when the backend has
closed, when the client needs a sign of life, and when something failed.

A stream ends in one of two ways: with `[DONE]`, every choice that began having had exactly one
finish reason; or with an error event, and nothing behind it. What a backend leaves out of the first
is added where it has said that it is done; else the second is what the client gets.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from blockops.api.chat.chunks import (
    Choice,
    Chunk,
    Fragment,
    Piece,
    Rewritten,
    as_chunk,
    chunk,
    decode_chunk,
    envelope,
    event,
    join,
    loose_chunk,
    speaks,
    spread,
    without_usage,
)
from blockops.api.chat.request import ChatRequest, CompletionRequest
from blockops.api.lenient_json import UNREADABLE, Mender, is_strict
from blockops.api.report import Report
from blockops.api.sse import Event, EventDecoder, EventTooLong
from blockops.errors import ApiError, from_answer, from_event, message_in, says_error
from blockops.toolcalls.options import Rules
from blockops.toolcalls.verbatim import Verbatim, spelling
from blockops.translation.choice import Rewriter, as_it_came
from blockops.translation.completion_choice import PlainChoice
from blockops.translation.notice_insertion import Aside, AsideChoice
from blockops.translation.stencil import Passage, Stencil, stencil_of

MAX_EVENT = 8 * 1024 * 1024  # bytes: a whole answer in one event, with images, stays below
_MAX_CHOICES = 4096  # of one answer: OpenAI allows 128 for each of a completion's prompts
#: Bytes of an event besides its data.
_FRAMING = len(b"data: \n\n")
_DONE = b"data: [DONE]\n\n"
_HEARTBEAT = b": heartbeat\n\n"


_BEFORE, _BLANK_LINE = b"data: ", b"\n\n"
# So often in a row a shape is learnt in vain before that is given up.
_LESSONS = 16
# Of thoughts, nothing is looked at.
_ANYTHING = Verbatim(re.compile(".+", re.DOTALL), spelling(r'\\["\\/bfnrt]'))
#: Stands for an event that does not change.
_AS_IT_CAME = b"as it came"

OneChoice = Rewriter | AsideChoice | PlainChoice


def _as_it_is(_: str) -> None:
    """Let what was said go as it came."""


def random_id() -> str:
    """Return the id of a call: `call_` and 24 random characters."""
    return "call_" + secrets.token_hex(12)


class StreamTranscoder:
    """
    Turn the backend's event stream into the client's, for one response.

    :param asked: the request that is answered
    :param max_event: bytes that one event of the backend may have
    :param heartbeat_style: "chunk" is for clients whose idle timers do not count comments
    :param aside: what blockops says itself, in the first choice
    :param hide_usage: the client did not ask for the chunk with the usage that the backend sends
    :param new_id: makes the ids of calls
    :ivar ended: `[DONE]` or an error event was written: nothing may follow it, nothing will
    :ivar report: what the answer held so far
    """

    __slots__ = (
        "_beginnings",
        "_choices",
        "_decoder",
        "_envelope",
        "_heartbeat_style",
        "_hide_usage",
        "_lessons",
        "_max_event",
        "_mender",
        "_passage",
        "_say",
        "_speaker",
        "_spoken",
        "_stencil",
        "_stray",
        "_told_usage",
        "ended",
        "report",
    )

    def __init__(
        self,
        asked: ChatRequest | CompletionRequest,
        rules: Rules,
        *,
        max_event: int = MAX_EVENT,
        heartbeat_style: Literal["comment", "chunk"] = "comment",
        aside: Aside | None = None,
        hide_usage: bool = False,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self.ended = False
        self.report = Report()
        self._beginnings = _Choices(asked, rules, new_id, self.report, aside)
        self._choices: dict[int, OneChoice] = {}
        self._hide_usage = hide_usage
        self._told_usage: dict[str, Any] | None = None  # in a chunk with choices
        self._stray = (b"", 0)  # the last event that was no chunk, and how many there were then
        self._spoken = False
        self._decoder = EventDecoder(max_event)
        self._max_event = max_event
        self._mender = Mender()
        self._heartbeat_style = heartbeat_style
        self._envelope = _Envelope(asked)
        # The shape that chunks have at the moment, and who takes what they say.
        self._stencil: Stencil | None = None
        self._say: Callable[[str], list[Piece] | Fragment | None] = _as_it_is
        self._speaker: Rewriter | None = None
        self._lessons = _LESSONS
        # What events that come next need not be read; None where all do.
        self._passage: Passage | None = None

    def receive_data(self, data: bytes) -> bytes:
        """Return what `data` makes ready for the client, whole events only; never raises."""
        size = len(data)
        passage = self._passage
        if passage is not None and size <= self._max_event and passage.takes(data, 0, size):
            # Nearly every read is one event, and most of those only go on.
            self.report.chunks += 1
            self._lessons = _LESSONS
            return passage.retell(data, 0, size) if passage.retells else data
        return self._receive(data)

    def _receive(self, data: bytes) -> bytes:
        """Return what any number of events make ready, and pieces of them."""
        ready: list[bytes] = []
        position = 0
        try:
            while position < len(data) and not self.ended:
                position = self._compare(data, position, ready)
                if position < len(data):
                    position = self._read_on(data, position, ready)
        except EventTooLong:
            ready.append(self.fail(_too_long(self._max_event)))
        except ApiError as error:
            ready.append(self.fail(error))
        return ready[0] if len(ready) == 1 else b"".join(ready)

    def _compare(self, data: bytes, position: int, ready: list[bytes]) -> int:
        """Take the events that are of a known shape; return where the first other one begins."""
        if self._stencil is None or not self._decoder.between_events or len(data) > self._max_event:
            return position
        # One that came alone was looked at already.
        several = position or data.find(_BLANK_LINE) + 2 < len(data)
        passage = self._passage if several else None
        unsent = position
        chunks = 0
        while end := data.find(_BLANK_LINE, position) + 1:
            end += 1
            if passage is not None and not passage.retells and passage.takes(data, position, end):
                said, count = _AS_IT_CAME, 1
            elif (retold := self._retold(data, position, end)) is not None:
                said, end, count = retold
                passage = self._passage = self._way_through()
            else:
                break
            if said is not _AS_IT_CAME:
                if unsent < position:
                    ready.append(data[unsent:position])
                ready.append(said)
                unsent = end
            chunks += count
            position = end
        if unsent < position:
            ready.append(data[unsent:position])
        if chunks:
            self.report.chunks += chunks
            self._lessons = _LESSONS
        return position

    def _retold(self, data: bytes, start: int, end: int) -> tuple[bytes, int, int] | None:
        """
        Return what becomes of an event of the known shape; None if it has another one.

        Arguments that came together are told together: each of their events had to be written.

        :returns: besides, where the last event ends that it stands for, and how many they are
        """
        stencil, speaker, count = self._stencil, self._speaker, 1
        if stencil is None or (text := stencil.read(data, start, end)) is None:
            return None
        if text and stencil.content and speaker is not None and speaker.in_call:
            text, end, count = stencil.read_on(text, data, end)
        said = self._say(text)
        return _AS_IT_CAME if said is None else stencil.write(said), end, count

    def _way_through(self) -> Passage | None:
        """Return what may come next without being read; None if all has to."""
        stencil, speaker = self._stencil, self._speaker
        if stencil is None or speaker is None or self.ended or not self._decoder.between_events:
            return None
        if not stencil.content:
            return stencil.passage(_ANYTHING, None)
        text, call = speaker.verbatim
        return None if text is None else stencil.passage(text, call)

    def _read_on(self, data: bytes, position: int, ready: list[bytes]) -> int:
        """Read on in full: one event if comparing may go on behind it, else all that there is."""
        end = len(data)
        if self._lessons:
            end = data.find(_BLANK_LINE, position) + 2
            end = end if end > 1 else len(data)
        for happened in self._decoder.receive_data(data[position:end]):
            ready.append(self._take(happened))
            if self.ended:
                break
        self._passage = self._way_through()
        return end

    def heartbeat(self) -> bytes:
        """Return a sign of life, valid at any moment; nothing once the stream has ended."""
        if self.ended:
            return b""
        if self._heartbeat_style == "comment":
            return _HEARTBEAT
        choice = self._choice(0)
        if choice.finished:
            return event(chunk(self._envelope.fields, []))
        return self._write(choice, choice.begin() or [Piece({})])

    def remark(self, text: str) -> bytes:
        """Return `text` as `reasoning_content`; nothing once the backend has said something."""
        if self.ended or self._spoken:
            return b""
        choice = self._choice(0)
        if choice.finished:
            return b""
        return self._write(choice, [*choice.begin(), Piece({"reasoning_content": text})])

    def end(self, *, cut: bool) -> bytes:
        """
        Return the end of the stream, the backend having closed.

        :param cut: the transport says that something is missing
        """
        if self.ended:
            return b""
        if self._choices and all(choice.finished for choice in self._choices.values()):
            self._end()
            return _DONE
        rest = self._decoder.unfinished
        if not cut and not self.report.chunks and rest.startswith(b"{") and is_strict(rest):
            return self._take_whole(rest)
        stray, number = self._stray
        last = stray if number == self.report.chunks else b""
        return self.fail(_stopped(rest or last, self.report.chunks, cut=cut))

    def _take_whole(self, answer: bytes) -> bytes:
        """Return the stream of a whole answer, or of an error, that came under a stream's name."""
        try:
            said = self._take(Event(answer, event(answer)))
        except ApiError as error:
            return self.fail(error)
        return said if self.ended else said + self._done()

    def fail(self, error: ApiError) -> bytes:
        """Return the text that was held back and `error` as the last event."""
        return self._end_with_error(error.message, error.body())

    def _end_with_error(self, message: str, json: bytes) -> bytes:
        if self.ended:
            return b""
        halves = self._halves()
        self._end()
        self.report.error = message
        held = [self._write(choice, choice.release()) for choice in self._choices.values()]
        return b"".join([halves, *held, event(json)])

    def _halves(self) -> bytes:
        """Return what the client gets for halves of characters that nothing follows any more."""
        choices = self._mender.alone()
        if not choices:
            return b""
        data = chunk(self._envelope.fields, choices)
        return self._rewrite(_read(data), data, event(data))

    def _take(self, happened: Event) -> bytes:
        """
        Return what the client gets for an event.

        :raises ApiError: it is garbage
        """
        data = happened.data
        try:
            read = decode_chunk(data)
        except UNREADABLE:
            return self._take_odd_event(happened)
        if happened.name or self._mender.pending:
            return self._take_odd_event(happened)
        raw = happened.raw
        if len(raw) != len(data) + _FRAMING:
            raw = event(data)  # fields that mean nothing here, or a space less: clients stumble
        return self._rewrite(read, data, raw)

    def _take_odd_event(self, happened: Event) -> bytes:
        data = happened.data.strip()
        if happened.name == b"error":
            return self._end_with_error(*from_event(happened.all_lines()))
        if data == b"[DONE]":
            return self._done()
        if not data:
            return b""  # a comment of those who do not know comments
        named = happened.name not in {b"", b"message"}
        try:
            data, raw = self._mended(happened)
            read = _read(data)
        except ValueError:
            if named:
                return self._drop()
            raise _garbage(happened.data) from None
        if named and not read.choices and not read.error:
            return self._drop()
        return self._rewrite(read, data, raw)

    def _drop(self) -> bytes:
        """Return nothing for an event of another protocol, such as "ping": it breaks clients."""
        self.report.tally["foreign_event"] += 1
        return b""

    def _mended(self, happened: Event) -> tuple[bytes, bytes]:
        """
        Return an event's data as strict JSON, and the event to send on if nothing changes.

        :raises ValueError: it is no JSON in any reading
        """
        if not self._mender.pending and is_strict(happened.data):
            return happened.data, event(happened.data)
        try:
            data = self._mender.mend(happened.data)
        except ValueError:
            data = self._mender.mend(happened.all_lines())
        return data, event(data)

    def _rewrite(self, read: Chunk, data: bytes, raw: bytes) -> bytes:
        """
        Return what the client gets for a chunk.

        :param data: its JSON
        :param raw: the event to send on if nothing of it changes
        """
        self.report.chunks += 1
        choices = read.choices
        if read.usage is not None:
            if choices == [] and read.usage == self._told_usage:
                return self._drop_usage(data)
            self.report.usage = read.usage
            self._told_usage = read.usage if choices else None
        if not choices or read.error:
            return self._take_odd_chunk(read, data, raw)
        if choices[0].message is not None and _said_whole(choices):
            data = as_chunk(data)
            raw = event(data)
            choices = _read(data).choices or []
        self._envelope.source = data
        if not self._spoken:
            self._spoken = _speaks(data)
        becomes = [self._choice(choice.index or 0).take(choice) for choice in choices]
        if self._lessons:
            self._learn(data, raw, choices)
        if not any(becomes):
            return raw
        return b"".join(map(event, spread(data, choices, becomes)))

    def _drop_usage(self, data: bytes) -> bytes:
        """
        Return what else a chunk says whose usage was told in the one with the finish reason.

        vllm-mlx tells it twice, and some clients add up what they are told.
        """
        self.report.tally["usage_again"] += 1
        rest, _ = without_usage(data)
        return b"".join(map(event, spread(rest, [], [])))

    def _learn(self, data: bytes, raw: bytes, choices: list[Choice]) -> None:
        """Take the shape of a chunk that was read, if what follows may have it too."""
        choice = self._choices[choices[0].index or 0].plainly
        # Where a role comes with each delta (mlx-lm), none may go as it came.
        if choices[0].delta is not None and choices[0].delta.role is not None:
            choice = None
        as_it_came = len(raw) == len(_BEFORE) + len(data) + len(_BLANK_LINE)
        plain = choice is not None and self._spoken and as_it_came and not self._mender.pending
        if choice is None or not plain or len(choices) > 1:
            self._stencil = None
            return
        if self._stencil is None or self._stencil.read(raw, 0, len(raw)) is None:
            self._lessons -= 1
            # The last one leaves no shape behind: nobody would notice when it stops to count.
            self._stencil = stencil_of(data) if self._lessons else None
        if self._stencil is not None:
            self._speaker = choice
            self._say = choice.say if self._stencil.content else _as_it_is

    def _take_odd_chunk(self, read: Chunk, data: bytes, raw: bytes) -> bytes:
        if read.error or (read.choices is None and says_error(data)):
            return self._end_with_error(*from_event(data))
        if self._hide_usage and read.usage is not None and not read.choices:
            data, _ = without_usage(data)
        elif read.choices is not None:
            return raw  # usage, and what else belongs to no choice
        said = spread(data, [], [])
        if said and read.usage is None:
            self._stray = (data, self.report.chunks)
        return b"".join(map(event, said))

    def _done(self) -> bytes:
        stray, _ = self._stray
        if stray and self._envelope.source is None:
            return self.fail(_garbage(stray))
        if not self._choices:
            self._choice(0)
        halves = self._halves()
        ends = [self._write(choice, choice.complete()) for choice in self._choices.values()]
        self._end()
        return b"".join([halves, *ends, _DONE])

    def _end(self) -> None:
        self.ended = True
        self._passage = None

    def _choice(self, index: int) -> OneChoice:
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) == _MAX_CHOICES:
                raise ApiError(
                    502,
                    f"The backend sent more than {_MAX_CHOICES} choices. Its log may say why.",
                    type="server_error",
                    code="backend_invalid_response",
                )
            choice = self._choices[index] = self._beginnings.begin(index)
        return choice

    def _write(self, choice: OneChoice, pieces: list[Piece]) -> bytes:
        """Return the events for pieces that no chunk of the backend brings."""
        if not pieces:
            return b""
        fields = self._envelope.fields
        return b"".join(event(chunk(fields, [choice.chunk_choice(piece)])) for piece in pieces)


class _Envelope:
    """
    What all chunks of an answer have in common.

    :ivar source: the JSON of a chunk that has it; None before there is one
    """

    __slots__ = ("_chat", "_made", "_model", "source")

    def __init__(self, asked: ChatRequest | CompletionRequest) -> None:
        self.source: bytes | None = None
        self._chat = isinstance(asked, ChatRequest)
        self._model = asked.model or ""
        self._made: dict[str, Any] | None = None

    @property
    def _own(self) -> dict[str, Any]:
        """Our own fields: the same as long as the answer lasts, and seldom asked for."""
        if self._made is None:
            self._made = {
                "id": ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12),
                "object": "chat.completion.chunk" if self._chat else "text_completion",
                "created": 0,  # the core has no clock, and no client reads it
                "model": self._model,
            }
        return self._made

    @property
    def fields(self) -> dict[str, Any]:
        """The fields, the backend's own where it has sent some."""
        if self.source is None:
            return self._own
        return {**self._own, **envelope(self.source)}


class PassThrough:
    """
    Let another kind of event stream through as it is, with signs of life between its events.

    :ivar ended: the backend has closed, or an error event was written
    :ivar report: only of an error
    """

    def __init__(self) -> None:
        self.ended = False
        self.report = Report()
        self._tail = b"\n\n"  # the last bytes that left

    def receive_data(self, data: bytes) -> bytes:
        """Return `data`."""
        if self.ended:
            return b""
        self._tail = (self._tail + data[-4:])[-4:]
        return data

    def heartbeat(self) -> bytes:
        """Return a comment, or nothing while an event is unfinished."""
        return _HEARTBEAT if self._between_events and not self.ended else b""

    def end(self, *, cut: bool) -> bytes:
        """Return an error event if something is missing, else nothing."""
        if cut:
            return self.fail(_stopped(b"", 1, cut=True))
        self.ended = True
        return b""

    def fail(self, error: ApiError) -> bytes:
        """
        Return `error` as the last event.

        It has the type and the fields that the clients of `/v1/responses` and `/v1/messages` know.
        """
        if self.ended:
            return b""
        self.ended = True
        self.report.error = error.message
        rest = b"" if self._between_events else b"\n\n"
        return rest + b"event: error\n" + event(b'{"type":"error",' + error.body()[1:])

    @property
    def _between_events(self) -> bool:
        return self._tail.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))


def whole(
    body: bytes,
    asked: ChatRequest | CompletionRequest,
    rules: Rules,
    *,
    aside: Aside | None = None,
    new_id: Callable[[], str] = random_id,
) -> tuple[bytes, Report]:
    """
    Return the whole answer for the client, and what it held.

    :param aside: what blockops says itself, in the first choice
    :raises ApiError: 502, if `body` is no answer
    """
    data, read, choices = _read_whole(body, asked)
    report = Report(chunks=1, usage=read.usage)
    if isinstance(asked, CompletionRequest):
        _note_ends(choices, report)
        return data, report
    begin = _Choices(asked, rules, new_id, report, aside).begin
    becomes = [_take_whole(begin(choice.index or 0), choice) for choice in choices]
    if not any(becomes):
        return data, report
    return join(data, choices, becomes), report


def whole_as_stream(
    body: bytes,
    asked: ChatRequest | CompletionRequest,
    rules: Rules,
    *,
    aside: Aside | None = None,
    new_id: Callable[[], str] = random_id,
) -> tuple[bytes, Report]:
    """
    Return a whole answer as a complete event stream, and what it held.

    :param aside: what blockops says itself, in the first choice
    :raises ApiError: 502, if `body` is no answer
    """
    data, _, _ = _read_whole(body, asked)
    chat = isinstance(asked, ChatRequest)
    said, usage = as_chunk(data) if chat else data, b""
    if asked.include_usage:
        said, usage = without_usage(said)
    events = [event(part) for part in (said, usage) if part]
    transcoder = StreamTranscoder(
        asked, rules, aside=aside, new_id=new_id, max_event=sum(map(len, events)) + len(_DONE)
    )
    return transcoder.receive_data(b"".join(events) + _DONE), transcoder.report


def _read_whole(
    body: bytes, asked: ChatRequest | CompletionRequest
) -> tuple[bytes, Chunk, list[Choice]]:
    """
    Return a whole answer's JSON, strict, what was read of it, and its choices as a stream has them.

    :raises ApiError: 502, if `body` is no answer
    """
    try:
        data = body if is_strict(body) else Mender().mend(body)
        read = _read(data)
    except ValueError:
        raise _garbage(body) from None
    if read.error or (read.choices is None and says_error(data)):
        raise from_answer(data)
    choices = read.choices if isinstance(asked, CompletionRequest) else _said_whole(read.choices)
    if not choices:
        raise _garbage(body)
    return data, read, choices


def _said_whole(choices: Sequence[Choice] | None) -> list[Choice] | None:
    """Return a whole chat's choices with their messages as deltas; None if one has no message."""
    if choices is None or any(choice.message is None or choice.delta for choice in choices):
        return None
    return [
        Choice(index=choice.index or 0, delta=choice.message, finish_reason=choice.finish_reason)
        for choice in choices
    ]


def _note_ends(choices: Sequence[Choice], report: Report) -> None:
    for choice in choices:
        if choice.finish_reason:
            report.finish_reasons[choice.index or 0] = choice.finish_reason


def _take_whole(rewriter: OneChoice, choice: Choice) -> Rewritten | None:
    becomes = rewriter.take(choice)
    if rewriter.finished:
        return becomes
    said = as_it_came(choice) if becomes is None else becomes.pieces
    return Rewritten([*said, *rewriter.complete()])


class _Choices:
    """
    Makes the state of a choice.

    :param asked: the request that is answered
    :param aside: what blockops says itself, in the first choice
    """

    __slots__ = ("_aside", "_new_id", "_offer", "_report", "_rules")

    def __init__(
        self,
        asked: ChatRequest | CompletionRequest,
        rules: Rules,
        new_id: Callable[[], str],
        report: Report,
        aside: Aside | None,
    ) -> None:
        self._offer = asked.offer(rules) if isinstance(asked, ChatRequest) else None
        self._rules = rules
        self._new_id = new_id
        self._report = report
        self._aside = aside

    def begin(self, index: int) -> OneChoice:
        """Return a choice that has said nothing yet."""
        if self._offer is None:
            return PlainChoice(index, self._report)
        choice = Rewriter(index, self._offer, self._rules, self._new_id, self._report)
        if self._aside is None or index != 0:
            return choice
        return AsideChoice(choice, self._aside, prefilled=self._rules.think_prefilled)


def _speaks(data: bytes) -> bool:
    try:
        return speaks(data)
    except msgspec.MsgspecError:
        return True  # a chunk of an odd shape is no silence


def _read(data: bytes) -> Chunk:
    """
    Read what may have fields of other types than it should.

    :param data: strict JSON
    :raises ValueError: it is nothing like a chunk
    """
    try:
        return decode_chunk(data)
    except msgspec.ValidationError:
        return loose_chunk(data)


def _too_long(limit: int) -> ApiError:
    return ApiError(
        502,
        f"The backend sent an event of more than {limit} bytes. Raise --max-event to allow it.",
        type="server_error",
        code="backend_event_too_large",
    )


def _garbage(data: bytes) -> ApiError:
    if not data.strip():
        return _empty()
    return ApiError(
        502,
        f"The backend sent what is no answer of the OpenAI API: {message_in(data) or 'nothing'}",
        type="server_error",
        code="backend_invalid_response",
    )


def _empty() -> ApiError:
    return ApiError(
        502,
        "The backend's answer is empty. Some servers answer so when a prompt is too long for their "
        "model (llama-cpp-python does): send a shorter one, or look into its log.",
        type="server_error",
        code="backend_empty_response",
    )


def _stopped(unfinished: bytes, chunks: int, *, cut: bool) -> ApiError:
    """
    Return the error of a backend that closed before its answer was complete.

    :param unfinished: what it sent last, if that was no event
    :param chunks: how much it had sent before
    """
    if not (unfinished or chunks or cut):
        return _empty()
    how = "The connection to the backend broke" if cut else "The backend closed the connection"
    when = "in the middle of its answer" if chunks else "before its answer began"
    said = "" if unfinished.startswith(b"data:") else message_in(unfinished)
    message = f"{how} {when}. " + (
        f"It said: {said}" if said else "Ask again; its log may say why."
    )
    return ApiError(502, message, type="server_error", code="backend_truncated")
