"""
`Metrics`: counters of requests and responses, in the Prometheus text format.

A request is counted once, at its end, from the record that the traffic log gets too, in 20
microseconds. The fields of `/health` are read at each scrape. Label values come from fixed lists or
from the operator's files, so that no client can create a time series.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from blockops import __version__
from blockops.api.report import AnswerReport, token_count
from blockops.operations.traffic_log.records import ResponseRecord

# Otherwise each series gets a second one with the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: The media type of `Metrics.render`.
CONTENT_TYPE = CONTENT_TYPE_LATEST

#: Upper bounds of the histograms' buckets, in seconds: a prefill may take minutes.
BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

#: Bound of the values of the label `event`. Dialects of plugins may have counters of their own; new
#: ones over the bound are counted as `other`.
MAX_EVENTS = 64
_EVENT_NAME = re.compile(r"[a-z_]{1,40}")

_STATUSES = frozenset(status.value for status in HTTPStatus)

#: The counters of requests: name, help, labels.
_COUNTERS = {
    "requests": ("Requests whose response has ended.", "route", "status", "outcome"),
    "key_requests": ("Requests, by owner of the API key.", "key"),
    "tokens": ("Tokens as reported by the backend.", "kind"),
    "key_tokens": ("Tokens as reported by the backend, by owner of the API key.", "key", "kind"),
    "calls": ("Tool calls sent to clients, by dialect.", "format"),
    "parser_events": ("Events of the translation, such as calls of unknown tools.", "event"),
    "backend_bytes": ("Bytes of response bodies received from the backend.",),
    "client_bytes": ("Bytes of response bodies sent to clients.",),
    "backend_events": ("Stream events and non-streaming responses received from the backend.",),
    "heartbeats": ("Heartbeats sent to clients.",),
}
_DURATIONS = {
    "request": "Seconds from the request's arrival to the end of the response.",
    "first_byte": "Seconds from the request's arrival to the backend's first byte.",
    "queue": "Seconds from the request's arrival until it is sent to the backend.",
}

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


class Metrics:
    """Counts requests, and renders all metrics; `read_status` returns the fields of `/health`."""

    def __init__(self, read_status: Callable[[], Mapping[str, object]]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        build = Gauge(
            "blockops_build_info",
            "Always 1; the label is blockops' version.",
            ["version"],
            registry=self._registry,
        )
        build.labels(__version__).set(1)
        self._counters = {
            name: Counter(f"blockops_{name}", help_, labels, registry=self._registry)
            for name, (help_, *labels) in _COUNTERS.items()
        }
        self._durations = {
            name: Histogram(
                f"blockops_{name}_seconds",
                help_,
                ["route"],
                buckets=BUCKETS,
                registry=self._registry,
            )
            for name, help_ in _DURATIONS.items()
        }
        self._event_labels: set[str] = set()
        self._registry.register(StatusCollector(read_status))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format, with the media type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def request_rejected(self, status: int) -> None:
        """Count an error response to input that did not reach a route."""
        self._counters["requests"].labels("none", _status_label(status), "failed").inc()

    def request_finished(
        self,
        route: str,
        record: ResponseRecord,
        *,
        heartbeats: int,
        api_key_owner: str,
        report: AnswerReport | None,
    ) -> None:
        """Count a request whose response has ended; without an API key, its owner is empty."""
        self._counters["requests"].labels(
            route, _status_label(record.status), record.outcome or ""
        ).inc()
        for name, milliseconds in (
            ("request", record.last_byte_ms),
            ("first_byte", record.first_byte_ms),
            ("queue", record.queued_ms),
        ):
            if milliseconds is not None:
                self._durations[name].labels(route).observe(milliseconds / 1000)
        self._counters["heartbeats"].inc(heartbeats)
        self._counters["backend_bytes"].inc(record.bytes_in)
        self._counters["client_bytes"].inc(record.bytes_out)
        if report is not None:
            self._counters["backend_events"].inc(report.chunks)
            for dialect, calls in report.calls_by_dialect.items():
                self._counters["calls"].labels(dialect).inc(calls)
        for event, times in record.tally.items():
            self._counters["parser_events"].labels(self._event_label(event)).inc(times)
        if api_key_owner:
            self._counters["key_requests"].labels(api_key_owner).inc()
        self._count_tokens(api_key_owner, record.usage or {})

    def _event_label(self, event: str) -> str:
        if event not in self._event_labels:
            if len(self._event_labels) >= MAX_EVENTS or not _EVENT_NAME.fullmatch(event):
                return "other"
            self._event_labels.add(event)
        return event

    def _count_tokens(self, api_key_owner: str, usage: Mapping[str, Any]) -> None:
        for kind in ("prompt", "completion"):
            tokens = token_count(usage, f"{kind}_tokens")
            if tokens:
                self._counters["tokens"].labels(kind).inc(tokens)
                if api_key_owner:
                    self._counters["key_tokens"].labels(api_key_owner, kind).inc(tokens)


class StatusCollector(Collector):
    """Collects the metrics that are fields of `/health`, read at each scrape."""

    def __init__(self, read_status: Callable[[], Mapping[str, object]]) -> None:
        self._read_status = read_status

    def collect(self) -> Iterator[Metric]:
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
                yield CounterMetricFamily(f"blockops_{field}", _STATUS_COUNTERS[field], value=value)
            else:
                by_default = (field, f"The field {field} of /health.", 1.0)
                name, help_, factor = _STATUS_GAUGES.get(field, by_default)
                yield GaugeMetricFamily(f"blockops_{name}", help_, value=value * factor)


def _status_label(status: int | None) -> str:
    """Return `status` as a label. A status that is not registered becomes `2xx` or the like."""
    if status is None:
        return "none"
    return str(status) if status in _STATUSES else f"{status // 100}xx"
