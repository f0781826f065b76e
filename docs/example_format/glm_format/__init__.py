"""
Tool calls as GLM 4.5 writes them.

    <tool_call>NAME
    <arg_key>KEY</arg_key>
    <arg_value>VALUE</arg_value>
    </tool_call>

A value that is valid JSON is read as JSON; any other value is a string.
"""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from blockops.plugins import IToolCallFormat
from blockops.toolcalls.deltas import CallArguments, CallFinished, CallStarted, Delta
from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.reader import (
    CallEnded,
    CallReader,
    CallTruncated,
    FeedResult,
    FinishResult,
    NotACall,
    OpeningContext,
)

END = "</tool_call>"
NAME = re.compile(r"\s*([\w.-]+)\s*(?=<arg_key>|</tool_call>)")
PARTIAL_NAME = re.compile(r"\s*[\w.-]*\s*(?:<[\w/]*)?\Z")
ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


@implementer(IPlugin, IToolCallFormat)
class GlmDialect:
    """The dialect. It shares its opener with others, and is tried after them."""

    name = "glm"
    openers = (Opener("<tool_call>"),)

    def reader(self, context: OpeningContext) -> CallReader:
        """Return a reader for the text after the tag."""
        return GlmReader(context)


class GlmReader:
    """
    Reads one call: starts it once its name is certain, and sends its arguments at its end.

    It keeps the text that it has read and searches all of it, so it does not matter how the text
    is split.
    """

    def __init__(self, context: OpeningContext) -> None:
        self._context = context
        self._text = ""
        self._has_started = False
        self._searched = 0

    def feed(self, text: str, out: list[Delta]) -> FeedResult:
        """Read `text`; append the deltas that are certain to `out`."""
        self._text += text
        if not self._has_started:
            name = NAME.match(self._text)
            if not name:
                return None if PARTIAL_NAME.match(self._text) else NotACall()
            if not self._context.allows(name[1]):
                return NotACall()
            out.append(CallStarted(name[1]))
            self._has_started = True
            self._text = self._text[name.end() :]
        end = self._text.find(END, max(0, self._searched - len(END)))
        self._searched = len(self._text)
        if end < 0:
            return None
        out += [CallArguments(arguments(self._text[:end])), CallFinished()]
        return CallEnded(self._text[end + len(END) :])

    def finish(self, *, is_complete: bool, out: list[Delta]) -> FinishResult:
        """Return the result at the end of the text; a call may lack its closing tag."""
        if not self._has_started:
            return NotACall()
        if not is_complete or ARGUMENT.sub("", self._text).strip():
            return CallTruncated()
        out += [CallArguments(arguments(self._text)), CallFinished()]
        return CallEnded("")


def arguments(text: str) -> str:
    """Return the arguments in `text` as a JSON object."""
    return json.dumps({key: value_of(value) for key, value in ARGUMENT.findall(text)})


def value_of(text: str) -> Any:
    """Return `text` decoded as JSON, or `text` itself if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text
