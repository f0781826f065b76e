"""An object inside a string is unwrapped, once, as it streams."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.grammar.json_in_string import WrappedObject
from blockops.toolcalls.grammar.json_stream import Standing
from tests.toolcalls.grammar.test_json_stream import VALUES
from tests.toolcalls.reading import cuts


def follow(pieces: list[str]) -> tuple[Standing, str, str, bool]:
    """Return where the string stands, what it holds, what lies behind it, whether it is flawed."""
    value = WrappedObject()
    out: list[str] = []
    behind = ""
    for piece in pieces:
        end = value.feed(piece, 0, out) if value.standing is Standing.OPEN else 0
        behind += piece[end:]
    if not value.began and value.standing is Standing.BROKEN:
        # It is no call at all: where exactly that showed does not matter.
        behind = ""
    return value.standing, "".join(out) + value.closing, behind, bool(value.flaws)


class WrappedTests(SynchronousTestCase):
    def follow(self, text: str) -> tuple[Standing, str, str, bool]:
        whole = follow([text])
        for pieces in cuts(text):
            self.assertEqual(whole, follow(pieces), pieces)
        return whole

    def assert_unwrapped(self, text: str, held: str) -> None:
        self.assertEqual((Standing.WHOLE, held, ", ", False), self.follow(text + ", "))

    def test_object(self) -> None:
        self.assert_unwrapped(r'"{\"a\": \"b\", \"c\": [1.50]}"', '{"a": "b", "c": [1.50]}')

    def test_escapes_of_both_levels(self) -> None:
        self.assert_unwrapped(
            r'"\n {\t\"a\":\n\"\\n\\\\ \u00e9 \\u00e9 \/\"}\n "', '{\t"a":\n"\\n\\\\ é \\u00e9 /"}'
        )

    def test_single_quotes_around(self) -> None:
        self.assert_unwrapped("""'{"a": "it\\'s"}'""", '{"a": "it\'s"}')

    def test_raw_line_ends_and_what_is_mended_inside(self) -> None:
        self.assert_unwrapped("\"{\n'a': 'b\nc',}\"", '{\n"a": "b\\nc"}')

    def test_pairs_become_one_character(self) -> None:
        self.assert_unwrapped(r'"{\"a\": \"\ud83d\ude00\"}"', '{"a": "😀"}')

    def test_halves_of_pairs_stay_escapes(self) -> None:
        self.assert_unwrapped(
            r'"{\"a\": \"\ud83d \ude00 \ud83d\ud83d\ude00 \ud83d\"}"',
            r'{"a": "\ud83d \ude00 \ud83d😀 \ud83d"}',
        )

    def test_nothing_inside(self) -> None:
        for text in ('""', '" \\n\t"', "''"):
            self.assertEqual((Standing.WHOLE, "", "", False), self.follow(text))

    def test_anything_but_an_object(self) -> None:
        for text in ('"x"', '"[1]"', '" \\"{}\\""', '"null"', '"\\ud83d"'):
            standing, held, _, _ = self.follow(text)
            self.assertEqual((Standing.BROKEN, ""), (standing, held), text)

    def test_broken_inside_passes_to_the_end_of_the_string(self) -> None:
        self.assertEqual(
            (Standing.WHOLE, '{"a": oops, "b": 1}', "}", True),
            self.follow(r'"{\"a\": oops, \"b\": 1}"}'),
        )

    def test_text_behind_the_object_passes_and_is_a_flaw(self) -> None:
        self.assertEqual(
            (Standing.WHOLE, '{"a": 1}x  y', "", True), self.follow(r'"{\"a\": 1}  x  y"')
        )

    def test_unknown_escape(self) -> None:
        self.assertEqual(
            (Standing.WHOLE, '{"a": "\\d \\u12"}', "", True),
            self.follow(r'"{\"a\": \"\d \u12\"}"'),
        )

    def test_quote_that_comes_too_early(self) -> None:
        standing, held, behind, _ = self.follow('"{"a": 1}"')
        self.assertEqual((Standing.BROKEN, "{", '"a": 1}"'), (standing, held, behind))

    def test_only_a_whole_string_lacks_nothing(self) -> None:
        value = WrappedObject()
        value.feed('"{}', 0, [])
        self.assertIsNone(value.missing())
        value.feed('"', 0, [])
        self.assertEqual("", value.missing())

    @given(meant=st.dictionaries(st.text(), VALUES), ascii_only=st.booleans())
    def test_any_object_survives(self, meant: dict[str, object], *, ascii_only: bool) -> None:
        text = json.dumps(json.dumps(meant, ensure_ascii=False), ensure_ascii=ascii_only)
        for pieces in ([text], list(text)):
            standing, held, _, flawed = follow(pieces)
            self.assertEqual((Standing.WHOLE, False), (standing, flawed))
            self.assertEqual(meant, json.loads(held))

    @given(st.text("{}[]\",:\\'u1d83c0e \n", max_size=25).map(lambda text: '"' + text))
    def test_cuts_do_not_matter(self, text: str) -> None:
        self.follow(text)
