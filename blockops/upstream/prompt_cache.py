"""
`PromptCacheReset`: the call that empties the backend's prompt cache.

The call depends on the backend's kind, which its `/v1/models` shows; a kind that is detected is
kept. A call for which the backend has no route is not sent again; an unreachable backend is tried
again at the next reset. A *reset* is this call; a *purge* (`cache_purge`) is a reset while no
request is active.
"""

from __future__ import annotations

import msgspec
from twisted.logger import Logger

from blockops.upstream.probe import NO_ROUTE_STATUSES, BackendProbe, ModelList, ProbeResponse

#: Bound of the slots of llama.cpp's server that are erased: each takes a request.
MAX_SLOTS = 64

#: `owned_by` in `/v1/models` -> the call that empties the prompt cache.
RESET_CALLS = {
    "vllm": "POST /reset_prefix_cache",
    "sglang": "POST /flush_cache",
    "vllm-mlx": "DELETE /v1/cache",
}
#: `owned_by` of llama.cpp's server, which erases its slots one by one.
LLAMACPP = "llamacpp"
#: Tried if the backend's kind is unknown.
DEFAULT_RESET_CALL = "DELETE /v1/cache"


class _Props(msgspec.Struct):
    total_slots: int = 1


class _ResetResponse(msgspec.Struct):
    success: bool = True


class PromptCacheReset:
    """
    Makes the backend empty its prompt cache.

    :param reset_call: a method and a path, "auto" for the call of the backend's kind, or "off"
    """

    _log = Logger()

    def __init__(self, probe: BackendProbe, reset_call: str) -> None:
        self._probe = probe
        # None until the backend's kind is detected, empty if no reset is possible.
        self._calls: list[str] | None = {"auto": None, "off": []}.get(reset_call, [reset_call])
        self.resets = 0
        self.failures = 0

    def is_supported(self) -> bool:
        """Return False if resets are off, or the backend is known to have no such call."""
        return self._calls != []

    async def reset(self) -> None:
        """Empty the prompt cache. A failure is counted and logged, but not raised."""
        calls = await self.reset_calls()
        for call in calls:
            if not await self._send(call):
                self.failures += 1
                return
        if calls:
            self.resets += 1

    async def reset_calls(self) -> list[str]:
        """Return the calls of a reset, each a method and a path; empty if no reset is possible."""
        if self._calls is None:
            self._calls = await self._detect()
        return self._calls or []

    async def _detect(self) -> list[str] | None:
        """Return the calls of the backend's kind, or None if the backend does not respond now."""
        response = await self._probe.request("GET /v1/models")
        if response is None or response.is_server_error:
            self.failures += 1
            self._log.warn(
                "The prompt cache is not reset: the backend did not respond to GET /v1/models. The"
                " next reset tries again."
            )
            return None
        models = response.decode(ModelList) or ModelList()
        owners = [model.owned_by for model in models.data]
        if LLAMACPP in owners:
            response = await self._probe.request("GET /props")
            props = response.decode(_Props) if response is not None else None
            slots = min(props.total_slots, MAX_SLOTS) if props is not None else 1
            return [f"POST /slots/{slot}?action=erase" for slot in range(slots)]
        known = [RESET_CALLS[owner] for owner in owners if owner in RESET_CALLS]
        return known[:1] or [DEFAULT_RESET_CALL]

    async def _send(self, call: str) -> bool:
        response = await self._probe.request(call)
        if response is None:
            self._log.warn(
                "The prompt cache is not reset: the backend did not respond to {call}. The next"
                " reset tries again.",
                call=call,
            )
            return False
        if response.status in NO_ROUTE_STATUSES:
            self._calls = []
            self._log.info(
                "The prompt cache is not reset when a new session begins: the backend has no {call}"
                " ({status}). Set --cache-reset to another call, or to off.",
                call=call,
                status=response.status,
            )
            return False
        if not was_reset(response):
            self._log.warn(
                "The prompt cache is not reset: {call} failed ({status}). See the backend's log.",
                call=call,
                status=response.status,
            )
            return False
        return True


def was_reset(response: ProbeResponse) -> bool:
    """Return True if `response`, to a call of a reset, reports success."""
    decoded = response.decode(_ResetResponse)
    return response.is_success and (decoded is None or decoded.success)
