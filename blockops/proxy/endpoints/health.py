"""`GET /health`, `GET /ready` and `GET /metrics`: the state of blockops itself."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import msgspec
from twisted.internet.interfaces import IReactorTime

from blockops import __version__
from blockops.errors import ApiError
from blockops.operations.metrics import CONTENT_TYPE, Metrics
from blockops.proxy.exchange import Exchange, LogState
from blockops.server.request import ClientRequest
from blockops.upstream.backend import Backend

#: Seconds that `/ready` waits for the backend.
READY_TIMEOUT = 10.0


class HealthEndpoints:
    """
    Serves health checks and metrics, which are not logged.

    :param status_for: returns the fields of `/health` that the sender of a request may read
    """

    def __init__(
        self,
        clock: IReactorTime,
        backend: Backend,
        metrics: Metrics,
        *,
        status_for: Callable[[ClientRequest], dict[str, object]],
    ) -> None:
        self._clock = clock
        self._backend = backend
        self._metrics = metrics
        self._status_for = status_for

    async def health(self, exchange: Exchange) -> None:
        """`GET /health`: the version and, for those who may read it, the detailed status."""
        exchange.log_state = LogState.EXCLUDED
        status = {"status": "ok", "version": __version__, **self._status_for(exchange.request)}
        exchange.client_response.send(200, msgspec.json.encode(status))

    async def metrics(self, exchange: Exchange) -> None:
        """`GET /metrics`."""
        exchange.log_state = LogState.EXCLUDED
        content_type = (b"Content-Type", CONTENT_TYPE.encode())
        exchange.client_response.send(200, self._metrics.render(), [content_type])

    async def ready(self, exchange: Exchange) -> None:
        """
        `GET /ready`: the backend responds to `GET /v1/models` with a status below 500.

        :raises ApiError: 503, it does not
        """
        exchange.log_state = LogState.EXCLUDED
        self._backend.check_circuit()
        too_late = ApiError(
            503,
            f"The backend did not respond to GET /v1/models within {READY_TIMEOUT:g} seconds. "
            "Check whether it is overloaded.",
            type="server_error",
            code="backend_unreachable",
        )
        timeout = self._clock.callLater(READY_TIMEOUT, exchange.cancel_with, too_late)
        try:
            response = await self._backend.fetch("/v1/models")
            if response.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise await self._backend.read_error(response, response.code, exchange.capture)
            await self._backend.read_body(response, exchange.capture)
        except ApiError as error:
            error.status = 503
            raise
        finally:
            if timeout.active():
                timeout.cancel()
        exchange.client_response.send(200, b'{"status":"ready"}')
