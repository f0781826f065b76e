"""
`Metrics`: counters of requests and responses, in the Prometheus text format.

A request is counted once, at its end, from the record that the traffic log gets too; that takes
microseconds. The fields of `/health` are read at each scrape. Label values come from fixed lists or
from the operator's files, so that no client can create a time series.
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
from blockops.api.report import AnswerReport, token_count
from blockops.operations.traffic_log.records import ResponseRecord

#: The media type of `Metrics.render`.
CONTENT_TYPE = CONTENT_TYPE_LATEST

#: Upper bounds of the histograms' buckets, in seconds: a prefill may take minutes.
BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

#: Bound of the values of the label `event`. Dialects of plugins may have counters of their own; new
#: ones over the bound are counted as `other`.
MAX_EVENTS = 64
_EVENT_NAME = re.compile(r"[a-z_]{1,40}")

_STATUSES = frozenset(status.value for status in HTTPStatus)
_USAGE_FIELDS = {"prompt": "prompt_tokens", "completion": "completion_tokens"}

#: Fields of `/health` that are counters, with the help of the metric, which has the same name.
_STATUS_COUNTERS = {
    "log_lines_lost": "Lines of the traffic log that were not written.",
    "prompts_cut": "Prompts that were trimmed to fit the context.",
    "caches_purged": "Purges of the backend's prompt cache.",
    "purges_failed": "Failed purges of the backend's prompt cache.",
    "purges_skipped": "Purges skipped because the backend stayed busy.",
    "connections_refused": "Connections rejected by a limit.",
    "bodies_refused": "Requests rejected because the body budget was used up.",
    "circuit_opened": "Times the circuit breaker opened (backend unreachable).",
}
#: Fields of `/health` that are gauges: the metric's name, its help, the factor of its unit.
_STATUS_GAUGES = {
    "running": ("requests_running", "Requests that hold a slot of the backend.", 1.0),
    "waiting": ("requests_waiting", "Requests that wait for a slot.", 1.0),
    "sessions": ("sessions", "Sessions in memory.", 1.0),
    "body_bytes": ("body_bytes", "Bytes of request bodies in memory.", 1.0),
    "connections": ("connections", "Open client connections.", 1.0),
    "memory_available_percent": (
        "memory_available_ratio",
        "Share of the machine's memory that is available.",
        0.01,
    ),
    "token_estimate_error_percent": (
        "token_estimate_error_ratio",
        "Relative error of the last token estimate, against the backend's count.",
        0.01,
    ),
    "backend_unreachable_seconds": (
        "backend_unreachable_seconds",
        "Seconds since the backend became unreachable.",
        1.0,
    ),
}


class Histogram:
    """A histogram of durations in seconds, with the bounds of `BUCKETS`."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the observations to `family`."""
        ends = map(floatToGoString, (*BUCKETS, math.inf))
        family.add_metric(labels, list(zip(ends, accumulate(self._counts), strict=True)), self._sum)


class Metrics(Collector):
    """
    Counts requests, and renders all metrics.

    :param read_status: returns the fields of `/health`
    """

    def __init__(self, read_status: Callable[[], Mapping[str, object]]) -> None:
        self._read_status = read_status
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._key_requests: Counter[str] = Counter()
        self._key_tokens: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._durations: dict[str, dict[str, Histogram]] = {
            "request": {},
            "first_byte": {},
            "queue": {},
        }
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format, with the media type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def request_rejected(self, status: int) -> None:
        """Count an error response to input that did not reach a route."""
        self._requests["none", _status_label(status), "failed"] += 1

    def request_finished(
        self,
        route: str,
        record: ResponseRecord,
        *,
        heartbeats: int,
        api_key_owner: str,
        report: AnswerReport | None,
    ) -> None:
        """
        Count a request whose response has ended.

        :param route: the label of its route
        :param heartbeats: number of heartbeats sent to the client
        :param api_key_owner: the owner of the request's API key, or empty
        :param report: the contents of the answer, or None if there was none
        """
        self._requests[route, _status_label(record.status), record.outcome or ""] += 1
        self._observe("request", route, record.last_byte_ms)
        self._observe("first_byte", route, record.first_byte_ms)
        self._observe("queue", route, record.queued_ms)
        self._sums["heartbeats"] += heartbeats
        self._sums["backend_bytes"] += record.bytes_in
        self._sums["client_bytes"] += record.bytes_out
        if report is not None:
            self._sums["backend_events"] += report.chunks
            self._calls.update(report.calls_by_dialect)
        for event, times in record.tally.items():
            self._events[self._event_label(event)] += times
        if api_key_owner:
            self._key_requests[api_key_owner] += 1
        self._count_tokens(api_key_owner, record.usage or {})

    def _observe(self, name: str, route: str, milliseconds: float | None) -> None:
        if milliseconds is not None:
            by_route = self._durations[name]
            if route not in by_route:
                by_route[route] = Histogram()
            by_route[route].observe(milliseconds / 1000)

    def _event_label(self, event: str) -> str:
        if event in self._events:
            return event
        is_new_label = len(self._events) < MAX_EVENTS and _EVENT_NAME.fullmatch(event)
        return event if is_new_label else "other"

    def _count_tokens(self, api_key_owner: str, usage: Mapping[str, Any]) -> None:
        for kind, name in _USAGE_FIELDS.items():
            tokens = token_count(usage, name)
            if tokens:
                self._tokens[kind] += tokens
                if api_key_owner:
                    self._key_tokens[api_key_owner, kind] += tokens

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; the registry calls this at each scrape."""
        build = GaugeMetricFamily(
            "blockops_build_info", "Always 1; the label is blockops' version.", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build
        yield _counter(
            "requests",
            "Requests whose response has ended.",
            ("route", "status", "outcome"),
            self._requests,
        )
        yield _counter(
            "key_requests", "Requests, by owner of the API key.", "key", self._key_requests
        )
        yield _counter("tokens", "Tokens as reported by the backend.", "kind", self._tokens)
        yield _counter(
            "key_tokens",
            "Tokens as reported by the backend, by owner of the API key.",
            ("key", "kind"),
            self._key_tokens,
        )
        yield _counter("calls", "Tool calls sent to clients, by dialect.", "format", self._calls)
        yield _counter(
            "parser_events",
            "Events of the translation, such as calls of unknown tools.",
            "event",
            self._events,
        )
        for name, help_ in (
            ("backend_bytes", "Bytes of response bodies received from the backend."),
            ("client_bytes", "Bytes of response bodies sent to clients."),
            (
                "backend_events",
                "Stream events and non-streaming responses received from the backend.",
            ),
            ("heartbeats", "Heartbeats sent to clients."),
        ):
            yield CounterMetricFamily(f"blockops_{name}", help_, value=self._sums[name])
        yield from self._collect_histograms()
        yield from self._collect_status()

    def _collect_histograms(self) -> Iterator[Metric]:
        for name, help_ in (
            ("request", "Seconds from the request's arrival to the end of the response."),
            ("first_byte", "Seconds from the request's arrival to the backend's first byte."),
            ("queue", "Seconds from the request's arrival until it is sent to the backend."),
        ):
            family = HistogramMetricFamily(f"blockops_{name}_seconds", help_, labels=["route"])
            for route, histogram in self._durations[name].items():
                histogram.add_to(family, [route])
            yield family

    def _collect_status(self) -> Iterator[Metric]:
        for field, value in self._read_status().items():
            if field == "circuit":
                yield GaugeMetricFamily(
                    "blockops_circuit_closed",
                    "1 if requests are sent to the backend, 0 while it is unreachable.",
                    value=value == "closed",
                )
            elif not isinstance(value, int | float):
                continue
            elif field in _STATUS_COUNTERS:
                help_ = _STATUS_COUNTERS[field]
                yield CounterMetricFamily(f"blockops_{field}", help_, value=value)
            else:
                by_default = (field, f"The field {field} of /health.", 1.0)
                name, help_, factor = _STATUS_GAUGES.get(field, by_default)
                yield GaugeMetricFamily(f"blockops_{name}", help_, value=value * factor)


def _counter(
    name: str, help_: str, labels: str | tuple[str, ...], counts: Mapping[Any, int]
) -> CounterMetricFamily:
    names = (labels,) if isinstance(labels, str) else labels
    family = CounterMetricFamily(f"blockops_{name}", help_, labels=names)
    for values, count in counts.items():
        family.add_metric((values,) if isinstance(values, str) else values, count)
    return family


def _status_label(status: int | None) -> str:
    """Return `status` as a label. A status that is not registered becomes `2xx` or the like."""
    if status is None:
        return "none"
    return str(status) if status in _STATUSES else f"{status // 100}xx"
