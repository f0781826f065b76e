"""What holds for any text at all."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.options import Rules
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import Offer
from tests import thorough
from tests.toolcalls.grammar.test_json_stream import VALUES
from tests.toolcalls.near_misses import CALLS, OFFERS, REASONS, RULES, cut_texts, texts
from tests.toolcalls.reading import OFFER, Joined, say

KEYS = st.from_regex(
    r"[^\s<>\"'=\x00-\x1f\x7f-\xa0](?:[^<>\n]{0,10}[^\s<>\x00-\x1f\x7f-\xa0])?", fullmatch=True
)
LOOKS_LIKE_AN_END = re.compile(r"</?parameter|</function>")


def types_of(value: object) -> dict[str, str]:
    """Return a schema that asks for this kind of value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return {"type": names.get(type(value), "number")}


class CutTests(SynchronousTestCase):
    """What comes out, joined, is a function of what went in, joined."""

    @thorough(300)
    @given(cut_texts(), OFFERS, RULES, REASONS)
    def test_near_misses(
        self, cut: tuple[str, list[str]], offer: Offer, rules: Rules, reason: str | None
    ) -> None:
        text, pieces = cut
        whole = say([text], offer, rules, reason)
        self.assertEqual(whole, say(pieces, offer, rules, reason))
        self.assertEqual(whole, say(list(text), offer, rules, reason))

    @given(st.text(), OFFERS, RULES, REASONS)
    def test_any_text(self, text: str, offer: Offer, rules: Rules, reason: str | None) -> None:
        whole = say([text], offer, rules, reason)
        self.assertEqual(whole, say(list(text), offer, rules, reason))
        self.assertEqual(text, whole[0].reasoning + whole[0].content)

    @given(st.lists(texts(), min_size=2, max_size=4))
    def test_choices_do_not_mix(self, choices: list[str]) -> None:
        parsers = [ToolCallParser(OFFER) for _ in choices]
        said: list[list[Any]] = [[] for _ in choices]
        for at in range(max(map(len, choices))):
            for parser, text, deltas in zip(parsers, choices, said, strict=True):
                deltas.extend(parser.feed(text[at : at + 1]))
        for parser, text, deltas in zip(parsers, choices, said, strict=True):
            deltas.extend(parser.finish("stop"))
            self.assertEqual(say([text])[0], Joined.of(deltas))


class NothingVanishesTests(SynchronousTestCase):
    """Every word of the model is in the content or in a call."""

    @thorough(200)
    @given(texts(), REASONS)
    def test_text_without_calls_is_unchanged(self, text: str, reason: str | None) -> None:
        joined, _ = say([text], reason=reason)
        if not joined.calls:
            self.assertEqual(text, joined.content)

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
        text = "".join(f"{part} word{at}s " for at, part in enumerate(parts))
        joined, _ = say([text])
        shown = joined.content + "".join(call.arguments + call.name for call in joined.calls)
        for at in range(len(parts)):
            self.assertIn(f"word{at}s", shown)

    @given(texts())
    def test_content_is_in_order(self, text: str) -> None:
        rest = iter(text)
        self.assertTrue(all(char in rest for char in say([text])[0].content))


class ArgumentTests(SynchronousTestCase):
    """Any JSON object of arguments survives each format."""

    @given(
        meant=st.dictionaries(st.text(), VALUES), ascii_only=st.booleans(), name_last=st.booleans()
    )
    @example(
        meant={"</tool_call>": '"}\\', "TOOL_CALL: {": "\n</tool_call>"},
        ascii_only=True,
        name_last=False,
    )
    def test_json(self, meant: dict[str, Any], *, ascii_only: bool, name_last: bool) -> None:
        arguments = json.dumps(meant, ensure_ascii=ascii_only)
        members = ['"name": "now"', f'"arguments": {arguments}']
        call = "{" + ", ".join(reversed(members) if name_last else members) + "}"
        for text in (f"A <tool_call>\n{call}\n</tool_call> B", f"A\nTOOL_CALL: {call} B"):
            for pieces in ([text], list(text)):
                joined, _ = say(pieces)
                self.assertEqual("A B", joined.content)
                self.assertEqual([arguments], [each.arguments for each in joined.calls])

    @given(st.dictionaries(st.text(), VALUES))
    def test_json_in_a_string(self, meant: dict[str, Any]) -> None:
        text = f'<tool_call>{{"name": "now", "arguments": {json.dumps(json.dumps(meant))}}}'
        for pieces in ([text], list(text)):
            self.assertEqual(meant, say(pieces)[0].calls[0].meant)

    @given(
        st.dictionaries(
            KEYS, VALUES.filter(lambda value: not LOOKS_LIKE_AN_END.search(str(value))), max_size=4
        )
    )
    @example({"a": "\n\nx\r\n", "b": "</tool_call>", "c": "<", "d": " 5", "e": [None], "f": "</p>"})
    def test_xml(self, meant: dict[str, Any]) -> None:
        offer = Offer({"f": {"properties": {key: types_of(value) for key, value in meant.items()}}})
        written = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meant.items()}
        body = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in written.items()
        )
        for text in (
            f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>",
            f"<function=f>\n{body}</function>",
        ):
            for pieces in ([text], list(text)):
                joined, _ = say(pieces, offer)
                self.assertEqual([meant], [call.meant for call in joined.calls])
                self.assertEqual("", joined.content)
