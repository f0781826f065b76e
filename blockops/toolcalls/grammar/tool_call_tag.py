"""The `<tool_call>` tag, which several dialects put around their calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from blockops.toolcalls.deltas import Delta
from blockops.toolcalls.grammar.json_stream import SPACE
from blockops.toolcalls.reader import CallEnded, CallReader, FeedResult, FinishResult, NotACall

OPENING_TAG = "<tool_call>"
CLOSING_TAG = "</tool_call>"

MIN_PARTIAL_TAG = len("</x")
"""Characters of a closing tag, cut off by the end of the text, that no longer count as text."""


@dataclass
class AfterCall:
    """
    Reads the text after a call: `</tool_call>`, which is dropped, or another call in the same tag.

    :param next_starts: the texts that another call starts with, or that only its reader can read
    :param gap: matches the text that may stand before them
    :param extra: matches ordinary text that may stand before the closing tag
    """

    next_reader: CallReader | None = None
    next_starts: tuple[str, ...] = ()
    gap: re.Pattern[str] = SPACE
    extra: re.Pattern[str] | None = None
    # The text that `gap` matched, and the text from there on.
    _gap_text: str = field(default="", init=False)
    _pending: str = field(default="", init=False)

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        if not self._pending:
            end = self.gap.match(text).end()  # type: ignore[union-attr]
            self._gap_text += text[:end]
            text = text[end:]
        self._pending = pending = self._pending + text
        if pending.startswith(self.next_starts):
            return CallEnded(self._gap_text + pending, self.next_reader)
        match = self.extra.match(pending) if self.extra else None
        end = match.end() if match else 0
        if pending.startswith(CLOSING_TAG, end):
            extra = pending[:end].rstrip()
            rest = pending[end + len(CLOSING_TAG) :]
            return CallEnded(rest, text=self._gap_text + extra if extra else "")
        may_continue = CLOSING_TAG.startswith(pending[end:]) or any(
            start.startswith(pending) for start in self.next_starts
        )
        return None if may_continue else NotACall()

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        tag = self._pending
        is_cut_off = len(tag) >= MIN_PARTIAL_TAG and CLOSING_TAG.startswith(tag)
        return CallEnded("") if is_cut_off else NotACall()
