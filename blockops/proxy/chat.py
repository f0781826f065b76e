"""What is done with each kind of request, read from top to bottom."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IResponse

from blockops import __version__
from blockops.api.chat.request import ChatRequest, CompletionRequest, streamed
from blockops.conversation.turn import Turn, Turns
from blockops.errors import ApiError
from blockops.net.http_headers import media_type, to_client
from blockops.operations.traffic_log.records import Record
from blockops.plugins import known_formats
from blockops.proxy.exchange import Exchange, Logged
from blockops.proxy.models import Models
from blockops.proxy.relay import relay
from blockops.proxy.response_modes import ChatStream, EventStream, Untouched, WholeJson
from blockops.server.request import IncomingRequest
from blockops.server.response import STREAM_HEADERS
from blockops.settings.table import Settings
from blockops.toolcalls.options import Rules
from blockops.translation import stream as transcode
from blockops.translation.aggregate import StreamJoiner
from blockops.translation.model_alias import (
    RenamedPassThrough,
    RenamedTranscoder,
    Renaming,
    real_name,
)
from blockops.translation.notice_insertion import Aside
from blockops.upstream.backend import Backend, Refused, Visit, broken_off, check_readable

#: Seconds that `/ready` waits for the backend.
READY_WITHIN = 10.0
#: Statuses whose answers have no body.
BODILESS = frozenset({204, 304})

Request = TypeVar("Request", ChatRequest, CompletionRequest)

#: A refusal -> the body to ask with instead; None if there is no other way.
Again = Callable[[Refused], bytes | None]


Answer = Coroutine[Deferred[Any], Any, None]

#: A stream that has begun, and what fires when the backend has said its last word.
Streaming = tuple[EventStream[transcode.StreamTranscoder], Deferred[bool]]


def never_again(_: Refused) -> None:
    """Return no other way to ask."""


def otherwise(refused: Refused, again: Again) -> bytes:
    """
    Return the body with which the backend is asked in another way.

    :raises Refused: there is none
    """
    body = again(refused)
    if body is None:
        raise refused
    return body


class Traffic(Protocol):
    """Where requests and responses are written down."""

    def write(self, record: Record) -> None: ...


class Answering:
    """
    Answers requests: one public method for each kind.

    :ivar models: for those that ask what models there are

    :param vitals: what `/health` tells besides to whoever sent a request
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: Settings,
        *,
        backend: Backend,
        turns: Turns,
        traffic: Traffic,
        vitals: Callable[[IncomingRequest], dict[str, object]],
    ) -> None:
        self._vitals = vitals
        self._clock = clock
        self._settings = settings
        self._backend = backend
        self._turns = turns
        self._traffic = traffic
        self._rules = rules_of(settings)
        self.models = Models(
            backend, settings.model_alias, write=traffic.write, pass_back=self._pass_back
        )

    def chat(self, exchange: Exchange) -> Answer:
        """`POST /v1/chat/completions`."""
        return self._answered(exchange, self._chat)

    def completion(self, exchange: Exchange) -> Answer:
        """`POST /v1/completions`."""
        return self._answered(exchange, self._completion)

    async def _answered(
        self, exchange: Exchange, ask: Callable[[Exchange, Visit], Awaitable[Streaming | None]]
    ) -> None:
        """Ask the backend, and wait for the rest of a stream: for that, no request is kept."""
        with self._backend.visit(exchange) as visit:
            streaming = await ask(exchange, visit)
            if streaming is not None:
                exchange.streams_on()
                form, whole = streaming
                form.end(exchange.client, whole=await whole)

    async def _chat(self, exchange: Exchange, visit: Visit) -> Streaming | None:
        asked = self._parsed(exchange, ChatRequest)
        turn = self._turns.begin(asked, exchange.request)
        exchange.lesson = turn.lesson
        exchange.put_off(partial(self._chat_came, exchange, asked, turn))
        if turn.asks_nothing:
            self._say(exchange, asked, turn.banner())
            return None
        self._backend.check()
        more: Any = {"again": turn.prompt_again, "aside": turn.aside}
        if not asked.stream:
            await self._whole(exchange, visit, asked, turn.prompt(exchange.tell), **more)
            return None
        form = ChatStream(partial(self._transcoder, asked, turn.aside), turn.cold_start)
        self._take_form(exchange, form)
        prompt = await turn.prompt(exchange.tell)
        return await self._stream(exchange, visit, asked, form, prompt, **more)

    async def _completion(self, exchange: Exchange, visit: Visit) -> Streaming | None:
        asked = self._parsed(exchange, CompletionRequest)
        exchange.put_off(partial(self._came, exchange, asked))
        if not asked.stream:
            await self._whole(exchange, visit, asked, succeed(asked.body()))
            return None
        form = EventStream(partial(self._transcoder, asked))
        self._take_form(exchange, form)
        return await self._stream(exchange, visit, asked, form, asked.body())

    def _take_form(self, exchange: Exchange, form: EventStream[transcode.StreamTranscoder]) -> None:
        """Let the answer be a stream from here on."""
        exchange.form = form
        exchange.put_off(lambda: _open_report(exchange, form))

    async def _stream(
        self,
        exchange: Exchange,
        visit: Visit,
        asked: Request,
        form: EventStream[transcode.StreamTranscoder],
        body: bytes,
        *,
        again: Again = never_again,
        aside: Aside | None = None,
    ) -> Streaming | None:
        """Ask for a stream; return what is left of it when its headers are here."""
        while True:
            try:
                response = await visit.ask(body)
                return await self._take_stream(exchange, response, asked, form, aside)
            except Refused as refused:
                body = otherwise(refused, again)
                exchange.ask_again()

    async def _take_stream(
        self,
        exchange: Exchange,
        response: IResponse,
        asked: Request,
        form: EventStream[transcode.StreamTranscoder],
        aside: Aside | None,
    ) -> Streaming | None:
        """Give the client the backend's answer as a stream, be it one or not."""
        check_readable(response)
        kind = media_type(response.headers)
        if kind == "text/html":
            raise await self._backend.refused(exchange, response, 502)
        if kind != "application/json":
            form.begin(exchange.client)
            return form, relay(response, exchange.client, form.transcoder, exchange.heard)
        body = await self._backend.collected(exchange, response)
        out, exchange.report = transcode.whole_as_stream(body, asked, self._rules, aside=aside)
        renaming = renaming_for(asked)
        form.begin(exchange.client)
        exchange.client.finish(renaming.events(out) if renaming else out)
        return None

    async def _whole(
        self,
        exchange: Exchange,
        visit: Visit,
        asked: Request,
        prompt: Awaitable[bytes],
        *,
        again: Again = never_again,
        aside: Aside | None = None,
    ) -> None:
        form = exchange.form = WholeJson(white_space=self._settings.heartbeat_json)
        body = await prompt
        out: bytes | None = None
        while out is None:
            as_stream = self._streamed(body)
            try:
                response = await visit.ask(as_stream or body)
                out = await self._taken_whole(exchange, response, asked, aside)
            except Refused as refused:
                if as_stream is None or not self._turns.refusals.of_usage(refused):
                    body = otherwise(refused, again)
                exchange.ask_again()
        renaming = renaming_for(asked)
        form.end(exchange.client, renaming.whole(out) if renaming else out)

    def _streamed(self, body: bytes) -> bytes | None:
        """
        Return a request for a whole answer changed to ask for a stream; None if it should not be.

        A backend that streams notices when its client leaves; others may go on to the end.
        """
        wished = self._settings.whole_as_stream and self._turns.refusals.asks_usage
        return streamed(body) if wished else None

    async def _taken_whole(
        self, exchange: Exchange, response: IResponse, asked: Request, aside: Aside | None
    ) -> bytes:
        """Return the backend's answer as a whole one, be it a stream or not."""
        check_readable(response)
        if media_type(response.headers) == "text/event-stream":
            return await self._joined(exchange, response, asked, aside)
        said = await self._backend.collected(exchange, response)
        if said.startswith(b"data:"):
            # A stream, whatever its headers call it.
            joiner = self._joiner(exchange, asked, aside)
            joiner.receive_data(said)
            return joiner.whole(cut=False)
        out, exchange.report = transcode.whole(said, asked, self._rules, aside=aside)
        return out

    async def _joined(
        self, exchange: Exchange, response: IResponse, asked: Request, aside: Aside | None
    ) -> bytes:
        """
        Return a stream of the backend as a whole answer.

        :raises ApiError: 502, it is none
        """
        joiner = self._joiner(exchange, asked, aside)
        whole = await relay(response, exchange.client, joiner, exchange.heard)
        return joiner.whole(cut=not whole)

    def _joiner(self, exchange: Exchange, asked: Request, aside: Aside | None) -> StreamJoiner:
        """Return what makes a whole answer of a stream."""
        joiner = StreamJoiner(
            asked,
            self._rules,
            max_event=self._settings.max_event,
            max_answer=self._settings.max_answer,
            aside=aside,
        )
        exchange.report = joiner.report
        return joiner

    def _say(self, exchange: Exchange, asked: ChatRequest, text: str) -> None:
        """Answer with `text`, the backend not being asked."""
        body = whole_answer(text, asked.model or self._settings.model_name, time.time())
        if asked.stream:
            out, exchange.report = transcode.whole_as_stream(body, asked, self._rules)
            exchange.client.answer(200, out, STREAM_HEADERS)
        else:
            out, exchange.report = transcode.whole(body, asked, self._rules)
            exchange.client.answer(200, out)

    async def pass_on(self, exchange: Exchange) -> None:
        """Do as the backend does with any other route under `/v1`."""
        upload = exchange.request.upload
        came = b"" if upload is not None else exchange.request.take_body()
        asked, name = real_name(came, self._settings.model_alias)
        body = upload if upload is not None else asked or None
        if upload is None or upload.complete:
            self._traffic.write(exchange.came(came))
        if exchange.request.method == b"POST":
            with self._backend.visit(exchange) as visit:
                await self._pass_back(exchange, await visit.ask(body), name)
        else:
            await self._pass_back(exchange, await self._backend.granted(exchange, body), name)

    async def health(self, exchange: Exchange) -> None:
        """`GET /health`: blockops is alive, and how busy."""
        exchange.logged = Logged.NEVER
        told = {"status": "ok", "version": __version__, **self._vitals(exchange.request)}
        exchange.client.answer(200, msgspec.json.encode(told))

    async def ready(self, exchange: Exchange) -> None:
        """`GET /ready`: can the backend be reached, and does it serve."""
        unready = ApiError(
            503,
            f"The backend did not answer within {READY_WITHIN:g} seconds.",
            type="server_error",
            code="backend_unreachable",
        )
        exchange.logged = Logged.NEVER
        self._backend.check_reach()
        late = self._clock.callLater(READY_WITHIN, exchange.end, unready)
        try:
            response = await self._backend.fetch("/v1/models")
            if response.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise await self._backend.refused(exchange, response, response.code)
            await self._backend.collected(exchange, response)
        except ApiError as error:
            error.status = 503
            raise
        finally:
            if late.active():
                late.cancel()
        exchange.client.answer(200, b'{"status":"ready"}')

    def _parsed(self, exchange: Exchange, kind: type[Request]) -> Request:
        """
        Return the client's request as a `kind`.

        :raises ApiError: 400, it is none
        """
        body = exchange.request.take_body()
        try:
            return kind.parse(body, self._settings.model_alias)
        except ApiError:
            self._traffic.write(exchange.came(body))
            raise

    def _chat_came(self, exchange: Exchange, asked: ChatRequest, turn: Turn) -> None:
        tools = asked.number_of("tools")
        name, messages = turn.session.name, turn.messages
        self._came(exchange, asked, session=name, messages=messages, tools=tools)

    def _came(
        self, exchange: Exchange, asked: ChatRequest | CompletionRequest, **more: Any
    ) -> None:
        """Write down that a request has come."""
        record = exchange.came(asked.came, model=asked.model, stream=asked.stream, **more)
        self._traffic.write(record)

    def _transcoder(
        self, asked: ChatRequest | CompletionRequest, aside: Aside | None = None
    ) -> transcode.StreamTranscoder:
        more: dict[str, Any] = {
            "max_event": self._settings.max_event,
            "heartbeat_style": self._settings.heartbeat_style,
            "aside": aside,
            "hide_usage": isinstance(asked, ChatRequest) and not asked.include_usage,
        }
        renaming = renaming_for(asked)
        if renaming is None:
            return transcode.StreamTranscoder(asked, self._rules, **more)
        return RenamedTranscoder(renaming, asked, self._rules, **more)

    def _passing(self, name: str | None) -> transcode.PassThrough:
        """Return what lets another protocol's events through, its model called `name` if any."""
        if name is None:
            return transcode.PassThrough()
        return RenamedPassThrough(Renaming(name), self._settings.max_event)

    async def _pass_back(
        self, exchange: Exchange, response: IResponse, name: str | None = None
    ) -> None:
        """
        Relay an answer that is not understood.

        :param name: the short one that the client has for its model, if it has one
        """
        if name is not None and media_type(response.headers) == "application/json":
            said = await self._backend.collected(exchange, response)
            exchange.client.answer(response.code, Renaming(name).whole(said))
            return
        if exchange.logged is Logged.NOT_YET:
            self._traffic.write(exchange.came())
        headers = to_client(response.headers)
        if media_type(response.headers) == "text/event-stream":
            through = self._passing(name)
            exchange.form = EventStream(lambda: through)
            exchange.report = through.report
            exchange.client.begin(response.code, headers)
            whole = await relay(response, exchange.client, through, exchange.heard)
            exchange.client.finish(through.end(cut=not whole))
            return
        untouched = exchange.form = Untouched()
        bodiless = exchange.request.method == b"HEAD" or response.code in BODILESS
        if isinstance(response.length, int) and not bodiless:
            headers.append((b"Content-Length", b"%d" % response.length))
        exchange.client.begin(response.code, headers)
        if not await relay(response, exchange.client, untouched, exchange.heard):
            raise broken_off()
        exchange.client.finish()


def _open_report(exchange: Exchange, form: EventStream[transcode.StreamTranscoder]) -> None:
    """Let what is seen of an answer be known, also of one that breaks off."""
    exchange.report = form.transcoder.report


def renaming_for(asked: ChatRequest | CompletionRequest) -> Renaming | None:
    """Return what gives the model its short name in the answer; None if it has none."""
    if asked.model is None or asked.model == asked.real_model:
        return None
    return Renaming(asked.model)


def rules_of(settings: Settings) -> Rules:
    """Return what `settings` say of translation."""
    return Rules(
        translate=settings.translate,
        fenced_calls=settings.fenced_calls,
        reasoning=settings.reasoning,
        think_prefilled=settings.think_prefilled,
        think_calls=settings.think_calls,
        max_hold=settings.max_hold,
        formats=known_formats(),
    )


def whole_answer(text: str, model: str, now: float) -> bytes:
    """
    Return a `chat.completion` that says `text`.

    :param now: seconds since 1970
    """
    message = {"role": "assistant", "content": text}
    return msgspec.json.encode(
        {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(now),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    )
