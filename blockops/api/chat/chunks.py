"""
The structs of `chat.completion.chunk`, and of a choice that is rewritten.

`ChunkChoice` and `Chunk` name only the fields that blockops decides on. They also fit the responses
of `/v1/completions` and non-streaming responses.

Shapes: https://platform.openai.com/docs/api-reference/chat/streaming, and fields that backends add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    function: Function | None = None


class Delta(msgspec.Struct, gc=False):
    """A `delta`, or the `message` of a non-streaming response."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None


class ChunkChoice(msgspec.Struct, gc=False):
    """
    An item of `choices`, which is the next part of a choice.

    In place of `delta`, a non-streaming response has `message`, and `/v1/completions` has `text`.
    """

    index: int | None = None
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """
    The decoded fields of a chunk or of a non-streaming response.

    :ivar choices: None if there is no such list
    :ivar error: the field that a backend sends instead of choices
    """

    choices: list[ChunkChoice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


class OutgoingDelta(msgspec.Struct):
    """A delta for the client; one with a finish reason is the last of its choice."""

    fields: dict[str, Any]
    finish_reason: str | None = None


def make_delta(call_index: int | None, text: Any) -> dict[str, Any]:
    """Return the fields of a delta with `text` as arguments of a call, or as content if None."""
    if call_index is None:
        return {"content": text}
    return {"tool_calls": [{"index": call_index, "function": {"arguments": text}}]}


class ChoiceRewrite(msgspec.Struct):
    """
    The outgoing deltas that replace one choice of a chunk.

    :param deltas: they replace the choice's role and content
    :param is_kept: True to send the choice's other fields with them; False to drop the choice
    :param index_offset: added to the index of each of the backend's own tool calls
    :param before: deltas that are sent before the choice's other fields
    """

    deltas: list[OutgoingDelta]
    is_kept: bool = True
    index_offset: int = 0
    before: Sequence[OutgoingDelta] = ()


def messages_to_deltas(choices: Sequence[ChunkChoice] | None) -> list[ChunkChoice] | None:
    """
    Return the choices of a non-streaming response as those of a chunk.

    :return: None if there are no choices, or if one lacks a message or already has a delta
    """
    if choices is None or any(choice.message is None or choice.delta for choice in choices):
        return None
    return [
        ChunkChoice(
            index=choice.index or 0, delta=choice.message, finish_reason=choice.finish_reason
        )
        for choice in choices
    ]
