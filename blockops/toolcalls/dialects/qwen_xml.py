"""
Functions and parameters in tags, as Qwen3-Coder and Qwen 3.5 write them.

    call = "<tool_call>" space function { space function } space "</tool_call>"
         | function [ space "</tool_call>" ]

The second form is a call only at the start of a line, and only if the request offers its name.
"""

from __future__ import annotations

from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.dialects.prompts import QwenXmlPrompt
from blockops.toolcalls.grammar.tool_call_tag import OPENING_TAG
from blockops.toolcalls.grammar.xml_parameters import XmlCallReader
from blockops.toolcalls.grammar.xml_patterns import FUNCTION
from blockops.toolcalls.reader import CallReader, OpeningContext


class QwenXmlDialect:
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`."""

    name = "xml"
    openers = (Opener(OPENING_TAG), Opener(FUNCTION, line_start=True))
    tool_prompt = QwenXmlPrompt()

    def reader(self, context: OpeningContext) -> CallReader:
        return XmlCallReader(context, is_in_tag=context.literal == OPENING_TAG)
