"""The doctor's chat requests, and the fields that it reads of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from blockops.upstream.probe import BackendProbe, ProbeResponse


class Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class Completion(msgspec.Struct):
    """A `chat.completion`."""

    choices: list[Choice] = []
    usage: Usage | None = None


@dataclass(frozen=True)
class ChatProbe:
    """Sends chat requests to one model of the backend."""

    probe: BackendProbe
    model: str | None
    response_timeout: float  # seconds

    def request(
        self, body: dict[str, Any], timeout: float | None = None
    ) -> Deferred[ProbeResponse | None]:
        """Send a chat request, as `BackendProbe.request` does."""
        model = {} if self.model is None else {"model": self.model}
        return self.probe.request(
            "POST /v1/chat/completions", {**body, **model}, timeout or self.response_timeout
        )
