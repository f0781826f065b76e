"""A notice: text that blockops inserts into an answer of the model."""

from __future__ import annotations

from typing import Literal

#: Where a notice is inserted: `blockops.translation.notice_insertion` defines the places.
Place = Literal["before", "after", "reasoning"]


class Notice:
    """
    The notice for one answer.

    :param place: where it is inserted
    :param text: its text, which may be set until the answer begins; empty for no notice
    :ivar is_delivered: True once it is part of the answer
    """

    __slots__ = ("is_delivered", "place", "text")

    def __init__(self, place: Place = "before", text: str = "") -> None:
        self.place = place
        self.text = text
        self.is_delivered = False
