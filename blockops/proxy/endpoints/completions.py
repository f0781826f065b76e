"""`POST /v1/completions`."""

from __future__ import annotations

from functools import partial

from blockops.api.completions import CompletionRequest
from blockops.proxy.exchange import Exchange
from blockops.proxy.generation import Generation, OpenStream
from blockops.proxy.response_modes import StreamMode
from blockops.upstream.backend import BackendLease


class CompletionsEndpoint:
    """Serves completions, whose prompts are sent unchanged."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def handle(self, exchange: Exchange) -> None:
        await self._generation.serve(exchange, self._respond)

    async def _respond(self, exchange: Exchange, lease: BackendLease) -> OpenStream | None:
        generation = self._generation
        request = generation.parse(exchange, CompletionRequest)
        exchange.run_after_first_wait(partial(generation.log_request, exchange, request))
        if not request.stream:
            json_mode = generation.use_json_mode(exchange)
            await generation.send_json(exchange, lease, request, json_mode, request.body())
            return None
        mode = StreamMode(partial(generation.make_translator, request))
        generation.use_stream_mode(exchange, mode)
        return await generation.open_stream(exchange, lease, request, mode, request.body())
