"""`POST /v1/chat/completions`."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import time
from dataclasses import dataclass

from twisted.internet.defer import Deferred, gatherResults

from blockops.api.chat.local_response import encode_completion
from blockops.api.chat.request import ChatRequest
from blockops.conversation.notices import NoticeKind
from blockops.conversation.sessions import ClientIdentity
from blockops.conversation.turn import ChatTurn, Conversations, UncountedItem
from blockops.operations.memory import MemoryGate, MemoryMonitor, Tier
from blockops.proxy.exchange import Exchange
from blockops.proxy.generation import make_mode, relay_answer, send
from blockops.server.request import ClientRequest
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
    """
    Serves chats.

    :param options: how tool calls are translated
    """

    backend: Backend
    options: TranslationOptions
    conversations: Conversations
    tokenizer: Tokenizer
    cache_purge: CachePurge
    memory: MemoryMonitor
    memory_gate: MemoryGate

    async def chat(self, exchange: Exchange) -> None:
        settings = exchange.settings
        request = ChatRequest.parse(exchange.pop_body(), settings.model_alias)
        client = client_identity(exchange)
        turn = self.conversations.begin(request, client, exchange.clock.seconds())
        session_id = turn.session.session_id
        exchange.log_request(
            model=request.model,
            stream=request.stream,
            session=session_id,
            messages=turn.message_count,
            tools=request.item_count("tools"),
        )
        mode = make_mode(request, settings, self.options, turn.notice, turn.prefill_notice)
        exchange.respond_in(mode, turn.feedback)
        if turn.is_reset_only:
            self.cache_purge.schedule(session_id)
            model = request.model or settings.model_name
            answer = encode_completion(turn.reset_answer(), model, time.time())
            exchange.finish(mode.translator.receive_body(answer))
            return

        # Checked before the prompt is prepared, which may take several requests to the backend.
        self.memory_gate.check()
        self.backend.check_circuit()

        self.cache_purge.cancel(session_id)
        if turn.is_reset:
            await self.cache_purge.purge_within(PURGE_WAIT)
        await self._count_tokens(turn, request.backend_model)
        body = turn.prepare_body(
            memory_notice_kind=_TIER_NOTICES.get(self.memory.tier),
            memory_percent=self.memory.percent,
            may_add_header=not exchange.response.has_begun,
        )
        if turn.header_notice:
            header = turn.header_notice.encode("ascii", "replace")
            exchange.request.setHeader("X-Blockops-Notice", header)

        async with self.backend.lease():
            response = await send(exchange, self.backend, request, body, turn.retry_body)
            relayed = relay_answer(exchange, response, mode)
            # The answer may stream for hours, and needs neither the history nor the headers.
            del request, turn, body, response
            await relayed

    async def _count_tokens(self, turn: ChatTurn, model: str | None) -> None:
        """Let the backend's tokenizer count new messages; stop when it fails to count one."""

        async def count(item: UncountedItem) -> bool:
            tokens = await self.tokenizer.count(item.text(), model)
            if tokens is not None:
                turn.learn_count(item, tokens)
            return tokens is not None

        items = turn.uncounted_items()
        # The first one is counted alone: it shows whether the backend offers its tokenizer at all.
        if not items or not await count(items[0]):
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
    request = exchange.request
    return ClientIdentity(
        session_id=_header(request, b"X-Session-Id"),
        address=exchange.address or "",
        key=request.api_key_owner or _header(request, b"Authorization"),
        is_reset_requested=_header(request, b"X-Session-Reset") == "1",
    )


def _header(request: ClientRequest, name: bytes) -> str:
    """Return the first value of a header, stripped; empty if the header is missing."""
    values = request.requestHeaders.getRawHeaders(name, [b""])
    return values[0].decode("utf-8", "replace").strip()
