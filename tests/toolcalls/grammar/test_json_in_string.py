"""An object in a string is unescaped, once, as it streams."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.grammar.json_in_string import JsonInString
from blockops.toolcalls.grammar.json_stream import Status
from tests.toolcalls.grammar.test_json_stream import VALUES
from tests.toolcalls.reading import splits


def read_string(pieces: list[str]) -> tuple[Status, str, str, bool]:
    """Return the string's status, its contents, the text after it, and if it has errors."""
    value = JsonInString()
    out: list[str] = []
    rest = ""
    for piece in pieces:
        end = value.feed(piece, 0, out) if value.status == "open" else 0
        rest += piece[end:]
    if not value.has_started and value.status == "broken":
        # Not a call: the parser does not use the position where this became certain.
        rest = ""
    return value.status, "".join(out) + value.closing_bracket, rest, bool(value.error_count)


class JsonInStringTests(SynchronousTestCase):
    def read(self, text: str) -> tuple[Status, str, str, bool]:
        whole = read_string([text])
        for pieces in splits(text):
            self.assertEqual(whole, read_string(pieces), pieces)
        return whole

    def assert_unescaped(self, text: str, contents: str) -> None:
        self.assertEqual(("complete", contents, ", ", False), self.read(text + ", "))

    def test_object(self) -> None:
        self.assert_unescaped(r'"{\"a\": \"b\", \"c\": [1.50]}"', '{"a": "b", "c": [1.50]}')

    def test_escapes_of_both_levels(self) -> None:
        self.assert_unescaped(
            r'"\n {\t\"a\":\n\"\\n\\\\ \u00e9 \\u00e9 \/\"}\n "', '{\t"a":\n"\\n\\\\ é \\u00e9 /"}'
        )

    def test_single_quotes_around(self) -> None:
        self.assert_unescaped("""'{"a": "it\\'s"}'""", '{"a": "it\'s"}')

    def test_raw_line_ends_and_repairs_inside(self) -> None:
        self.assert_unescaped("\"{\n'a': 'b\nc',}\"", '{\n"a": "b\\nc"}')

    def test_surrogate_pairs_become_one_character(self) -> None:
        self.assert_unescaped(r'"{\"a\": \"\ud83d\ude00\"}"', '{"a": "😀"}')

    def test_lone_surrogates_stay_escapes(self) -> None:
        self.assert_unescaped(
            r'"{\"a\": \"\ud83d \ude00 \ud83d\ud83d\ude00 \ud83d\"}"',
            r'{"a": "\ud83d \ude00 \ud83d😀 \ud83d"}',
        )

    def test_empty_string(self) -> None:
        for text in ('""', '" \\n\t"', "''"):
            self.assertEqual(("complete", "", "", False), self.read(text))

    def test_anything_but_an_object(self) -> None:
        for text in ('"x"', '"[1]"', '" \\"{}\\""', '"null"', '"\\ud83d"'):
            status, contents, _, _ = self.read(text)
            self.assertEqual(("broken", ""), (status, contents), text)

    def test_broken_object_passes_up_to_the_end_of_the_string(self) -> None:
        self.assertEqual(
            ("complete", '{"a": oops, "b": 1}', "}", True),
            self.read(r'"{\"a\": oops, \"b\": 1}"}'),
        )

    def test_text_after_the_object_passes_and_is_an_error(self) -> None:
        self.assertEqual(("complete", '{"a": 1}x  y', "", True), self.read(r'"{\"a\": 1}  x  y"'))

    def test_unknown_escape(self) -> None:
        self.assertEqual(
            ("complete", '{"a": "\\d \\u12"}', "", True),
            self.read(r'"{\"a\": \"\d \u12\"}"'),
        )

    def test_unescaped_quote(self) -> None:
        status, contents, rest, _ = self.read('"{"a": 1}"')
        self.assertEqual(("broken", "{", '"a": 1}"'), (status, contents, rest))

    def test_an_open_string_has_no_completion(self) -> None:
        value = JsonInString()
        value.feed('"{}', 0, [])
        self.assertIsNone(value.completion())

    @given(value=st.dictionaries(st.text(), VALUES), ascii_only=st.booleans())
    def test_any_object_survives(self, value: dict[str, object], *, ascii_only: bool) -> None:
        text = json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=ascii_only)
        for pieces in ([text], list(text)):
            status, contents, _, has_errors = read_string(pieces)
            self.assertEqual(("complete", False), (status, has_errors))
            self.assertEqual(value, json.loads(contents))

    @given(st.text("{}[]\",:\\'u1d83c0e \n", max_size=25).map(lambda text: '"' + text))
    def test_every_split_gives_the_same(self, text: str) -> None:
        self.read(text)
