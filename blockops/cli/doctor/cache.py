"""Examines whether a backend counts tokens, and whether its prompt cache can be emptied."""

from __future__ import annotations

from blockops.cli.doctor.chat import ChatProbe, Completion
from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import NO_ROUTE_STATUSES, ProbeResponse
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


async def cache_finding(chat: ChatProbe, kind: str) -> Finding:
    """Empty the prompt cache; return the result, from the cached tokens before and after."""
    hint = _HINTS.get(kind, "")
    await _send_prompt(chat)
    tokens, cached = await _send_prompt(chat)
    was_cached = cached > CACHED_SHARE * tokens
    calls = await PromptCacheReset(chat.probe, "auto").reset_calls()
    if not calls:
        return Finding(
            topic="cache",
            verdict="unknown",
            text="It did not respond to GET /v1/models, which shows how its prompt cache is "
            "emptied.",
        )
    for call in calls:
        error = _failure(await chat.probe.request(call))
        if error:
            return Finding(
                topic="cache",
                verdict="not supported",
                text=f"{call}: {error}. Its prompt cache is kept when a session is reset.",
                options=("--cache-reset=off",),
                hint=hint,
            )
    names = ", ".join(calls)
    tokens, cached = await _send_prompt(chat)
    if was_cached and cached > CACHED_SHARE * tokens:
        return Finding(
            topic="cache",
            verdict="not emptied",
            text=f"{names}: it reports success, but of the {tokens} tokens of the next prompt, "
            f"{cached} still came from the cache.",
            hint=hint,
        )
    return Finding(topic="cache", verdict="emptied", text=f"Emptied by {names}.")


async def _send_prompt(chat: ChatProbe) -> tuple[int, int]:
    request = {"messages": [{"role": "user", "content": LONG_PROMPT}], "max_tokens": 1}
    response = await chat.request(request)
    completion = response.decode(Completion) if response is not None else None
    if completion is None or completion.usage is None:
        return 0, 0
    details = completion.usage.prompt_tokens_details
    cached = details.cached_tokens if details is not None else None
    return completion.usage.prompt_tokens or 0, cached or 0


def _failure(response: ProbeResponse | None) -> str:
    if response is None:
        return "no response"
    if response.status in NO_ROUTE_STATUSES:
        return f"it has no such call ({response.status})"
    return "" if was_reset(response) else f"failed ({response.status})"
