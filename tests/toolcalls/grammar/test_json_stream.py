"""JSON that streams: where it ends, how it is written, what is mended, where it breaks."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.grammar.json_stream import (
    MAX_COMMENTS,
    MAX_DEPTH,
    MAX_GAP,
    MAX_WORD,
    JsonValue,
    Room,
    Standing,
)
from tests.toolcalls.reading import cuts

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def follow(pieces: list[str]) -> tuple[Standing, str, str, int]:
    """Return where a value stands after `pieces`, its JSON, what lies behind it, its flaws."""
    value = JsonValue()
    out: list[str] = []
    behind = ""
    for piece in pieces:
        end = value.feed(piece, 0, out) if value.standing is Standing.OPEN else 0
        behind += piece[end:]
    return value.standing, "".join(out) + value.closing, behind, value.flaws


class JsonCase(SynchronousTestCase):
    def follow(self, text: str) -> tuple[Standing, str, str, int]:
        """Follow `text` whole, and at every cut the same."""
        whole = follow([text])
        for pieces in cuts(text):
            self.assertEqual(whole, follow(pieces), pieces)
        return whole

    def assert_written(self, text: str, written: str) -> None:
        """Assert that `text` is one value without flaws, written like that."""
        self.assertEqual((Standing.WHOLE, written, " ", 0), self.follow(text + " "))

    def assert_breaks(self, text: str, in_front_of: str) -> None:
        standing, _, behind, _ = self.follow(text)
        self.assertEqual((Standing.BROKEN, in_front_of), (standing, behind))


class AsWrittenTests(JsonCase):
    """What is JSON passes as it was written."""

    def test_spelling(self) -> None:
        for text in (
            "{}",
            "[]",
            "0",
            "-1.50e+08",
            "null",
            '"a\\u00e9\\n\\/\\ud83d"',
            '{"b":1, "a" :\t[ 1,2 ,{"c":null}\n] , "a": ""}',
            '{"": {"": []}}',
            '"</tool_call> {[\\"]} \u2028 \x7f"',
        ):
            self.assert_written(text, text)

    def test_white_space_in_front_is_dropped(self) -> None:
        self.assert_written('\n\t {"a": 1}', '{"a": 1}')

    def test_ends_where_it_ends(self) -> None:
        self.assertEqual((Standing.WHOLE, '{"a": "}"}', "}, x", 0), self.follow('{"a": "}"}}, x'))

    def test_goes_on(self) -> None:
        for text in ("", " ", "{", '{"a"', '{"a":', '{"a": 12', '"abc', "[1,", "tru", '"\\u12'):
            self.assertIs(Standing.OPEN, self.follow(text)[0], text)

    def test_one_piece_passes_as_the_same_object(self) -> None:
        value = JsonValue()
        value.feed('{"a": "', 0, [])
        piece = "some text"
        out: list[str] = []
        value.feed(piece, 0, out)
        self.assertIs(piece, out[0])

    @given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 0, 2]))
    def test_any_json_survives(
        self, value: object, *, ascii_only: bool, indent: int | None
    ) -> None:
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
        self.assertEqual((Standing.WHOLE, text, "\n", 0), follow([*text, "\n"]))
        self.assertEqual((Standing.WHOLE, text, "\n", 0), follow([text + "\n"]))

    @given(st.text("{}[]\",:\\'/* \n1aeu+-.", max_size=30))
    def test_cuts_do_not_matter(self, text: str) -> None:
        self.follow(text)


class MendedTests(JsonCase):
    """JSON5 that means one thing only is written as JSON."""

    def test_control_characters(self) -> None:
        self.assert_written(
            '"a\nb\r\n\tc\x00\x1f\x08\x0c"', '"a\\nb\\r\\n\\tc\\u0000\\u001f\\b\\f"'
        )

    def test_single_quotes(self) -> None:
        self.assert_written("{'a': 'it\\'s \"b\" \\\\ \\n'}", '{"a": "it\'s \\"b\\" \\\\ \\n"}')

    def test_quote_escaped_in_vain(self) -> None:
        self.assert_written('"it\\\'s"', '"it\'s"')

    def test_commas_too_many(self) -> None:
        self.assert_written('{"a": [1, 2, ], \n}', '{"a": [1, 2 ] \n}')

    def test_words(self) -> None:
        self.assert_written("[True, False, None, true]", "[true, false, null, true]")

    def test_keys_without_quotes(self) -> None:
        self.assert_written("{a: 1, $b_2 : {Größe: 3}}", '{"a": 1, "$b_2" : {"Größe": 3}}')

    def test_comments(self) -> None:
        self.assert_written(
            '{// one\n"a" /* two ** / */ : /**/ 1, // three\n /***/ "b": [2 /* four */, /*}*/]}',
            '{\n"a"  :  1, \n  "b": [2  ]}',
        )

    def test_white_space_behind_a_comma_is_bounded(self) -> None:
        standing, written, _, _ = follow(["[1,", *[" " * 10] * 500, "2] "])
        self.assertEqual((Standing.WHOLE, "[1," + " " * MAX_GAP + "2]"), (standing, written))
        self.assertEqual(written, follow(["[1," + " " * 5000 + "2] "])[1])


class FlawedTests(JsonCase):
    """An escape that JSON does not know passes, and the string goes on."""

    def test_unknown_escapes(self) -> None:
        for text in ('"\\d+"', '"\\x41 \\U0001"', '"\\u12g4"', "'\\`'", '"\\\\\\q"'):
            standing, written, _, flaws = self.follow(text + ",")
            self.assertEqual((Standing.WHOLE, 1), (standing, min(flaws, 1)), text)
            self.assertEqual(text[1:-1], written[1:-1])

    def test_the_string_goes_on_behind_it(self) -> None:
        self.assertEqual(
            (Standing.WHOLE, '{"a": "\\d \\" }"}', "", 1), self.follow('{"a": "\\d \\" }"}')
        )


class ControlTests(JsonCase):
    def test_raw_control_character_behind_a_backslash(self) -> None:
        for char in "\n\t\x00\r\x1f":
            for quote in "\"'":
                standing, written, behind, flaws = self.follow(f"{quote}a\\{char}b{char}{quote} ")
                self.assertEqual((Standing.WHOLE, " ", 1), (standing, behind, flaws))
                self.assertEqual(f'"a\\{char}b' + json.dumps(char)[1:], written)
                self.assertRaises(ValueError, json.loads, written)


class BrokenTests(JsonCase):
    """Anything else stops in front of it."""

    def test_where(self) -> None:
        for text, rest in (
            ("}", "}"),
            ("oops ", " "),
            ("{1: 2}", "1: 2}"),
            ('{"a" 1}', "1}"),
            ('{"a": 1 "b"}', '"b"}'),
            ('{"a": }', "}"),
            ("[1 2]", "2]"),
            ("[,]", ",]"),
            ("[1,,2]", ",2]"),
            ("[1}", "}"),
            ("{,}", ",}"),
            ('{"a": 1,, "b": 2}', ', "b": 2}'),
            ("[01]", "]"),
            ("[1.]", "]"),
            ("[NaN]", "]"),
            ("{a-b: 1}", ": 1}"),
            ("{a b: 1}", "b: 1}"),
            ("[1 / 2]", " 2]"),
            ("<", "<"),
            ('{"a": <', "<"),
        ):
            self.assert_breaks(text, rest)

    def test_what_was_held_is_not_lost(self) -> None:
        for text, held in (("[1, <", ", "), ("[oops]", "oops"), ("[1/2", "/"), ("{a b", "")):
            value = JsonValue()
            value.feed(text, 0, [])
            self.assertEqual((Standing.BROKEN, held), (value.standing, value.held), text)

    def test_depth_is_bounded(self) -> None:
        deep = "[" * MAX_DEPTH
        self.assertIs(Standing.OPEN, follow([deep])[0])
        self.assertIs(Standing.WHOLE, follow([deep + "]" * MAX_DEPTH])[0])
        self.assertIs(Standing.BROKEN, follow([deep + "["])[0])

    def test_comments_are_bounded(self) -> None:
        for opener, closer in (("//", "\n"), ("/*", "*/")):
            for size, standing in (
                (MAX_COMMENTS, Standing.WHOLE),
                (MAX_COMMENTS + 1, Standing.BROKEN),
            ):
                inside = "* " * MAX_COMMENTS
                inside = inside[: size - (len(closer) if closer == "*/" else 0)]
                text = f"[{opener}{inside}{closer}]"
                self.assertIs(standing, follow([text])[0])
                self.assertEqual(follow([text]), follow([*text]))

    def test_values_may_share_the_room_for_comments(self) -> None:
        room = Room(9)
        for text, standing, left in (
            ("[/**/]", Standing.WHOLE, 7),
            ("[//6 7 8 9", Standing.OPEN, 0),
        ):
            value = JsonValue(room)
            value.feed(text, 0, [])
            self.assertEqual((standing, left), (value.standing, room.left))
        value = JsonValue(room)
        value.feed("[/**/]", 0, [])
        self.assertIs(Standing.BROKEN, value.standing)

    def test_a_word_that_is_no_key(self) -> None:
        value = JsonValue(not_a_key="TOOL_CALL")
        self.assertEqual(1, value.feed("{", 0, []))
        value.feed("TOOL_CALL: 1}", 0, [])
        self.assertIs(Standing.BROKEN, value.standing)

    def test_words_are_bounded(self) -> None:
        digits = "1" * MAX_WORD
        self.assertEqual((Standing.WHOLE, f"[{digits}]"), follow([*f"[{digits}]"])[:2])
        self.assertIs(Standing.BROKEN, follow([*f"[{digits}1]"])[0])
        self.assertIs(Standing.BROKEN, follow([f"[{digits}1]"])[0])


class MissingTests(SynchronousTestCase):
    """What is missing to the end, if it is brackets only."""

    def missing(self, text: str) -> str | None:
        value = JsonValue()
        out: list[str] = []
        value.feed(text, 0, out)
        missing = value.missing()
        return None if missing is None else "".join(out) + missing

    def test_brackets(self) -> None:
        for text, whole in (
            ("{", "{"),
            ('{"a": [1', '{"a": [1]'),
            ('{"a": [', '{"a": []'),
            ('{"a": {"b": true', '{"a": {"b": true}'),
            ('{"a": {"b": "c"', '{"a": {"b": "c"}'),
            ('{"a": [1, ', '{"a": [1 ]'),
            ('{"a": 1, ', '{"a": 1 '),
            ('{"a": 1 // done', '{"a": 1 '),
            ('{"a": None', '{"a": null'),
            ("12", "12"),
        ):
            self.assertEqual(whole, self.missing(text), text)

    def test_more_than_brackets(self) -> None:
        for text in (
            "",
            '{"a',
            '{"a"',
            '{"a":',
            '{"a": "b',
            "[tru",
            "[1 /* ",
            "{a",
            "[1, /",
            '"\\',
        ):
            self.assertIsNone(self.missing(text), text)
