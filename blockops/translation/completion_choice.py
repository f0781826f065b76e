"""Passes one choice of `/v1/completions` through; only its finish reason is checked."""

from __future__ import annotations

from blockops.api.answer import AnswerEvent, Finished, PartDropped
from blockops.api.chat.chunks import ChunkChoice
from blockops.api.report import AnswerReport


class CompletionChoice:
    """
    Passes the text of one choice through, which has one finish reason like a choice of a chat.

    It has the methods of `ChoiceTranslator`.
    """

    def __init__(self, index: int, report: AnswerReport) -> None:
        self._index = index
        self._report = report

    @property
    def is_finished(self) -> bool:
        return self._index in self._report.finish_reasons

    def start(self) -> list[AnswerEvent]:
        return []  # a completion has no role

    def receive(self, part: ChunkChoice) -> list[AnswerEvent] | None:
        if self.is_finished:
            return [PartDropped(self._index)]
        if part.finish_reason:
            self._report.finish_reasons[self._index] = part.finish_reason
        return None

    def flush(self) -> list[AnswerEvent]:
        return []  # no text is held back

    def finish(self) -> list[AnswerEvent]:
        if self.is_finished:
            return []
        self._report.finish_reasons[self._index] = "stop"
        return [Finished(self._index, "stop")]
