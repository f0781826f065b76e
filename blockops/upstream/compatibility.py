"""
What the backend has refused, and is asked for in another way from then on.

Two wishes may be too much for a backend: to be told what a prompt has (`include_usage`), and to
render tools. A request that is refused for one of them is sent again without it, once, and what was
learnt is kept: of the first for the backend, of the second for each model.
"""

from __future__ import annotations

import re

from twisted.logger import Logger

from blockops.errors import ApiError

#: Models that are remembered: their names come from clients, who may make them up.
MAX_MODELS = 64

#: Words by which a backend says that it does not know the wish for usage.
_USAGE = ("stream_options", "include_usage")

#: What backends say of tools that they do not take: vLLM without a tool parser ("auto" and others),
#: llama.cpp without its templates, ik_llama.cpp, llama.cpp before 2025, Ollama.
_TOOLS = re.compile(
    r"enable-auto-tool-choice|tool-call-parser"
    r"|tool(?:s|_choice) param (?:requires|is not)|unsupported param: tool"
    r"|does not support (?:tools|function)",
    re.IGNORECASE,
)

#: What templates say that know no results of tools (Mistral, Gemma, Llama 2).
_ROLES = re.compile(
    r"roles must alternate|only user(?:, system)? and assistant roles"
    r"|(?:unknown|unexpected|unsupported|invalid)(?: message)? role",
    re.IGNORECASE,
)


class Refusals:
    """
    What was learnt of the backend.

    :ivar asks_usage: it is asked for usage
    """

    _log = Logger()

    def __init__(self) -> None:
        self.asks_usage = True
        self._told: dict[str, None] = {}

    def of_usage(self, refused: ApiError) -> bool:
        """Say whether the backend refused the wish for usage, which is then not sent any more."""
        if not any(word in refused.message for word in _USAGE):
            return False
        if self.asks_usage:
            self.asks_usage = False
            self._log.info("The backend does not tell what prompts have: it refuses include_usage")
        return True

    def of_tools(self, refused: ApiError, model: str | None, *, with_results: bool) -> bool:
        """
        Say whether the backend may have refused the tools, so that it is asked without them.

        If it says so in so many words, that is remembered for `model`. What a template says of
        roles may have other reasons: that is `learn`t from an answer to the request without tools.

        :param with_results: the request had results of tools too
        """
        if _TOOLS.search(refused.message):
            self.learn(model, refused)
            return True
        return with_results and bool(_ROLES.search(refused.message))

    def learn(self, model: str | None, refused: ApiError) -> None:
        """Remember that `model` is told of its tools in its prompt."""
        if not self.takes_no_tools(model):
            self._log.info(
                "The backend takes no tools for {model!r}: they are written into its prompt from "
                "now on. It said: {said}",
                model=model or "",
                said=refused.message,
            )
        self._told[model or ""] = None
        if len(self._told) > MAX_MODELS:
            del self._told[next(iter(self._told))]

    def takes_no_tools(self, model: str | None) -> bool:
        """Say whether tools were refused for `model`."""
        return (model or "") in self._told
