"""Which server a backend is, and what it tells of itself without being asked to work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import LLAMACPP, Answer, Asking

#: What `owned_by` says in `/v1/models` -> the server's name.
OWNERS = {
    LLAMACPP: "llama.cpp",
    "vllm": "vLLM",
    "vllm-mlx": "vllm-mlx",
    "sglang": "SGLang",
    "library": "Ollama",
}
#: Where those tell their version -> the field that has it.
VERSIONS = {
    "llama.cpp": ("GET /props", "build_info"),
    "vLLM": ("GET /version", "version"),
    "SGLang": ("GET /get_server_info", "version"),
    "Ollama": ("GET /api/version", "version"),
}
#: Models that are named.
MAX_LISTED = 10
#: How Python's own HTTP server calls itself: mlx-lm is built on it, and names no owner.
_PYTHON = "BaseHTTP/"


class Server(NamedTuple):
    """
    What a backend tells of itself.

    :ivar kind: its name; empty when it is none that is known
    :ivar version: as it writes it; empty when it does not tell
    :ivar models: their ids
    :ivar context: tokens that a prompt and its answer may have together; None when it does not tell
    :ivar places: requests that it works at side by side; None when it does not tell
    """

    kind: str = ""
    version: str = ""
    models: tuple[str, ...] = ()
    context: int | None = None
    places: int | None = None

    def findings(self) -> list[Finding]:
        """Return it in words."""
        return [self._about(), self._about_context(), self._about_places()]

    def _about(self) -> Finding:
        names = ", ".join(self.models[:MAX_LISTED]) or "none that it lists"
        more = len(self.models) - MAX_LISTED
        names += f" and {more} more" if more > 0 else ""
        what = f"{self.kind} {self.version}".strip() or "A server that is not known here"
        return Finding(
            topic="server", verdict=self.kind or "unknown", text=f"{what}. Models: {names}."
        )

    def _about_context(self) -> Finding:
        if self.context is None:
            return Finding(
                topic="context",
                verdict="not told",
                text="It does not tell how long a prompt may be: set --token-hard-threshold to "
                "what the model and the memory bear.",
            )
        # A quarter is left for the answer, and for what an estimate may be wrong by.
        hard, warn = self.context * 3 // 4, self.context * 3 // 5
        return Finding(
            topic="context",
            verdict=str(self.context),
            text=f"{self.context} tokens, for a prompt and its answer together.",
            options=(f"--token-hard-threshold={hard}", f"--token-warn-threshold={warn}"),
        )

    def _about_places(self) -> Finding:
        if self.places is None:
            text = "It does not tell how many requests it works at side by side."
            return Finding(topic="places", verdict="not told", text=text)
        return Finding(
            topic="places",
            verdict=str(self.places),
            text=f"It works at {self.places} requests side by side.",
            options=(f"--max-concurrent={self.places}",),
        )


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


async def recognise(asking: Asking) -> Server:
    """Return what the backend tells of itself."""
    listing = await asking.ask("GET /v1/models") or Answer(404, b"")
    models = listing.read(_Models) or _Models()
    owners = {model.owned_by for model in models.data}
    kind = next((OWNERS[owner] for owner in owners if owner in OWNERS), "")
    if not kind and listing.server.startswith(_PYTHON):
        kind = "mlx-lm"
    told = await _told(asking, kind)
    return Server(
        kind,
        _version(kind, told),
        tuple(model.id for model in models.data),
        _context(models.data, told),
        _number(told.get("total_slots")),
    )


async def _told(asking: Asking, kind: str) -> Mapping[str, Any]:
    if kind not in VERSIONS:
        return {}
    answer = await asking.ask(VERSIONS[kind][0])
    return (answer.read(dict[str, Any]) if answer is not None and answer.good else None) or {}


def _version(kind: str, told: Mapping[str, Any]) -> str:
    version = told.get(VERSIONS[kind][1]) if kind in VERSIONS else None
    # A build of llama.cpp outside its repository does not know what it is.
    return version if isinstance(version, str) and "unknown" not in version else ""


def _context(models: list[_Model], told: Mapping[str, Any]) -> int | None:
    settings = told.get("default_generation_settings")
    if isinstance(settings, dict):  # llama.cpp: of one slot
        return _number(settings.get("n_ctx"))
    known = [model.max_model_len for model in models if model.max_model_len]
    return min(known, default=None)


def _number(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None  # True is none
