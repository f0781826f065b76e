"""
What cannot work, and why: calls that a server's own parser takes before blockops sees them.

Each of it is tried all the same: what works although it stands here fails the matrix, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.live.real_backends import (
    LLAMA_CPP_TOOLS,
    MLX_LM_TOOLS,
    VLLM_MLX,
    RealBackend,
)
from tests.live.tools import TEXTS

if TYPE_CHECKING:
    from tests.live.acceptance.clients import Client


@dataclass(frozen=True)
class Known:
    """
    Formats that a server's own parser keeps from blockops.

    :param formats: those that do not work
    :param why: for the table's readers
    :param client: the name of the one client that is concerned, empty if all are
    """

    backend: RealBackend
    formats: str
    why: str
    client: str = ""


KNOWN = (
    Known(
        MLX_LM_TOOLS,
        "x",
        "mlx-lm parses whatever stands in `<tool_call>` as soon as the template has that tag, "
        "finds no JSON in it and drops it: the client gets an empty answer, blockops no call.",
    ),
    Known(
        MLX_LM_TOOLS,
        "j",
        "mlx-lm makes structured calls of what stands in `<tool_call>` also where the request "
        "offers no tools, and qwen-agent, which reads text here, finds nothing.",
        "qwen-agent, calls in text",
    ),
)

#: Texts that do not arrive as the model said them, because of the server's own parser.
LOST: dict[RealBackend, set[str]] = {
    LLAMA_CPP_TOOLS: {"j-open#0", "p-fence#0"},
    MLX_LM_TOOLS: {
        *(f"{one.key}#{one.turn}" for one in TEXTS if one.key.startswith("x-") and one.calls),
        *("j-tagarg#0", "j-bad#0", "j-open#0", "p-fence#0"),
    },
    VLLM_MLX: {
        *("x-nested#0", "x-code#0", "l-text#0", "l-tagarg#0"),
        *("j-bad#0", "j-open#0", "p-fence#0"),
    },
}

WHY_LOST = {
    LLAMA_CPP_TOOLS: "llama.cpp's parser reads calls in a code fence, and shows what is cut off.",
    MLX_LM_TOOLS: "mlx-lm's parser drops what it cannot read: `<function=...>`, JSON that lacks a "
    "bracket or has `</tool_call>` in an argument. It reads calls in a code fence.",
    VLLM_MLX: "vllm-mlx's parser strips strings, and in a stream it makes all values of "
    "`<function=...>` strings. It reads calls in a code fence, and changes what is cut off.",
}

#: Who reads calls in text without blockops too, and in which formats.
READ_THEMSELVES = {"qwen-agent, calls in text": "j", "smolagents": "jl"}


def broken(backend: RealBackend, client: str) -> list[Known]:
    """Return what is known not to work in a cell."""
    return [one for one in KNOWN if one.backend is backend and one.client in ("", client)]


def possible(backend: RealBackend, client: Client) -> str:
    """Return the formats that a client can meet with a server."""
    # Where a call is required, llama.cpp's grammar lets the model write its own format only, until
    # the context is full.
    if client.requires_calls and backend is LLAMA_CPP_TOOLS:
        return "j"
    return client.formats
