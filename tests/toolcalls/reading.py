"""Helpers that feed a parser, join its deltas, and check that splits make no difference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.deltas import (
    CallArguments,
    CallFinished,
    CallStarted,
    Delta,
    ReasoningDelta,
    TextDelta,
)
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools

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
TOOLS = OfferedTools(schemas=SCHEMAS)


@dataclass
class Call:
    """A call, joined from its deltas."""

    name: str
    arguments: str = ""
    is_finished: bool = False

    @property
    def parsed_arguments(self) -> Any:
        """The arguments, decoded from JSON."""
        return json.loads(self.arguments)


@dataclass
class ParserOutput:
    """
    The joined deltas of a parser, which must not depend on how the text was split.

    :ivar order: T for text, R for reasoning, C for a call, in the order of the answer
    """

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    order: str = ""
    dialects: list[str] = field(default_factory=list)

    @classmethod
    def from_deltas(cls, deltas: Iterable[Delta]) -> ParserOutput:
        output = cls()
        for delta in deltas:
            output._add(delta)
        return output

    def _add(self, delta: Delta) -> None:
        if isinstance(delta, TextDelta):
            self.content += delta.text
            self._add_order("T")
        elif isinstance(delta, ReasoningDelta):
            self.reasoning += delta.text
            self._add_order("R")
        elif isinstance(delta, CallStarted):
            self.calls.append(Call(delta.name))
            self.dialects.append(delta.dialect)
            self.order += "C"
        elif isinstance(delta, CallArguments):
            assert not self.calls[-1].is_finished
            self.calls[-1].arguments += delta.text
        else:
            assert isinstance(delta, CallFinished)
            assert not self.calls[-1].is_finished
            self.calls[-1].is_finished = True

    def _add_order(self, kind: str) -> None:
        assert not self.calls or self.calls[-1].is_finished or not self.order.endswith("C")
        if not self.order.endswith(kind):
            self.order += kind


def check_deltas(deltas: list[Delta]) -> list[Delta]:
    """Return the deltas of one feed; assert that none is empty and no two texts are adjacent."""
    for previous, delta in zip([None, *deltas], deltas, strict=False):
        assert not (isinstance(previous, TextDelta) and isinstance(delta, TextDelta)), deltas
        if not isinstance(delta, CallFinished):
            assert delta.name if isinstance(delta, CallStarted) else delta.text, deltas
    return deltas


def parse_pieces(
    pieces: Iterable[str],
    tools: OfferedTools = TOOLS,
    options: TranslationOptions | None = None,
    reason: str | None = "stop",
) -> tuple[ParserOutput, Counter[str]]:
    """Feed the pieces to a new parser, end with `reason`; return the output and the counters."""
    parser = ToolCallParser(tools, options or TranslationOptions())
    deltas = [delta for piece in pieces for delta in check_deltas(parser.feed(piece))]
    deltas += check_deltas(parser.finish(reason))
    return ParserOutput.from_deltas(deltas), +parser.counters


def splits(text: str) -> Iterator[list[str]]:
    """Yield the text split into characters, and split in two at every position."""
    yield list(text)
    for pos in range(1, len(text)):
        yield [text[:pos], text[pos:]]


class ParserTestCase(SynchronousTestCase):
    """Parses each text at once and at every split, and compares the outputs."""

    def parse(
        self,
        text: str,
        tools: OfferedTools = TOOLS,
        options: TranslationOptions | None = None,
        reason: str | None = "stop",
    ) -> ParserOutput:
        """Return the parser's output for `text`."""
        return self.parse_and_count(text, tools, options, reason)[0]

    def parse_and_count(
        self,
        text: str,
        tools: OfferedTools = TOOLS,
        options: TranslationOptions | None = None,
        reason: str | None = "stop",
    ) -> tuple[ParserOutput, Counter[str]]:
        """Return the parser's output for `text`, and its counters."""
        at_once = parse_pieces([text], tools, options, reason)
        for pieces in splits(text):
            self.assertEqual(at_once, parse_pieces(pieces, tools, options, reason), pieces)
        return at_once

    def assert_call(
        self,
        text: str,
        name: str,
        arguments: str,
        *,
        tools: OfferedTools = TOOLS,
        options: TranslationOptions | None = None,
        reason: str | None = "stop",
    ) -> None:
        """Assert that the text is one complete call and nothing else."""
        self.assert_calls(text, (name, arguments), tools=tools, options=options, reason=reason)

    def assert_calls(
        self,
        text: str,
        *calls: tuple[str, str],
        tools: OfferedTools = TOOLS,
        options: TranslationOptions | None = None,
        reason: str | None = "stop",
    ) -> None:
        """Assert that the text is these complete calls, (name, arguments), and nothing else."""
        output = self.parse(text, tools, options, reason)
        self.assertEqual("", output.content)
        self.assertEqual([Call(*call, is_finished=True) for call in calls], output.calls)

    def assert_text(
        self,
        text: str,
        *,
        tools: OfferedTools = TOOLS,
        options: TranslationOptions | None = None,
        reason: str | None = "stop",
    ) -> None:
        """Assert that the text contains no call and passes through unchanged."""
        output = self.parse(text, tools, options, reason)
        self.assertEqual(([], text), (output.calls, output.content))
