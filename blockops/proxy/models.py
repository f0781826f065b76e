"""`/v1/models`: what the backend has, by its own names and by those that are given here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from urllib.parse import quote

import msgspec
from twisted.web.iweb import IResponse

from blockops.api.lenient_json import UNREADABLE
from blockops.errors import ApiError
from blockops.operations.traffic_log.records import Record
from blockops.proxy.exchange import Exchange
from blockops.translation.model_alias import id_of, renamed_entry, with_short_names
from blockops.upstream.backend import Backend, Refused

#: Statuses that say that a backend has no such route.
NO_ROUTE = frozenset({404, 405, 501})


class Models:
    """
    Answers what models there are.

    :param names: short name -> real name
    :param write: takes what is written down of a request
    :param pass_back: relays an answer as it is
    """

    def __init__(
        self,
        backend: Backend,
        names: Mapping[str, str],
        *,
        write: Callable[[Record], None],
        pass_back: Callable[[Exchange, IResponse], Awaitable[None]],
    ) -> None:
        self._backend = backend
        self._names = names
        self._write = write
        self._pass_back = pass_back

    async def all(self, exchange: Exchange) -> None:
        """`GET /v1/models`; with the short names, where there are any."""
        self._write(exchange.came())
        response = await self._backend.granted(exchange, None)
        if not self._names or exchange.request.method != b"GET":
            await self._pass_back(exchange, response)
            return
        listing = await self._backend.collected(exchange, response)
        exchange.client.answer(response.code, with_short_names(listing, self._names))

    async def one(self, exchange: Exchange, name: str) -> None:
        """`GET /v1/models/{name}`; from the list of models, where the backend has no such route."""
        self._write(exchange.came())
        real = self._names.get(name)
        if real is not None:
            exchange.target = f"/v1/models/{quote(real, safe='/')}"
        try:
            response = await self._backend.granted(exchange, None)
        except Refused as refused:
            if refused.status not in NO_ROUTE:
                raise
        else:
            await self._give(exchange, response, name if real else None)
            return
        found = find_model(await self._listing(exchange), real or name)
        if found is None:
            raise ApiError(
                404,
                f"The backend has no model {real or name!r}. GET /v1/models lists those it has.",
                param="model",
                code="model_not_found",
            )
        exchange.client.answer(200, renamed_entry(found, name) if real else found)

    async def _give(self, exchange: Exchange, response: IResponse, name: str | None) -> None:
        """Relay a model's entry, under `name` if that is a short one."""
        if name is None or exchange.request.method != b"GET":
            await self._pass_back(exchange, response)
            return
        entry = await self._backend.collected(exchange, response)
        exchange.client.answer(response.code, renamed_entry(entry, name))

    async def _listing(self, exchange: Exchange) -> bytes:
        """
        Return the backend's answer to `/v1/models`.

        :raises ApiError: it gives none
        """
        listed = await self._backend.fetch("/v1/models", exchange)
        if listed.code >= HTTPStatus.BAD_REQUEST:
            raise await self._backend.refused(exchange, listed, listed.code)
        return await self._backend.collected(exchange, listed)


def find_model(listing: bytes, name: str) -> bytes | None:
    """Return the JSON of the model `name` in the backend's answer to `/v1/models`."""
    try:
        models = msgspec.json.decode(listing, type=_Models).data
    except UNREADABLE:
        return None
    return next((bytes(raw) for raw in models if id_of(raw) == name), None)


class _Models(msgspec.Struct):
    data: list[msgspec.Raw] = []
