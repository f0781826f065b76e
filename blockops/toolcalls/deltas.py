"""
The deltas that a parser makes of the text of one choice, in the order of that text.

A call is one `CallStarted`, any number of `CallArguments`, and one `CallFinished`. Text and
reasoning stand between calls, never inside one.
"""

from __future__ import annotations

import msgspec


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """Text for the client's `content`; never empty."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """Text for the client's `reasoning_content`; never empty."""

    text: str


class CallStarted(msgspec.Struct, frozen=True, gc=False):
    """A call is certain: its name is complete. The parser sets `dialect`, readers do not."""

    name: str
    dialect: str = ""


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """A part of the JSON text of the current call's arguments; never empty."""

    text: str


class CallFinished(msgspec.Struct, frozen=True, gc=False):
    """The current call's arguments are complete. A call that was cut off has no `CallFinished`."""


Delta = TextDelta | ReasoningDelta | CallStarted | CallArguments | CallFinished
