"""
All requests in flight: each is started, ticked, and ended here.

The end of a request has one order, in `InFlightRequests._end`: the conversation learns from its
answer, the traffic log records it, and the metrics count it.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import secrets
from dataclasses import dataclass

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blockops.api.report import AnswerReport
from blockops.errors import ApiError
from blockops.operations.metrics import Metrics
from blockops.operations.ticker import Ticker
from blockops.operations.traffic_log.log import NoTrafficLog, TrafficLog
from blockops.operations.traffic_log.records import RequestRecord, ResponseRecord
from blockops.proxy.exchange import Exchange, Handler
from blockops.server.access.rejection_log import RejectionLog
from blockops.server.connection import ClientConnection
from blockops.server.request import ClientRequest
from blockops.settings.table import Settings
from blockops.upstream.body import discard

#: The counters of an answer that are logged, and the message for each.
FINDINGS = {
    "unknown_name": "The model called a tool that the request does not offer",
    "malformed": "The model wrote a call whose arguments are not valid JSON",
}


@dataclass(frozen=True)
class Route:
    """
    The handler of a request, and how the request is treated on its way there and back.

    :param label: the route's name in the metrics; "none" if no route serves the request
    :param methods: those that are allowed
    :param streams_upload: the body is not buffered, but forwarded as it arrives, or discarded
    :param is_public: no API key is needed
    :param is_logged: the traffic log contains the request
    """

    handler: Handler
    label: str = "none"
    methods: tuple[str, ...] = ()
    streams_upload: bool = True
    is_public: bool = False
    is_logged: bool = True


class InFlightRequests:
    """
    Starts requests, and holds them until they are done.

    :param rejection_log: limits the log entries of rejected requests; None if clients need no key
    :ivar is_draining: new requests are rejected
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: Settings,
        ticker: Ticker,
        traffic_log: TrafficLog | NoTrafficLog,
        metrics: Metrics,
        *,
        rejection_log: RejectionLog | None = None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._ticker = ticker
        self._traffic_log = traffic_log
        self._metrics = metrics
        self._rejection_log = rejection_log
        self._exchanges: set[Exchange] = set()
        self._is_translate_hint_logged = False
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._exchanges)

    def start(self, request: ClientRequest, route: Route) -> None:
        """Start the handler of `route` for `request`."""
        exchange = Exchange(request, self._clock, self._settings, self._traffic_log)
        if self.is_draining:
            route = Route(_reject, route.label)
        self._ticker.add(exchange)
        self._exchanges.add(exchange)
        exchange.done = Deferred.fromCoroutine(exchange.run(route.handler))
        exchange.done.addCallback(lambda _: self._end(exchange, route))

    def log_rejected(self, connection: ClientConnection, error: ApiError) -> None:
        """Log and count an incomplete or invalid request that `connection` rejected."""
        self._metrics.request_rejected(error.status)
        address = getattr(connection.client_address, "host", None)
        if not self._should_log(connection.api_key_owner, address):
            return
        record_id = secrets.token_hex(8)
        method, target = connection.request_line()
        self._traffic_log.write(
            RequestRecord(
                id=record_id,
                client=address,
                method=method.decode("latin-1"),
                path=target.decode("latin-1"),
            )
        )
        self._traffic_log.write(
            ResponseRecord(id=record_id, status=error.status, outcome="failed", error=error.message)
        )

    def drain(self) -> Deferred[None]:
        """Reject new requests from now on. Fires when the requests in flight are done."""
        self.is_draining = True
        return DeferredList([exchange.done for exchange in self._exchanges]).addCallback(
            lambda _: None
        )

    def cancel_all(self) -> None:
        """Cancel all requests in flight, and send the clients a 503."""
        for exchange in list(self._exchanges):
            exchange.cancel_with(_shutdown_error())

    def abort_all(self) -> None:
        """Abort the connections of all requests in flight."""
        for exchange in list(self._exchanges):
            exchange.response.abort()

    def _end(self, exchange: Exchange, route: Route) -> None:
        """Learn from the answer, record and count it, after the response was sent."""
        self._ticker.discard(exchange)
        self._exchanges.discard(exchange)
        if exchange.backend_response is not None:
            discard(exchange.backend_response)
        report = exchange.mode.report
        if exchange.feedback is not None:
            try:
                exchange.feedback.learn(report)
            except Exception:  # noqa: BLE001 - the request is logged and counted anyway
                self._log.failure("The answer to {path} was not learnt", path=exchange.request.path)

        api_key_owner = exchange.request.api_key_owner
        if (
            route.is_logged
            and not exchange.is_logged
            and self._should_log(api_key_owner, exchange.address)
        ):
            exchange.log_request()
        record = exchange.response_record()
        if exchange.is_logged:
            self._traffic_log.write(record)
        if report is not None:
            self._log_findings(report)

        self._metrics.request_finished(
            route.label,
            record,
            heartbeats=exchange.heartbeats,
            api_key_owner=api_key_owner,
            report=report,
        )

    def _should_log(self, api_key_owner: str, address: str | None) -> bool:
        """
        Return True if a rejected request is to be logged.

        :param api_key_owner: the name of its API key; empty without one
        """
        if api_key_owner or self._rejection_log is None:
            return True
        return self._rejection_log.should_log(client=address or "a Unix socket")

    def _log_findings(self, report: AnswerReport) -> None:
        """Log tool calls that were not translated or are invalid, in the daemon's own log."""
        if report.counters["untranslated"] and not self._is_translate_hint_logged:
            self._is_translate_hint_logged = True
            self._log.info(
                "The model wrote tool calls in an answer to a request that offers no tools. They "
                "were sent as text. If your clients want calls, set --translate=always."
            )
        for counter, finding in FINDINGS.items():
            if report.counters[counter]:
                names = ", ".join(report.tool_names)
                self._log.info("{finding} ({names})", finding=finding, names=names)


async def _reject(_: Exchange) -> None:
    raise _shutdown_error()


def _shutdown_error() -> ApiError:
    return ApiError(
        503,
        "blockops is being stopped or restarted. Try again in a moment.",
        type="server_error",
        code="shutting_down",
        retry_after=5,
    )
