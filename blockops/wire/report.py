"""What one answer held, for the log and the counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Report:
    """
    What was seen of one answer, so far or in all.

    :ivar chunks: events with data that the backend sent, `[DONE]` left out; 1 for a whole answer
    :ivar names: the function of each call, ours and the backend's own, in the order they began
    :ivar finish_reasons: choice -> the finish reason that the client was told
    :ivar usage: the backend's last `usage` object
    :ivar tally: how often something worth counting was met, such as "unknown_name"
    :ivar error: the message of the error that ended the answer, the backend's or ours
    """

    chunks: int = 0
    names: list[str] = field(default_factory=list)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    tally: Counter[str] = field(default_factory=Counter)
    error: str | None = None

    @property
    def calls(self) -> int:
        """How many calls the client was sent."""
        return len(self.names)
