"""Whether a backend counts tokens for others, and whether it forgets its prompt cache when told."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import NO_ROUTE, Answer, Asking, Forgetting, Tokenizer, forgot

#: Long enough for the caches that keep whole blocks only.
LONG_PROMPT = "Remember these: " + ", ".join(f"word {number}" for number in range(60)) + ". Say OK."
#: A cache that still has this share of a prompt has not forgotten it.
KEPT = 0.5

_HINTS = {
    "llama.cpp": "llama.cpp empties a slot only if it is started with --slot-save-path FOLDER, and "
    "forgets for good only with --cache-ram 0.",
    "vLLM": "vLLM has this call only with VLLM_SERVER_DEV_MODE=1 in its environment.",
}


async def token_finding(tokenizer: Tokenizer, model: str | None) -> Finding:
    """Return whether the backend counts tokens."""
    if await tokenizer.count("How many tokens?", model) is None:
        return Finding(
            topic="tokens",
            verdict="estimated",
            text="It has no /tokenize: blockops estimates the length of prompts, and learns from "
            "the usage that it reports.",
        )
    return Finding(topic="tokens", verdict="counted", text="Counted by its /tokenize.")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Completion(msgspec.Struct):
    usage: _Usage


class _Cached(NamedTuple):
    """Of a prompt, how many tokens there were, and how many of them came from the cache."""

    tokens: int
    cached: int

    @property
    def kept(self) -> bool:
        return self.cached > KEPT * self.tokens


class Cache:
    """
    A backend's prompt cache, as its answers show it.

    :param patience: seconds that an answer may take
    """

    def __init__(self, asking: Asking, model: str | None, patience: float) -> None:
        self._asking = asking
        self._model = model
        self._patience = patience

    async def _prompted(self) -> _Cached | None:
        """Send a prompt, and return what came from the cache; None if it is not told."""
        request = {
            "messages": [{"role": "user", "content": LONG_PROMPT}],
            "max_tokens": 1,
            **({} if self._model is None else {"model": self._model}),
        }
        answer = await self._asking.ask("POST /v1/chat/completions", request, self._patience)
        completion = answer.read(_Completion) if answer is not None and answer.good else None
        if completion is None or completion.usage.prompt_tokens_details is None:
            return None
        usage, details = completion.usage, completion.usage.prompt_tokens_details
        if details.cached_tokens is None:
            return None
        return _Cached(usage.prompt_tokens, details.cached_tokens)

    async def finding(self, kind: str) -> Finding:
        """
        Empty the cache, and return how that went.

        :param kind: the server's name
        """
        hint = _HINTS.get(kind, "")
        await self._prompted()
        before = await self._prompted()
        calls = await Forgetting(self._asking, "auto").calls()
        if not calls:
            text = "How its prompt cache is emptied cannot be told: it did not say what it is."
            return Finding(topic="cache", verdict="cannot tell", text=text)
        for call in calls:
            refusal = _refusal(await self._asking.ask(call))
            if refusal:
                return Finding(
                    topic="cache",
                    verdict="stays",
                    text=f"{call}: {refusal}. Its prompt cache stays when a session begins anew.",
                    options=("--cache-reset=off",),
                    hint=hint,
                )
        after = await self._prompted()
        told = ", ".join(calls)
        if before is not None and after is not None and before.kept and after.kept:
            return Finding(
                topic="cache",
                verdict="kept",
                text=f"{told}: it says that it is done, but of {after.tokens} tokens of a prompt "
                f"{after.cached} came from the cache all the same.",
                hint=hint,
            )
        return Finding(topic="cache", verdict="emptied", text=f"Emptied by {told}.")


def _refusal(answer: Answer | None) -> str:
    """Return why the cache is not empty now; empty if it is."""
    if answer is None:
        return "not answered"
    if answer.status in NO_ROUTE:
        return f"it has no such call ({answer.status})"
    return "" if forgot(answer) else f"failed ({answer.status})"
