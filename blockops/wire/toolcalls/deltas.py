"""What a parser finds in the text of one choice, in the order in which it stands there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Text for the client's `content`: never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text for the client's `reasoning_content`: never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call is certain: its name is whole, and what follows belongs to its arguments."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of the call that began last: never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call that began last has all of its arguments; one that was cut off has no such end."""


Delta = Text | Reasoning | CallBegan | CallArguments | CallEnded
