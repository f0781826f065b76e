"""The backend as requests meet it: behind the queue, within bounds, its refusals in our shape."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Awaitable
from enum import Enum, auto
from http import HTTPStatus
from types import TracebackType
from typing import Self

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.iweb import IBodyProducer, IResponse

from blockops import errors
from blockops.errors import ApiError
from blockops.net.http_headers import coding, media_type, of_refusal, to_backend
from blockops.operations.memory import MemoryGate
from blockops.proxy.exchange import Exchange
from blockops.proxy.relay import TooLarge, collect
from blockops.upstream.admission import AdmissionQueue
from blockops.upstream.cache_purge import Purge
from blockops.upstream.circuit_breaker import Circuit
from blockops.upstream.client import Unreached, Upstream

#: Bytes of an error's body that are read: a page of HTML, not a model's answer.
MAX_ERROR = 1024 * 1024
#: Seconds before connecting is tried again, the first time; then twice as long each time, up to:
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 4.0
#: A status above is none (RFC 9110, section 15).
HIGHEST = 599


class Refused(ApiError):
    """
    The backend's own refusal, in the shape of ours.

    :param headers: what its headers say of it
    """

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(status, errors.message_in(body) or f"the backend answered {status}")
        self._body = body
        self._headers = headers

    def body(self) -> bytes:
        return self._body

    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers


class Backend:
    """
    Asks on behalf of exchanges.

    :param gate: turns requests away before they wait
    :param circuit: does so while the backend cannot be reached
    :param retries: how often connecting is tried again when it failed at once
    :param purge: is held off while a request is at the backend
    :param passes: headers of clients that go to the backend besides the usual ones
    :param max_answer: bytes that an answer may have that is taken whole
    """

    def __init__(
        self,
        clock: IReactorTime,
        upstream: Upstream,
        admission: AdmissionQueue,
        *,
        gate: MemoryGate,
        circuit: Circuit,
        retries: int,
        purge: Purge,
        max_answer: int,
        passes: frozenset[bytes] = frozenset(),
    ) -> None:
        self._clock = clock
        self._upstream = upstream
        self._admission = admission
        self._gate = gate
        self._circuit = circuit
        self._pauses = pauses(retries)
        self._purge = purge
        self._max_answer = max_answer
        self._passes = passes

    def check(self) -> None:
        """
        Turn a request away before anything is done for it.

        :raises ApiError: 503, memory is too tight, or the backend is known to be out of reach
        """
        self._gate.check()
        self._circuit.check()

    def check_reach(self) -> None:
        """
        Tell whether the backend was found out of reach a moment ago, without asking it.

        :raises ApiError: 503, it was; the message says since when
        """
        self._circuit.check()

    def visit(self, exchange: Exchange) -> Visit:
        """Return what asks for `exchange`, once it has a place."""
        return Visit(self, self._admission, self._purge, exchange)

    async def granted(self, exchange: Exchange, body: bytes | IBodyProducer | None) -> IResponse:
        """
        Ask the backend what the client asks, and return its answer when it is none of refusal.

        :raises Refused: it is one
        """
        exchange.asked = self._clock.seconds()
        response = exchange.response = await self._reached(exchange, body)
        if not HTTPStatus.OK <= response.code <= HIGHEST:
            raise no_status(response.code)
        if response.code >= HTTPStatus.BAD_REQUEST:
            raise await self.refused(exchange, response, response.code)
        return response

    async def _reached(self, exchange: Exchange, body: bytes | IBodyProducer | None) -> IResponse:
        """
        Return the backend's answer, whatever it is; try again while it refuses connections.

        So a backend that is being restarted fails no request. Nothing is asked twice: what failed
        was to connect.
        """
        for pause in self._pauses:
            try:
                with self._circuit.attempt():
                    return await self._once(exchange, body)
            except Unreached as failure:
                # One that did not accept in time was given time enough.
                if failure.status == HTTPStatus.GATEWAY_TIMEOUT:
                    raise
            self._circuit.check()
            await deferLater(self._clock, pause)
        with self._circuit.attempt():
            return await self._once(exchange, body)

    def _once(self, exchange: Exchange, body: bytes | IBodyProducer | None) -> Awaitable[IResponse]:
        request = exchange.request
        return self._upstream.request(
            request.method.decode("ascii"),
            exchange.target or request.uri.decode("ascii"),
            to_backend(request.requestHeaders, besides=self._passes),
            body,
        )

    async def fetch(self, target: str, on_behalf_of: Exchange | None = None) -> IResponse:
        """Ask for something that only blockops wants to know; it says nothing to the circuit."""
        headers = None
        if on_behalf_of is not None:
            headers = to_backend(on_behalf_of.request.requestHeaders, besides=self._passes)
        return await self._upstream.request("GET", target, headers)

    async def collected(self, exchange: Exchange, response: IResponse) -> bytes:
        try:
            body, whole = await collect(response, self._max_answer, exchange.heard)
        except TooLarge:
            raise ApiError(
                502,
                f"The backend's answer is larger than {self._max_answer} bytes, the bound that "
                "--max-answer sets.",
                type="server_error",
                code="backend_response_too_large",
            ) from None
        if not whole:
            raise broken_off()
        return body

    async def refused(self, exchange: Exchange, response: IResponse, status: int) -> Refused:
        """Read the backend's refusal, and return it as ours."""
        try:
            body, _ = await collect(response, MAX_ERROR, exchange.heard)
        except TooLarge:
            body = b""
        told, said = errors.from_backend(status, body, media_type(response.headers))
        return Refused(told, said, of_refusal(response.headers))


class _Stage(Enum):
    OUTSIDE = auto()
    #: It has a place, but may have to wait for the end of a purge.
    ADMITTED = auto()
    WORKING = auto()


class Visit:
    """
    An exchange's stay at the backend, which ends with the block that it is used in.

    Nothing of what was asked is kept: an answer may take hours.
    """

    __slots__ = ("_admission", "_backend", "_exchange", "_purge", "_since", "_stage")

    def __init__(
        self, backend: Backend, admission: AdmissionQueue, purge: Purge, exchange: Exchange
    ) -> None:
        self._backend = backend
        self._admission = admission
        self._purge = purge
        self._exchange = exchange
        self._stage = _Stage.OUTSIDE
        self._since = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._leave(well=kind is None)

    async def ask(self, body: bytes | IBodyProducer | None) -> IResponse:
        """
        Wait for a place, ask the backend, and hold the place until the answer is through.

        Who asks again waits again.

        :raises Refused: the backend does not answer that
        """
        self._leave(well=False)
        self._backend.check()
        self._since = await self._admission.acquire()
        self._stage = _Stage.ADMITTED
        await self._purge.begin()
        self._stage = _Stage.WORKING
        return await self._backend.granted(self._exchange, body)

    def _leave(self, *, well: bool) -> None:
        """
        Give the place back, if there is one.

        :param well: the answer came to its end
        """
        stage, self._stage = self._stage, _Stage.OUTSIDE
        if stage is _Stage.WORKING:
            self._purge.end()
        if stage is not _Stage.OUTSIDE:
            self._admission.release(self._since, completed=well)


def pauses(retries: int) -> tuple[float, ...]:
    """Return the seconds to wait before each of so many attempts more."""
    return tuple(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) for attempt in range(retries))


def no_status(code: int) -> ApiError:
    """Return the error of an answer whose status is none that a client could be told."""
    return ApiError(
        502,
        f"The backend answered with the status {code}, which HTTP does not know. Is --backend an"
        " HTTP server?",
        type="server_error",
        code="backend_invalid_response",
    )


def check_readable(response: IResponse) -> None:
    """
    Agree to a body that is going to be read.

    :raises ApiError: 502, it is compressed in a way that nobody asked for, nor can undo
    """
    unknown = coding(response.headers)
    if unknown:
        raise ApiError(
            502,
            f"The backend compressed its answer ({unknown}), although asked not to. "
            "Turn that off there, or in the proxy in front of it.",
            type="server_error",
            code="backend_response_compressed",
        )


def broken_off() -> ApiError:
    """Return the error of an answer that did not come to its end."""
    return ApiError(
        502,
        "The backend closed the connection in the middle of its answer.",
        type="server_error",
        code="backend_truncated",
    )
