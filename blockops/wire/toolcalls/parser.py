"""The text of one choice, cut anywhere, to text, reasoning and calls."""

from __future__ import annotations

from collections import Counter

from blockops.wire.toolcalls.deltas import Delta, Text
from blockops.wire.toolcalls.offer import Offer
from blockops.wire.toolcalls.rules import Rules


class ToolCallParser:
    """
    Read the text of one choice as it arrives.

    What comes out, joined, is a function of what went in, joined: the cuts do not matter.

    :param offer: what the request offers
    :param rules: what the operator has set
    :ivar tally: how often something worth counting was met
    """

    def __init__(self, offer: Offer, rules: Rules = Rules()) -> None:  # noqa: B008 (frozen)
        self._offer = offer
        self._rules = rules
        self.tally: Counter[str] = Counter()

    def feed(self, text: str) -> list[Delta]:
        """Return what `text` makes certain; text is merged, so no two `Text` are neighbours."""
        return [Text(text)] if text else []

    def finish(self, reason: str | None) -> list[Delta]:
        """
        Return what the end makes certain.

        :param reason: the backend's finish reason; None when it ended without one
        """
        return []
