"""What one request offers to the model, as far as reading the model's calls goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: There is one of these: an empty set made of another takes 200 bytes.
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Offer:
    """
    The functions of one request, and what the request allows the model to do with them.

    :param schemas: function name -> the JSON schema of its parameters, `{}` where none is declared
    :param forbidden: functions of the request that must not be called now: a call of one is text
    :param parallel: `parallel_tool_calls`; without it only the first call of a choice is kept
    :param forced: the one function that `tool_choice` names
    :param translate: whether text may become calls at all; without tools, or with `tool_choice`
        "none", it may not, and openers are only counted
    """

    schemas: Mapping[str, Any] = field(default_factory=dict)
    forbidden: frozenset[str] = NOTHING
    parallel: bool = True
    forced: str | None = None
    translate: bool = True
