"""The `<tool_call>` tag, which several dialects put around their calls."""

from __future__ import annotations

import re

from blockops.toolcalls.deltas import Delta
from blockops.toolcalls.grammar.json_stream import SPACE
from blockops.toolcalls.reader import CallEnded, CallReader, FeedResult, FinishResult, NotACall

OPENING_TAG = "<tool_call>"
CLOSING_TAG = "</tool_call>"

MIN_PARTIAL_TAG = len("</x")
"""Characters of a closing tag, cut off by the end of the text, that no longer count as text."""


class AfterCall:
    """
    Reads the text after a call: `</tool_call>`, which is dropped, or another call in the same tag.

    :param next_reader: the reader of another call and the text before it, if one may follow
    :param next_starts: the texts that another call starts with, or that only its reader can read
    :param gap: matches the text that may stand before them
    :param extra: matches ordinary text that may stand before the closing tag
    """

    def __init__(
        self,
        next_reader: CallReader | None = None,
        next_starts: tuple[str, ...] = (),
        gap: re.Pattern[str] = SPACE,
        extra: re.Pattern[str] | None = None,
    ) -> None:
        self._next_reader = next_reader
        self._next_starts = next_starts
        self._gap_pattern = gap
        self._extra = extra
        # The text that `gap` matched, and the text from there on.
        self._gap = ""
        self._pending = ""

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        """Read the next piece of the text; see `CallReader.feed`."""
        if not self._pending:
            end = self._gap_pattern.match(text).end()  # type: ignore[union-attr]
            self._gap += text[:end]
            text = text[end:]
        self._pending = pending = self._pending + text
        if pending.startswith(self._next_starts):
            return CallEnded(self._gap + pending, self._next_reader)
        match = self._extra.match(pending) if self._extra else None
        end = match.end() if match else 0
        if pending.startswith(CLOSING_TAG, end):
            extra = pending[:end].rstrip()
            rest = pending[end + len(CLOSING_TAG) :]
            return CallEnded(rest, text=self._gap + extra if extra else "")
        may_continue = CLOSING_TAG.startswith(pending[end:]) or any(
            start.startswith(pending) for start in self._next_starts
        )
        return None if may_continue else NotACall()

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        """Return the result at the end of the text; see `CallReader.finish`."""
        tag = self._pending
        is_cut_off = len(tag) >= MIN_PARTIAL_TAG and CLOSING_TAG.startswith(tag)
        return CallEnded("") if is_cut_off else NotACall()
