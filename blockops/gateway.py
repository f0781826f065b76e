"""What is done with each kind of request, read from top to bottom."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.admission import Admission
from blockops.exchange import Exchange
from blockops.forms import EventStream, Untouched, WholeJson
from blockops.headers import media_type, to_backend, to_client
from blockops.pulse import Pulse
from blockops.records import Record, RequestRecord
from blockops.relay import TooLarge, collect, relay
from blockops.settings import Settings
from blockops.site import IncomingRequest
from blockops.upstream import Upstream
from blockops.wire import errors, transcode
from blockops.wire.errors import ApiError
from blockops.wire.report import Report
from blockops.wire.requests import ChatRequest, CompletionRequest
from blockops.wire.toolcalls.rules import Rules

#: Bytes of an error's body that are read: a page of HTML, not a model's answer.
MAX_ERROR = 1024 * 1024
#: Seconds that `/ready` waits for the backend.
READY_WITHIN = 10.0
#: Statuses that say that a backend has no such route.
NO_ROUTE = frozenset({404, 405, 501})

#: What is worth a line in the daemon's log, by the parser's word for it.
REMARKS = {
    "unknown_name": "The model called a tool that the request does not offer",
    "malformed": "The model wrote a call whose arguments are no valid JSON",
}

Request = TypeVar("Request", ChatRequest, CompletionRequest)
Work = Callable[[Exchange], Coroutine[Deferred[Any], Any, None]]


class Refused(ApiError):
    """The backend's own refusal, in the shape of ours."""

    def __init__(self, status: int, body: bytes, retry_after: int | None) -> None:
        super().__init__(
            status,
            errors.message_in(body) or f"the backend answered {status}",
            retry_after=retry_after,
        )
        self._body = body

    def body(self) -> bytes:
        return self._body


class Log(Protocol):
    """Where requests and responses are written down."""

    def write(self, record: Record) -> None: ...


class Gateway:
    """
    Serves requests, and knows all that are under way.

    :ivar draining: no new ones are taken
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: Settings,
        *,
        upstream: Upstream,
        admission: Admission,
        pulse: Pulse,
        log: Log,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._upstream = upstream
        self._admission = admission
        self._pulse = pulse
        self._traffic = log
        self._rules = rules_of(settings)
        self._live: dict[Exchange, Deferred[None]] = {}
        self._hinted = False
        self.draining = False

    def __len__(self) -> int:
        return len(self._live)

    def serve(self, request: IncomingRequest, work: Work) -> None:
        """Begin `work` for `request`. Everything else is its own affair."""
        exchange = Exchange(request, self._clock, self._settings)
        request.setHeader("X-Request-Id", exchange.id)
        if self.draining:
            exchange.client.refuse(_stopping())
            return
        self._pulse.add(exchange)
        done = self._live[exchange] = exchange.run(work(exchange))
        done.addBoth(self._forget, exchange)

    def _forget(self, _: object, exchange: Exchange) -> None:
        self._pulse.discard(exchange)
        self._live.pop(exchange, None)
        if exchange.logged:
            self._traffic.write(exchange.outcome())
        if exchange.report is not None:
            self._remark(exchange.report)

    def drain(self) -> Deferred[None]:
        """Take no more requests. Fires when those under way have ended."""
        self.draining = True
        ended = [self._ended(exchange) for exchange in self._live]
        return DeferredList(ended).addCallback(lambda _: None)

    def _ended(self, exchange: Exchange) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        self._live[exchange].addBoth(lambda _: ended.callback(None))
        return ended

    def hasten(self) -> None:
        """End all that is under way, and tell the clients why."""
        for exchange in list(self._live):
            exchange.end(_stopping())

    # What is done with each kind of request.

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
        async with self._answer(exchange, asked.body()) as response:
            kind = media_type(response.headers)
            if kind == "application/json":
                body = await self._collected(exchange, response)
                out, exchange.report = transcode.whole_as_stream(body, asked, self._rules)
                form.begin(exchange.client)
                exchange.client.finish(out)
            elif kind == "text/html":
                raise await self._refused(exchange, response, 502)
            else:
                form.begin(exchange.client)
                whole = await relay(response, exchange.client, form.transcoder, exchange.heard)
                exchange.client.finish(form.transcoder.end(cut=not whole))

    async def _whole(self, exchange: Exchange, asked: ChatRequest | CompletionRequest) -> None:
        form = exchange.form = WholeJson(white_space=self._settings.heartbeat_json)
        async with self._answer(exchange, asked.body()) as response:
            body = await self._collected(exchange, response)
        out, exchange.report = transcode.whole(body, asked, self._rules)
        form.end(exchange.client, out)

    async def pass_on(self, exchange: Exchange) -> None:
        """Do as the backend does with any other route under `/v1`."""
        self._came(exchange)
        body = exchange.request.upload
        if exchange.request.method == b"POST":
            async with self._answer(exchange, body) as response:
                await self._pass_back(exchange, response)
        else:
            await self._pass_back(exchange, await self._granted(exchange, body))

    async def model(self, exchange: Exchange, name: str) -> None:
        """`GET /v1/models/{name}`; from the list of models, where the backend has no such route."""
        self._came(exchange)
        try:
            response = await self._granted(exchange, None)
        except Refused as refused:
            if refused.status not in NO_ROUTE:
                raise
        else:
            await self._pass_back(exchange, response)
            return
        listed = await self._upstream.request("GET", "/v1/models")
        found = find_model(await self._collected(exchange, listed), name)
        if found is None:
            raise ApiError(
                404,
                f"The backend has no model {name!r}. GET /v1/models lists those it has.",
                param="model",
                code="model_not_found",
            )
        exchange.client.answer(200, found)

    async def ready(self, exchange: Exchange) -> None:
        """`GET /ready`: can the backend be reached, and does it serve."""
        unready = ApiError(
            503,
            f"The backend did not answer within {READY_WITHIN:g} seconds.",
            type="api_error",
            code="backend_unreachable",
        )
        late = self._clock.callLater(READY_WITHIN, exchange.end, unready)
        try:
            response = await self._upstream.request("GET", "/v1/models")
            if response.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise await self._refused(exchange, response, response.code)
            await self._collected(exchange, response)
        except ApiError as error:
            error.status = 503
            raise
        finally:
            if late.active():
                late.cancel()
        exchange.client.answer(200, b'{"status":"ready"}')

    # The steps that they share.

    def _read(self, exchange: Exchange, kind: type[Request]) -> Request:
        """
        Return the client's request as a `kind`.

        :raises ApiError: 400, it is none
        """
        content = exchange.request.content
        assert content is not None
        body = bytes(content.read())
        try:
            asked = kind.parse(body)
        except ApiError:
            self._came(exchange, body)
            raise
        self._came(exchange, body, model=asked.model, stream=asked.stream)
        return asked

    def _came(self, exchange: Exchange, body: bytes = b"", **known: Any) -> None:
        """Write down that a request has come, and what is `known` of it."""
        exchange.logged = True
        request = exchange.request
        upload = request.upload
        size = len(body) if upload is None else upload.length
        self._traffic.write(
            RequestRecord(
                id=exchange.id,
                client=getattr(request.getClientAddress(), "host", None),
                method=request.method.decode("latin-1"),
                path=request.uri.decode("latin-1"),
                headers={
                    name.decode("latin-1").lower(): values[0].decode("latin-1")
                    for name, values in request.requestHeaders.getAllRawHeaders()
                },
                size=size if isinstance(size, int) else 0,
                body=body,
                **known,
            )
        )

    def _remark(self, report: Report) -> None:
        """Say in the daemon's log what its owner should know of an answer."""
        if report.tally["untranslated"] and not self._hinted:
            self._hinted = True
            self._log.info(
                "The model wrote tool calls in an answer to a request that offers no tools. They "
                "were left as text; --translate=always makes them calls, if your clients want that."
            )
        for kind, what in REMARKS.items():
            if report.tally[kind]:
                self._log.info("{what} ({names})", what=what, names=", ".join(report.names))

    def _transcoder(self, asked: ChatRequest | CompletionRequest) -> transcode.StreamTranscoder:
        return transcode.StreamTranscoder(
            asked,
            self._rules,
            max_event=self._settings.max_event,
            heartbeat_style=self._settings.heartbeat_style,
        )

    @asynccontextmanager
    async def _answer(
        self, exchange: Exchange, body: bytes | IBodyProducer | None
    ) -> AsyncIterator[IResponse]:
        """Wait for a place, ask the backend, and hold the place until its answer is through."""
        async with self._admission.place():
            yield await self._granted(exchange, body)

    async def _granted(self, exchange: Exchange, body: bytes | IBodyProducer | None) -> IResponse:
        """
        Ask the backend what the client asks, and return its answer when it is none of refusal.

        :raises Refused: it is one
        """
        request = exchange.request
        exchange.asked = self._clock.seconds()
        response = await self._upstream.request(
            request.method.decode("ascii"),
            request.uri.decode("ascii"),
            to_backend(request.requestHeaders),
            body,
        )
        if response.code >= HTTPStatus.BAD_REQUEST:
            raise await self._refused(exchange, response, response.code)
        return response

    async def _pass_back(self, exchange: Exchange, response: IResponse) -> None:
        """Relay an answer that is not understood."""
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
        if isinstance(response.length, int) and exchange.request.method != b"HEAD":
            headers.append(("Content-Length", str(response.length)))
        exchange.client.begin(response.code, headers)
        if await relay(response, exchange.client, untouched, exchange.heard):
            exchange.client.finish()
        else:
            exchange.client.cut()

    async def _collected(self, exchange: Exchange, response: IResponse) -> bytes:
        limit = self._settings.max_answer
        try:
            body, whole = await collect(response, limit, exchange.heard)
        except TooLarge:
            raise ApiError(
                502,
                f"The backend's answer is larger than {limit} bytes: --max-answer is the bound.",
                type="api_error",
                code="backend_answer_too_large",
            ) from None
        if not whole:
            raise ApiError(
                502,
                "The backend closed the connection in the middle of its answer.",
                type="api_error",
                code="backend_disconnected",
            )
        return body

    async def _refused(self, exchange: Exchange, response: IResponse, status: int) -> Refused:
        """Read the backend's refusal, and return it as ours."""
        try:
            body, _ = await collect(response, MAX_ERROR, exchange.heard)
        except TooLarge:
            body = b""
        told, said = errors.from_backend(status, body, media_type(response.headers))
        wait = response.headers.getRawHeaders("Retry-After", [""])[0]
        return Refused(told, said, int(wait) if wait.isdecimal() else None)


def rules_of(settings: Settings) -> Rules:
    """Return what `settings` say of translation."""
    return Rules(
        translate=settings.translate,
        fenced_calls=settings.fenced_calls,
        reasoning=settings.reasoning,
        think_prefilled=settings.think_prefilled,
        think_calls=settings.think_calls,
        max_hold=settings.max_hold,
    )


def find_model(listing: bytes, name: str) -> bytes | None:
    """Return the JSON of the model `name` in the backend's answer to `/v1/models`."""
    try:
        models = msgspec.json.decode(listing, type=_Models).data
    except msgspec.MsgspecError:
        return None
    for raw in models:
        if msgspec.json.decode(raw, type=_Model).id == name:
            return memoryview(raw).tobytes()
    return None


class _Model(msgspec.Struct):
    id: str = ""


class _Models(msgspec.Struct):
    data: list[msgspec.Raw] = []


def _stopping() -> ApiError:
    return ApiError(
        503,
        "blockops is being stopped or restarted. Ask again in a moment.",
        type="api_error",
        code="shutting_down",
        retry_after=5,
    )
