"""All other routes under `/v1`: their requests and responses pass through unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.web.iweb import IResponse

from blockops.api.backend_errors import truncated_response
from blockops.api.models import rename_model, replace_alias
from blockops.api.passthrough import PassThrough
from blockops.net.http_headers import forwarded_response_headers, media_type
from blockops.operations.memory import MemoryGate
from blockops.proxy.exchange import Exchange
from blockops.proxy.relay import forward, read_body, relay
from blockops.proxy.response_modes import PassThroughMode
from blockops.translation.model_alias import AliasedPassThrough
from blockops.upstream.backend import Backend
from blockops.upstream.body import check_encoding

#: Statuses whose responses have no body (RFC 9110, section 6.4.1).
STATUSES_WITHOUT_BODY = frozenset({204, 304})


@dataclass(frozen=True)
class PassthroughEndpoint:
    """Forwards requests and responses unchanged, except for a model's alias."""

    backend: Backend
    memory_gate: MemoryGate

    async def pass_through(self, exchange: Exchange) -> None:
        """Forward the request. One with the method POST takes a slot, as it may use the model."""
        upload = exchange.request.upload
        renamed, alias = replace_alias(exchange.body, exchange.settings.model_alias)
        body = upload if upload is not None else renamed or None
        # An upload that is still arriving is logged later, with the part of it that was captured.
        if upload is None or upload.is_complete:
            exchange.log_request()
        if exchange.request.method == b"POST":
            self.memory_gate.check()
            async with self.backend.lease():
                response = await forward(exchange, self.backend, body)
                await relay_unchanged(exchange, response, alias)
        else:
            response = await forward(exchange, self.backend, body)
            await relay_unchanged(exchange, response, alias)


async def relay_unchanged(
    exchange: Exchange, response: IResponse, alias: str | None = None
) -> None:
    """
    Relay a response whose format is not translated.

    :param alias: the client's name for the model; None if it is the backend's
    :raises ApiError: 502, the response was truncated
    """
    client = exchange.response
    content_type = media_type(response.headers)
    if alias is not None and content_type == "application/json":
        body = await read_body(exchange, response)
        client.send(response.code, rename_model(body, alias))
        return
    if not exchange.is_logged:
        exchange.log_request()
    headers = forwarded_response_headers(response.headers)
    events = PassThrough()
    is_stream = content_type == "text/event-stream"
    if is_stream:
        check_encoding(response)
        if alias is not None:
            events = AliasedPassThrough(alias, exchange.settings.max_event)
        exchange.mode = PassThroughMode(events)
    elif (
        isinstance(response.length, int)
        and exchange.request.method != b"HEAD"
        and response.code not in STATUSES_WITHOUT_BODY
    ):
        headers.append((b"Content-Length", b"%d" % response.length))
    client.begin(response.code, headers)
    is_complete = await relay(exchange, response, events)
    if is_stream:
        client.finish(events.end(is_truncated=not is_complete))
    elif is_complete:
        client.finish()
    else:
        raise truncated_response(b"", 1, is_connection_lost=True)
