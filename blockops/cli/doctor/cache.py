"""Examines whether a backend counts tokens, and whether its prompt cache can be emptied."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import NO_ROUTE_STATUSES, BackendProbe, ProbeResponse
from blockops.upstream.prompt_cache import PromptCacheReset, was_reset
from blockops.upstream.tokenizer import Tokenizer

#: Long enough for caches that keep only whole blocks.
LONG_PROMPT = "Remember these: " + ", ".join(f"word {number}" for number in range(60)) + ". Say OK."
#: A prompt with more than this share of cached tokens was still in the cache.
CACHED_SHARE = 0.5

_HINTS = {
    "llama.cpp": "llama.cpp erases a slot only if started with --slot-save-path FOLDER, and "
    "empties its cache completely only with --cache-ram 0.",
    "vLLM": "vLLM has this call only with VLLM_SERVER_DEV_MODE=1 in its environment.",
}


async def token_finding(tokenizer: Tokenizer, model: str | None) -> Finding:
    """Return the finding about token counts, after requesting one."""
    if await tokenizer.count("How many tokens?", model) is None:
        return Finding(
            topic="tokens",
            verdict="estimated",
            text="It has no /tokenize: blockops estimates the length of prompts, and calibrates "
            "the estimate with the usage that the backend reports.",
        )
    return Finding(topic="tokens", verdict="counted", text="Counted by its /tokenize.")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Completion(msgspec.Struct):
    usage: _Usage


class _PromptUsage(NamedTuple):
    """The number of tokens of a prompt, and how many of them came from the cache."""

    tokens: int
    cached: int

    @property
    def is_cached(self) -> bool:
        return self.cached > CACHED_SHARE * self.tokens


class PromptCacheTest:
    """
    Empties a backend's prompt cache, and compares the cached tokens before and after.

    :param response_timeout: seconds that one response may take
    """

    def __init__(self, probe: BackendProbe, model: str | None, response_timeout: float) -> None:
        self._probe = probe
        self._model = model
        self._response_timeout = response_timeout

    async def finding(self, kind: str) -> Finding:
        """
        Empty the cache and report the result.

        :param kind: the server's name
        """
        hint = _HINTS.get(kind, "")
        await self._send_prompt()
        before = await self._send_prompt()
        calls = await PromptCacheReset(self._probe, "auto").reset_calls()
        if not calls:
            return Finding(
                topic="cache",
                verdict="unknown",
                text="It did not respond to GET /v1/models, which shows how its prompt cache is "
                "emptied.",
            )
        for call in calls:
            error = _failure(await self._probe.request(call))
            if error:
                return Finding(
                    topic="cache",
                    verdict="not supported",
                    text=f"{call}: {error}. Its prompt cache is kept when a session is reset.",
                    options=("--cache-reset=off",),
                    hint=hint,
                )
        after = await self._send_prompt()
        names = ", ".join(calls)
        if before is not None and after is not None and before.is_cached and after.is_cached:
            return Finding(
                topic="cache",
                verdict="not emptied",
                text=f"{names}: it reports success, but of the {after.tokens} tokens of the next "
                f"prompt, {after.cached} still came from the cache.",
                hint=hint,
            )
        return Finding(topic="cache", verdict="emptied", text=f"Emptied by {names}.")

    async def _send_prompt(self) -> _PromptUsage | None:
        """Send the prompt and return its usage, or None if the cached tokens are not reported."""
        request = {
            "messages": [{"role": "user", "content": LONG_PROMPT}],
            "max_tokens": 1,
            **({} if self._model is None else {"model": self._model}),
        }
        response = await self._probe.request(
            "POST /v1/chat/completions", request, self._response_timeout
        )
        if response is None or not response.is_success:
            return None
        completion = response.decode(_Completion)
        if completion is None or completion.usage.prompt_tokens_details is None:
            return None
        usage, details = completion.usage, completion.usage.prompt_tokens_details
        if details.cached_tokens is None:
            return None
        return _PromptUsage(usage.prompt_tokens, details.cached_tokens)


def _failure(response: ProbeResponse | None) -> str:
    """Return the reason why the cache was not emptied; empty if it was."""
    if response is None:
        return "no response"
    if response.status in NO_ROUTE_STATUSES:
        return f"it has no such call ({response.status})"
    return "" if was_reset(response) else f"failed ({response.status})"
