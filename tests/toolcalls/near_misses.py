"""Hypothesis strategies for texts that are nearly calls, made of the parts of the grammars."""

from __future__ import annotations

from hypothesis import strategies as st

from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.tools import OfferedTools
from tests.toolcalls.reading import SCHEMAS

CALLS = (
    '<tool_call>\n{"name": "now", "arguments": {"a": "x", "n": [1, {"b": null}]}}\n</tool_call>',
    '<tool_call>[{"name": "now", "args": "{\\"a\\": \\"\\\\u00e9\\"}"}, {"name": "q"}]</tool_call>',
    "<tool_call>{name: 'now', arguments: {a: True, }}</tool_call>",
    'TOOL_CALL: {"name": "weather", "arguments": {"k": "v"}}\n',
    'TOOL_CALL: {"arguments": {"k": -1.5e3}, "name": "now"}',
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    "<function=weather><parameter=city>v</parameter><parameter=days>[1]</parameter></function>",
    "<tool_call><function=now>\n</function><function=q><parameter=a>\r\n1\r\n</parameter></function>",
    "<function=now>\n</function>\n</tool_call>",
)
PIECES = (
    *("<tool_call>", "</tool_call>", "<function=now>", "<function=", '<function name="weather">'),
    *("</function>", "<parameter=city>", "<parameter = days >", "</parameter>", "TOOL_CALL:"),
    *("TOOL_CALL: {", "{", "}", "[", "]", '"name"', '"now"', ": ", ", ", '"arguments"', '"args"'),
    *('{"name": "now", "arguments": {', '"a": ', '"x"', "1", "2.5", "True", "null", "nul", "-"),
    *("\n", "\r\n", " ", "  \n", "\t", "`", "``", "```", "```json\n", "~~~", "> ", "- ", "1. "),
    *("<think>", "</think>", "<", "</", "<t", "<par", "</par", "</tool", "<function", ">", "="),
    *("\\", '\\"', "\\u00", "\\ud83d", "\\ude00", "'", "{'name': 'now'", "//", "/* ", "*/", "/"),
    *('"{\\"a\\": \\"', '\\"}"', "\x00", "é", "😀", "text", ".", ";", "name", "parameter"),
)

_PART = st.sampled_from(PIECES) | st.sampled_from(CALLS)
OPTIONS = st.builds(
    TranslationOptions,
    fenced_calls=st.booleans(),
    reasoning=st.sampled_from(["keep", "split"]),
    think_prefilled=st.booleans(),
    think_calls=st.booleans(),
    max_hold=st.sampled_from([15, 40, 90, 262_144]),
)
OFFERED_TOOLS = st.builds(
    OfferedTools,
    schemas=st.just(SCHEMAS),
    parallel=st.booleans(),
    may_translate=st.integers(0, 9).map(bool),
)
FINISH_REASONS = st.sampled_from(["stop", "length", None])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Draw some parts in a row, with up to three places changed."""
    text = "".join(draw(st.lists(_PART, max_size=8)))
    for _ in range(draw(st.integers(0, 3))):
        pos = draw(st.integers(0, len(text)))
        removed = draw(st.integers(0, 6))
        text = text[:pos] + draw(st.just("") | st.sampled_from(PIECES)) + text[pos + removed :]
    return text


@st.composite
def split_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Draw a text, and the pieces into which it is split."""
    text = draw(texts())
    starts = draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    ends = [*starts, len(text)]
    return text, [text[a:b] for a, b in zip([0, *starts], ends, strict=True)]
