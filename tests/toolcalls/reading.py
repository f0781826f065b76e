"""How the tests feed a parser, and put together what it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.events import (
    CallArguments,
    CallBegan,
    CallEnded,
    Delta,
    Reasoning,
    Text,
)
from blockops.toolcalls.options import Rules
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import Offer

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "scale": {"type": "number"},
            "hourly": {"type": "boolean"},
            "tags": {"type": "array"},
            "where": {"type": "object"},
            "unit": {"enum": ["C", "F", None]},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
    },
    "now": {},
}
OFFER = Offer(schemas=SCHEMAS)


@dataclass
class Call:
    """A call, put together from its deltas."""

    name: str
    arguments: str = ""
    ended: bool = False

    @property
    def meant(self) -> Any:
        """The arguments, read as JSON."""
        return json.loads(self.arguments)


@dataclass
class Joined:
    """What a parser said, joined: this may not depend on the cuts."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    order: str = ""
    formats: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Joined:
        """Put `deltas` together, in `order` T for text, R for reasoning, C for a call."""
        joined = cls()
        for delta in deltas:
            joined._add(delta)
        return joined

    def _add(self, delta: Delta) -> None:
        if isinstance(delta, Text):
            self.content += delta.text
            self._note("T")
        elif isinstance(delta, Reasoning):
            self.reasoning += delta.text
            self._note("R")
        elif isinstance(delta, CallBegan):
            self.calls.append(Call(delta.name))
            self.formats.append(delta.format)
            self.order += "C"
        elif isinstance(delta, CallArguments):
            assert not self.calls[-1].ended
            self.calls[-1].arguments += delta.text
        else:
            assert isinstance(delta, CallEnded)
            assert not self.calls[-1].ended
            self.calls[-1].ended = True

    def _note(self, kind: str) -> None:
        assert not self.calls or self.calls[-1].ended or not self.order.endswith("C")
        if not self.order.endswith(kind):
            self.order += kind


def strict(deltas: list[Delta]) -> list[Delta]:
    """Return the deltas of one feed, having seen that none is empty and no two texts touch."""
    for one, other in zip([None, *deltas], deltas, strict=False):
        assert not (isinstance(one, Text) and isinstance(other, Text)), deltas
        if not isinstance(other, CallEnded):
            assert other.name if isinstance(other, CallBegan) else other.text, deltas
    return deltas


def say(
    pieces: Iterable[str],
    offer: Offer = OFFER,
    rules: Rules | None = None,
    reason: str | None = "stop",
) -> tuple[Joined, Counter[str]]:
    """Feed the pieces to a new parser, end with `reason`, return all it said, and its tally."""
    parser = ToolCallParser(offer, rules or Rules())
    deltas = [delta for piece in pieces for delta in strict(parser.feed(piece))]
    deltas += strict(parser.finish(reason))
    return Joined.of(deltas), +parser.tally


def cuts(text: str) -> Iterator[list[str]]:
    """Yield the text character by character, and cut in two at every place."""
    yield list(text)
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]


class ReadCase(SynchronousTestCase):
    """Reads a text whole, and at every cut the same."""

    def read(
        self,
        text: str,
        offer: Offer = OFFER,
        rules: Rules | None = None,
        reason: str | None = "stop",
    ) -> Joined:
        """Return what a parser makes of `text`, joined."""
        return self.read_counting(text, offer, rules, reason)[0]

    def read_counting(
        self,
        text: str,
        offer: Offer = OFFER,
        rules: Rules | None = None,
        reason: str | None = "stop",
    ) -> tuple[Joined, Counter[str]]:
        """Return what a parser makes of `text`, and its tally."""
        whole = say([text], offer, rules, reason)
        for pieces in cuts(text):
            self.assertEqual(whole, say(pieces, offer, rules, reason), pieces)
        return whole

    def assert_call(self, text: str, name: str, arguments: str, **how: Any) -> None:
        """Assert that the text is one whole call and nothing else."""
        joined = self.read(text, **how)
        self.assertEqual("", joined.content)
        self.assertEqual([Call(name, arguments, ended=True)], joined.calls)

    def assert_calls(self, text: str, *calls: tuple[str, str], **how: Any) -> None:
        """Assert that the text is these whole calls, (name, arguments), and nothing else."""
        joined = self.read(text, **how)
        self.assertEqual("", joined.content)
        self.assertEqual([Call(*call, ended=True) for call in calls], joined.calls)

    def assert_text(self, text: str, **how: Any) -> None:
        """Assert that the text is no call, and arrives as it is."""
        joined = self.read(text, **how)
        self.assertEqual(([], text), (joined.calls, joined.content))
