"""
`BackendProbe`: blockops' own small requests, which read or change the backend's state.

The failure of a probe never fails a client's request. `tokenizer` and `prompt_cache` use probes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from blockops.api.lenient_json import DECODE_ERRORS
from blockops.errors import ApiError
from blockops.upstream.body import BodyTooLarge, collect
from blockops.upstream.client import BackendClient

#: Seconds that a probe may take. Less than `cache_purge.PURGE_TIMEOUT`, so that the purge knows
#: about the failure.
TIMEOUT = 4.0
#: Bound of a response, in bytes: enough for the tokens of a long message, as a list of numbers.
MAX_BODY = 16 * 1024 * 1024
#: Statuses with which a backend reports that it has no such route.
NO_ROUTE_STATUSES = frozenset({404, 405, 501})


class ModelEntry(msgspec.Struct):
    """
    An entry of `GET /v1/models`.

    :ivar owned_by: shows the backend's kind
    :ivar max_model_len: maximum tokens of a prompt and its answer together (vLLM, SGLang)
    """

    id: str = ""
    owned_by: str = ""
    max_model_len: int | None = None


class ModelList(msgspec.Struct):
    """The body of `GET /v1/models`."""

    data: list[ModelEntry] = []


class ProbeResponse(NamedTuple):
    """
    A response of the backend, with its body.

    :ivar server: the value of its `Server` header, or empty
    :ivar is_complete: False if the connection broke within the body
    """

    status: int
    body: bytes
    server: str = ""
    is_complete: bool = True

    @property
    def is_success(self) -> bool:
        return self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def is_server_error(self) -> bool:
        """True for a temporary failure, which implies nothing about the backend's features."""
        is_error = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return is_error and self.status not in NO_ROUTE_STATUSES

    def decode(self, as_type: type[Any]) -> Any:
        """Return the JSON body decoded as `as_type`, or None if it is not valid as such."""
        try:
            return msgspec.json.decode(self.body, type=as_type)
        except DECODE_ERRORS:
            return None


class BackendProbe:
    """Sends small requests to the backend, with a short timeout."""

    def __init__(self, clock: IReactorTime, client: BackendClient) -> None:
        self._clock = clock
        self._client = client

    def request(
        self, call: str, body: Any = None, timeout: float = TIMEOUT
    ) -> Deferred[ProbeResponse | None]:
        """
        Send a request; return a Deferred of its response, or of None if it fails.

        Cancelling aborts the connection, and the Deferred fails with `CancelledError`.

        :param call: a method and a path, such as `GET /v1/models`
        :param body: sent as JSON; without it the request has no body
        """
        response = Deferred.fromCoroutine(self._request(call, body))
        response.addTimeout(timeout, self._clock)
        return response.addErrback(_none_if_failed)

    async def _request(self, call: str, body: Any) -> ProbeResponse:
        method, _, target = call.partition(" ")
        headers = Headers({"Content-Type": ["application/json"]}) if body is not None else None
        data = None if body is None else msgspec.json.encode(body)
        response: IResponse = await self._client.request(method, target, headers, data)
        content, is_complete = await collect(response, MAX_BODY)
        server = response.headers.getRawHeaders(b"Server", [b""])[0]
        return ProbeResponse(response.code, content, server.decode("latin-1"), is_complete)


def _none_if_failed(failure: Failure) -> None:
    failure.trap(ApiError, BodyTooLarge, defer.TimeoutError)
