"""Format 1: objects in `<tool_call>`; each text is read whole and at every cut."""

from __future__ import annotations

from blockops.toolcalls.grammar.json_reader import MAX_LOOSE
from blockops.toolcalls.grammar.json_stream import MAX_COMMENTS, MAX_GAP
from tests.toolcalls.reading import Call, ReadCase, cuts, say

CALL = '{"name": "now", "arguments": {"a": 1}}'


class CommentTests(ReadCase):
    """A comment does not swallow the closing tag, and what follows it."""

    def test_behind_the_arguments(self) -> None:
        for comment in ("// note ", "/* note ", "// note </tool_ ", "/* n **", "//", "//<<</tool"):
            for brackets, arguments in (
                ("}", '{"a": "x"}'),
                ("", '{"a": "x"}'),
                ("},", '{"a": "x"}'),
            ):
                joined = self.read(
                    f'<tool_call>{{"name": "now", "arguments": {{"a": "x"{brackets}{comment}'
                    "</tool_call> Hello */ user\nB"
                )
                self.assertEqual("Hello */ user\nB", joined.content)
                self.assertEqual([Call("now", arguments, ended=True)], joined.calls)

    def test_behind_a_comma(self) -> None:
        self.assert_call(
            '<tool_call>{"name": "now", "arguments": {"a": [1, // one\n2, // two</tool_call>',
            "now",
            '{"a": [1, \n2 ]}',
        )

    def test_where_more_than_brackets_is_missing(self) -> None:
        for comment in ("// c ", "/* c ", "/* " + "c" * (MAX_LOOSE - 10), "/* " + "c" * MAX_LOOSE):
            text = f'<tool_call>{{"name": "now", "args": {{}}, "k" {comment}</tool_call> B'
            whole = say([text])
            self.assertEqual(whole, say([*text]))
            self.assertEqual("B", whole[0].content[-1])
        joined = self.read('<tool_call>{"name": "now", "args": {}, "k" // c </tool_call> B')
        self.assertEqual(', "k" // c B', joined.content)
        joined = self.read('<tool_call>{"name": "now", "args": {"k" // c </tool_call> B')
        self.assertEqual([Call("now", '{"k" ', ended=True)], joined.calls)
        self.assertEqual("B", joined.content)

    def test_in_front_of_the_call(self) -> None:
        text = '<tool_call>{"args": {}, // c </tool_call> B\n"name": "now"}'
        self.assert_text(text)
        self.assert_text('<tool_call>{ // c </tool_call> B\n"name": "now"}')

    def test_room_that_ends_in_the_tag(self) -> None:
        for size in range(MAX_COMMENTS - 15, MAX_COMMENTS + 2):
            text = '<tool_call>{"name": "now", "arguments": {"a": 1} //' + "c" * size
            text += "</tool_call>B"
            self.assertEqual(say([text]), say([*text]))


class SpareTests(ReadCase):
    def test_white_space_and_commas_in_front_of_spare_marks(self) -> None:
        for spare in ("\n]", ",}", " , ]", "]", "\n\n}}"):
            joined = self.read(f'q <tool_call>{{"name": "now"}}{spare}</tool_call>y')
            self.assertEqual((f"q{spare}y", 1), (joined.content, len(joined.calls)))
        for gap in ("", "\n", ",", " " * 100):
            joined = self.read(f'q <tool_call>{{"name": "now"}}{gap}</tool_call>y')
            self.assertEqual(("qy", 1), (joined.content, len(joined.calls)))


class TaggedJsonTests(ReadCase):
    """Calls as the templates write them, and as white space may vary."""

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

    def test_mended(self) -> None:
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
        joined = self.read(f"<tool_call>{CALL}, {{'x': 1}}</tool_call>")
        self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)
        self.assertEqual(", {'x': 1}</tool_call>", joined.content)


class NoCallTests(ReadCase):
    """What is no call arrives as it came."""

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

    def test_the_search_goes_on_behind_the_opener(self) -> None:
        joined = self.read(f"<tool_call> <tool_call>\n{CALL}</tool_call>")
        self.assertEqual("<tool_call>", joined.content)
        self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)
        joined = self.read(f'<tool_call>{{"x": "<tool_call>{CALL}</tool_call>"}}')
        self.assertEqual('<tool_call>{"x": ""}', joined.content)
        self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)


class ClosingTests(ReadCase):
    """How a call ends that lacks something, or has too much."""

    def test_tag_in_front_of_the_last_brackets(self) -> None:
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

    def test_marks_too_many_are_shown(self) -> None:
        for marks in ("}", "}}", "]", '"', "}\n", " } "):
            joined = self.read(f"<tool_call>\n{CALL}{marks}\n</tool_call> x")
            self.assertEqual(marks.strip() + " x", joined.content)
            self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)

    def test_marks_without_a_tag_are_text(self) -> None:
        for behind in ("}", "}} more", "." * 80, ". <b>", "} </tool", "," + "</tool_call>"[:1]):
            joined = self.read(f"<tool_call>{CALL}{behind}")
            self.assertEqual(behind, joined.content)

    def test_tag_that_has_begun_is_no_text(self) -> None:
        for reason in ("stop", "length"):
            joined = self.read(f"<tool_call>{CALL}\n</tool_c", reason=reason)
            self.assertEqual("", joined.content)
            self.assertTrue(joined.calls[0].ended)

    def test_text_behind_a_forgotten_tag(self) -> None:
        joined = self.read(f"A\n<tool_call>{CALL}\nDone. The </tool_call> tag was missing.")
        self.assertEqual("A\nDone. The </tool_call> tag was missing.", joined.content)
        self.assertTrue(joined.calls[0].ended)

    def test_white_space_without_end(self) -> None:
        text = f"<tool_call>{CALL}" + " " * (MAX_GAP + 1)
        for reason, ended in (("length", True), ("stop", True)):
            whole = say([text], reason=reason)
            self.assertEqual(whole, say(list(text), reason=reason))
            self.assertIs(ended, whole[0].calls[0].ended)
        self.assertFalse(say([text[:-1]], reason="length")[0].calls[0].ended)
        self.assertFalse(say(list(text[:-1]), reason="length")[0].calls[0].ended)


class BrokenTests(ReadCase):
    """Broken JSON behind the commitment."""

    def test_arguments_pass_raw_up_to_the_tag(self) -> None:
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
            joined, tally = self.read_counting(
                f'<tool_call>{{"name": "now", "arguments": {broken}</tool_call>\nB'
            )
            self.assertEqual([Call("now", broken, ended=True)], joined.calls)
            self.assertEqual("B", joined.content)
            self.assertEqual({"calls": 1, "malformed": 1}, tally)

    def test_string_in_a_string(self) -> None:
        joined = self.read('<tool_call>{"name": "now", "arguments": "{"a": 1}"}</tool_call>')
        self.assertEqual([Call("now", '{"a": 1}"}', ended=True)], joined.calls)

    def test_flaw(self) -> None:
        joined, tally = self.read_counting(
            '<tool_call>{"name": "now", "arguments": {"a": "\\d"}}</tool_call>'
        )
        self.assertEqual([Call("now", '{"a": "\\d"}', ended=True)], joined.calls)
        self.assertEqual({"calls": 1, "malformed": 1}, tally)

    def test_behind_complete_arguments_is_text(self) -> None:
        for behind in (", oops}", ' "x": 2}', " / 3", ", 5}", ', "x": tru}', ", x y"):
            joined, tally = self.read_counting(
                f'<tool_call>{{"name": "now", "arguments": {{"a": 1}}{behind}</tool_call> B'
            )
            self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)
            self.assertEqual(behind.strip() + " B", joined.content.strip())
            self.assertEqual(1, tally["malformed"])

    def test_whole_members_behind_them_mean_nothing(self) -> None:
        joined = self.read(
            '<tool_call>{"arguments": {}, "name": "now", "x": [1], "y": 2 oops</tool_call>'
        )
        self.assertEqual("oops", joined.content)

    def test_much_behind_them_is_dropped(self) -> None:
        text = (
            '<tool_call>{"name": "now", "arguments": {}, "x": "'
            + "x" * 5000
            + '" oops</tool_call> B'
        )
        whole = say([text])
        self.assertEqual("oops B", whole[0].content)
        self.assertEqual(whole, say(list(text)))
        text = text.replace('" oops', '\\" oops "')
        self.assertEqual(say([text]), say(list(text)))

    def test_no_tag_at_the_end(self) -> None:
        text = '<tool_call>{"name": "now", "arguments": {"a": oops}}</tool'
        self.assertEqual([Call("now", '{"a": oops}}</tool', ended=True)], self.read(text).calls)
        self.assertEqual([Call("now", '{"a": oops}}')], self.read(text, reason="length").calls)


class CutOffTests(ReadCase):
    """At the end of the text."""

    def test_stop_completes_what_lacks_brackets_only(self) -> None:
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
            joined = self.read("<tool_call>" + text)
            self.assertEqual(arguments is not None, joined.calls[0].ended, text)
            if arguments:
                self.assertEqual(arguments, joined.calls[0].arguments)

    def test_stop_leaves_the_rest_open(self) -> None:
        for arguments in ('{"a', '{"a":', '{"a": "b', '{"a": tr', '{"a": "b\\'):
            joined, tally = self.read_counting(
                f'<tool_call>{{"name": "now", "arguments": {arguments}'
            )
            self.assertFalse(joined.calls[0].ended)
            self.assertTrue(arguments.startswith(joined.calls[0].arguments))
            self.assertEqual(1, tally["unclosed"])

    def test_cut_off_never_looks_whole(self) -> None:
        text = '<tool_call>{"arguments": {"a": [1, {"b": "\\u00e9"}], "c": 2}, "name": "now"}'
        for end in range(1, len(text) + 1):
            for reason in ("length", None, "content_filter"):
                joined = (
                    self.read(text[:end], reason=reason)
                    if end > 60
                    else say([text[:end]], reason=reason)[0]
                )
                for call in joined.calls:
                    self.assertFalse(call.ended)
                    self.assertRaises(ValueError, lambda call=call: call.meant)
                if not joined.calls:
                    self.assertEqual(text[:end], joined.content)

    def test_cut_off_shows_a_beginning_of_the_whole(self) -> None:
        text = '<tool_call>{"name": "now", "arguments": {"a": [1, {"b": "\\u00e9"}], "c": true}}'
        whole = say([text])[0].calls[0].arguments
        for end in range(1, len(text)):
            for call in say(list(text[:end]), reason=None)[0].calls:
                self.assertTrue(whole.startswith(call.arguments))


class StreamingTests(ReadCase):
    """Fragments go out as they come."""

    def test_each_character_of_a_string_at_once(self) -> None:
        parser_said = [
            len(say(pieces, reason=None)[0].calls[0].arguments)
            for pieces in (
                ['<tool_call>{"name": "now", "arguments": {"a": "' + "x" * n] for n in range(5)
            )
        ]
        self.assertEqual([7, 8, 9, 10, 11], parser_said)

    def test_the_brace_comes_with_the_name(self) -> None:
        joined, _ = say(['<tool_call>{"name": "now", "arguments": {'], reason=None)
        self.assertEqual([Call("now", "{")], joined.calls)

    def test_cuts_of_a_long_text(self) -> None:
        text = f"A <tool_call>[{CALL},{CALL}]</tool_call> B <tool_call>{CALL}</tool_call>"
        whole = say([text])
        self.assertEqual(3, len(whole[0].calls))
        for pieces in cuts(text):
            self.assertEqual(whole, say(pieces))
