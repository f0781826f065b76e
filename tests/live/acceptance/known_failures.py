"""
Known failures and their reasons: calls that a server's parser removes from the answer.

They are tried all the same: a listed failure that works fails the matrix, too.
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
from tests.live.tiny_model import TEXTS

if TYPE_CHECKING:
    from tests.live.acceptance.clients import Client


@dataclass(frozen=True)
class KnownFailure:
    """
    Dialects whose calls a server's parser removes before blockops receives them.

    :param dialects: the dialects that do not work
    :param reason: the note in the table
    :param client: the name of the affected client, or "" for all
    """

    backend: RealBackend
    dialects: str
    reason: str
    client: str = ""


KNOWN_FAILURES = (
    KnownFailure(
        MLX_LM_TOOLS,
        "x",
        "mlx-lm parses the contents of `<tool_call>` as JSON if its template contains that tag, "
        "and drops anything else: blockops receives no call, and the client an empty answer.",
    ),
    KnownFailure(
        MLX_LM_TOOLS,
        "j",
        "mlx-lm converts the contents of `<tool_call>` to structured calls even if the request "
        "offers no tools. qwen-agent reads only the text here and finds no call.",
        "qwen-agent, calls in text",
    ),
)

#: Texts that a server's parser changes, so that they do not arrive as the model wrote them.
LOST_TEXTS: dict[RealBackend, set[str]] = {
    LLAMA_CPP_TOOLS: {"j-open#0", "p-fence#0"},
    MLX_LM_TOOLS: {
        *(f"{each.key}#{each.turn}" for each in TEXTS if each.key.startswith("x-") and each.calls),
        *("j-tagarg#0", "j-bad#0", "j-open#0", "p-fence#0"),
    },
    VLLM_MLX: {
        *("x-nested#0", "x-code#0", "l-text#0", "l-tagarg#0"),
        *("j-bad#0", "j-open#0", "p-fence#0"),
    },
}

LOSS_REASONS = {
    LLAMA_CPP_TOOLS: "llama.cpp's parser accepts calls in a code fence, and shows a truncated call "
    "as text.",
    MLX_LM_TOOLS: "mlx-lm's parser drops calls that it cannot parse: `<function=...>`, JSON "
    "without its last bracket or with `</tool_call>` in an argument. It accepts calls in a code "
    "fence.",
    VLLM_MLX: "vllm-mlx's parser strips strings, and in a stream it converts all values of "
    "`<function=...>` to strings. It accepts calls in a code fence, and changes truncated calls.",
}

#: Clients that parse calls in text themselves, also without blockops, and their dialects.
TEXT_CALL_PARSERS = {"qwen-agent, calls in text": "j", "smolagents": "jl"}


def known_failures(backend: RealBackend, client: str) -> list[KnownFailure]:
    """Return the known failures of a cell."""
    return [
        each for each in KNOWN_FAILURES if each.backend is backend and each.client in ("", client)
    ]


def supported_dialects(backend: RealBackend, client: Client) -> str:
    """Return the dialects that the model can use with this server and client."""
    # With a required call llama.cpp's grammar permits only the template's own dialect; the model
    # would write until the context is full.
    if client.requires_calls and backend is LLAMA_CPP_TOOLS:
        return "j"
    return client.dialects
