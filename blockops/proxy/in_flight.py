"""All requests that are under way: begun, watched over, written down, and ended when it is time."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blockops.api.report import Report
from blockops.errors import ApiError
from blockops.operations.metrics import Metrics
from blockops.operations.ticker import Pulse
from blockops.operations.traffic_log.records import RequestRecord, ResponseRecord
from blockops.proxy.chat import Traffic
from blockops.proxy.exchange import Exchange, Logged
from blockops.proxy.relay import drop
from blockops.server.access.rejection_log import Strangers
from blockops.server.connection import Channel
from blockops.server.request import IncomingRequest
from blockops.settings.table import Settings

#: What is worth a line in the daemon's log, by the parser's word for it.
REMARKS = {
    "unknown_name": "The model called a tool that the request does not offer",
    "malformed": "The model wrote a call whose arguments are no valid JSON",
}

Work = Callable[[Exchange], Coroutine[Deferred[Any], Any, None]]


class Gateway:
    """
    Serves requests, and knows all that are under way.

    :param strangers: counts those who come without a key; None where nobody needs one
    :ivar draining: no new ones are taken
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: Settings,
        pulse: Pulse,
        traffic: Traffic,
        metrics: Metrics,
        *,
        strangers: Strangers | None = None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._pulse = pulse
        self._traffic = traffic
        self._metrics = metrics
        self._strangers = strangers
        self._live: dict[Exchange, Deferred[None]] = {}
        self._hinted = False
        self.draining = False

    def __len__(self) -> int:
        return len(self._live)

    def serve(self, request: IncomingRequest, work: Work, route: str = "none") -> None:
        """
        Begin `work` for `request`. Everything else is its own affair.

        :param route: what the request is counted under
        """
        exchange = Exchange(request, self._clock, self._settings)
        request.setHeader("X-Request-Id", exchange.id)
        if self.draining:
            work = refusal(_stopping())
        self._pulse.add(exchange)
        done = self._live[exchange] = exchange.run(work(exchange))
        done.addBoth(self._forget, exchange, route)

    def abandon(self) -> None:
        """Break the connections of the clients that do not even read that."""
        for exchange in list(self._live):
            exchange.client.cut()

    def refuse(self, request: IncomingRequest, error: ApiError) -> None:
        """Answer `request` with `error`."""
        self.serve(request, refusal(error))

    def note(self, channel: Channel, error: ApiError) -> None:
        """Write down that `channel` refused with `error` what never became a request."""
        self._metrics.refused(error.status)
        if not self._is_written(channel.caller, getattr(channel.getPeer(), "host", None)):
            return
        number = secrets.token_hex(8)
        method, target = channel.asked()
        self._traffic.write(
            RequestRecord(
                id=number,
                client=getattr(channel.getPeer(), "host", None),
                method=method.decode("latin-1"),
                path=target.decode("latin-1"),
            )
        )
        self._traffic.write(
            ResponseRecord(id=number, status=error.status, outcome="failed", error=error.message)
        )

    def _forget(self, _: object, exchange: Exchange, route: str) -> None:
        self._pulse.discard(exchange)
        self._live.pop(exchange, None)
        if exchange.response is not None and exchange.heard.first is None:
            drop(exchange.response)
        if exchange.logged is Logged.NOT_YET and self._is_written(
            exchange.request.caller, exchange.address
        ):
            self._traffic.write(exchange.came())
        outcome = exchange.outcome()
        self._metrics.ended(route, exchange, outcome)
        if exchange.logged is Logged.YES:
            self._traffic.write(outcome)
        if exchange.report is not None:
            self._remark(exchange.report)

    def _is_written(self, caller: str, client: str | None) -> bool:
        """
        Say whether what was refused stands in the traffic log.

        :param caller: the name of the key that it came with; empty if it came without
        """
        return bool(caller) or self._strangers is None or self._strangers.sample(client)

    def drain(self) -> Deferred[None]:
        """Take no more requests. Fires when those under way have ended."""
        self.draining = True
        ended = [self._ended(exchange) for exchange in self._live]
        return DeferredList(ended).addCallback(lambda _: None)

    def _ended(self, exchange: Exchange) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        self._live[exchange].addBoth(lambda _: ended.callback(None))
        return ended

    def hasten(self) -> None:
        """End all that is under way, and tell the clients why."""
        for exchange in list(self._live):
            exchange.end(_stopping())

    def _remark(self, report: Report) -> None:
        """Say in the daemon's log what its owner should know of an answer."""
        if report.tally["untranslated"] and not self._hinted:
            self._hinted = True
            self._log.info(
                "The model wrote tool calls in an answer to a request that offers no tools. They "
                "were left as text; --translate=always makes them calls, if your clients want that."
            )
        for kind, what in REMARKS.items():
            if report.tally[kind]:
                self._log.info("{what} ({names})", what=what, names=", ".join(report.names))


def refusal(error: ApiError) -> Work:
    """Return the work that consists in raising `error`."""

    async def refuse(_: Exchange) -> None:
        raise error

    return refuse


def _stopping() -> ApiError:
    return ApiError(
        503,
        "blockops is being stopped or restarted. Ask again in a moment.",
        type="server_error",
        code="shutting_down",
        retry_after=5,
    )
