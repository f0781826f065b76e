"""`POST /v1/completions`."""

from __future__ import annotations

from dataclasses import dataclass

from blockops.api.request import GenerationRequest
from blockops.operations.memory import MemoryGate
from blockops.proxy.exchange import Exchange
from blockops.proxy.relay import relay_answer, send
from blockops.proxy.response_modes import AnswerMode
from blockops.toolcalls.options import TranslationOptions
from blockops.upstream.backend import Backend


@dataclass(frozen=True)
class CompletionsEndpoint:
    """Serves completions, whose prompts are sent unchanged."""

    backend: Backend
    options: TranslationOptions
    memory_gate: MemoryGate

    async def complete(self, exchange: Exchange) -> None:
        settings = exchange.settings
        request = GenerationRequest(exchange.body, settings.model_alias)
        exchange.log_request(model=request.model, stream=request.stream)
        mode = exchange.mode = AnswerMode(request, settings, self.options)
        self.memory_gate.check()

        async with self.backend.lease():
            response = await send(exchange, self.backend, request, request.body())
            relayed = relay_answer(exchange, response, mode)
            # The answer may stream for hours, and needs neither the prompt nor the headers.
            del request, response
            await relayed
