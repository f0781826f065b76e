"""
The interface of a call reader: it reads one call, starting after its opener.

After an opener the parser holds the text back and feeds it to the readers of the dialects that
declare this opener. A reader returns one of these:

- None: it needs more text. Only from `feed`;
- `NotACall`: the held text is ordinary text. Only before `CallStarted`;
- `CallEnded`: the call is complete, or the markup after a call has been read;
- `CallTruncated`: the text ended inside a call. Only from `finish`.

Once a reader has appended `CallStarted`, the call is certain, and its deltas are sent as they come.

A reader decides by the text alone, never by the way in which it is split: fed character by
character, it appends the same deltas (joined) and returns the same result at the same character as
if fed at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from blockops.toolcalls.deltas import Delta
from blockops.toolcalls.tools import OfferedTools

DEFAULT_MAX_HOLD = 262_144
"""Characters; four times the longest tool call met in practice."""


@dataclass(frozen=True)
class OpeningContext:
    """
    An opener that was found, and the conditions that hold at its position.

    :param is_in_code: True if the opener stands in Markdown code: a call of a name that is not
        offered is text there
    """

    literal: str
    tools: OfferedTools
    is_in_code: bool = False
    max_hold: int = DEFAULT_MAX_HOLD
    counters: Counter[str] = field(default_factory=Counter)

    def allows(self, name: str) -> bool:
        """Return True if a call of `name` may start at this position."""
        if name in self.tools.schemas:
            return True
        return not self.is_in_code and name not in self.tools.forbidden_tools


@dataclass(frozen=True)
class NotACall:
    """The text after the opener is not a call. Allowed only before `CallStarted`."""


@dataclass(frozen=True)
class CallEnded:
    """
    The call is complete, or the markup after a call has been read.

    :param rest: text fed to the reader, now or earlier, that does not belong to the call
    :param next_reader: the reader for `rest` and the text after it, if another call may follow
        without an opener; if it returns `NotACall`, openers are searched in that text
    :param text: ordinary text that was read before `rest`, between the markup
    """

    rest: str
    next_reader: CallReader | None = None
    text: str = ""


@dataclass(frozen=True)
class CallTruncated:
    """The text ended inside a call that had started. Returned only by `CallReader.finish`."""


FeedResult = NotACall | CallEnded | None
"""Returned by `CallReader.feed`; None if the reader needs more text."""

FinishResult = NotACall | CallEnded | CallTruncated
"""Returned by `CallReader.finish`."""


class CallReader(Protocol):
    """Reads one call, from the end of its opener to the end of the call."""

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        """Read the next piece of the text; append the deltas that are certain to `out`."""

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        """
        Return the result at the end of the text; append the deltas that were held back to `out`.

        :param is_complete: True if the model stopped by itself: a call that lacks only its closing
            tags or brackets is complete. If False, the answer was cut off, and the call must not
            look complete.
        """
