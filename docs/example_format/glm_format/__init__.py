"""
Tool calls as GLM 4.5 writes them.

    <tool_call>NAME
    <arg_key>KEY</arg_key>
    <arg_value>VALUE</arg_value>
    </tool_call>

A value is JSON where it is JSON, and a string where it is not.
"""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from blockops.plugins import IToolCallFormat
from blockops.toolcalls.events import CallArguments, CallBegan, CallEnded, Delta
from blockops.toolcalls.reader import (
    CallReader,
    Ended,
    LeftOpen,
    Opener,
    Opening,
    Refused,
)

END = "</tool_call>"
NAME = re.compile(r"\s*([\w.-]+)\s*(?=<arg_key>|</tool_call>)")
NAME_BEGUN = re.compile(r"\s*[\w.-]*\s*(?:<[\w/]*)?\Z")
ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


@implementer(IPlugin, IToolCallFormat)
class GlmFormat:
    """The format. It shares its opener with others, and is asked when those have refused."""

    name = "glm"
    openers = (Opener("<tool_call>"),)

    def reader(self, opening: Opening) -> CallReader:
        """Return a reader for the text behind the tag."""
        return GlmReader(opening)


class GlmReader:
    """
    Reads one call: once the name is certain the call begins, and its arguments come at its end.

    What it does depends on the text alone: it looks at all that it has read, so the pieces in which
    the text comes make no difference.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._text = ""
        self._began = False
        self._searched = 0

    def feed(self, text: str, out: list[Delta]) -> Refused | Ended | None:
        """Read on."""
        self._text += text
        if not self._began:
            name = NAME.match(self._text)
            if not name:
                return None if NAME_BEGUN.match(self._text) else Refused()
            if not self._opening.admits(name[1]):
                return Refused()
            out.append(CallBegan(name[1]))
            self._began = True
            self._text = self._text[name.end() :]
        end = self._text.find(END, max(0, self._searched - len(END)))
        self._searched = len(self._text)
        if end < 0:
            return None
        out += [CallArguments(arguments(self._text[:end])), CallEnded()]
        return Ended(self._text[end + len(END) :])

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused | Ended | LeftOpen:
        """Decide at the end: a call that lacks its closing tag only is complete."""
        if not self._began:
            return Refused()
        if not whole or ARGUMENT.sub("", self._text).strip():
            return LeftOpen()
        out += [CallArguments(arguments(self._text)), CallEnded()]
        return Ended("")


def arguments(text: str) -> str:
    """Return the JSON object of the arguments that `text` holds."""
    return json.dumps({key: value_of(value) for key, value in ARGUMENT.findall(text)})


def value_of(text: str) -> Any:
    """Return what a value means."""
    try:
        return json.loads(text)
    except ValueError:
        return text
