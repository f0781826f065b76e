"""
One backend: its admission queue, circuit breaker, connect retries and error responses.

A request for an answer of the model holds a lease; short requests, such as those for the list of
models, do without one. The events of a lease:

| event | effect |
| --- | --- |
| `async with backend.lease()` | waits in the admission queue for a slot |
| a slot is free | waits for the end of a cache purge, if there is one |
| the purge has ended | the block begins; no purge starts until it ends |
| the block ends | the slot is released |
| cancelled, in each state | everything that was acquired is released, once |
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.api.backend_errors import extract_message
from blockops.errors import ApiError
from blockops.net.http_headers import forwarded_request_headers
from blockops.upstream.admission import AdmissionQueue
from blockops.upstream.cache_purge import CachePurge
from blockops.upstream.circuit_breaker import CircuitBreaker
from blockops.upstream.client import BackendClient, ConnectError
from blockops.upstream.compatibility import BackendCompatibility

#: Seconds before the first connect retry, which double with each further retry, and their maximum.
BACKOFF_MIN, BACKOFF_MAX = 0.5, 4.0


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
    :param circuit_breaker: its `check` rejects a request before any work is done for it
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
        forwarded_headers: frozenset[bytes] = frozenset(),
    ) -> None:
        self.compatibility = BackendCompatibility()
        self._clock = clock
        self._client = client
        self._admission = admission
        self.circuit_breaker = circuit_breaker
        self._backoff = backoff_delays(retries)
        self._cache_purge = cache_purge
        self._forwarded_headers = forwarded_headers

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[None]:
        """
        Hold a slot at the backend, and hold off cache purges, while the block runs.

        :raises ApiError: 429, the queue is full or the wait took too long; 503, the backend is
            known to be unreachable
        """
        self.circuit_breaker.check()
        acquired_at = await self._admission.acquire()
        has_completed = False
        try:
            await self._cache_purge.request_started()
            try:
                yield
                has_completed = True
            finally:
                self._cache_purge.request_finished()
        finally:
            self._admission.release(acquired_at, completed=has_completed)

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
        delays = iter(self._backoff)
        while True:
            try:
                with self.circuit_breaker.guard():
                    sent = forwarded_request_headers(headers, allow=self._forwarded_headers)
                    return await self._client.request(method, target, sent, body)
            except ConnectError as error:
                seconds = next(delays, None)
                # A timeout is not retried: the attempt has already taken `connect_timeout` seconds,
                # and a backend that restarts refuses connections at once.
                if seconds is None or error.status == HTTPStatus.GATEWAY_TIMEOUT:
                    raise
            self.circuit_breaker.check()
            await deferLater(self._clock, seconds)

    async def fetch(self, target: str, headers: Headers | None = None) -> IResponse:
        """
        Send a GET request of blockops' own, whose failure the circuit breaker does not record.

        :param headers: the headers of the client on whose behalf it is sent, if there is one
        """
        if headers is not None:
            headers = forwarded_request_headers(headers, allow=self._forwarded_headers)
        return await self._client.request("GET", target, headers)


def backoff_delays(retries: int) -> tuple[float, ...]:
    """Return the seconds to wait before each connect retry."""
    return tuple(min(BACKOFF_MIN * 2**attempt, BACKOFF_MAX) for attempt in range(retries))
