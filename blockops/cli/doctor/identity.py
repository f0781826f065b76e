"""Identifies a backend: its kind, version, models, context and slots, without generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import BackendProbe, ModelEntry, ModelList, ProbeResponse
from blockops.upstream.prompt_cache import LLAMACPP

#: `owned_by` in `/v1/models` -> the server's name.
OWNERS = {
    LLAMACPP: "llama.cpp",
    "vllm": "vLLM",
    "vllm-mlx": "vllm-mlx",
    "sglang": "SGLang",
    "library": "Ollama",
}
#: The server's name -> the call that returns its properties, and the field with its version.
PROPERTY_CALLS = {
    "llama.cpp": ("GET /props", "build_info"),
    "vLLM": ("GET /version", "version"),
    "SGLang": ("GET /get_server_info", "version"),
    "Ollama": ("GET /api/version", "version"),
}
#: The most models that the report lists.
MAX_LISTED = 10
#: The `Server` header of Python's http.server, by which mlx-lm is recognized: its `/v1/models` has
#: no `owned_by`.
_PYTHON_SERVER = "BaseHTTP/"


class ServerIdentity(NamedTuple):
    """The facts that a backend reports about itself; empty or None if it does not report them."""

    kind: str = ""  # the server's name
    version: str = ""
    models: tuple[str, ...] = ()  # their ids
    context: int | None = None  # maximum tokens of a prompt and its answer together
    parallel_slots: int | None = None  # requests that it processes in parallel

    def findings(self) -> list[Finding]:
        names = ", ".join(self.models[:MAX_LISTED]) or "none listed"
        if len(self.models) > MAX_LISTED:
            names += f" and {len(self.models) - MAX_LISTED} more"
        server = f"{self.kind} {self.version}".strip() or "An unknown server"
        text = f"{server}. Models: {names}."
        return [
            Finding(topic="server", verdict=self.kind or "unknown", text=text),
            self._context(),
            self._slots(),
        ]

    def _context(self) -> Finding:
        if self.context is None:
            return Finding(
                topic="context",
                verdict="not reported",
                text="It does not report the length of its context: set --token-hard-threshold to "
                "a length that the model and the memory can handle.",
            )
        # The remaining quarter is for the answer, and for errors of the estimate.
        hard, warn = self.context * 3 // 4, self.context * 3 // 5
        return Finding(
            topic="context",
            verdict=str(self.context),
            text=f"{self.context} tokens, for a prompt and its answer together.",
            options=(f"--token-hard-threshold={hard}", f"--token-warn-threshold={warn}"),
        )

    def _slots(self) -> Finding:
        if self.parallel_slots is None:
            text = "It does not report how many requests it processes in parallel."
            return Finding(topic="slots", verdict="not reported", text=text)
        return Finding(
            topic="slots",
            verdict=str(self.parallel_slots),
            text=f"It processes {self.parallel_slots} requests in parallel.",
            options=(f"--max-concurrent={self.parallel_slots}",),
        )


async def identify(probe: BackendProbe) -> ServerIdentity:
    """Return the identity, from the model list and from the properties of a known server."""
    listing = await probe.request("GET /v1/models") or ProbeResponse(404, b"")
    models = (listing.decode(ModelList) or ModelList()).data
    kind = next((OWNERS[model.owned_by] for model in models if model.owned_by in OWNERS), "")
    if not kind and listing.server.startswith(_PYTHON_SERVER):
        kind = "mlx-lm"
    call, version_field = PROPERTY_CALLS.get(kind, ("", ""))
    properties = await _properties(probe, call) if call else {}
    version = properties.get(version_field)
    # llama.cpp built outside its repository reports "unknown" as its version.
    if not isinstance(version, str) or "unknown" in version:
        version = ""
    return ServerIdentity(
        kind,
        version,
        tuple(model.id for model in models),
        _context_length(models, properties),
        _positive_integer(properties.get("total_slots")),
    )


async def _properties(probe: BackendProbe, call: str) -> Mapping[str, Any]:
    response = await probe.request(call)
    if response is None or not response.is_success:
        return {}
    return response.decode(dict[str, Any]) or {}


def _context_length(models: list[ModelEntry], properties: Mapping[str, Any]) -> int | None:
    settings = properties.get("default_generation_settings")
    if isinstance(settings, dict):  # llama.cpp, for each slot
        return _positive_integer(settings.get("n_ctx"))
    known = [model.max_model_len for model in models if model.max_model_len]
    return min(known, default=None)


def _positive_integer(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None  # not a bool
