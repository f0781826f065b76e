"""
The dialects that blockops reads: its own, and those that other packages add.

A package adds a dialect as a Twisted plugin: a module in `twisted/plugins/` with an object that
provides `IPlugin` and `IToolCallFormat`. `docs/formats.md` shows a complete one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from twisted.plugin import getPlugins
from zope.interface import Interface

from blockops.toolcalls.dialect import MAX_OPENER_LENGTH, Dialect
from blockops.toolcalls.dialects import BUILT_IN
from blockops.toolcalls.dialects.prompts import ToolPrompt


class IToolCallFormat(Interface):
    """Marks a plugin as a `blockops.toolcalls.dialect.Dialect`, which declares the attributes."""


def known_dialects() -> tuple[Dialect, ...]:
    """Return the built-in dialects, then the plugins' by name; ValueError for an unusable one."""
    plugins = cast("Iterable[Dialect]", getPlugins(IToolCallFormat))
    dialects = (*BUILT_IN, *sorted(plugins, key=lambda dialect: dialect.name))
    names: set[str] = set()
    for dialect in dialects:
        if dialect.name in names:
            raise ValueError(
                f"two tool-call dialects have the name {dialect.name!r}; rename one or uninstall it"
            )
        names.add(dialect.name)
        for opener in dialect.openers:
            is_valid_length = 0 < len(opener.text) <= MAX_OPENER_LENGTH
            if not is_valid_length or set(opener.text) & {"\n", "`"}:
                raise ValueError(
                    f"tool-call dialect {dialect.name!r}: the opener {opener.text!r} must have 1 "
                    f"to {MAX_OPENER_LENGTH} characters, without line ends and backticks"
                )
    return dialects


def tool_prompt_for(name: str) -> ToolPrompt:
    """Return the tool prompt of the dialect `name`; ValueError if it has none."""
    prompts = {dialect.name: getattr(dialect, "tool_prompt", None) for dialect in known_dialects()}
    prompt: ToolPrompt | None = prompts.get(name)
    if prompt is None:
        usable = ", ".join(name for name, prompt in prompts.items() if prompt is not None)
        raise ValueError(f"tool-format: {name!r} cannot describe tools to a model; use {usable}")
    return prompt
