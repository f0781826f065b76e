"""
The formats of tool calls that blockops knows: its own, and those that other packages bring.

A package brings a format as a Twisted plugin: a module in `twisted/plugins/` with an object that
provides `IPlugin` and `IToolCallFormat`. `docs/formats.md` shows a complete one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from twisted.plugin import getPlugins
from zope.interface import Attribute, Interface

from blockops.toolcalls.dialects.prompts import Wording
from blockops.toolcalls.dialects.registry import BUILT_IN
from blockops.toolcalls.reader import Opener, ToolCallFormat
from blockops.toolcalls.scanner import MAX_LITERAL


class IToolCallFormat(Interface):
    """`blockops.toolcalls.reader.ToolCallFormat`, as plugins are asked for."""

    name: str = Attribute("A short name, for settings and logs; no other format has it.")
    openers: tuple[Opener, ...] = Attribute("What calls of this format begin with.")

    def reader(opening):  # type: ignore[no-untyped-def]  # noqa: ANN201, N805
        """Return a reader for the text behind `opening`; see `CallReader`."""


def known_formats() -> tuple[ToolCallFormat, ...]:
    """
    Return blockops' own formats, then those of installed plugins by name.

    :raises ValueError: a plugin's format cannot be used, and why
    """
    plugins = cast("Iterable[ToolCallFormat]", getPlugins(IToolCallFormat))
    formats = (*BUILT_IN, *sorted(plugins, key=lambda each: each.name))
    names: set[str] = set()
    for each in formats:
        if each.name in names:
            raise ValueError(f"two tool-call formats are called {each.name!r}")
        names.add(each.name)
        for opener in each.openers:
            if not 0 < len(opener.text) <= MAX_LITERAL or set(opener.text) & {"\n", "`"}:
                raise ValueError(
                    f"tool-call format {each.name!r}: the opener {opener.text!r} must have 1 to "
                    f"{MAX_LITERAL} characters, no line end and no backtick among them"
                )
    return formats


def wording_of(name: str) -> Wording:
    """
    Return how the format `name` tells a model of its tools.

    :raises ValueError: there is no such format, or it has no words for that
    """
    words = {each.name: getattr(each, "wording", None) for each in known_formats()}
    wording: Wording | None = words.get(name)
    if wording is None:
        known = ", ".join(name for name, wording in words.items() if wording is not None)
        raise ValueError(f"tool-format: {name!r} is no format that can tell tools; give {known}")
    return wording
