"""
The structs of `chat.completion.chunk`.

They name only the fields that blockops decides on, and also fit the responses of `/v1/completions`
and non-streaming responses.

Shapes: https://platform.openai.com/docs/api-reference/chat/streaming, and fields that backends add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from blockops.api.answer import AnswerEvent, BackendCalls, ContentDelta, Finished, RoleStarted
from blockops.api.lenient_json import DECODE_ERRORS

NULL = msgspec.Raw(b"null")
_NO_FIELDS = (UNSET,) * 5
_decode_usage = msgspec.json.Decoder(dict[str, Any]).decode


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    function: Function | None = None


class Delta(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False, kw_only=True):
    """A `delta` or a response's `message`, with the fields of OpenAI and the known backends."""

    tool_calls: list[ToolCall] | UnsetType | None = UNSET
    function_call: Function | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    role: str | UnsetType | None = UNSET
    content: str | UnsetType | None = UNSET

    @property
    def has_calls(self) -> bool:
        return bool(self.tool_calls or self.function_call)


class ChunkChoice(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """
    An item of `choices`, which is the next part of a choice.

    In place of `delta`, a non-streaming response has `message`, and `/v1/completions` has `text`.
    """

    index: int | UnsetType | None = UNSET
    delta: Delta | UnsetType | None = UNSET
    message: Delta | UnsetType | None = UNSET
    text: str | UnsetType | None = UNSET
    logprobs: UnsetType | None = UNSET
    stop_reason: UnsetType | None = UNSET
    token_ids: UnsetType | None = UNSET
    finish_reason: str | UnsetType | None = UNSET

    def events(self) -> list[AnswerEvent]:
        """Return the events of this part as it was received."""
        index, delta = self.index or 0, self.delta or Delta()
        events: list[AnswerEvent] = []
        if delta.role:
            events.append(RoleStarted(index, delta.role))
        if isinstance(delta.content, str):
            events.append(ContentDelta(index, delta.content))
        if delta.has_calls:
            events.append(BackendCalls(index))
        if self.finish_reason:
            events.append(Finished(index, self.finish_reason))
        return events


class Chunk(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """
    The decoded fields of a chunk or of a non-streaming response.

    It names the fields of OpenAI and of the known backends. Those on which blockops decides nothing
    keep their JSON text.

    :ivar choices: missing or None if there is no such list
    :ivar error: the field that a backend sends instead of choices
    """

    id: msgspec.Raw | UnsetType = UNSET
    object: msgspec.Raw | UnsetType = UNSET
    created: msgspec.Raw | UnsetType = UNSET
    model: msgspec.Raw | UnsetType = UNSET
    system_fingerprint: msgspec.Raw | UnsetType = UNSET
    service_tier: msgspec.Raw | UnsetType = UNSET
    choices: list[ChunkChoice] | UnsetType | None = UNSET
    usage: msgspec.Raw | UnsetType = UNSET
    timings: msgspec.Raw | UnsetType = UNSET  # llama.cpp
    generation_metadata: msgspec.Raw | UnsetType = UNSET  # vllm-mlx
    prompt_token_ids: msgspec.Raw | UnsetType = UNSET  # vLLM
    prompt_text: msgspec.Raw | UnsetType = UNSET
    error: Any = UNSET

    def usage_counts(self) -> dict[str, Any] | None:
        """Return `usage`, if it is an object of strict JSON."""
        if self.usage is UNSET:
            return None
        try:
            return _decode_usage(self.usage)
        except DECODE_ERRORS:
            return None

    def unrepeated_fields(self) -> int:
        """Return the number of values that not every chunk of an answer repeats."""
        fields = (
            self.usage,
            self.timings,
            self.generation_metadata,
            self.prompt_token_ids,
            self.prompt_text,
        )
        return 0 if fields == _NO_FIELDS else sum(f is not UNSET and f != NULL for f in fields)


class OpenDelta(Delta, forbid_unknown_fields=False, gc=False):
    """A delta with fields of any name."""

    refusal: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]
    reasoning: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]
    reasoning_content: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]


class OpenChoice(ChunkChoice, forbid_unknown_fields=False, gc=False):
    """A choice with fields of any name."""

    delta: OpenDelta | UnsetType | None = UNSET
    message: OpenDelta | UnsetType | None = UNSET
    logprobs: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]
    stop_reason: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]
    token_ids: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]


class OpenChunk(Chunk, forbid_unknown_fields=False, gc=False):
    """A chunk with fields of any name, which are not kept."""

    choices: list[OpenChoice] | UnsetType | None = UNSET  # type: ignore[assignment]


def messages_to_deltas(choices: Sequence[ChunkChoice] | None) -> list[ChunkChoice] | None:
    """
    Return the choices of a non-streaming response as those of a chunk.

    :return: None if there are no choices, or if one lacks a message or already has a delta
    """
    if choices is None or any(not choice.message or choice.delta for choice in choices):
        return None
    return [
        ChunkChoice(index=part.index or 0, delta=part.message, finish_reason=part.finish_reason)
        for part in choices
    ]
