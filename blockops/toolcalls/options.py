"""What the operator has set about translation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockops.toolcalls.dialects.registry import BUILT_IN
from blockops.toolcalls.reader import ToolCallFormat


@dataclass(frozen=True)
class Rules:
    """
    The settings of translation, the same for every request.

    :param translate: "always" translates also where the request offers no tools
    :param fenced_calls: a call inside Markdown code counts where its name is offered
    :param reasoning: "split" moves think blocks out of the text, "keep" leaves them where they are
    :param think_prefilled: the prompt's template has opened the think block: answers begin in it
    :param think_calls: a call found in a think block counts if no other comes
    :param max_hold: characters of text that may be held back while a call is not yet certain;
        262,144 is four times the longest tool call met in practice
    :param formats: the formats to look for, asked in this order
    """

    translate: Literal["auto", "always"] = "auto"
    fenced_calls: bool = False
    reasoning: Literal["keep", "split"] = "keep"
    think_prefilled: bool = False
    think_calls: bool = False
    max_hold: int = 262_144
    formats: tuple[ToolCallFormat, ...] = BUILT_IN
