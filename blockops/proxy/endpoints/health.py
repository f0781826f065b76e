"""`GET /health`, `GET /ready` and `GET /metrics`: the state of blockops itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from blockops import __version__
from blockops.errors import ApiError
from blockops.operations.metrics import CONTENT_TYPE, Metrics
from blockops.proxy.exchange import Exchange
from blockops.proxy.relay import read_body, read_error
from blockops.server.request import ClientRequest
from blockops.upstream.backend import Backend

#: Seconds that `/ready` waits for the backend.
READY_TIMEOUT = 10.0


@dataclass(frozen=True)
class HealthEndpoints:
    """
    Serves health checks and metrics, which are not logged.

    :param status_for: returns the fields of `/health` that the sender of a request may read
    """

    backend: Backend
    metrics: Metrics
    status_for: Callable[[ClientRequest], dict[str, object]]

    async def health(self, exchange: Exchange) -> None:
        """`GET /health`: the version and, for those who may read it, the detailed status."""
        status = {"status": "ok", "version": __version__, **self.status_for(exchange.request)}
        exchange.response.send(200, msgspec.json.encode(status))

    async def render_metrics(self, exchange: Exchange) -> None:
        """`GET /metrics`."""
        content_type = (b"Content-Type", CONTENT_TYPE.encode())
        exchange.response.send(200, self.metrics.render(), [content_type])

    async def ready(self, exchange: Exchange) -> None:
        """
        `GET /ready`: the backend responds to `GET /v1/models` with a status below 500.

        :raises ApiError: 503, it does not
        """
        self.backend.circuit_breaker.check()
        too_late = ApiError(
            503,
            f"The backend did not respond to GET /v1/models within {READY_TIMEOUT:g} seconds. "
            "Check whether it is overloaded.",
            type="server_error",
            code="backend_unreachable",
        )
        timeout = exchange.clock.callLater(READY_TIMEOUT, exchange.cancel_with, too_late)
        try:
            response = await self.backend.fetch("/v1/models")
            if response.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise await read_error(exchange, response, response.code)
            await read_body(exchange, response)
        except ApiError as error:
            error.status = 503
            raise
        finally:
            if timeout.active():
                timeout.cancel()
        exchange.response.send(200, b'{"status":"ready"}')
