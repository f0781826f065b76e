"""What a parser finds in the text of one choice, in the order in which it stands there."""

from __future__ import annotations

import msgspec


class Text(msgspec.Struct, frozen=True, gc=False):
    """Text for the client's `content`: never empty."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """Text for the client's `reasoning_content`: never empty."""

    text: str


class CallBegan(msgspec.Struct, frozen=True, gc=False):
    """
    A call is certain: its name is whole, and what follows belongs to its arguments.

    :ivar format: the name of the format that it is written in, as the parser adds it
    """

    name: str
    format: str = ""


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """A piece of the JSON text of the call that began last: never empty."""

    text: str


class CallEnded(msgspec.Struct, frozen=True, gc=False):
    """The call that began last has all of its arguments; one that was cut off has no such end."""


Delta = Text | Reasoning | CallBegan | CallArguments | CallEnded
