"""
A dialect: one way in which models write tool calls. `docs/formats.md` tells how to add one.

Dialects that share an opener are tried in the order in which they are registered: the next one if a
reader returns `NotACall`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from blockops.toolcalls.reader import CallReader, OpeningContext

MAX_OPENER_LENGTH = 64


@dataclass(frozen=True)
class Opener:
    """
    A literal that may open a call: up to `MAX_OPENER_LENGTH` characters, no line end or backtick.

    :param line_start: True if it opens a call only at the start of a line, after blanks, or
        directly after another call
    """

    text: str
    line_start: bool = False


class Dialect(Protocol):
    """
    The declaration of one way to write tool calls.

    A dialect may also have an attribute `tool_prompt`, a `dialects.prompts.ToolPrompt`: it
    describes the tools to models whose chat template has no tools.
    """

    @property
    def name(self) -> str:
        """A short name, unique among the dialects, for settings, logs and metrics."""

    @property
    def openers(self) -> tuple[Opener, ...]:
        """The literals that open a call of this dialect."""

    def reader(self, context: OpeningContext) -> CallReader:
        """Return a new reader for the text after the opener that `context` describes."""
