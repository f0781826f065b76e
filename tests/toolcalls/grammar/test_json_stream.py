"""Streaming JSON: its end, its spelling, the repairs, the errors."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.toolcalls.grammar.json_stream import (
    MAX_COMMENTS,
    MAX_DEPTH,
    MAX_HELD_SPACE,
    MAX_WORD,
    Comments,
    Status,
    StreamingJson,
)
from tests.toolcalls.reading import splits

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def read_value(pieces: list[str]) -> tuple[Status, str, str, int]:
    """Return a value's status after `pieces`, its JSON, the text after it, its error count."""
    value = StreamingJson()
    out: list[str] = []
    rest = ""
    for piece in pieces:
        end = value.feed(piece, 0, out) if value.status == "open" else 0
        rest += piece[end:]
    return value.status, "".join(out) + value.closing_bracket, rest, value.error_count


class JsonTestCase(SynchronousTestCase):
    def read(self, text: str) -> tuple[Status, str, str, int]:
        """Read `text` whole; assert that every split of it gives the same."""
        whole = read_value([text])
        for pieces in splits(text):
            self.assertEqual(whole, read_value(pieces), pieces)
        return whole

    def assert_written(self, text: str, written: str) -> None:
        """Assert that `text` is one value without errors, and is written as `written`."""
        self.assertEqual(("complete", written, " ", 0), self.read(text + " "))

    def assert_breaks(self, text: str, expected_rest: str) -> None:
        status, _, rest, _ = self.read(text)
        self.assertEqual(("broken", expected_rest), (status, rest))


class UnchangedTests(JsonTestCase):
    """Valid JSON passes unchanged."""

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

    def test_leading_white_space_is_dropped(self) -> None:
        self.assert_written('\n\t {"a": 1}', '{"a": 1}')

    def test_the_text_after_a_value_is_not_read(self) -> None:
        self.assertEqual(("complete", '{"a": "}"}', "}, x", 0), self.read('{"a": "}"}}, x'))

    def test_incomplete_values_are_open(self) -> None:
        for text in ("", " ", "{", '{"a"', '{"a":', '{"a": 12', '"abc', "[1,", "tru", '"\\u12'):
            self.assertIs("open", self.read(text)[0], text)

    def test_one_piece_passes_as_the_same_object(self) -> None:
        value = StreamingJson()
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
        self.assertEqual(("complete", text, "\n", 0), read_value([*text, "\n"]))
        self.assertEqual(("complete", text, "\n", 0), read_value([text + "\n"]))

    @given(st.text("{}[]\",:\\'/* \n1aeu+-.", max_size=30))
    def test_every_split_gives_the_same(self, text: str) -> None:
        self.read(text)


class RepairTests(JsonTestCase):
    """JSON5 spellings with one possible meaning are written as JSON."""

    def test_control_characters(self) -> None:
        self.assert_written(
            '"a\nb\r\n\tc\x00\x1f\x08\x0c"', '"a\\nb\\r\\n\\tc\\u0000\\u001f\\b\\f"'
        )

    def test_single_quotes(self) -> None:
        self.assert_written("{'a': 'it\\'s \"b\" \\\\ \\n'}", '{"a": "it\'s \\"b\\" \\\\ \\n"}')

    def test_needlessly_escaped_quote(self) -> None:
        self.assert_written('"it\\\'s"', '"it\'s"')

    def test_trailing_commas(self) -> None:
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

    def test_white_space_after_a_comma_is_bounded(self) -> None:
        status, written, _, _ = read_value(["[1,", *[" " * 10] * 500, "2] "])
        self.assertEqual(("complete", "[1," + " " * MAX_HELD_SPACE + "2]"), (status, written))
        self.assertEqual(written, read_value(["[1," + " " * 5000 + "2] "])[1])


class UnknownEscapeTests(JsonTestCase):
    """Unknown escapes pass, are counted as errors, and do not end the string."""

    def test_unknown_escapes(self) -> None:
        for text in ('"\\d+"', '"\\x41 \\U0001"', '"\\u12g4"', "'\\`'", '"\\\\\\q"'):
            status, written, _, error_count = self.read(text + ",")
            self.assertEqual(("complete", 1), (status, min(error_count, 1)), text)
            self.assertEqual(text[1:-1], written[1:-1])

    def test_the_string_continues_after_it(self) -> None:
        self.assertEqual(("complete", '{"a": "\\d \\" }"}', "", 1), self.read('{"a": "\\d \\" }"}'))


class ControlCharacterTests(JsonTestCase):
    def test_raw_control_character_after_a_backslash(self) -> None:
        for char in "\n\t\x00\r\x1f":
            for quote in "\"'":
                status, written, rest, error_count = self.read(f"{quote}a\\{char}b{char}{quote} ")
                self.assertEqual(("complete", " ", 1), (status, rest, error_count))
                self.assertEqual(f'"a\\{char}b' + json.dumps(char)[1:], written)
                self.assertRaises(ValueError, json.loads, written)


class BrokenTests(JsonTestCase):
    """At any other error the reader stops before it."""

    def test_positions(self) -> None:
        for text, expected_rest in (
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
            self.assert_breaks(text, expected_rest)

    def test_pending_text_is_not_lost(self) -> None:
        for text, pending in (("[1, <", ", "), ("[oops]", "oops"), ("[1/2", "/"), ("{a b", "")):
            value = StreamingJson()
            value.feed(text, 0, [])
            self.assertEqual(("broken", pending), (value.status, value.pending), text)

    def test_depth_is_bounded(self) -> None:
        deep = "[" * MAX_DEPTH
        self.assertIs("open", read_value([deep])[0])
        self.assertIs("complete", read_value([deep + "]" * MAX_DEPTH])[0])
        self.assertIs("broken", read_value([deep + "["])[0])

    def test_comments_are_bounded(self) -> None:
        for opener, closer in (("//", "\n"), ("/*", "*/")):
            for size, status in (
                (MAX_COMMENTS, "complete"),
                (MAX_COMMENTS + 1, "broken"),
            ):
                inside = "* " * MAX_COMMENTS
                inside = inside[: size - (len(closer) if closer == "*/" else 0)]
                text = f"[{opener}{inside}{closer}]"
                self.assertIs(status, read_value([text])[0])
                self.assertEqual(read_value([text]), read_value([*text]))

    def test_values_may_share_a_comment_budget(self) -> None:
        budget = Comments(9)
        for text, status, remaining in (
            ("[/**/]", "complete", 7),
            ("[//6 7 8 9", "open", 0),
        ):
            value = StreamingJson(budget)
            value.feed(text, 0, [])
            self.assertEqual((status, remaining), (value.status, budget.remaining))
        value = StreamingJson(budget)
        value.feed("[/**/]", 0, [])
        self.assertIs("broken", value.status)

    def test_forbidden_key(self) -> None:
        value = StreamingJson(forbidden_key="TOOL_CALL")
        self.assertEqual(1, value.feed("{", 0, []))
        value.feed("TOOL_CALL: 1}", 0, [])
        self.assertIs("broken", value.status)

    def test_words_are_bounded(self) -> None:
        digits = "1" * MAX_WORD
        self.assertEqual(("complete", f"[{digits}]"), read_value([*f"[{digits}]"])[:2])
        self.assertIs("broken", read_value([*f"[{digits}1]"])[0])
        self.assertIs("broken", read_value([f"[{digits}1]"])[0])


class CompletionTests(SynchronousTestCase):
    """The text missing at the end, if only brackets are."""

    def completed(self, text: str) -> str | None:
        value = StreamingJson()
        out: list[str] = []
        value.feed(text, 0, out)
        completion = value.completion()
        return None if completion is None else "".join(out) + completion

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
            self.assertEqual(whole, self.completed(text), text)

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
            self.assertIsNone(self.completed(text), text)
