"""The operator's options for the translation of tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockops.toolcalls.dialect import Dialect
from blockops.toolcalls.dialects import BUILT_IN
from blockops.toolcalls.reader import DEFAULT_MAX_HOLD


@dataclass(frozen=True)
class TranslationOptions:
    """
    The options of translation, the same for every request.

    :param translate: "always" also translates the answers to requests that offer no tools
    :param fenced_calls: True if a call inside Markdown code counts when its name is offered
    :param reasoning: "split" moves think blocks out of the text, "keep" leaves them in place
    :param think_prefilled: True if answers begin in a think block, which the template opens
    :param think_calls: True if a call in a think block counts when the answer has no other call
    :param max_hold: upper bound of the characters held back while a call is not yet certain
    :param dialects: the dialects to look for, in the order in which they are tried
    """

    translate: Literal["auto", "always"] = "auto"
    fenced_calls: bool = False
    reasoning: Literal["keep", "split"] = "keep"
    think_prefilled: bool = False
    think_calls: bool = False
    max_hold: int = DEFAULT_MAX_HOLD
    dialects: tuple[Dialect, ...] = BUILT_IN
