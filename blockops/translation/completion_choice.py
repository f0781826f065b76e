"""Passes one choice of `/v1/completions` through; only its finish reason is checked."""

from __future__ import annotations

from typing import Any

from blockops.api.chat.chunks import ChoiceRewrite, ChunkChoice, OutgoingDelta
from blockops.api.report import AnswerReport


class CompletionChoice:
    """
    Passes the text of one choice through, which has one finish reason like a choice of a chat.

    It has the methods of `ChoiceTranslator` that `AnswerChoice` needs.

    :param index: the choice's index
    :param report: receives the finish reason
    """

    __slots__ = ("_index", "_report")

    def __init__(self, index: int, report: AnswerReport) -> None:
        self._index = index
        self._report = report

    @property
    def is_finished(self) -> bool:
        """True once the choice has had its finish reason."""
        return self._index in self._report.finish_reasons

    def start(self) -> list[OutgoingDelta]:
        """Return an empty list: a completion has no role."""
        return []

    def receive(self, choice: ChunkChoice) -> ChoiceRewrite | None:
        """Return the rewrite of this part of the choice, or None if it passes unchanged."""
        if self.is_finished:
            return ChoiceRewrite([], is_kept=False)
        if choice.finish_reason:
            self._report.finish_reasons[self._index] = choice.finish_reason
        return None

    def flush(self) -> list[OutgoingDelta]:
        """Return an empty list: no text is held back."""
        return []

    def finish(self) -> list[OutgoingDelta]:
        """End a choice for which the backend sent no finish reason; return its last delta."""
        if self.is_finished:
            return []
        self._report.finish_reasons[self._index] = "stop"
        return [OutgoingDelta({}, "stop")]

    def make_choice(self, delta: OutgoingDelta) -> dict[str, Any]:
        """Return the `choices` entry of a chunk for `delta`."""
        return {
            "index": self._index,
            "text": "",
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
