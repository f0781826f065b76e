"""The tools that one request offers to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NO_NAMES: frozenset[str] = frozenset()
"""Shared by all requests: `frozenset(names)` of an empty `names` would take 200 bytes for each."""


@dataclass(frozen=True)
class OfferedTools:
    """
    The functions that a request offers, and how the model may call them.

    :param schemas: function name -> JSON schema of its parameters; `{}` if none is declared
    :param forbidden_tools: functions that must not be called now: a call of one of them is text
    :param parallel: if False, only the first call of a choice is kept
    :param forced_tool: the only function that `tool_choice` allows, or None
    :param may_translate: False without tools or with `tool_choice` "none": openers are only counted
    """

    schemas: Mapping[str, Any] = field(default_factory=dict)
    forbidden_tools: frozenset[str] = NO_NAMES
    parallel: bool = True
    forced_tool: str | None = None
    may_translate: bool = True
