"""`POST /v1/chat/completions`."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred, gatherResults

from blockops.api.chat.local_response import encode_completion
from blockops.api.request import ChatRequest
from blockops.conversation.notices import NoticeKind
from blockops.conversation.sessions import ClientIdentity
from blockops.conversation.turn import ChatTurn, Conversations, UncountedItem
from blockops.operations.memory import MemoryGate, MemoryMonitor, Tier
from blockops.proxy.exchange import Exchange
from blockops.proxy.relay import relay_answer, send
from blockops.proxy.response_modes import AnswerMode
from blockops.toolcalls.options import TranslationOptions
from blockops.upstream.backend import Backend
from blockops.upstream.cache_purge import CachePurge
from blockops.upstream.tokenizer import Tokenizer

#: Seconds that a request which resets its session waits for the backend to become idle.
PURGE_WAIT = 5.0
#: The number of messages that the backend's tokenizer counts at a time.
COUNT_CONCURRENCY = 8

_TIER_NOTICES: dict[Tier, NoticeKind] = {
    Tier.NOTICE: "notice",
    Tier.WARNING: "warning",
    Tier.HIGH: "high",
    Tier.CRITICAL: "critical",
}


@dataclass(frozen=True)
class ChatEndpoint:
    """Serves chats."""

    backend: Backend
    options: TranslationOptions
    conversations: Conversations
    tokenizer: Tokenizer
    cache_purge: CachePurge
    memory: MemoryMonitor
    memory_gate: MemoryGate

    async def chat(self, exchange: Exchange) -> None:
        settings, client = exchange.settings, client_identity(exchange)
        request = ChatRequest(exchange.body, settings.model_alias)
        turn = self.conversations.begin(request, client, exchange.clock.seconds())
        session_id = turn.session.session_id
        exchange.log_request(
            model=request.model,
            stream=request.stream,
            session=session_id,
            messages=turn.message_count,
            tools=turn.tool_count,
        )
        exchange.feedback = turn.feedback
        mode = exchange.mode = AnswerMode(request, settings, self.options, turn.feedback)
        if turn.is_reset_only:
            self.cache_purge.schedule(session_id)
            model = request.model or settings.model_name
            answer = encode_completion(turn.reset_answer(), model, time.time())
            exchange.finish(mode.translator.receive_body(answer))
            return

        # Checked before the prompt is prepared, which may take several requests to the backend.
        self.memory_gate.check()
        self.backend.circuit_breaker.check()

        self.cache_purge.cancel(session_id)
        if turn.is_reset:
            await self.cache_purge.purge_within(PURGE_WAIT)
        items = turn.uncounted_items()
        if items:
            await self._count_tokens(turn, items, request.backend_model)
        body = turn.prepare_body(_TIER_NOTICES.get(self.memory.tier), self.memory.percent)
        if turn.header_notice and not exchange.response.has_begun:
            header = turn.header_notice.encode("ascii", "replace")
            exchange.request.responseHeaders.setRawHeaders("X-Blockops-Notice", [header])
            turn.feedback.pending_notices.clear()  # delivered, whatever the answer

        async with self.backend.lease():
            response = await send(exchange, self.backend, request, body, turn.retry_body)
            relayed = relay_answer(exchange, response, mode)
            # The answer may stream for hours, and needs neither the history nor the headers.
            del request, turn, items, body, response
            await relayed

    async def _count_tokens(
        self, turn: ChatTurn, items: Sequence[UncountedItem], model: str | None
    ) -> None:
        """Let the backend's tokenizer count new messages; stop when it fails to count one."""

        async def count(item: UncountedItem) -> bool:
            tokens = await self.tokenizer.count(item.text(), model)
            if tokens is not None:
                turn.learn_count(item, tokens)
            return tokens is not None

        # The first one is counted alone: it shows whether the backend offers its tokenizer at all.
        if not await count(items[0]):
            return
        for start in range(0, len(items), COUNT_CONCURRENCY):
            batch = items[max(start, 1) : start + COUNT_CONCURRENCY]
            are_counted = await gatherResults(
                [Deferred.fromCoroutine(count(item)) for item in batch], consumeErrors=True
            )
            if not all(are_counted):
                return


def client_identity(exchange: Exchange) -> ClientIdentity:
    """Return the parts of a session's identity that the head and the connection have."""
    headers = exchange.request.requestHeaders
    session_id, reset, authorization = (
        headers.getRawHeaders(name, [b""])[0].decode("utf-8", "replace").strip()
        for name in (b"X-Session-Id", b"X-Session-Reset", b"Authorization")
    )
    return ClientIdentity(
        session_id=session_id,
        address=exchange.address or "",
        key=exchange.request.api_key_owner or authorization,
        is_reset_requested=reset == "1",
    )
