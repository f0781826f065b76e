"""Properties of any text."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools
from tests import thorough
from tests.toolcalls.grammar.test_json_stream import VALUES
from tests.toolcalls.near_misses import (
    CALLS,
    FINISH_REASONS,
    OFFERED_TOOLS,
    OPTIONS,
    split_texts,
    texts,
)
from tests.toolcalls.reading import TOOLS, ParserOutput, parse_pieces

KEYS = st.from_regex(
    r"[^\s<>\"'=\x00-\x1f\x7f-\xa0](?:[^<>\n]{0,10}[^\s<>\x00-\x1f\x7f-\xa0])?", fullmatch=True
)
LOOKS_LIKE_AN_END = re.compile(r"</?parameter|</function>")


def schema_of(value: object) -> dict[str, str]:
    """Return a schema that declares the type of `value`."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return {"type": names.get(type(value), "number")}


class SplitTests(SynchronousTestCase):
    """The joined output is a function of the joined input."""

    @thorough(300)
    @given(split_texts(), OFFERED_TOOLS, OPTIONS, FINISH_REASONS)
    def test_near_misses(
        self,
        split: tuple[str, list[str]],
        tools: OfferedTools,
        options: TranslationOptions,
        reason: str | None,
    ) -> None:
        text, pieces = split
        at_once = parse_pieces([text], tools, options, reason)
        self.assertEqual(at_once, parse_pieces(pieces, tools, options, reason))
        self.assertEqual(at_once, parse_pieces(list(text), tools, options, reason))

    @given(st.text(), OFFERED_TOOLS, OPTIONS, FINISH_REASONS)
    def test_any_text(
        self, text: str, tools: OfferedTools, options: TranslationOptions, reason: str | None
    ) -> None:
        at_once = parse_pieces([text], tools, options, reason)
        self.assertEqual(at_once, parse_pieces(list(text), tools, options, reason))
        self.assertEqual(text, at_once[0].reasoning + at_once[0].content)

    @given(st.lists(texts(), min_size=2, max_size=4))
    def test_choices_do_not_mix(self, choices: list[str]) -> None:
        parsers = [ToolCallParser(TOOLS) for _ in choices]
        outputs: list[list[Any]] = [[] for _ in choices]
        for pos in range(max(map(len, choices))):
            for parser, text, deltas in zip(parsers, choices, outputs, strict=True):
                deltas.extend(parser.feed(text[pos : pos + 1]))
        for parser, text, deltas in zip(parsers, choices, outputs, strict=True):
            deltas.extend(parser.finish("stop"))
            self.assertEqual(parse_pieces([text])[0], ParserOutput.from_deltas(deltas))


class CompletenessTests(SynchronousTestCase):
    """Every word of the model is in the content or in a call."""

    @thorough(200)
    @given(texts(), FINISH_REASONS)
    def test_text_without_calls_is_unchanged(self, text: str, reason: str | None) -> None:
        output, _ = parse_pieces([text], reason=reason)
        if not output.calls:
            self.assertEqual(text, output.content)

    @thorough(200)
    @given(
        st.lists(
            st.sampled_from(CALLS).flatmap(
                lambda call: st.integers(0, len(call)).map(lambda end: call[:end])
            )
            | st.sampled_from(
                ["`", "\n```\n", "\n", " ", "<tool_call>", "<function=", "</tool_call>"]
            ),
            max_size=6,
        )
    )
    def test_words_between_calls(self, parts: list[str]) -> None:
        text = "".join(f"{part} word{index}s " for index, part in enumerate(parts))
        output, _ = parse_pieces([text])
        shown = output.content + "".join(call.arguments + call.name for call in output.calls)
        for index in range(len(parts)):
            self.assertIn(f"word{index}s", shown)

    @given(texts())
    def test_content_is_in_order(self, text: str) -> None:
        rest = iter(text)
        self.assertTrue(all(char in rest for char in parse_pieces([text])[0].content))


class ArgumentTests(SynchronousTestCase):
    """Any JSON object of arguments survives each dialect."""

    @given(
        value=st.dictionaries(st.text(), VALUES), ascii_only=st.booleans(), name_last=st.booleans()
    )
    @example(
        value={"</tool_call>": '"}\\', "TOOL_CALL: {": "\n</tool_call>"},
        ascii_only=True,
        name_last=False,
    )
    def test_json(self, value: dict[str, Any], *, ascii_only: bool, name_last: bool) -> None:
        arguments = json.dumps(value, ensure_ascii=ascii_only)
        members = ['"name": "now"', f'"arguments": {arguments}']
        call = "{" + ", ".join(reversed(members) if name_last else members) + "}"
        for text in (f"A <tool_call>\n{call}\n</tool_call> B", f"A\nTOOL_CALL: {call} B"):
            for pieces in ([text], list(text)):
                output, _ = parse_pieces(pieces)
                self.assertEqual("A B", output.content)
                self.assertEqual([arguments], [each.arguments for each in output.calls])

    @given(st.dictionaries(st.text(), VALUES))
    def test_json_in_a_string(self, value: dict[str, Any]) -> None:
        text = f'<tool_call>{{"name": "now", "arguments": {json.dumps(json.dumps(value))}}}'
        for pieces in ([text], list(text)):
            self.assertEqual(value, parse_pieces(pieces)[0].calls[0].parsed_arguments)

    @given(
        st.dictionaries(
            KEYS, VALUES.filter(lambda value: not LOOKS_LIKE_AN_END.search(str(value))), max_size=4
        )
    )
    @example({"a": "\n\nx\r\n", "b": "</tool_call>", "c": "<", "d": " 5", "e": [None], "f": "</p>"})
    def test_xml(self, value: dict[str, Any]) -> None:
        tools = OfferedTools(
            {"f": {"properties": {key: schema_of(value) for key, value in value.items()}}}
        )
        written = {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
        body = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in written.items()
        )
        for text in (
            f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>",
            f"<function=f>\n{body}</function>",
        ):
            for pieces in ([text], list(text)):
                output, _ = parse_pieces(pieces, tools)
                self.assertEqual([value], [call.parsed_arguments for call in output.calls])
                self.assertEqual("", output.content)
