"""What one answer held, for the log and the counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_NAMES = 256  # a log line's worth; the calls behind them are only counted

#: In place of a format: the backend sent the call structured as the API has it.
STRUCTURED = "structured"

#: Nothing has as many: a backend that says so counts nothing, such as -1 in 32 bits.
_MOST_TOKENS = 10**9


@dataclass(slots=True)
class Report:
    """
    What was seen of one answer, so far or in all.

    :ivar chunks: events with data that the backend sent, `[DONE]` left out; 1 for a whole answer
    :ivar calls: how many calls the client was sent, ours and the backend's own
    :ivar names: the functions they name, in the order they began: the first 256
    :ivar formats: how many of them were written in which format; `STRUCTURED` for the backend's own
    :ivar finish_reasons: choice -> the finish reason that the client was told
    :ivar usage: the backend's last `usage` object
    :ivar tally: how often something worth counting was met, such as "unknown_name"
    :ivar error: the message of the error that ended the answer, the backend's or ours
    """

    chunks: int = 0
    calls: int = 0
    names: list[str] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    tally: Counter[str] = field(default_factory=Counter)
    error: str | None = None

    def call_began(self, name: str, written: str) -> None:
        """Count a call of the function `name`, in the format `written`."""
        self.calls += 1
        self.formats[written] += 1
        if self.calls <= _MAX_NAMES:
            self.names.append(name)


def tokens_in(usage: Mapping[str, Any] | None, name: str) -> int:
    """Return the tokens that a backend's `usage` says by `name`; 0 where it says no such number."""
    said = usage.get(name) if usage else None
    return said if type(said) is int and 0 < said < _MOST_TOKENS else 0
