"""Builds the daemon's objects from `Settings` and connects them."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import quoteStringArgument

from blockops.conversation.context_window import ContextLimits
from blockops.conversation.options import ConversationOptions
from blockops.conversation.turn import Conversations
from blockops.demo.server import DemoBackend
from blockops.operations.memory import MemoryGate, MemoryMonitor
from blockops.operations.metrics import Metrics
from blockops.operations.ticker import Ticker
from blockops.operations.traffic_log.log import NoTrafficLog, TrafficLog
from blockops.plugins import known_dialects, tool_prompt_for
from blockops.proxy.endpoints.chat import ChatEndpoint
from blockops.proxy.endpoints.completions import CompletionsEndpoint
from blockops.proxy.endpoints.health import HealthEndpoints
from blockops.proxy.endpoints.models import ModelsEndpoint
from blockops.proxy.endpoints.passthrough import PassthroughEndpoint
from blockops.proxy.in_flight import InFlightRequests
from blockops.proxy.routes import ApiResource, StatusResource
from blockops.server.access.api_keys import ApiKeyStore
from blockops.server.access.cors import OriginPolicy
from blockops.server.access.host_check import HostCheck
from blockops.server.access.policy import AccessPolicy
from blockops.server.access.rejection_log import RejectionLog
from blockops.server.body_budget import BodyBudget
from blockops.server.connection_limit import ConnectionLimiter
from blockops.server.request import ClientRequest
from blockops.server.site import Site
from blockops.settings.table import Settings
from blockops.toolcalls.options import TranslationOptions
from blockops.upstream.admission import AdmissionQueue
from blockops.upstream.backend import Backend
from blockops.upstream.cache_purge import CachePurge
from blockops.upstream.circuit_breaker import CircuitBreaker
from blockops.upstream.client import BackendClient
from blockops.upstream.probe import BackendProbe
from blockops.upstream.prompt_cache import PromptCacheReset
from blockops.upstream.tokenizer import Tokenizer

#: The value of `--backend` that selects the demo backend.
DEMO = "demo"
#: Seconds between two ticks, at most: the delay with which a missed deadline is noticed.
MAX_TICK = 1.0
#: Limits of `--admin-listen`, which serves only GET requests of a few monitoring programs.
STATUS_CONNECTIONS = 64
STATUS_BODY = 1024
#: The length of the listen queue. Twisted's 50 overflow when many clients connect at once. Linux
#: drops the last packet of a handshake then: the client believes it is connected until it sends.
BACKLOG = 1024


class Components:
    """
    The objects of one daemon. Construction reads the key and certificate files, opens no socket.

    :ivar demo: None if `settings` name a real backend
    :ivar api_keys: None if clients need no key
    :ivar status_site: the HTTP server of `--admin-listen`
    """

    def __init__(
        self, settings: Settings, reactor: Any, traffic_log: TrafficLog | NoTrafficLog | None = None
    ) -> None:
        self._settings = settings
        self.demo = DemoBackend(reactor) if settings.backend == DEMO else None
        self.memory = MemoryMonitor()
        self.ticker = Ticker(reactor, min(settings.heartbeat / 4, MAX_TICK))
        self.admission = AdmissionQueue(
            reactor,
            slots=settings.max_concurrent,
            max_queue=settings.max_queue,
            queue_timeout=settings.queue_timeout,
        )
        self.circuit_breaker = CircuitBreaker(
            reactor,
            failure_threshold=settings.circuit_after,
            reset_timeout=settings.circuit_pause,
            reject_waiting=self.admission.reject_waiting,
        )
        self.backend_client = BackendClient(
            reactor,
            settings.backend,
            key=settings.backend_key,
            ca=settings.backend_ca,
            connect_timeout=settings.connect_timeout,
            on_connected=self.circuit_breaker.record_connection,
        )
        keys_file = settings.api_keys_file
        self.api_keys = None if keys_file is None else ApiKeyStore(keys_file)
        self.access = AccessPolicy(
            self.api_keys, OriginPolicy(settings.cors_origin), HostCheck(settings.allowed_host)
        )
        probe = BackendProbe(reactor, self.backend_client)
        self.prompt_cache = PromptCacheReset(probe, settings.cache_reset)
        self.cache_purge = CachePurge(
            reactor, self.prompt_cache.reset, self.prompt_cache.is_supported
        )
        backend = Backend(
            reactor,
            self.backend_client,
            self.admission,
            circuit_breaker=self.circuit_breaker,
            retries=settings.connect_retries,
            cache_purge=self.cache_purge,
            forwarded_headers=frozenset({b"authorization"} if settings.forward_auth else ()),
        )
        self.conversations = Conversations(conversation_options(settings), backend.compatibility)
        self.traffic_log = traffic_log or make_traffic_log(settings, reactor)
        metrics = Metrics(self.status)
        rejection_log = None if self.api_keys is None else RejectionLog(reactor)
        self.in_flight = InFlightRequests(
            reactor, settings, self.ticker, self.traffic_log, metrics, rejection_log=rejection_log
        )
        health = HealthEndpoints(backend, metrics, self.status_for)
        self.connection_limiter = ConnectionLimiter(
            reactor,
            limit=settings.max_connections,
            limit_per_client=settings.max_connections_per_client,
        )
        self.body_budget = BodyBudget(settings.max_queued_bytes)
        api = self._make_api(backend, Tokenizer(reactor, probe), health)
        self.site = Site(
            api,
            reactor=reactor,
            # A body that the budget could never hold is rejected as too large.
            max_body=min(settings.max_body, settings.max_queued_bytes),
            body_budget=self.body_budget,
            header_timeout=settings.header_timeout,
            match_route=api.match,
            connection_limiter=self.connection_limiter,
            check_access=self.access.check,
            on_rejected=self.in_flight.log_rejected,
        )
        status = StatusResource(self.in_flight, health)
        self.status_site = Site(
            status,
            reactor=reactor,
            max_body=STATUS_BODY,
            body_budget=BodyBudget(STATUS_CONNECTIONS * STATUS_BODY),
            connection_limiter=ConnectionLimiter(
                reactor, limit=STATUS_CONNECTIONS, limit_per_client=0
            ),
            header_timeout=settings.header_timeout,
            match_route=status.match,
            check_access=self.access.check_admin,
            on_rejected=self.in_flight.log_rejected,
        )

    def _make_api(
        self, backend: Backend, tokenizer: Tokenizer, health: HealthEndpoints
    ) -> ApiResource:
        settings = self._settings
        options = TranslationOptions(
            translate=settings.translate,
            fenced_calls=settings.fenced_calls,
            reasoning=settings.reasoning,
            think_prefilled=settings.think_prefilled,
            think_calls=settings.think_calls,
            max_hold=settings.max_hold,
            dialects=known_dialects(),
        )
        gate = MemoryGate(
            self.memory, is_enabled=settings.memory_gate, retry_after=settings.memory_poll
        )
        chat = ChatEndpoint(
            backend, options, self.conversations, tokenizer, self.cache_purge, self.memory, gate
        )
        return ApiResource(
            self.in_flight,
            health,
            chat=chat,
            completions=CompletionsEndpoint(backend, options, gate),
            models=ModelsEndpoint(backend),
            passthrough=PassthroughEndpoint(backend, gate),
            has_metrics=not settings.admin_listen,
            has_aliases=bool(settings.model_alias),
        )

    def status_for(self, request: ClientRequest) -> dict[str, object]:
        """Return the fields of `/health` that the sender of `request` may read."""
        if self._settings.admin_listen:  # then they are served on that address only
            is_admin_site = request.connection.site is self.status_site
            may_read = is_admin_site and self.access.may_read_status(request)
        else:
            may_read = self.access.is_authenticated(request)
        return self.status() if may_read else {}

    def status(self) -> dict[str, object]:
        """Return the `/health` fields that depend on the state; the metrics read them too."""
        return {
            "running": self.admission.active,
            "waiting": self.admission.waiting,
            **self.circuit_breaker.status(),
            **self.connection_limiter.status(),
            **self.body_budget.status(),
            "memory_available_percent": round(self.memory.percent, 1),
            "log_lines_lost": self.traffic_log.lines_lost,
            **self.conversations.status(),
            "caches_purged": self.prompt_cache.resets,
            "purges_failed": self.prompt_cache.failures,
            "purges_skipped": self.cache_purge.purges_skipped,
        }


def listen_endpoints(settings: Settings) -> tuple[str, ...]:
    """Return the addresses for clients as Twisted endpoint strings."""
    if settings.listen:
        return settings.listen
    family = "tcp6" if ":" in settings.interface else "tcp"
    interface = quoteStringArgument(settings.interface)
    return (f"{family}:{settings.port}:interface={interface}:backlog={BACKLOG}",)


def conversation_options(settings: Settings) -> ConversationOptions:
    return ConversationOptions(
        limits=ContextLimits(
            settings.token_warn_threshold, settings.token_hard_threshold, settings.trim_target
        ),
        tools=settings.tools,
        tool_prompt=tool_prompt_for(settings.tool_format),
        notices=settings.notices,
        model_name=settings.model_name,
        reset_pattern=settings.reset_pattern,
        reset_on_shrink=settings.reset_on_shrink,
        max_sessions=settings.max_sessions,
        session_idle=settings.session_idle,
    )


def make_traffic_log(settings: Settings, reactor: Any) -> TrafficLog | NoTrafficLog:
    if settings.log_file is None:
        return NoTrafficLog()
    return TrafficLog(
        reactor,
        settings.log_file,
        max_body=settings.log_body,
        rotate_at=settings.log_size,
        keep=settings.log_keep,
        secrets=secrets_to_hide(settings),
    )


def secrets_to_hide(settings: Settings) -> tuple[str, ...]:
    """Return the strings that the traffic log replaces wherever they occur."""
    return (settings.backend_key,) if settings.backend_key else ()
