"""A notice: text that blockops inserts into an answer of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Where a notice is inserted: `blockops.translation.notice_insertion` defines the places.
Place = Literal["before", "after", "reasoning"]


@dataclass
class Notice:
    """
    The notice for one answer.

    :ivar text: its text, which may be set until the answer begins; empty for no notice
    :ivar is_delivered: True once it is part of the answer
    """

    place: Place = "before"
    text: str = ""
    is_delivered: bool = False
