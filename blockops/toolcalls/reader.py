"""
What a format of tool calls is: how its calls open, and who reads one.

The parser searches the text for the openers of all formats. Behind an opener it holds the text back
and asks the format's reader, piece by piece, until the reader either refuses, and the text is given
back, or lets the call begin by appending `CallBegan`: from then on what the reader appends goes
out.

A reader must decide by the text alone, never by the pieces in which it comes: fed character by
character it appends the same, joined, as fed at once, and comes to its verdict at the same one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from blockops.toolcalls.events import Delta
from blockops.toolcalls.tools import Offer
from blockops.toolcalls.verbatim import Verbatim


@dataclass(frozen=True, slots=True)
class Opener:
    """
    A literal that may open a call.

    :param text: the literal; at most 64 characters, no line ends and no backticks in it
    :param line_start: whether it counts only at the start of a line (behind white space), or
        behind another call
    """

    text: str
    line_start: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """
    An opener that was met, and what is known about the place where it stands.

    :param literal: the opener's text
    :param offer: what the request offers
    :param offered_only: whether a name that is not offered makes it text, as in Markdown code
    :param max_hold: characters that may be held back
    :param tally: where a reader counts what is worth counting ("malformed")
    """

    literal: str
    offer: Offer
    offered_only: bool = False
    max_hold: int = 262_144
    tally: Counter[str] = field(default_factory=Counter)

    def admits(self, name: str) -> bool:
        """Whether a call of `name` may stand here."""
        if name in self.offer.schemas:
            return True
        return not self.offered_only and name not in self.offer.forbidden


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not a call. Only before `CallBegan`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """
    The reader is done: its call has ended, or what it read was markup behind a call.

    :param rest: text that it was given, now or earlier, and that does not belong to the call
    :param then: who reads on where calls follow one another in one frame; if that reader refuses,
        the text it was given is searched as any other
    :param spare: text, not markup, that stood before `rest`
    """

    rest: str
    then: CallReader | None = None
    spare: str = ""


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """At the end of the text only: the call began and was cut off."""


class CallReader(Protocol):
    """
    Reads one call, from behind its opener to its end.

    One that is also a `Fluent` is not asked about text that it would only hand on.
    """

    def feed(self, text: str, out: list[Delta]) -> Refused | Ended | None:
        """
        Read `text`, append to `out` what it makes certain, and return None to be given more.

        Appends one `CallBegan`, any number of `CallArguments`, and one `CallEnded`.
        """
        ...

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused | Ended | LeftOpen:
        """
        Decide at the end of the text.

        :param whole: the model ended by itself: a call that lacks only closing tags or brackets is
            complete. Otherwise it was cut off, and may not be made to look whole.
        """
        ...


@runtime_checkable
class Fluent(Protocol):
    """A reader that knows which text would only go on into the arguments, and change nothing."""

    @property
    def verbatim(self) -> Verbatim | None:
        """Such text; None where a closer look is needed."""
        ...


class ToolCallFormat(Protocol):
    """
    One way in which models write tool calls.

    Formats that share an opener are asked in the order in which they are registered, the next one
    when the one before has refused.
    """

    @property
    def name(self) -> str:
        """A short name, for settings and logs."""
        ...

    @property
    def openers(self) -> tuple[Opener, ...]:
        """What calls of this format begin with."""
        ...

    def reader(self, opening: Opening) -> CallReader:
        """Return a reader for the text behind `opening`."""
        ...
