"""The contents of one answer, for the traffic log and the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_NAMES = 256  # enough for a line of the log; further calls are only counted

#: In place of a dialect, for calls that the backend sent structured, as the API has them.
STRUCTURED = "structured"

#: Larger numbers are not counts of tokens: a backend may send -1 as an unsigned 32-bit integer.
_MAX_TOKENS = 10**9


@dataclass
class AnswerReport:
    """
    The contents of one answer, up to now or complete.

    :ivar chunks: events with data that the backend sent, without `[DONE]`; 1 for a non-streaming
        response
    :ivar calls: number of calls sent to the client, both translated and structured by the backend
    :ivar tool_names: the names of the called functions, in the order of the calls: the first 256
    :ivar calls_by_dialect: dialect, or `STRUCTURED` -> number of calls
    :ivar finish_reasons: choice -> the finish reason sent to the client
    :ivar usage: the backend's last `usage`
    :ivar counters: name of an incident, such as "unknown_name" -> number of times it occurred
    :ivar error: the message of the error that ended the answer, of the backend or of blockops
    """

    chunks: int = 0
    calls: int = 0
    tool_names: list[str] = field(default_factory=list)
    calls_by_dialect: Counter[str] = field(default_factory=Counter)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    counters: Counter[str] = field(default_factory=Counter)
    error: str | None = None

    def add_call(self, name: str, dialect: str) -> None:
        """Count a call of the function `name` that was written in `dialect`."""
        self.calls += 1
        self.calls_by_dialect[dialect] += 1
        if self.calls <= _MAX_NAMES:
            self.tool_names.append(name)


def token_count(usage: Mapping[str, Any] | None, field_name: str) -> int:
    """Return a number of tokens in a backend's `usage`; 0 if it is missing or not plausible."""
    count = usage.get(field_name) if usage else None
    return count if type(count) is int and 0 < count < _MAX_TOKENS else 0
