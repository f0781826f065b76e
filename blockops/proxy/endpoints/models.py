"""`/v1/models`: the backend's models, by their names and by their aliases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from urllib.parse import quote

from twisted.web.iweb import IResponse

from blockops.api.models import find_model, list_with_aliases, rename_entry
from blockops.errors import ApiError
from blockops.proxy.exchange import Exchange, TrafficSink
from blockops.upstream.backend import Backend, BackendError

#: Statuses of a backend that has no such route.
STATUSES_WITHOUT_ROUTE = frozenset({404, 405, 501})


class ModelsEndpoint:
    """
    Serves the list of models, and single entries of it.

    :param aliases: alias -> the backend's name
    :param relay_response: relays a response of the backend unchanged
    """

    def __init__(
        self,
        backend: Backend,
        traffic_log: TrafficSink,
        *,
        aliases: Mapping[str, str],
        relay_response: Callable[[Exchange, IResponse], Awaitable[None]],
    ) -> None:
        self._backend = backend
        self._traffic_log = traffic_log
        self._aliases = aliases
        self._relay_response = relay_response

    async def list(self, exchange: Exchange) -> None:
        """`GET /v1/models`: the backend's list, with the aliases added."""
        self._traffic_log.write(exchange.request_record())
        response = await exchange.forward(self._backend, None)
        if not self._aliases or exchange.request.method != b"GET":
            await self._relay_response(exchange, response)
            return
        listing = await self._backend.read_body(response, exchange.capture)
        exchange.client_response.send(response.code, list_with_aliases(listing, self._aliases))

    async def retrieve(self, exchange: Exchange, name: str) -> None:
        """
        `GET /v1/models/{name}`: the backend's response, or else the entry of its list.

        :raises ApiError: 404, the backend has no such model
        """
        self._traffic_log.write(exchange.request_record())
        backend_name = self._aliases.get(name)
        if backend_name is not None:
            exchange.target = f"/v1/models/{quote(backend_name, safe='/')}"
        try:
            response = await exchange.forward(self._backend, None)
        except BackendError as error:
            if error.status not in STATUSES_WITHOUT_ROUTE:
                raise
        else:
            await self._send_entry(exchange, response, name if backend_name else None)
            return
        found = find_model(await self._read_list(exchange), backend_name or name)
        if found is None:
            raise ApiError(
                404,
                f"The backend has no model {backend_name or name!r}. GET /v1/models lists its "
                "models.",
                param="model",
                code="model_not_found",
            )
        exchange.client_response.send(200, rename_entry(found, name) if backend_name else found)

    async def _send_entry(self, exchange: Exchange, response: IResponse, alias: str | None) -> None:
        if alias is None or exchange.request.method != b"GET":
            await self._relay_response(exchange, response)
            return
        entry = await self._backend.read_body(response, exchange.capture)
        exchange.client_response.send(response.code, rename_entry(entry, alias))

    async def _read_list(self, exchange: Exchange) -> bytes:
        """
        Return the backend's response to `GET /v1/models`.

        :raises ApiError: the backend's error, or 502 or 504 if there is no response
        """
        response = await self._backend.fetch("/v1/models", exchange.request.requestHeaders)
        if response.code >= HTTPStatus.BAD_REQUEST:
            raise await self._backend.read_error(response, response.code, exchange.capture)
        return await self._backend.read_body(response, exchange.capture)
