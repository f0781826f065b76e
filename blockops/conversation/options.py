"""What the operator and the backend decide for all conversations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from blockops.conversation.context_window import ContextLimits
from blockops.errors import ApiError
from blockops.toolcalls.dialects.prompts import ToolPrompt


@dataclass(frozen=True, slots=True)
class ConversationOptions:
    """
    The operator's settings for conversations.

    :param tools: "pass" sends tools unchanged, "prompt" writes them into the prompt, "auto" does so
        for models whose backend has rejected tools
    :param model_name: the name in the session banner; empty for no banner
    :param reset_on_shrink: a history shorter than the one before resets the session
    :param session_idle: seconds without a request after which a session is forgotten
    """

    limits: ContextLimits
    tools: Literal["pass", "prompt", "auto"]
    tool_prompt: ToolPrompt
    notices: Literal["content", "reasoning", "header", "off"]
    model_name: str
    reset_pattern: re.Pattern[str]
    reset_on_shrink: bool
    max_sessions: int
    session_idle: float


class Compatibility(Protocol):
    """Features that the backend has rejected; see `blockops.upstream.compatibility`."""

    supports_usage: bool  # False once the backend has rejected `stream_options.include_usage`

    def detect_usage_error(self, error: ApiError) -> bool: ...
    def detect_tools_error(
        self, error: ApiError, model: str | None, *, with_results: bool
    ) -> bool: ...
    def record_tools_rejected(self, model: str | None, error: ApiError) -> None: ...
    def rejects_tools(self, model: str | None) -> bool: ...
