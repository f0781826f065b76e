"""One choice of `/v1/completions`: nothing is translated, only its end is seen to."""

from __future__ import annotations

from typing import Any

from blockops.api.chat.chunks import Choice, Piece, Rewritten
from blockops.api.report import Report


class PlainChoice:
    """
    Let one choice's text pass, with the same promises about its end as a chat's choice has.

    :param index: the choice's
    :param report: is told of the finish reason
    """

    __slots__ = ("_index", "_report")

    def __init__(self, index: int, report: Report) -> None:
        self._index = index
        self._report = report

    @property
    def finished(self) -> bool:
        """Whether the choice has had its finish reason."""
        return self._index in self._report.finish_reasons

    @property
    def plainly(self) -> None:
        """Nothing is said to a completion's choice but what came."""

    def begin(self) -> list[Piece]:
        """Return nothing: a completion has no role."""
        return []

    def take(self, choice: Choice) -> Rewritten | None:
        """Return what this part of the choice becomes; None if it may go as it came."""
        if self.finished:
            return Rewritten([], "nowhere")
        if choice.finish_reason:
            self._report.finish_reasons[self._index] = choice.finish_reason
        return None

    def release(self) -> list[Piece]:
        """Return nothing: no text is held back."""
        return []

    def complete(self) -> list[Piece]:
        """Return the end of a choice to which the backend gave no finish reason."""
        if self.finished:
            return []
        self._report.finish_reasons[self._index] = "stop"
        return [Piece({}, "stop")]

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        """Return the `choices` entry of a chunk of ours."""
        return {
            "index": self._index,
            "text": "",
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
