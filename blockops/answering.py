"""What is done with each kind of request, read from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, TypeVar

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IResponse

from blockops import __version__
from blockops.backend import Backend, Refused, broken_off
from blockops.exchange import Exchange, Logged
from blockops.formats import known_formats
from blockops.forms import EventStream, Untouched, WholeJson
from blockops.headers import media_type, to_client
from blockops.records import Record
from blockops.relay import relay
from blockops.settings import Settings
from blockops.wire import transcode
from blockops.wire.errors import ApiError
from blockops.wire.requests import ChatRequest, CompletionRequest
from blockops.wire.toolcalls.rules import Rules

#: Seconds that `/ready` waits for the backend.
READY_WITHIN = 10.0
#: Statuses whose answers have no body.
BODILESS = frozenset({204, 304})
#: Statuses that say that a backend has no such route.
NO_ROUTE = frozenset({404, 405, 501})

Request = TypeVar("Request", ChatRequest, CompletionRequest)


class Traffic(Protocol):
    """Where requests and responses are written down."""

    def write(self, record: Record) -> None: ...


class Answering:
    """
    Answers requests: one public method for each kind.

    :param vitals: what `/health` tells besides
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: Settings,
        *,
        backend: Backend,
        traffic: Traffic,
        vitals: Callable[[], dict[str, object]],
    ) -> None:
        self._vitals = vitals
        self._clock = clock
        self._settings = settings
        self._backend = backend
        self._traffic = traffic
        self._rules = rules_of(settings)

    async def chat(self, exchange: Exchange) -> None:
        """`POST /v1/chat/completions`."""
        asked = self._read(exchange, ChatRequest)
        if asked.stream:
            await self._stream(exchange, asked)
        else:
            await self._whole(exchange, asked)

    async def completion(self, exchange: Exchange) -> None:
        """`POST /v1/completions`."""
        asked = self._read(exchange, CompletionRequest)
        if asked.stream:
            await self._stream(exchange, asked)
        else:
            await self._whole(exchange, asked)

    async def _stream(self, exchange: Exchange, asked: ChatRequest | CompletionRequest) -> None:
        form = exchange.form = EventStream(self._transcoder(asked))
        exchange.report = form.transcoder.report
        async with self._backend.admitted(exchange, asked.body()) as response:
            kind = media_type(response.headers)
            if kind == "application/json":
                body = await self._backend.collected(exchange, response)
                out, exchange.report = transcode.whole_as_stream(body, asked, self._rules)
                form.begin(exchange.client)
                exchange.client.finish(out)
            elif kind == "text/html":
                raise await self._backend.refused(exchange, response, 502)
            else:
                form.begin(exchange.client)
                whole = await relay(response, exchange.client, form.transcoder, exchange.heard)
                exchange.client.finish(form.transcoder.end(cut=not whole))

    async def _whole(self, exchange: Exchange, asked: ChatRequest | CompletionRequest) -> None:
        form = exchange.form = WholeJson(white_space=self._settings.heartbeat_json)
        async with self._backend.admitted(exchange, asked.body()) as response:
            body = await self._backend.collected(exchange, response)
        out, exchange.report = transcode.whole(body, asked, self._rules)
        form.end(exchange.client, out)

    async def pass_on(self, exchange: Exchange) -> None:
        """Do as the backend does with any other route under `/v1`."""
        body = exchange.request.upload
        if body is None or body.complete:
            self._traffic.write(exchange.came())
        if exchange.request.method == b"POST":
            async with self._backend.admitted(exchange, body) as response:
                await self._pass_back(exchange, response)
        else:
            await self._pass_back(exchange, await self._backend.granted(exchange, body))

    async def model(self, exchange: Exchange, name: str) -> None:
        """`GET /v1/models/{name}`; from the list of models, where the backend has no such route."""
        self._traffic.write(exchange.came())
        try:
            response = await self._backend.granted(exchange, None)
        except Refused as refused:
            if refused.status not in NO_ROUTE:
                raise
        else:
            await self._pass_back(exchange, response)
            return
        listed = await self._backend.fetch("/v1/models")
        if listed.code >= HTTPStatus.BAD_REQUEST:
            raise await self._backend.refused(exchange, listed, listed.code)
        found = find_model(await self._backend.collected(exchange, listed), name)
        if found is None:
            raise ApiError(
                404,
                f"The backend has no model {name!r}. GET /v1/models lists those it has.",
                param="model",
                code="model_not_found",
            )
        exchange.client.answer(200, found)

    async def health(self, exchange: Exchange) -> None:
        """`GET /health`: blockops is alive, and how busy."""
        exchange.logged = Logged.NEVER
        told = {"status": "ok", "version": __version__, **self._vitals()}
        exchange.client.answer(200, msgspec.json.encode(told))

    async def ready(self, exchange: Exchange) -> None:
        """`GET /ready`: can the backend be reached, and does it serve."""
        unready = ApiError(
            503,
            f"The backend did not answer within {READY_WITHIN:g} seconds.",
            type="api_error",
            code="backend_unreachable",
        )
        exchange.logged = Logged.NEVER
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

    def _read(self, exchange: Exchange, kind: type[Request]) -> Request:
        """
        Return the client's request as a `kind`.

        :raises ApiError: 400, it is none
        """
        body = exchange.request.take_body()
        try:
            asked = kind.parse(body)
        except ApiError:
            self._traffic.write(exchange.came(body))
            raise
        self._traffic.write(exchange.came(body, model=asked.model, stream=asked.stream))
        return asked

    def _transcoder(self, asked: ChatRequest | CompletionRequest) -> transcode.StreamTranscoder:
        return transcode.StreamTranscoder(
            asked,
            self._rules,
            max_event=self._settings.max_event,
            heartbeat_style=self._settings.heartbeat_style,
        )

    async def _pass_back(self, exchange: Exchange, response: IResponse) -> None:
        """Relay an answer that is not understood."""
        if exchange.logged is Logged.NOT_YET:
            self._traffic.write(exchange.came())
        headers = to_client(response.headers)
        if media_type(response.headers) == "text/event-stream":
            through = transcode.PassThrough()
            exchange.form = EventStream(through)
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


def find_model(listing: bytes, name: str) -> bytes | None:
    """Return the JSON of the model `name` in the backend's answer to `/v1/models`."""
    try:
        models = msgspec.json.decode(listing, type=_Models).data
    except msgspec.MsgspecError:
        return None
    for raw in models:
        model = msgspec.json.decode(raw)
        if isinstance(model, dict) and model.get("id") == name:
            return memoryview(raw).tobytes()
    return None


class _Models(msgspec.Struct):
    data: list[msgspec.Raw] = []
