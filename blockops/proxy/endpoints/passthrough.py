"""All other routes under `/v1`: their requests and responses pass through unchanged."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.web.iweb import IResponse

from blockops.api.backend_errors import truncated_response
from blockops.api.models import rename_model, replace_alias
from blockops.api.passthrough import PassThrough
from blockops.net.http_headers import forwarded_response_headers, media_type
from blockops.proxy.exchange import Exchange, LogState, TrafficSink
from blockops.proxy.generation import Generation
from blockops.proxy.relay import relay
from blockops.proxy.response_modes import PassthroughMode, StreamMode
from blockops.translation.model_alias import AliasedPassThrough
from blockops.upstream.backend import Backend
from blockops.upstream.body import check_encoding

#: Statuses whose responses have no body (RFC 9110, section 6.4.1).
STATUSES_WITHOUT_BODY = frozenset({204, 304})


class PassthroughEndpoint:
    """
    Forwards requests and responses unchanged, except for a model's alias.

    :param aliases: alias -> the backend's name
    :param max_event: the maximum size of an event in which a model's name is replaced, in bytes
    """

    def __init__(
        self,
        generation: Generation,
        backend: Backend,
        traffic_log: TrafficSink,
        *,
        aliases: Mapping[str, str],
        max_event: int,
    ) -> None:
        self._generation = generation
        self._backend = backend
        self._traffic_log = traffic_log
        self._aliases = aliases
        self._max_event = max_event

    async def handle(self, exchange: Exchange) -> None:
        """Forward the request. One with the method POST takes a slot, as it may use the model."""
        upload = exchange.request.upload
        raw = b"" if upload is not None else exchange.request.pop_body()
        renamed, alias = replace_alias(raw, self._aliases)
        body = upload if upload is not None else renamed or None
        # An upload that is still arriving is logged later, with the part of it that was captured.
        if upload is None or upload.is_complete:
            self._traffic_log.write(exchange.request_record(raw))
        if exchange.request.method == b"POST":
            with self._backend.lease() as lease:
                response = await self._generation.send(exchange, lease, body)
                await self.relay_response(exchange, response, alias)
        else:
            response = await exchange.forward(self._backend, body)
            await self.relay_response(exchange, response, alias)

    async def relay_response(
        self, exchange: Exchange, response: IResponse, alias: str | None = None
    ) -> None:
        """
        Relay a response whose format is not translated.

        :param alias: the client's name for the model; None if it is the backend's
        :raises ApiError: 502, the response was truncated, or blockops cannot read it
        """
        client = exchange.client_response
        content_type = media_type(response.headers)
        if alias is not None and content_type == "application/json":
            body = await self._backend.read_body(response, exchange.capture)
            client.send(response.code, rename_model(body, alias))
            return
        if exchange.log_state is LogState.PENDING:
            self._traffic_log.write(exchange.request_record())
        headers = forwarded_response_headers(response.headers)
        if content_type == "text/event-stream":
            check_encoding(response)
            events = (
                PassThrough()
                if alias is None
                else AliasedPassThrough(alias, self._max_event)
            )
            exchange.mode = StreamMode(lambda: events)
            exchange.report = events.report
            client.begin(response.code, headers)
            is_complete = await relay(response, client, events, exchange.capture)
            client.finish(events.end(is_truncated=not is_complete))
            return
        mode = exchange.mode = PassthroughMode()
        has_body = exchange.request.method != b"HEAD" and response.code not in STATUSES_WITHOUT_BODY
        if isinstance(response.length, int) and has_body:
            headers.append((b"Content-Length", b"%d" % response.length))
        client.begin(response.code, headers)
        if not await relay(response, client, mode, exchange.capture):
            raise truncated_response(b"", 1, is_connection_lost=True)
        client.finish()
