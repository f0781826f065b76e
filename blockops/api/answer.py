"""
The events of an answer: what the model has written, whichever API reports it.

The choices of an answer produce events, and one encoder for each API turns them into that API's
format. A part of the backend's answer that does not change is no event: it passes byte for byte.
"""

from __future__ import annotations

import msgspec


class RoleStarted(msgspec.Struct, frozen=True, gc=False):
    """The first event of a choice."""

    choice: int
    role: str


class ContentDelta(msgspec.Struct, frozen=True, gc=False):
    choice: int
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    choice: int
    text: str


class CallStarted(msgspec.Struct, frozen=True, gc=False):
    """
    A tool call whose name is known; its arguments follow.

    :param index: the number of calls before this one in the choice
    """

    choice: int
    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """The next part of the arguments' JSON."""

    choice: int
    index: int
    text: str


class CallFinished(msgspec.Struct, frozen=True, gc=False):
    """The arguments are complete. A truncated call has no such event."""

    choice: int
    index: int


class BackendCalls(msgspec.Struct, frozen=True, gc=False):
    """
    The calls that this part of the backend's answer has in the API's own format.

    :param index_offset: added to the index of each of them
    """

    choice: int
    index_offset: int = 0


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The last event of a choice, with its finish reason."""

    choice: int
    reason: str


class PartDropped(msgspec.Struct, frozen=True, gc=False):
    """This part of the backend's answer is not sent: its choice has ended."""

    choice: int


AnswerEvent = (
    RoleStarted
    | ContentDelta
    | ReasoningDelta
    | CallStarted
    | CallArguments
    | CallFinished
    | BackendCalls
    | Finished
    | PartDropped
)
