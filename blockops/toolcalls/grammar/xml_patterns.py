"""
The patterns of functions and parameters in tags, for `xml_parameters`.

Each element has two patterns: one for the whole element, and a `PARTIAL_` one for any beginning of
it at the end of the text. If neither matches, the text is not that element.
"""

from __future__ import annotations

import re

from blockops.toolcalls.grammar.tool_call_tag import CLOSING_TAG, OPENING_TAG
from blockops.toolcalls.verbatim import Verbatim, json_text_pattern

MAX_SPACE = 1_024
"""Characters of white space between two tags. More of it belongs to a value, or to no call."""

MAX_HEAD = 1_024
"""Characters of a `<function=NAME>` or `<parameter=KEY>` tag after its first word."""

FUNCTION = "<function"

_SPACE = rf"[ \t\r\n]{{0,{MAX_SPACE}}}"


def _head(word: str, name: str) -> str:
    """
    Return a pattern for the opening tag of a function or a parameter.

    It has three groups, for the name in double quotes, in single quotes, and without quotes.

    :param name: a pattern for a name without quotes
    """
    return (
        rf"<{word}(?=[ \t\r\n=][^<>]{{0,{MAX_HEAD}}}>)(?:{_SPACE}name(?={_SPACE}=))?{_SPACE}="
        rf"{_SPACE}(?:\"([^\"<>\n]+)\"|'([^'<>\n]+)'|({name})){_SPACE}>"
    )


def _partial(*parts: str) -> str:
    """Return a pattern for a sequence of patterns that the end of the text may cut anywhere."""
    pattern = ""
    for part in reversed(parts):
        pattern = rf"(?:\Z|{part}{pattern})"
    return pattern


def _partial_head(word: str, name: str) -> str:
    """
    Return a pattern for any beginning of a tag that `_head` describes, at the end of the text.

    :param name: a pattern for the beginning of a name without quotes
    """
    quoted = rf"\"(?:\Z|[^\"<>\n]+(?:\Z|\"{_SPACE}\Z))|'(?:\Z|[^'<>\n]+(?:\Z|'{_SPACE}\Z))"
    value = rf"{_SPACE}(?:\Z|{quoted}|{name}{_SPACE}\Z)"
    attribute = rf"{_partial(*'name')}{_SPACE}{_partial('=')}"
    return (
        rf"{_partial(*f'<{word}')}(?:\Z|(?=[ \t\r\n=][^<>]{{0,{MAX_HEAD}}}\Z)"
        rf"{_SPACE}(?:\Z|{attribute}{value}|={value}))"
    )


_PARAMETER_HEAD = _head("parameter", r"[^<>\n\"' \t\r=](?:[^<>\n]*[^<>\n \t\r])?")
_PARTIAL_PARAMETER_HEAD = _partial_head("parameter", r"[^<>\n\"' \t\r=][^<>\n]*")
_PARTIAL_END_OF_FUNCTION = _partial(*"</function>")

FUNCTION_HEAD = re.compile(_head("function", r"[^\s<>\"'=]+"))
PARTIAL_FUNCTION_HEAD = re.compile(_partial_head("function", r"[^\s<>\"'=]+"))
PARAMETER_HEAD = re.compile(_PARAMETER_HEAD)
PARTIAL_PARAMETER_HEAD = re.compile(_PARTIAL_PARAMETER_HEAD)

# After a function's head: the first parameter, or the end (group 4: </function>, 5: </tool_call>).
FIRST_ELEMENT = re.compile(rf"{_SPACE}(?:{_PARAMETER_HEAD}|(</function>)|({CLOSING_TAG}))")
PARTIAL_FIRST_ELEMENT = re.compile(
    rf"{_SPACE}(?:{_PARTIAL_PARAMETER_HEAD}|{_PARTIAL_END_OF_FUNCTION}\Z"
    rf"|{_partial(*CLOSING_TAG)}\Z)"
)

# The end of a value in a <tool_call>; group 4: </tool_call>.
VALUE_END_IN_TAG = re.compile(
    rf"</parameter>{_SPACE}(?:{_PARAMETER_HEAD}|</function>{_SPACE}"
    rf"(?:({CLOSING_TAG})|(?=(?:{OPENING_TAG}{_SPACE})?<function[ \t\r\n=])))"
)
PARTIAL_VALUE_END_IN_TAG = re.compile(
    rf"{_partial(*'</parameter>')}{_SPACE}(?:{_PARTIAL_PARAMETER_HEAD}"
    rf"|{_PARTIAL_END_OF_FUNCTION}{_SPACE}(?:{_partial(*CLOSING_TAG)}|{_partial(*FUNCTION)}\Z"
    rf"|{_partial(*OPENING_TAG)}{_SPACE}{_partial(*FUNCTION)}\Z))"
)

# The end of a value in a function without <tool_call>.
VALUE_END = re.compile(rf"</parameter>{_SPACE}(?:{_PARAMETER_HEAD}|</function>)")
PARTIAL_VALUE_END = re.compile(
    rf"{_partial(*'</parameter>')}{_SPACE}(?:{_PARTIAL_PARAMETER_HEAD}"
    rf"|{_PARTIAL_END_OF_FUNCTION}\Z)"
)

# The end of a value whose </parameter> is missing.
UNCLOSED_VALUE_END = re.compile(rf"</function>{_SPACE}{CLOSING_TAG}")
PARTIAL_UNCLOSED_VALUE_END = re.compile(
    rf"{_PARTIAL_END_OF_FUNCTION}{_SPACE}{_partial(*CLOSING_TAG)}\Z"
)

# Where any of these ends may begin.
POSSIBLE_VALUE_END = re.compile(r"<(?:/(?:[pf]|\Z)|p|\Z)")

# The closing tags at the end of the text, if the model stopped by itself after them.
# Group 1: </function>, 2: the text after the tags.
LAST_TAGS = re.compile(rf"</parameter>{_SPACE}(</function>{_SPACE})?(.*)|</function>", re.DOTALL)

# Text of a string that begins no tag and does not end in the line end that may be framing.
_STRING_CHARACTER = r"[^<\x00-\x08\x0b-\x1f]"
STRING_TEXT = Verbatim(
    re.compile(rf"{_STRING_CHARACTER}*(?:<(?![/p]){_STRING_CHARACTER}+)*(?<!\n)"),
    json_text_pattern(r'\\["\\nt]|<(?=[^</p])', excluded="<", end=r"(?<!\\n)"),
    is_json_string=True,
)


def name_in(head: re.Match[str]) -> str:
    """Return the name in the opening tag that `head` matched."""
    return head[1] or head[2] or head[3]
