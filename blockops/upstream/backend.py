"""
One backend: its admission queue, circuit breaker, connect retries and error responses.

A request for an answer of the model takes a slot first (`BackendLease`); short requests, such as
those for the list of models, do without one.

The states of a lease:

| state | holds | event, and the next state |
| --- | --- | --- |
| FREE | nothing | `acquire` got a slot: ADMITTED |
| ADMITTED | a slot; it may wait until a cache purge ends | the purge has ended: ACTIVE |
| | | the block ends, since the wait was cancelled: FREE |
| ACTIVE | a slot, and no purge may start | the block ends, or `acquire` is called again: FREE |
"""

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
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.api.backend_errors import (
    extract_message,
    response_too_large,
    to_error_response,
    truncated_response,
)
from blockops.errors import ApiError
from blockops.net.http_headers import (
    content_encoding,
    forwarded_error_headers,
    forwarded_request_headers,
    media_type,
)
from blockops.upstream.admission import AdmissionQueue
from blockops.upstream.body import BodyTooLarge, OnData, collect
from blockops.upstream.cache_purge import CachePurge
from blockops.upstream.circuit_breaker import CircuitBreaker
from blockops.upstream.client import BackendClient, ConnectError
from blockops.upstream.compatibility import BackendCompatibility

#: Bytes of an error response that are read: enough for a page of HTML.
MAX_ERROR = 1024 * 1024
#: Seconds before the first connect retry, which double with each further retry, and their maximum.
BACKOFF_MIN, BACKOFF_MAX = 0.5, 4.0
#: The largest valid status code (RFC 9110, section 15).
MAX_STATUS = 599


class BackendError(ApiError):
    """
    An error response of the backend, in the shape of the OpenAI API.

    :param headers: the response's headers that concern the error, such as `Retry-After`
    """

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(status, extract_message(body) or f"The backend returned status {status}.")
        self._body = body
        self._headers = headers

    def body(self) -> bytes:
        return self._body

    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers


class Backend:
    """
    Sends requests to the backend.

    :param retries: how often a connection attempt that failed at once is repeated
    :param cache_purge: does not run while a lease is active
    :param forwarded_headers: client headers that are forwarded besides the default ones
    :param max_answer: the maximum size of a non-streaming response, in bytes
    :ivar compatibility: features that the backend has rejected
    """

    def __init__(
        self,
        clock: IReactorTime,
        client: BackendClient,
        admission: AdmissionQueue,
        *,
        circuit_breaker: CircuitBreaker,
        retries: int,
        cache_purge: CachePurge,
        max_answer: int,
        forwarded_headers: frozenset[bytes] = frozenset(),
    ) -> None:
        self.compatibility = BackendCompatibility()
        self._clock = clock
        self._client = client
        self._admission = admission
        self._circuit_breaker = circuit_breaker
        self._backoff = backoff_delays(retries)
        self._cache_purge = cache_purge
        self._max_answer = max_answer
        self._forwarded_headers = forwarded_headers

    def check_circuit(self) -> None:
        """
        Reject a request early if the backend is known to be unreachable.

        :raises ApiError: 503; the message reports since when
        """
        self._circuit_breaker.check()

    def lease(self) -> BackendLease:
        """Return a lease, which has no slot until `BackendLease.acquire` is called."""
        return BackendLease(self._circuit_breaker, self._admission, self._cache_purge)

    async def request(
        self, method: str, target: str, headers: Headers, body: bytes | IBodyProducer | None
    ) -> IResponse:
        """
        Send a request, and return the response whatever its status.

        Refused connections are retried with backoff, so that a backend's restart fails no request.
        Nothing is sent twice: only the connection attempt had failed.

        :param headers: the client's headers, of which some are forwarded
        :raises ApiError: 502 or 504, no response was received; 503, the circuit breaker is open
        """
        for seconds in self._backoff:
            try:
                with self._circuit_breaker.guard():
                    return await self._send(method, target, headers, body)
            except ConnectError as error:
                # Not retried: the attempt has already taken `connect_timeout` seconds, and a
                # backend that restarts refuses connections at once.
                if error.status == HTTPStatus.GATEWAY_TIMEOUT:
                    raise
            self._circuit_breaker.check()
            await deferLater(self._clock, seconds)
        with self._circuit_breaker.guard():
            return await self._send(method, target, headers, body)

    def _send(
        self, method: str, target: str, headers: Headers, body: bytes | IBodyProducer | None
    ) -> Awaitable[IResponse]:
        # The client takes ownership of the headers, so each attempt gets its own.
        forwarded = forwarded_request_headers(headers, allow=self._forwarded_headers)
        return self._client.request(method, target, forwarded, body)

    async def fetch(self, target: str, headers: Headers | None = None) -> IResponse:
        """
        Send a GET request of blockops' own, whose failure the circuit breaker does not record.

        :param headers: the headers of the client on whose behalf it is sent, if there is one
        """
        if headers is not None:
            headers = forwarded_request_headers(headers, allow=self._forwarded_headers)
        return await self._client.request("GET", target, headers)

    async def check_status(self, response: IResponse, on_data: OnData) -> None:
        """
        Raise the error that `response` reports, if it reports one.

        :param on_data: called with each piece of the error's body
        :raises BackendError: the status is 400 or above
        :raises ApiError: 502, the status is not valid
        """
        if not HTTPStatus.OK <= response.code <= MAX_STATUS:
            raise invalid_status_error(response.code)
        if response.code >= HTTPStatus.BAD_REQUEST:
            raise await self.read_error(response, response.code, on_data)

    async def read_body(self, response: IResponse, on_data: OnData) -> bytes:
        """
        Return the body of a non-streaming response.

        :param on_data: called with each piece of it
        :raises ApiError: 502, the body is too large or was truncated
        """
        try:
            body, is_complete = await collect(response, self._max_answer, on_data)
        except BodyTooLarge:
            raise response_too_large(self._max_answer) from None
        if not is_complete:
            raise truncated_response(b"", 1, is_connection_lost=True)
        return body

    async def read_error(self, response: IResponse, status: int, on_data: OnData) -> BackendError:
        """
        Read an error response, and return it as an error for the client.

        :param status: the status to report if the body names no other
        :param on_data: called with each piece of the body
        """
        try:
            body, _ = await collect(response, MAX_ERROR, on_data)
        except BodyTooLarge:
            body = b""
        status, body = to_error_response(status, body, media_type(response.headers))
        return BackendError(status, body, forwarded_error_headers(response.headers))


class _State(Enum):
    FREE = auto()
    ADMITTED = auto()
    ACTIVE = auto()


class BackendLease:
    """
    A slot at the backend, as a context manager that releases it.

    It holds no part of the request, because a stream may stay open for hours.
    """

    __slots__ = ("_acquired_at", "_admission", "_cache_purge", "_circuit_breaker", "_state")

    def __init__(
        self, circuit_breaker: CircuitBreaker, admission: AdmissionQueue, cache_purge: CachePurge
    ) -> None:
        self._circuit_breaker = circuit_breaker
        self._admission = admission
        self._cache_purge = cache_purge
        self._state = _State.FREE
        self._acquired_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._release(completed=kind is None)

    async def acquire(self) -> None:
        """
        Wait for a slot and for the end of a cache purge; keep the slot until the block ends.

        A second call, before a retry, releases the slot and joins the end of the queue.

        :raises ApiError: 429, the queue is full or the wait took too long; 503, the backend is
            known to be unreachable
        """
        self._release(completed=False)
        self._circuit_breaker.check()
        self._acquired_at = await self._admission.acquire()
        self._state = _State.ADMITTED
        await self._cache_purge.request_started()
        self._state = _State.ACTIVE

    def _release(self, *, completed: bool) -> None:
        """
        Release the slot, if there is one.

        :param completed: the response ran to its end
        """
        state, self._state = self._state, _State.FREE
        if state is _State.ACTIVE:
            self._cache_purge.request_finished()
        if state is not _State.FREE:
            self._admission.release(self._acquired_at, completed=completed)


def backoff_delays(retries: int) -> tuple[float, ...]:
    """Return the seconds to wait before each connect retry."""
    return tuple(min(BACKOFF_MIN * 2**attempt, BACKOFF_MAX) for attempt in range(retries))


def invalid_status_error(code: int) -> ApiError:
    """Return the 502 for a response whose status cannot be sent to a client."""
    return ApiError(
        502,
        f"The backend responded with the invalid status {code}. Check that --backend is the URL of "
        "an HTTP server.",
        type="server_error",
        code="backend_invalid_response",
    )


def check_encoding(response: IResponse) -> None:
    """
    Reject a response whose body cannot be read.

    :raises ApiError: 502, it is compressed although no compression was accepted
    """
    encoding = content_encoding(response.headers)
    if encoding:
        raise ApiError(
            502,
            f"The backend compressed its response ({encoding}) although the request does not "
            "accept that. Turn compression off in the backend or in its reverse proxy.",
            type="server_error",
            code="backend_response_compressed",
        )
