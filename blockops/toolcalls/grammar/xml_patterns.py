"""
The patterns of functions and parameters in tags, for `xml_parameters`.

Each element has two patterns: one for the whole element, and a `PARTIAL_` one for any beginning of
it at the end of the text. If neither matches, the text is not that element.
"""

from __future__ import annotations

import re

from blockops.toolcalls.grammar.tool_call_tag import CLOSING_TAG, OPENING_TAG
from blockops.toolcalls.partial_match import partial_pattern

MAX_SPACE = 1_024
"""Characters of white space between two tags. More of it belongs to a value, or to no call."""

MAX_HEAD = 1_024
"""Characters of a `<function=NAME>` or `<parameter=KEY>` tag after its first word."""

FUNCTION = "<function"

_SPACE = rf"[ \t\r\n]{{0,{MAX_SPACE}}}"


def _head(word: str, name: str) -> str:
    """Return a pattern for a tag; its groups: the name in double, in single and without quotes."""
    return (
        rf"<{word}(?=[ \t\r\n=][^<>]{{0,{MAX_HEAD}}}>)(?:{_SPACE}name(?={_SPACE}=))?{_SPACE}="
        rf"{_SPACE}(?:\"([^\"<>\n]+)\"|'([^'<>\n]+)'|({name})){_SPACE}>"
    )


def _partial_head(word: str, name: str) -> str:
    """Return a pattern for any beginning of a tag that `_head` describes, at the text's end."""
    quoted = rf"\"(?:\Z|[^\"<>\n]+(?:\Z|\"{_SPACE}\Z))|'(?:\Z|[^'<>\n]+(?:\Z|'{_SPACE}\Z))"
    value = rf"{_SPACE}(?:\Z|{quoted}|{name}{_SPACE}\Z)"
    attribute = rf"{partial_pattern(*'name')}{_SPACE}{partial_pattern('=')}"
    return (
        rf"{partial_pattern(*f'<{word}')}(?:\Z|(?=[ \t\r\n=][^<>]{{0,{MAX_HEAD}}}\Z)"
        rf"{_SPACE}(?:\Z|{attribute}{value}|={value}))"
    )


_PARAMETER_HEAD = _head("parameter", r"[^<>\n\"' \t\r=](?:[^<>\n]*[^<>\n \t\r])?")
_PARTIAL_PARAMETER_HEAD = _partial_head("parameter", r"[^<>\n\"' \t\r=][^<>\n]*")
_PARTIAL_END_OF_FUNCTION = partial_pattern(*"</function>")

FUNCTION_HEAD = re.compile(_head("function", r"[^\s<>\"'=]+"))
PARTIAL_FUNCTION_HEAD = re.compile(_partial_head("function", r"[^\s<>\"'=]+"))
PARAMETER_HEAD = re.compile(_PARAMETER_HEAD)
PARTIAL_PARAMETER_HEAD = re.compile(_PARTIAL_PARAMETER_HEAD)

# After a function's head: the first parameter, or the end (group 4: </function>, 5: </tool_call>).
FIRST_ELEMENT = re.compile(rf"{_SPACE}(?:{_PARAMETER_HEAD}|(</function>)|({CLOSING_TAG}))")
PARTIAL_FIRST_ELEMENT = re.compile(
    rf"{_SPACE}(?:{_PARTIAL_PARAMETER_HEAD}|{_PARTIAL_END_OF_FUNCTION}\Z"
    rf"|{partial_pattern(*CLOSING_TAG)}\Z)"
)

# A value whose </parameter> is missing may end in this way.
_UNCLOSED_VALUE_END = rf"</function>{_SPACE}({CLOSING_TAG})"
_PARTIAL_UNCLOSED_VALUE_END = (
    rf"{_PARTIAL_END_OF_FUNCTION}{_SPACE}{partial_pattern(*CLOSING_TAG)}\Z"
)

# The end of a value in a <tool_call>; groups 4 and 5: </tool_call>.
VALUE_END_IN_TAG = re.compile(
    rf"</parameter>{_SPACE}(?:{_PARAMETER_HEAD}|</function>{_SPACE}"
    rf"(?:({CLOSING_TAG})|(?=(?:{OPENING_TAG}{_SPACE})?<function[ \t\r\n=])))"
    rf"|{_UNCLOSED_VALUE_END}"
)
PARTIAL_VALUE_END_IN_TAG = re.compile(
    rf"{partial_pattern(*'</parameter>')}{_SPACE}(?:{_PARTIAL_PARAMETER_HEAD}"
    rf"|{_PARTIAL_END_OF_FUNCTION}{_SPACE}(?:{partial_pattern(*CLOSING_TAG)}|{partial_pattern(*FUNCTION)}\Z"
    rf"|{partial_pattern(*OPENING_TAG)}{_SPACE}{partial_pattern(*FUNCTION)}\Z))|{_PARTIAL_UNCLOSED_VALUE_END}"
)

# The end of a value in a function without <tool_call>; group 4: </tool_call>.
VALUE_END = re.compile(
    rf"</parameter>{_SPACE}(?:{_PARAMETER_HEAD}|</function>)|{_UNCLOSED_VALUE_END}"
)
PARTIAL_VALUE_END = re.compile(
    rf"{partial_pattern(*'</parameter>')}{_SPACE}(?:{_PARTIAL_PARAMETER_HEAD}"
    rf"|{_PARTIAL_END_OF_FUNCTION}\Z)|{_PARTIAL_UNCLOSED_VALUE_END}"
)

# Where any of these ends may begin.
POSSIBLE_VALUE_END = re.compile(r"<(?:/(?:[pf]|\Z)|p|\Z)")

# The closing tags at the end of the text, if the model stopped by itself after them.
# Group 1: </function>, 2: the text after the tags.
LAST_TAGS = re.compile(rf"</parameter>{_SPACE}(</function>{_SPACE})?(.*)|</function>", re.DOTALL)


def name_in(head: re.Match[str]) -> str:
    """Return the name in the opening tag that `head` matched."""
    return head[1] or head[2] or head[3]
