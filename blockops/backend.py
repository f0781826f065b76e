"""The backend as requests meet it: behind the queue, within bounds, its refusals in our shape."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.admission import Admission
from blockops.exchange import Exchange
from blockops.headers import media_type, of_refusal, to_backend
from blockops.memory import MemoryGate
from blockops.purge import Purge
from blockops.relay import TooLarge, collect
from blockops.upstream import Upstream
from blockops.wire import errors
from blockops.wire.errors import ApiError

#: Bytes of an error's body that are read: a page of HTML, not a model's answer.
MAX_ERROR = 1024 * 1024


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
    :param purge: is held off while a request is at the backend
    :param max_answer: bytes that an answer may have that is taken whole
    """

    def __init__(
        self,
        clock: IReactorTime,
        upstream: Upstream,
        admission: Admission,
        *,
        gate: MemoryGate,
        purge: Purge,
        max_answer: int,
    ) -> None:
        self._clock = clock
        self._upstream = upstream
        self._admission = admission
        self._gate = gate
        self._purge = purge
        self._max_answer = max_answer

    def check(self) -> None:
        """
        Turn a request away before anything is done for it, if memory is too tight.

        :raises ApiError: 503
        """
        self._gate.check()

    @asynccontextmanager
    async def admitted(
        self, exchange: Exchange, body: bytes | IBodyProducer | None
    ) -> AsyncIterator[IResponse]:
        """Wait for a place, ask the backend, and hold the place until its answer is through."""
        self.check()
        async with self._admission.place(), self._purge.working():
            yield await self.granted(exchange, body)

    async def granted(self, exchange: Exchange, body: bytes | IBodyProducer | None) -> IResponse:
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
        exchange.response = response
        if response.code >= HTTPStatus.BAD_REQUEST:
            raise await self.refused(exchange, response, response.code)
        return response

    async def fetch(self, target: str) -> IResponse:
        """Ask for something that only blockops wants to know."""
        return await self._upstream.request("GET", target)

    async def collected(self, exchange: Exchange, response: IResponse) -> bytes:
        try:
            body, whole = await collect(response, self._max_answer, exchange.heard)
        except TooLarge:
            raise ApiError(
                502,
                f"The backend's answer is larger than {self._max_answer} bytes, the bound that "
                "--max-answer sets.",
                type="api_error",
                code="backend_answer_too_large",
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


def broken_off() -> ApiError:
    """Return the error of an answer that did not come to its end."""
    return ApiError(
        502,
        "The backend closed the connection in the middle of its answer.",
        type="api_error",
        code="backend_disconnected",
    )
