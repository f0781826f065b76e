"""`/v1/models`: the backend's models, by their names and by their aliases."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from blockops.api.models import find_model, list_with_aliases, rename_entry
from blockops.errors import ApiError
from blockops.proxy.endpoints.passthrough import relay_unchanged
from blockops.proxy.exchange import Exchange
from blockops.proxy.relay import forward, read_body, read_error
from blockops.upstream.backend import Backend, BackendError

#: Statuses of a backend that has no such route.
STATUSES_WITHOUT_ROUTE = frozenset({404, 405, 501})


@dataclass(frozen=True)
class ModelsEndpoint:
    """Serves the list of models, and single entries of it."""

    backend: Backend

    async def list(self, exchange: Exchange) -> None:
        """`GET /v1/models`: the backend's list, with the aliases added."""
        exchange.log_request()
        aliases = exchange.settings.model_alias
        response = await forward(exchange, self.backend, None)
        if not aliases or exchange.request.method != b"GET":
            await relay_unchanged(exchange, response)
            return
        listing = await read_body(exchange, response)
        exchange.response.send(response.code, list_with_aliases(listing, aliases))

    async def retrieve(self, exchange: Exchange, name: str) -> None:
        """
        `GET /v1/models/{name}`: the backend's response, or else the entry of its list.

        :raises ApiError: 404, the backend has no such model
        """
        exchange.log_request()
        alias_of = exchange.settings.model_alias.get(name)
        target = None if alias_of is None else f"/v1/models/{quote(alias_of, safe='/')}"
        try:
            response = await forward(exchange, self.backend, None, target)
        except BackendError as error:
            if error.status not in STATUSES_WITHOUT_ROUTE:
                raise
            status, entry = 200, await self._find_in_list(exchange, alias_of or name)
        else:
            if alias_of is None or exchange.request.method != b"GET":
                await relay_unchanged(exchange, response)
                return
            status, entry = response.code, await read_body(exchange, response)
        exchange.response.send(status, entry if alias_of is None else rename_entry(entry, name))

    async def _find_in_list(self, exchange: Exchange, name: str) -> bytes:
        """
        Return the entry of a model in the backend's response to `GET /v1/models`.

        :raises ApiError: 404, the list has no such entry; the backend's error; or 502 or 504, it
            did not respond
        """
        response = await self.backend.fetch("/v1/models", exchange.request.requestHeaders)
        if response.code >= HTTPStatus.BAD_REQUEST:
            raise await read_error(exchange, response, response.code)
        entry = find_model(await read_body(exchange, response), name)
        if entry is None:
            raise ApiError(
                404,
                f"The backend has no model {name!r}. GET /v1/models lists its models.",
                param="model",
                code="model_not_found",
            )
        return entry
