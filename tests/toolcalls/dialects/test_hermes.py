"""Objects in `<tool_call>`; each text is parsed whole and at every split."""

from __future__ import annotations

from blockops.toolcalls.grammar.json_reader import MAX_TRAILING
from blockops.toolcalls.grammar.json_stream import MAX_COMMENTS, MAX_HELD_SPACE
from tests.toolcalls.reading import Call, ParserTestCase, parse_pieces, splits

CALL = '{"name": "now", "arguments": {"a": 1}}'


class CommentTests(ParserTestCase):
    """A comment does not hide the closing tag or the text after it."""

    def test_comment_after_the_arguments(self) -> None:
        for comment in ("// note ", "/* note ", "// note </tool_ ", "/* n **", "//", "//<<</tool"):
            for brackets, arguments in (
                ("}", '{"a": "x"}'),
                ("", '{"a": "x"}'),
                ("},", '{"a": "x"}'),
            ):
                joined = self.parse(
                    f'<tool_call>{{"name": "now", "arguments": {{"a": "x"{brackets}{comment}'
                    "</tool_call> Hello */ user\nB"
                )
                self.assertEqual("Hello */ user\nB", joined.content)
                self.assertEqual([Call("now", arguments, is_finished=True)], joined.calls)

    def test_comment_after_a_comma(self) -> None:
        self.assert_call(
            '<tool_call>{"name": "now", "arguments": {"a": [1, // one\n2, // two</tool_call>',
            "now",
            '{"a": [1, \n2 ]}',
        )

    def test_more_than_brackets_is_missing(self) -> None:
        for comment in (
            "// c ",
            "/* c ",
            "/* " + "c" * (MAX_TRAILING - 10),
            "/* " + "c" * MAX_TRAILING,
        ):
            text = f'<tool_call>{{"name": "now", "args": {{}}, "k" {comment}</tool_call> B'
            whole = parse_pieces([text])
            self.assertEqual(whole, parse_pieces([*text]))
            self.assertEqual("B", whole[0].content[-1])
        joined = self.parse('<tool_call>{"name": "now", "args": {}, "k" // c </tool_call> B')
        self.assertEqual(', "k" // c B', joined.content)
        joined = self.parse('<tool_call>{"name": "now", "args": {"k" // c </tool_call> B')
        self.assertEqual([Call("now", '{"k" ', is_finished=True)], joined.calls)
        self.assertEqual("B", joined.content)

    def test_comment_before_the_call(self) -> None:
        text = '<tool_call>{"args": {}, // c </tool_call> B\n"name": "now"}'
        self.assert_text(text)
        self.assert_text('<tool_call>{ // c </tool_call> B\n"name": "now"}')

    def test_comment_budget_spent_in_the_tag(self) -> None:
        for size in range(MAX_COMMENTS - 15, MAX_COMMENTS + 2):
            text = '<tool_call>{"name": "now", "arguments": {"a": 1} //' + "c" * size
            text += "</tool_call>B"
            self.assertEqual(parse_pieces([text]), parse_pieces([*text]))


class ExtraMarksTests(ParserTestCase):
    def test_white_space_and_commas_before_extra_marks(self) -> None:
        for marks in ("\n]", ",}", " , ]", "]", "\n\n}}"):
            joined = self.parse(f'q <tool_call>{{"name": "now"}}{marks}</tool_call>y')
            self.assertEqual((f"q{marks}y", 1), (joined.content, len(joined.calls)))
        for gap in ("", "\n", ",", " " * 100):
            joined = self.parse(f'q <tool_call>{{"name": "now"}}{gap}</tool_call>y')
            self.assertEqual(("qy", 1), (joined.content, len(joined.calls)))


class HermesDialectTests(ParserTestCase):
    """Calls as the chat templates write them, with variations of white space."""

    def test_templates(self) -> None:
        for text in (
            f"<tool_call>\n{CALL}\n</tool_call>",
            f"<tool_call>{CALL}</tool_call>",
            f"\n\n<tool_call>\r\n\t {CALL} \r\n</tool_call>\r\n",
            f"<tool_call> {CALL}",
            f"<tool_call>\n{CALL}\n",
        ):
            self.assert_call(text, "now", '{"a": 1}')

    def test_argument_keys(self) -> None:
        for key in ("arguments", "args", "parameters", "input"):
            self.assert_call(
                f'<tool_call>{{"name": "now", "{key}": {{"a": 1}}}}</tool_call>', "now", '{"a": 1}'
            )

    def test_name_behind_the_arguments(self) -> None:
        self.assert_call(
            '<tool_call>{"arguments": {"a" : 1.50}, "name": "now"}</tool_call>',
            "now",
            '{"a" : 1.50}',
        )

    def test_keys_that_mean_nothing(self) -> None:
        self.assert_call(
            '<tool_call>{"id": [{"name": "x"}], "type": "function", "name": "now", "n": null, '
            '"arguments": {"name": "y"}, "name": "z", "arguments": {"b": 2}}</tool_call>',
            "now",
            '{"name": "y"}',
        )

    def test_the_first_name_counts(self) -> None:
        self.assert_call(
            '<tool_call>{"name": "now", "name": "z", "args": {"a": 1}}</tool_call>',
            "now",
            '{"a": 1}',
        )

    def test_no_arguments(self) -> None:
        for arguments in (
            "",
            ', "arguments": null',
            ', "args": ""',
            ', "input": " "',
            ", input: [ \n]",
        ):
            self.assert_call(f'<tool_call>{{"name": "now"{arguments}}}</tool_call>', "now", "{}")
        self.assert_call(
            '<tool_call>{"arguments": null, "args": {"a": 1}, "name": "now"}</tool_call>',
            "now",
            '{"a": 1}',
        )

    def test_arguments_in_a_string(self) -> None:
        self.assert_call(
            r'<tool_call>{"name": "now", "arguments": "{\"a\": \"\\n\\\"\"}"}</tool_call>',
            "now",
            r'{"a": "\n\""}',
        )
        self.assert_call(
            r'<tool_call>{"arguments": "{\"a\": 1}", "name": "now"}</tool_call>', "now", '{"a": 1}'
        )

    def test_tags_braces_and_quotes_in_strings_are_data(self) -> None:
        for inside in (
            "</tool_call>",
            "<tool_call>{}</tool_call>",
            "TOOL_CALL: {}",
            "}}]]",
            r"\" \\ \" }",
            "\u2028 é 😀 \x7f",
            "<think>```",
        ):
            self.assert_call(
                f'<tool_call>{{"name": "now", "arguments": {{"a": "{inside}"}}}}</tool_call>',
                "now",
                f'{{"a": "{inside}"}}',
            )

    def test_repairs(self) -> None:
        self.assert_call(
            "<tool_call>{name: /* so */ 'now', // it\n"
            " 'arguments': {a: True, 'b': 'x\ny',},}</tool_call>",
            "now",
            '{"a": true, "b": "x\\ny"}',
        )

    def test_several_objects(self) -> None:
        for between in ("", "\n", ", ", " ,\n"):
            self.assert_calls(
                f'<tool_call>{CALL}{between}{{"name": "weather"}}</tool_call>',
                ("now", '{"a": 1}'),
                ("weather", "{}"),
            )

    def test_lists(self) -> None:
        for text in (
            f'<tool_call>[{CALL}, {{"name": "weather"}}]</tool_call>',
            f'<tool_call>\n[\n{CALL},\n{{"name": "weather"}},\n]\n</tool_call>',
            f'<tool_call>[{CALL}], {{"name": "weather"}}</tool_call>',
            f'<tool_call>[{CALL}, {{"name": "weather"}}</tool_call>',
            f'<tool_call>[{CALL}, {{"name": "weather"',
        ):
            self.assert_calls(text, ("now", '{"a": 1}'), ("weather", "{}"))

    def test_second_object_that_is_no_call(self) -> None:
        joined = self.parse(f"<tool_call>{CALL}, {{'x': 1}}</tool_call>")
        self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], joined.calls)
        self.assertEqual(", {'x': 1}</tool_call>", joined.content)


class NoCallTests(ParserTestCase):
    """Text that is not a call is unchanged."""

    def test_texts(self) -> None:
        for text in (
            "<tool_call>",
            "<tool_call> ",
            "Use the <tool_call> tag.",
            "<tool_call></tool_call>",
            "<tool_call>x</tool_call>",
            "<tool_call>{}</tool_call>",
            "<tool_call>[]</tool_call>",
            "<tool_call>[[{}]]</tool_call>",
            "<tool_call>[1]</tool_call>",
            '<tool_call>"now"</tool_call>',
            '<tool_call>{"arguments": {}}</tool_call>',
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            '<tool_call>{"name": "", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "\\q", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>',
            '<tool_call>{"name": null, "arguments": {}}</tool_call>',
            '<tool_call>{"function": {"name": "now"}, "arguments": {}}</tool_call>',
            '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
            '<tool_call>{"name": "now", "arguments": 5}</tool_call>',
            '<tool_call>{"name": "now", "arguments": true}</tool_call>',
            '<tool_call>{"name": "now", "arguments": 5',
            '<tool_call>{"name": "now", "arguments": ["x", 1]}</tool_call>',
            '<tool_call>{"name": "now", "arguments": "x"}</tool_call>',
            '<tool_call>{"name": "now", "arguments": "[]"}</tool_call>',
            '<tool_call>{"arguments": "\\"{}\\"", "name": "now"}</tool_call>',
            '<tool_call>{"name" "now"}</tool_call>',
            '<tool_call>{"name": "now" "arguments": {}}</tool_call>',
            '<tool_call>{"name": "now", 5: {}}</tool_call>',
            '<tool_call>{"name": "now", "x": oops}</tool_call>',
            '<tool_call>{"name": "now", "arguments": oops}</tool_call>',
            '<tool_call>{"name": "now", / "arguments": {}}</tool_call>',
            '<tool_call>{"name"</tool_call>',
            '<tool_call>{"name": "now", "x": "</tool_call>',
            '<tool_call>{"name": "now", "arguments"</tool_call>',
            '<tool_call>{"name": "now", "arguments": </tool_call>',
            '<tool_call>{"arguments": {"a": 1}</tool_call>',
            '<tool_call>{"arguments": {"a": 1</tool_ca',
            '<tool_call>{"name": "now"</too x',
            "</tool_call>",
        ):
            self.assert_text(text)

    def test_the_search_continues_after_the_opener(self) -> None:
        joined = self.parse(f"<tool_call> <tool_call>\n{CALL}</tool_call>")
        self.assertEqual("<tool_call>", joined.content)
        self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], joined.calls)
        joined = self.parse(f'<tool_call>{{"x": "<tool_call>{CALL}</tool_call>"}}')
        self.assertEqual('<tool_call>{"x": ""}', joined.content)
        self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], joined.calls)


class ClosingTests(ParserTestCase):
    """The end of a call that lacks something, or has something extra."""

    def test_tag_before_the_last_brackets(self) -> None:
        for text, arguments in (
            ('{"name": "now", "arguments": {"a": 1}</tool_call>', '{"a": 1}'),
            ('{"name": "now", "arguments": {"a": [1</tool_call>', '{"a": [1]}'),
            ('{"name": "now", "arguments": {"a": 1, </tool_call>', '{"a": 1 }'),
            ('{"name": "now", "arguments": {</tool_call>', "{}"),
            ('{"name": "now"</tool_call>', "{}"),
            ('{"name": "now",</tool_call>', "{}"),
            ('{"name": "now", "arguments": null</tool_call>', "{}"),
            ('{"name": "now", "x": [1</tool_call>', "{}"),
            ('{"arguments": {"a": 1}, "name": "now"</tool_call>', '{"a": 1}'),
        ):
            self.assert_call("<tool_call>" + text, "now", arguments)

    def test_extra_marks_are_text(self) -> None:
        for marks in ("}", "}}", "]", '"', "}\n", " } "):
            joined = self.parse(f"<tool_call>\n{CALL}{marks}\n</tool_call> x")
            self.assertEqual(marks.strip() + " x", joined.content)
            self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], joined.calls)

    def test_extra_marks_without_a_tag_are_text(self) -> None:
        for rest in ("}", "}} more", "." * 80, ". <b>", "} </tool", "," + "</tool_call>"[:1]):
            joined = self.parse(f"<tool_call>{CALL}{rest}")
            self.assertEqual(rest, joined.content)

    def test_partial_tag_is_not_text(self) -> None:
        for reason in ("stop", "length"):
            joined = self.parse(f"<tool_call>{CALL}\n</tool_c", reason=reason)
            self.assertEqual("", joined.content)
            self.assertTrue(joined.calls[0].is_finished)

    def test_text_after_a_missing_tag(self) -> None:
        joined = self.parse(f"A\n<tool_call>{CALL}\nDone. The </tool_call> tag was missing.")
        self.assertEqual("A\nDone. The </tool_call> tag was missing.", joined.content)
        self.assertTrue(joined.calls[0].is_finished)

    def test_white_space_after_the_object_is_bounded(self) -> None:
        text = f"<tool_call>{CALL}" + " " * (MAX_HELD_SPACE + 1)
        for reason, is_finished in (("length", True), ("stop", True)):
            whole = parse_pieces([text], reason=reason)
            self.assertEqual(whole, parse_pieces(list(text), reason=reason))
            self.assertIs(is_finished, whole[0].calls[0].is_finished)
        self.assertFalse(parse_pieces([text[:-1]], reason="length")[0].calls[0].is_finished)
        self.assertFalse(parse_pieces(list(text[:-1]), reason="length")[0].calls[0].is_finished)


class BrokenTests(ParserTestCase):
    """Invalid JSON after the call has started."""

    def test_arguments_pass_unchanged_up_to_the_tag(self) -> None:
        for broken in (
            '{"a": oops}}',
            '{"a": "say "hi" now"}}',
            '{"a" 1}}',
            '{"a": 1, , 2}} ',
            '{"a": NaN}}\n',
            '{"a": / 1}}',
            '{"a": <b>1</b>}}',
            '{"a": "b"</tool> }',
            "{1: 2}}",
        ):
            joined, counters = self.parse_and_count(
                f'<tool_call>{{"name": "now", "arguments": {broken}</tool_call>\nB'
            )
            self.assertEqual([Call("now", broken, is_finished=True)], joined.calls)
            self.assertEqual("B", joined.content)
            self.assertEqual({"calls": 1, "malformed": 1}, counters)

    def test_string_in_a_string(self) -> None:
        joined = self.parse('<tool_call>{"name": "now", "arguments": "{"a": 1}"}</tool_call>')
        self.assertEqual([Call("now", '{"a": 1}"}', is_finished=True)], joined.calls)

    def test_unknown_escape(self) -> None:
        joined, counters = self.parse_and_count(
            '<tool_call>{"name": "now", "arguments": {"a": "\\d"}}</tool_call>'
        )
        self.assertEqual([Call("now", '{"a": "\\d"}', is_finished=True)], joined.calls)
        self.assertEqual({"calls": 1, "malformed": 1}, counters)

    def test_errors_after_complete_arguments_are_text(self) -> None:
        for rest in (", oops}", ' "x": 2}', " / 3", ", 5}", ', "x": tru}', ", x y"):
            joined, counters = self.parse_and_count(
                f'<tool_call>{{"name": "now", "arguments": {{"a": 1}}{rest}</tool_call> B'
            )
            self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], joined.calls)
            self.assertEqual(rest.strip() + " B", joined.content.strip())
            self.assertEqual(1, counters["malformed"])

    def test_complete_members_after_them_are_ignored(self) -> None:
        joined = self.parse(
            '<tool_call>{"arguments": {}, "name": "now", "x": [1], "y": 2 oops</tool_call>'
        )
        self.assertEqual("oops", joined.content)

    def test_long_text_after_them_is_dropped(self) -> None:
        text = (
            '<tool_call>{"name": "now", "arguments": {}, "x": "'
            + "x" * 5000
            + '" oops</tool_call> B'
        )
        whole = parse_pieces([text])
        self.assertEqual("oops B", whole[0].content)
        self.assertEqual(whole, parse_pieces(list(text)))
        text = text.replace('" oops', '\\" oops "')
        self.assertEqual(parse_pieces([text]), parse_pieces(list(text)))

    def test_missing_tag_at_the_end(self) -> None:
        text = '<tool_call>{"name": "now", "arguments": {"a": oops}}</tool'
        self.assertEqual(
            [Call("now", '{"a": oops}}</tool', is_finished=True)], self.parse(text).calls
        )
        self.assertEqual([Call("now", '{"a": oops}}')], self.parse(text, reason="length").calls)


class TruncationTests(ParserTestCase):
    """The end of the text within a call."""

    def test_stop_completes_calls_that_lack_only_brackets(self) -> None:
        for text, arguments in (
            ('{"name": "now"', "{}"),
            ('{"name": "now", "arguments": {', "{}"),
            ('{"name": "now", "arguments": [', "{}"),
            ('{"name": "now", "arguments": None', "{}"),
            ('{"name": "now", "arguments": {"a": [1, {"b": "c"', '{"a": [1, {"b": "c"}]}'),
            ('{"name": "now", "arguments": {"a": 12', '{"a": 12}'),
            ('{"name": "now", "arguments": {"a": 1} // x', '{"a": 1}'),
            ('{"name": "now", "arguments": {"a": 1}, "x": nul', None),
            ('{"name": "now", "arguments": {"a": 1}}\n</too', '{"a": 1}'),
            ('{"name": "now", "arguments": {"a": 1}</too', '{"a": 1}'),
        ):
            joined = self.parse("<tool_call>" + text)
            self.assertEqual(arguments is not None, joined.calls[0].is_finished, text)
            if arguments:
                self.assertEqual(arguments, joined.calls[0].arguments)

    def test_stop_does_not_complete_other_calls(self) -> None:
        for arguments in ('{"a', '{"a":', '{"a": "b', '{"a": tr', '{"a": "b\\'):
            joined, counters = self.parse_and_count(
                f'<tool_call>{{"name": "now", "arguments": {arguments}'
            )
            self.assertFalse(joined.calls[0].is_finished)
            self.assertTrue(arguments.startswith(joined.calls[0].arguments))
            self.assertEqual(1, counters["unclosed"])

    def test_truncated_calls_never_look_complete(self) -> None:
        text = '<tool_call>{"arguments": {"a": [1, {"b": "\\u00e9"}], "c": 2}, "name": "now"}'
        for end in range(1, len(text) + 1):
            for reason in ("length", None, "content_filter"):
                joined = (
                    self.parse(text[:end], reason=reason)
                    if end > 60
                    else parse_pieces([text[:end]], reason=reason)[0]
                )
                for call in joined.calls:
                    self.assertFalse(call.is_finished)
                    self.assertRaises(ValueError, lambda call=call: call.parsed_arguments)
                if not joined.calls:
                    self.assertEqual(text[:end], joined.content)

    def test_truncated_arguments_are_a_prefix(self) -> None:
        text = '<tool_call>{"name": "now", "arguments": {"a": [1, {"b": "\\u00e9"}], "c": true}}'
        whole = parse_pieces([text])[0].calls[0].arguments
        for end in range(1, len(text)):
            for call in parse_pieces(list(text[:end]), reason=None)[0].calls:
                self.assertTrue(whole.startswith(call.arguments))


class StreamingTests(ParserTestCase):
    """Arguments are sent as they arrive."""

    def test_every_character_of_a_string_is_sent_at_once(self) -> None:
        lengths = [
            len(parse_pieces(pieces, reason=None)[0].calls[0].arguments)
            for pieces in (
                ['<tool_call>{"name": "now", "arguments": {"a": "' + "x" * n] for n in range(5)
            )
        ]
        self.assertEqual([7, 8, 9, 10, 11], lengths)

    def test_the_opening_brace_is_sent_with_the_name(self) -> None:
        joined, _ = parse_pieces(['<tool_call>{"name": "now", "arguments": {'], reason=None)
        self.assertEqual([Call("now", "{")], joined.calls)

    def test_splits_of_a_long_text(self) -> None:
        text = f"A <tool_call>[{CALL},{CALL}]</tool_call> B <tool_call>{CALL}</tool_call>"
        whole = parse_pieces([text])
        self.assertEqual(3, len(whole[0].calls))
        for pieces in splits(text):
            self.assertEqual(whole, parse_pieces(pieces))
