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
    :param forbidden_tools: functions of the request that must not be called now; a call of one of
        them is text
    :param parallel: the request's `parallel_tool_calls`; if False, only the first call of a choice
        is kept
    :param forced_tool: the only function that `tool_choice` allows, or None
    :param may_translate: True if text may become calls. Without tools, or with `tool_choice`
        "none", it may not: openers are only counted then
    """

    schemas: Mapping[str, Any] = field(default_factory=dict)
    forbidden_tools: frozenset[str] = NO_NAMES
    parallel: bool = True
    forced_tool: str | None = None
    may_translate: bool = True
