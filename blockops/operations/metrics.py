"""
What is counted of requests, in the Prometheus text format.

Counting is a matter of microseconds at the end of each request, and of nothing in between: what is
known of an answer is read from what the traffic log gets. The rest is asked for when somebody
scrapes. Labels take values from short lists, or from files of the operator's own: no client can
make up a new one.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from blockops import __version__
from blockops.api.report import tokens_in
from blockops.operations.traffic_log.records import ResponseRecord
from blockops.proxy.exchange import Exchange, Logged

#: Upper ends of the histograms' buckets, in seconds: prompts are read for minutes.
BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

#: What the parser counts, as far as it is told apart; formats of others may count more.
MOST_EVENTS = 64
_EVENT = re.compile(r"[a-z_]{1,40}")

_STATUSES = frozenset(status.value for status in HTTPStatus)
_TOKENS = {"prompt": "prompt_tokens", "completion": "completion_tokens"}

#: The vitals of `/health` that are counters, or have another name or measure: name, help, factor.
_COUNTED = {
    "log_lines_lost": ("log_lines_lost", "Lines of the traffic log that were not written."),
    "prompts_cut": ("prompts_cut", "Prompts that were sent on shorter than they came."),
    "caches_purged": ("caches_purged", "Times the backend was made to forget its prompt cache."),
    "purges_failed": ("purges_failed", "Times that failed."),
    "purges_skipped": ("purges_skipped", "Times it was too late for that."),
    "connections_refused": ("connections_refused", "Connections that were one too many."),
    "bodies_refused": ("bodies_refused", "Requests whose body there was no room for."),
    "circuit_opened": ("circuit_opened", "Times the backend was found to be out of reach."),
}
_GAUGED = {
    "running": ("requests_running", "Requests that hold a place at the backend.", 1.0),
    "waiting": ("requests_waiting", "Requests that wait for a place.", 1.0),
    "sessions": ("sessions", "Sessions that are remembered.", 1.0),
    "body_bytes": ("body_bytes", "Bytes of requests' bodies that are kept.", 1.0),
    "connections": ("connections", "Open connections of clients.", 1.0),
    "memory_available_percent": ("memory_available_ratio", "Of the machine's memory.", 0.01),
    "token_estimate_error_percent": (
        "token_estimate_error_ratio",
        "By how much estimated prompts differ from what the backend reports, on average.",
        0.01,
    ),
    "backend_unreachable_seconds": (
        "backend_unreachable_seconds",
        "Since when the backend is out of reach.",
        1.0,
    ),
}


class Histogram:
    """How long things took, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Write what was observed into `family`."""
        ends = map(floatToGoString, (*BUCKETS, math.inf))
        family.add_metric(labels, list(zip(ends, accumulate(self._counts), strict=True)), self._sum)


class Metrics(Collector):
    """
    Counts requests.

    :param vitals: what `/health` tells
    """

    def __init__(self, vitals: Callable[[], Mapping[str, object]]) -> None:
        self._vitals = vitals
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._keys: Counter[str] = Counter()
        self._key_tokens: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._seconds: dict[str, dict[str, Histogram]] = {
            "request": {},
            "first_byte": {},
            "queue": {},
        }
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    async def show(self, exchange: Exchange) -> None:
        """`GET /metrics`."""
        exchange.logged = Logged.NEVER
        kind = (b"Content-Type", CONTENT_TYPE_LATEST.encode())
        exchange.client.answer(200, generate_latest(self._registry), [kind])

    # At the end of a request.

    def refused(self, status: int) -> None:
        """Count what was refused before it was a request."""
        self._requests["none", _status(status), "failed"] += 1

    def ended(self, route: str, exchange: Exchange, record: ResponseRecord) -> None:
        """Count a request that has ended, and what is known of its answer."""
        self._requests[route, _status(record.status), record.outcome or ""] += 1
        self._took("request", route, record.last_byte_ms)
        self._took("first_byte", route, record.first_byte_ms)
        self._took("queue", route, record.queued_ms)
        self._sums["heartbeats"] += exchange.heartbeats
        self._sums["backend_bytes"] += record.bytes_in
        self._sums["client_bytes"] += record.bytes_out
        if exchange.report is not None:
            self._sums["backend_events"] += exchange.report.chunks
            self._calls.update(exchange.report.formats)
        for event, times in record.tally.items():
            self._events[self._known(event)] += times
        self._used(exchange.request.caller, record.usage or {})

    def _took(self, what: str, route: str, milliseconds: float | None) -> None:
        if milliseconds is not None:
            by_route = self._seconds[what]
            if route not in by_route:
                by_route[route] = Histogram()
            by_route[route].observe(milliseconds / 1000)

    def _known(self, event: str) -> str:
        few = len(self._events) < MOST_EVENTS
        return event if event in self._events or (few and _EVENT.fullmatch(event)) else "other"

    def _used(self, key: str, usage: Mapping[str, Any]) -> None:
        if key:
            self._keys[key] += 1
        for kind, name in _TOKENS.items():
            tokens = tokens_in(usage, name)
            if tokens:
                self._tokens[kind] += tokens
                if key:
                    self._key_tokens[key, kind] += tokens

    # When somebody scrapes.

    def collect(self) -> Iterator[Metric]:
        """Yield all that was counted, and how blockops is now."""
        build = GaugeMetricFamily("blockops_build_info", "The version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield _counter(
            "requests", "Requests that have ended.", ("route", "status", "outcome"), self._requests
        )
        yield _counter("key_requests", "Requests by the name of their API key.", "key", self._keys)
        yield _counter("tokens", "Tokens, as the backend counts them.", "kind", self._tokens)
        yield _counter(
            "key_tokens",
            "Tokens by the name of the API key.",
            ("key", "kind"),
            self._key_tokens,
        )
        yield _counter(
            "calls", "Tool calls that clients were sent, by their format.", "format", self._calls
        )
        yield _counter(
            "parser_events", "What the translation met in answers.", "event", self._events
        )
        for name, help_ in (
            ("backend_bytes", "Bytes of the bodies of the backend's answers."),
            ("client_bytes", "Bytes of the bodies of answers to clients."),
            ("backend_events", "Events of the backend's streams, and whole answers."),
            ("heartbeats", "Signs of life that clients were sent."),
        ):
            yield CounterMetricFamily(f"blockops_{name}", help_, value=self._sums[name])
        yield from self._histograms()
        yield from self._now()

    def _histograms(self) -> Iterator[Metric]:
        for name, help_ in (
            ("request", "From a request to the end of its answer."),
            ("first_byte", "From a request to the first byte of the backend's answer."),
            ("queue", "From a request to the moment when the backend was asked."),
        ):
            family = HistogramMetricFamily(f"blockops_{name}_seconds", help_, labels=["route"])
            for route, histogram in self._seconds[name].items():
                histogram.add_to(family, [route])
            yield family

    def _now(self) -> Iterator[Metric]:
        for vital, value in self._vitals().items():
            if vital == "circuit":
                yield GaugeMetricFamily(
                    "blockops_circuit_closed",
                    "Whether requests go to the backend: 0 while it is out of reach.",
                    value=value == "closed",
                )
            elif not isinstance(value, int | float):
                continue
            elif vital in _COUNTED:
                name, help_ = _COUNTED[vital]
                yield CounterMetricFamily(f"blockops_{name}", help_, value=value)
            else:
                name, help_, factor = _GAUGED.get(vital, (vital, "As /health tells it.", 1.0))
                yield GaugeMetricFamily(f"blockops_{name}", help_, value=value * factor)


def _counter(
    name: str, help_: str, labels: str | tuple[str, ...], counts: Mapping[Any, int]
) -> CounterMetricFamily:
    names = (labels,) if isinstance(labels, str) else labels
    family = CounterMetricFamily(f"blockops_{name}", help_, labels=names)
    for values, count in counts.items():
        family.add_metric((values,) if isinstance(values, str) else values, count)
    return family


def _status(status: int | None) -> str:
    """Return a status as a label: backends make up numbers of their own."""
    if status is None:
        return "none"
    return str(status) if status in _STATUSES else f"{status // 100}xx"
