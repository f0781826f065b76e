"""`POST /v1/chat/completions`."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import time
from functools import partial

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime

from blockops.api.chat.local_response import encode_completion
from blockops.api.chat.request import ChatRequest
from blockops.conversation.notices import NoticeKind
from blockops.conversation.sessions import ClientIdentity
from blockops.conversation.turn import ChatTurn, Conversations, UncountedItem
from blockops.operations.memory import MemoryMonitor, Tier
from blockops.proxy.exchange import Exchange
from blockops.proxy.generation import Generation, OpenStream
from blockops.proxy.response_modes import ChatStreamMode
from blockops.server.request import ClientRequest
from blockops.upstream.backend import BackendLease
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


class ChatEndpoint:
    """
    Serves chats.

    :param model_name: the model's name in answers of blockops itself, if the request has none
    """

    def __init__(
        self,
        clock: IReactorTime,
        generation: Generation,
        conversations: Conversations,
        *,
        tokenizer: Tokenizer,
        cache_purge: CachePurge,
        memory: MemoryMonitor,
        model_name: str,
    ) -> None:
        self._clock = clock
        self._generation = generation
        self._conversations = conversations
        self._tokenizer = tokenizer
        self._cache_purge = cache_purge
        self._memory = memory
        self._model_name = model_name

    async def handle(self, exchange: Exchange) -> None:
        await self._generation.serve(exchange, self._respond)

    async def _respond(self, exchange: Exchange, lease: BackendLease) -> OpenStream | None:
        generation = self._generation
        request = generation.parse(exchange, ChatRequest)
        client = client_identity(exchange.request)
        turn = self._conversations.begin(request, client, self._clock.seconds())
        exchange.feedback = turn.feedback
        exchange.run_after_first_wait(partial(self._log_request, exchange, request, turn))
        if turn.is_reset_only:
            self._cache_purge.schedule(turn.session.session_id)
            model = request.model or self._model_name
            body = encode_completion(turn.reset_answer(), model, time.time())
            generation.send_local_response(exchange, request, body)
            return None
        generation.check_availability()
        if not request.stream:
            json_mode = generation.use_json_mode(exchange)
            body = await self._prepare_body(exchange, request, turn)
            await generation.send_json(
                exchange,
                lease,
                request,
                json_mode,
                body,
                retry_body=turn.retry_body,
                notice=turn.notice,
            )
            return None
        make_translator = partial(generation.make_translator, request, turn.notice)
        mode = ChatStreamMode(make_translator, turn.prefill_notice)
        generation.use_stream_mode(exchange, mode)
        body = await self._prepare_body(exchange, request, turn)
        return await generation.open_stream(
            exchange,
            lease,
            request,
            mode,
            body,
            retry_body=turn.retry_body,
            notice=turn.notice,
        )

    def _log_request(self, exchange: Exchange, request: ChatRequest, turn: ChatTurn) -> None:
        self._generation.log_request(
            exchange,
            request,
            session=turn.session.session_id,
            messages=turn.message_count,
            tools=request.item_count("tools"),
        )

    async def _prepare_body(
        self, exchange: Exchange, request: ChatRequest, turn: ChatTurn
    ) -> bytes:
        """
        Purge the backend's cache if the session is reset, and return the body for the backend.

        :raises ApiError: 400, the history cannot be made to fit
        """
        self._cache_purge.cancel(turn.session.session_id)
        if turn.is_reset:
            await self._cache_purge.purge_within(PURGE_WAIT)
        await self._count_tokens(turn, request.backend_model)
        body = turn.prepare_body(
            memory_notice_kind=_TIER_NOTICES.get(self._memory.tier),
            memory_percent=self._memory.percent,
            may_add_header=not exchange.client_response.has_begun,
        )
        if turn.header_notice:
            exchange.set_notice_header(turn.header_notice)
        return body

    async def _count_tokens(self, turn: ChatTurn, model: str | None) -> None:
        """Let the backend's tokenizer count new messages; stop when it fails to count one."""

        async def count(item: UncountedItem) -> bool:
            tokens = await self._tokenizer.count(item.text(), model)
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


def client_identity(request: ClientRequest) -> ClientIdentity:
    """Return the parts of a session's identity that the head and the connection have."""
    return ClientIdentity(
        session_id=_header(request, b"X-Session-Id"),
        address=str(getattr(request.getClientAddress(), "host", "")),
        key=request.api_key_owner or _header(request, b"Authorization"),
        is_reset_requested=_header(request, b"X-Session-Reset") == "1",
    )


def _header(request: ClientRequest, name: bytes) -> str:
    """Return the first value of a header, stripped; empty if the header is missing."""
    values = request.requestHeaders.getRawHeaders(name, [b""])
    return values[0].decode("utf-8", "replace").strip()
