"""
Optional features that the backend has rejected, so that they are no longer requested.

Backends may reject two features: `stream_options.include_usage`, which reports a prompt's token
count, and `tools`, which the backend's chat template must be able to render. A request that is
rejected because of one of them is sent again once, without it. `BackendCompatibility` remembers the
first for the whole backend and the second for each model.
"""

from __future__ import annotations

import re

from twisted.logger import Logger

from blockops.errors import ApiError

#: Bound of the models that are remembered: clients choose the names, and may invent them.
MAX_MODELS = 64

#: A backend that rejects `include_usage` names one of these fields in its error.
_USAGE_FIELDS = ("stream_options", "include_usage")

#: Errors of backends that reject tools, in the order of the pattern: vLLM without a tool parser;
#: llama.cpp without `--jinja`, and ik_llama.cpp; llama.cpp before 2025; Ollama.
_TOOLS_REJECTED = re.compile(
    r"enable-auto-tool-choice|tool-call-parser"
    r"|tool(?:s|_choice) param (?:requires|is not)|unsupported param: tool"
    r"|does not support (?:tools|function)",
    re.IGNORECASE,
)

#: Errors of chat templates without a role for tool results (Mistral, Gemma, Llama 2).
_ROLE_REJECTED = re.compile(
    r"roles must alternate|only user(?:, system)? and assistant roles"
    r"|(?:unknown|unexpected|unsupported|invalid)(?: message)? role",
    re.IGNORECASE,
)


class BackendCompatibility:
    """The optional features that the backend is known to reject."""

    _log = Logger()

    def __init__(self) -> None:
        self.supports_usage = True
        # An ordered set, so that the model that was recorded first can be removed first.
        self._models_without_tools: dict[str, None] = {}

    def detect_usage_error(self, error: ApiError) -> bool:
        """Return True if `error` rejects `include_usage`; if so, stop requesting it."""
        if not any(field in error.message for field in _USAGE_FIELDS):
            return False
        if self.supports_usage:
            self.supports_usage = False
            self._log.info(
                "The backend rejects include_usage: it does not report the token counts of prompts"
            )
        return True

    def detect_tools_error(self, error: ApiError, model: str | None, *, with_results: bool) -> bool:
        """
        Return True if `error` may reject the tools; the caller retries without them.

        If the error names the tools, they are recorded as rejected for `model` at once. A chat
        template's error about roles may have other reasons: call `record_tools_rejected` if the
        retry succeeds.

        :param with_results: the request contained results of tools
        """
        if _TOOLS_REJECTED.search(error.message):
            self.record_tools_rejected(model, error)
            return True
        return with_results and bool(_ROLE_REJECTED.search(error.message))

    def record_tools_rejected(self, model: str | None, error: ApiError) -> None:
        """Record that the backend rejects tools for `model`; `error` is for the log."""
        if not self.rejects_tools(model):
            self._log.info(
                "The backend rejects tools for {model!r}: from now on they are described in the"
                " prompt. Its error: {error}",
                model=model or "",
                error=error.message,
            )
        self._models_without_tools[model or ""] = None
        if len(self._models_without_tools) > MAX_MODELS:
            del self._models_without_tools[next(iter(self._models_without_tools))]

    def rejects_tools(self, model: str | None) -> bool:
        """Return True if the backend is known to reject tools for `model`."""
        return (model or "") in self._models_without_tools
