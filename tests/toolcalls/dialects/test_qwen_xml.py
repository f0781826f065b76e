"""Functions and parameters in tags; each text is parsed whole and at every split."""

from __future__ import annotations

import json

from blockops.toolcalls.deltas import CallArguments, TextDelta
from blockops.toolcalls.grammar.xml_patterns import MAX_HEAD, MAX_SPACE
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools
from tests.toolcalls.reading import TOOLS, Call, ParserOutput, ParserTestCase, parse_pieces

TEMPLATE = "<tool_call>\n<function=weather>\n{}</function>\n</tool_call>"


def parameter(key: str, value: str) -> str:
    """Return a parameter as the chat template writes it."""
    return f"<parameter={key}>\n{value}\n</parameter>\n"


def xml_call(**values: str) -> str:
    """Return a call as the chat template writes it."""
    return TEMPLATE.format("".join(parameter(*item) for item in values.items()))


class QwenXmlDialectTests(ParserTestCase):
    def test_template(self) -> None:
        self.assert_call(xml_call(city="Oslo", days="3"), "weather", '{"city": "Oslo", "days": 3}')

    def test_compact(self) -> None:
        self.assert_call(
            "<tool_call><function=weather><parameter=city>Oslo</parameter><parameter=days>3"
            "</parameter></function></tool_call>",
            "weather",
            '{"city": "Oslo", "days": 3}',
        )

    def test_without_the_outer_tag(self) -> None:
        inner = xml_call(city="Oslo").removeprefix("<tool_call>\n")
        for text in (
            inner,
            inner.removesuffix("\n</tool_call>"),
            "\n\t" + inner,
            "<function=weather><parameter=city>Oslo</parameter></function>",
        ):
            self.assert_call(text, "weather", '{"city": "Oslo"}')

    def test_spellings_of_heads(self) -> None:
        for function, key in (
            ('<function name="weather">', '<parameter name="city">'),
            ("<function = weather>", "<parameter = city >"),
            ("<function='weather'>", '<parameter="city">'),
            ('<function\nname = "weather" >', "<parameter name = 'city'>"),
        ):
            inner = f"{function}{key}Oslo</parameter></function>"
            self.assert_call(inner, "weather", '{"city": "Oslo"}')
            self.assert_call(f"<tool_call>{inner}</tool_call>", "weather", '{"city": "Oslo"}')

    def test_without_parameters(self) -> None:
        for text in (
            "<tool_call><function=now></function></tool_call>",
            "<tool_call>\n<function=now>\n</function>\n</tool_call>",
            "<tool_call><function=now></tool_call>",
            "<tool_call>\n<function=now>\n",
            "<tool_call>\n<function=now>\n</func",
            "<tool_call><function=now></function>\n",
            "<function=now></function>",
            "<function=now>\n</function>\n</tool_call>",
            "<function=now>",
            "<function=now>\n</tool_call>",
        ):
            self.assert_call(text, "now", "{}")

    def test_several_functions(self) -> None:
        one = "<function=now></function>"
        two = "<function=weather><parameter=days>2</parameter></function>"
        for text in (
            f"<tool_call>{one}{two}</tool_call>",
            f"<tool_call>{two}{one}</tool_call>",
            f"<tool_call>\n{two}\n{one}\n{two}\n</tool_call>",
            f"{one}\n{two}",
            f"{two}{one}",
            f"{two}\n</tool_call>\n{one}</tool_call>",
        ):
            joined = self.parse(text)
            self.assertEqual("", joined.content)
            self.assertTrue(all(call.is_finished for call in joined.calls))
            self.assertEqual(
                [{"days": 2}] * text.count("weather"),
                [call.parsed_arguments for call in joined.calls if call.name == "weather"],
            )
            self.assertEqual(text.count("<function="), len(joined.calls))

    def test_unknown_function_in_a_tag(self) -> None:
        joined, counters = self.parse_and_count(
            "<tool_call><function=nope><parameter=n>3</parameter></function></tool_call>"
        )
        self.assertEqual([Call("nope", '{"n": "3"}', is_finished=True)], joined.calls)
        self.assertEqual(1, counters["unknown_name"])

    def test_keys_of_any_kind(self) -> None:
        for key in ("a b", "$filter", "@type", "größe", "a.b[0]", 'a"b', "x" * 500, "a=b"):
            for head in (f"<parameter={key}>", f"<parameter name='{key}'>"):
                text = f"<function=now>{head}1</parameter></function>"
                self.assertEqual({key: "1"}, parse_pieces([*text])[0].calls[0].parsed_arguments)
                self.assertEqual({key: "1"}, parse_pieces([text])[0].calls[0].parsed_arguments)


class ValueTests(ParserTestCase):
    def value(self, raw: str, key: str = "city") -> object:
        """Return the value of a parameter with the text `raw` between its tags."""
        joined = self.parse(
            f"<tool_call><function=weather><parameter={key}>{raw}</parameter></function></tool_call>"
        )
        self.assertTrue(joined.calls[0].is_finished)
        return joined.calls[0].parsed_arguments[key]

    def test_framing(self) -> None:
        for raw, value in (
            ("", ""),
            ("\n", ""),
            ("\n\n", ""),
            ("\n\n\n", "\n"),
            ("a", "a"),
            ("\na\n", "a"),
            ("\n\na\n\n", "\na\n"),
            ("\na", "a"),
            ("a\n", "a\n"),
            ("\r\na\r\n", "a"),
            ("\r\na\n", "a\n"),
            ("\na\r\n", "a\r"),
            ("\ra\r", "\ra\r"),
            ("\r\n\r", "\r"),
            ("\r", "\r"),
            ("\r\n", ""),
            ("\n \ta \n", " \ta "),
            (" \na\n", " \na\n"),
        ):
            self.assertEqual(value, self.value(raw), repr(raw))

    def test_strings_are_verbatim(self) -> None:
        for raw in (
            '"quoted" \\n \\" &lt; &amp;',
            "a < b </p> <p> </form> <param",
            "</tool_call> <tool_call> TOOL_CALL: {} ``` <think>",
            "</function>",
            "</parameter>",
            "</parameter> x",
            "</parameter></parameter",
            "x <parameter=days>3",
            "</function></tool_cal>",
            "<function=weather><parameter=city>Oslo",
            "</parameter></function> x",
            "</parameter></function></function>",
            "é 😀 \u2028 \x00 \x7f \ud83d",
            "<",
            "</",
            "</parameter><parameters>",
            "</parameter><parameter>",
            "x\n<parameter=city>again",
            "x\n<parameter=unknown>y",
            "x\n <parameter=days>indented",
        ):
            self.assertEqual(raw, self.value(raw))
            self.assertEqual(raw, self.value(f"\n{raw}\n"))

    def test_bare_function_ends_at_its_closing_tag(self) -> None:
        joined = self.parse("<function=weather><parameter=city>A</parameter></function> x")
        self.assertEqual("x", joined.content)
        self.assertEqual([Call("weather", '{"city": "A"}', is_finished=True)], joined.calls)

    def test_types(self) -> None:
        for key, raw, value in (
            ("days", "140.0", 140),
            ("days", " 3 ", 3),
            ("days", "three", "three"),
            ("scale", "1.50", 1.5),
            ("hourly", "True", True),
            ("tags", "['a', None]", ["a", None]),
            ("where", '{"lat": 1}', {"lat": 1}),
            ("unit", "None", None),
            ("unit", "C", "C"),
            ("either", "5", 5),
            ("either", "x5", "x5"),
            ("city", "5", "5"),
            ("undeclared", "5", "5"),
        ):
            for framed in (raw, f"\n{raw}\n"):
                self.assertEqual(value, self.value(framed, key), (key, raw))

    def test_text_of_another_type_stays_verbatim(self) -> None:
        self.assertEqual(" [1, \n", self.value("\n [1, \n\n", "tags"))

    def test_spelling_of_numbers(self) -> None:
        joined = self.parse(xml_call(scale="1.500", tags="[1.0]"))
        self.assertEqual('{"scale": 1.500, "tags": [1.0]}', joined.calls[0].arguments)

    def test_value_longer_than_max_hold(self) -> None:
        options = TranslationOptions(max_hold=200)
        for size in (199, 200, 201, 250):
            value = "[" + " " * (size - 2) + "]"
            text = f"<tool_call><function=weather><parameter=tags>{value}</parameter></function>"
            whole = parse_pieces([text], options=options)
            self.assertEqual(whole, parse_pieces([*text], options=options))
            self.assertEqual(
                [] if size <= 200 else value, whole[0].calls[0].parsed_arguments["tags"]
            )
            self.assertEqual(int(size > 200), whole[1]["gave_up"])


class MissingTagTests(ParserTestCase):
    """Closing tags that the model forgot."""

    def test_parameter_before_a_parameter(self) -> None:
        self.assert_call(
            TEMPLATE.format("<parameter=city>\nOslo\n<parameter=days>\n3\n</parameter>\n"),
            "weather",
            '{"city": "Oslo", "days": 3}',
        )
        self.assert_call(
            TEMPLATE.format("<parameter=city>Oslo\n<parameter=days>3</parameter>\n"),
            "weather",
            '{"city": "Oslo\\n", "days": 3}',
        )
        self.assert_call(
            TEMPLATE.format("<parameter=city>\n<parameter=days>\n3\n</parameter>\n"),
            "weather",
            '{"city": "", "days": 3}',
        )

    def test_parameter_before_the_end(self) -> None:
        self.assert_call(TEMPLATE.format("<parameter=city>\nOslo\n"), "weather", '{"city": "Oslo"}')
        self.assert_call(
            "<function=weather>\n<parameter=days>\n3\n</function>\n</tool_call>",
            "weather",
            '{"days": 3}',
        )

    def test_closing_tool_call_between_two_calls(self) -> None:
        one = "<tool_call>\n<function=weather>\n" + parameter("city", "{}") + "</function>\n"
        for text in (
            one.format("A") + one.format("B"),
            (one.format("A") + one.format("B")) + "</tool_call>",
        ):
            self.assert_calls(text, ("weather", '{"city": "A"}'), ("weather", '{"city": "B"}'))
        value = "</parameter></function>\n<tool_call> <function>"
        joined = self.parse(f"<tool_call><function=weather><parameter=city>{value}</parameter>")
        self.assertEqual([{"city": value}], [call.parsed_arguments for call in joined.calls])

    def test_text_after_a_missing_tool_call(self) -> None:
        joined = self.parse("<tool_call><function=now></function>\nDone </tool_call>")
        self.assertEqual("Done </tool_call>", joined.content)
        joined = self.parse("<function=now></function>\nDone </tool_call>")
        self.assertEqual("Done </tool_call>", joined.content)


class NoCallTests(ParserTestCase):
    def test_texts(self) -> None:
        for text in (
            "<function",
            "<function=",
            "<function=now",
            "<function=>",
            "<function=nope></function>",
            "<function=nope>",
            "Use <function=now></function>",
            "- <function=now></function>",
            "<function=now> x",
            "<function=now><parameter=a",
            "<function=now>\n<",
            "<functional>",
            "<function now>",
            "<function name=>",
            "<function=a b>",
            "<tool_call><function",
            "<tool_call><function=now",
            "<tool_call><function>now</function></tool_call>",
            "<tool_call><function=now> text </function></tool_call>",
            "<tool_call><function=now><parameter>a</parameter></function></tool_call>",
            "<tool_call><function=now><parameter=a",
            "<tool_call><function=now>\n<param",
            "<tool_call><functions=now>",
            "<tool_call><parameter=a>b</parameter></tool_call>",
            "<tool_call>now</tool_call>",
        ):
            self.assert_text(text)

    def test_heads_are_bounded(self) -> None:
        for size, calls in ((MAX_HEAD, 1), (MAX_HEAD + 1, 0)):
            name = "n" * size
            text = f"<tool_call><function={name}></function></tool_call>"
            for pieces in ([text], [*text]):
                self.assertEqual(calls, len(parse_pieces(pieces)[0].calls))
            text = f"<function=now><parameter={name}></parameter></function>"
            for pieces in ([text], [*text]):
                self.assertEqual(calls, len(parse_pieces(pieces)[0].calls))

    def test_white_space_between_tags_is_bounded(self) -> None:
        for size, value in ((MAX_SPACE, "v"), (MAX_SPACE + 1, None)):
            text = f"<function=now><parameter=a>v</parameter>{' ' * size}</function>"
            for pieces in ([text], [*text]):
                call = parse_pieces(pieces)[0].calls[0]
                self.assertEqual(value or text[27:-11], call.parsed_arguments["a"])
        text = f"<tool_call><function=now></function>{' ' * (MAX_SPACE + 1)}"
        for end, is_finished in ((len(text), True), (len(text) - 1, False)):
            for pieces in ([text[:end]], [*text[:end]]):
                self.assertIs(
                    is_finished, parse_pieces(pieces, reason="length")[0].calls[0].is_finished
                )

    def test_a_head_is_held_only_while_it_may_be_one(self) -> None:
        for head, wrong in (
            ("<function ", "f"),
            ("<function na", "n"),
            ("<function name ", "o"),
            ("<function = now ", "t"),
            ("<function name='now' ", "'"),
            ('<function="', '"'),
        ):
            parser = ToolCallParser(TOOLS)
            self.assertEqual([], parser.feed(head))
            self.assertEqual([TextDelta(head + wrong)], parser.feed(wrong), head)
        parser = ToolCallParser(TOOLS)
        parser.feed("<function=weather><parameter=city>")
        self.assertEqual([], parser.feed("\n<parameter "))
        self.assertEqual([CallArguments("<parameter foo")], parser.feed("foo")[-1:])

    def test_heads_of_all_kinds(self) -> None:
        for head in (
            "<function \n name \n = \n 'now' \n >",
            '<function= "now">',
            "<function =now >",
            "<function name=now\n>",
        ):
            self.assert_call(head + "</function>", "now", "{}")
        for head in (
            "<parameter \n name \n = \n 'a b' \n >",
            '<parameter= "a b">',
            "<parameter =a b >",
            "<parameter name=a b\n>",
        ):
            self.assert_call(f"<function=now>{head}1</parameter></function>", "now", '{"a b": "1"}')
        self.assert_call("<function=now><parameter=name=x>1</parameter>", "now", '{"name=x": "1"}')

    def test_white_space_before_text_that_is_no_function(self) -> None:
        joined = self.parse("hello <tool_call><function=now></function>\n\n<function foo> bar")
        self.assertEqual("hello\n\n<function foo> bar", joined.content)

    def test_second_function_that_is_no_call(self) -> None:
        joined = self.parse("<tool_call><function=now></function><function=now> x</tool_call>")
        self.assertEqual("<function=now> x</tool_call>", joined.content)
        self.assertEqual(1, len(joined.calls))
        joined = self.parse("<tool_call><function=now></function><func")
        self.assertEqual("<func", joined.content)


class TruncationTests(ParserTestCase):
    def test_stop_completes_calls_that_lack_only_closing_tags(self) -> None:
        whole = (
            "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n"
        )
        value_start = whole.index("<parameter=city>") + len("<parameter=city>")
        value_end = whole.index("\n</parameter>")
        for end in range(value_start, len(whole) + 1):
            joined = self.parse(whole[:end])
            self.assertTrue(joined.calls[0].is_finished)
            if value_end <= end <= value_end + 1 or end >= value_end + len("\n</parameter>"):
                self.assertEqual({"city": "Oslo"}, joined.calls[0].parsed_arguments, whole[:end])

    def test_truncated_calls_never_look_complete(self) -> None:
        for outer in ("<tool_call>\n", ""):
            whole = (
                outer + "<function=weather>\n" + parameter("city", "Oslo") + parameter("days", "3")
            )
            arguments = parse_pieces([whole])[0].calls[0].arguments
            for end in range(1, len(whole) + 1):
                for reason in ("length", None):
                    joined = self.parse(whole[:end], reason=reason)
                    if not joined.calls:
                        self.assertEqual(whole[:end].rstrip(), joined.content.rstrip())
                        continue
                    self.assertFalse(joined.calls[0].is_finished)
                    self.assertRaises(ValueError, json.loads, joined.calls[0].arguments)
                    # An incomplete value is shown as its text, a string.
                    shown = joined.calls[0].arguments.replace('"days": "', '"days": ')
                    self.assertTrue(arguments.startswith(shown))

    def test_truncated_in_a_value_that_is_held(self) -> None:
        tail = "5</parameter></tool_call>Here is a long answer."
        text = "<tool_call><function=weather><parameter=days>" + tail
        for reason in ("length", None):
            joined = self.parse(text, reason=reason)
            self.assertEqual([Call("weather", '{"days": "' + tail)], joined.calls)
        for tail in ("[1, 2", " ", "null", "['a"):
            joined = self.parse(f"<function=weather>\n<parameter=tags>\n{tail}", reason="length")
            self.assertEqual([Call("weather", '{"tags": "' + tail)], joined.calls)

    def test_empty_call_in_a_tag(self) -> None:
        joined = self.parse("<tool_call><function=now></function>\n", reason="length")
        self.assertEqual([Call("now", "{")], joined.calls)
        joined = self.parse("<tool_call><function=now></function>\n</tool_c", reason="length")
        self.assertEqual([Call("now", "{}", is_finished=True)], joined.calls)
        self.assertEqual("", joined.content)

    def test_stop_before_another_parameter(self) -> None:
        joined, counters = self.parse_and_count(
            "<tool_call><function=weather><parameter=city>A</parameter>\n<parameter=da"
        )
        self.assertEqual([Call("weather", '{"city": "A</parameter>\\n<parameter=da')], joined.calls)
        self.assertEqual(1, counters["unclosed"])

    def test_stop_before_another_function(self) -> None:
        joined = self.parse(
            "<tool_call><function=weather><parameter=city>A</parameter></function>\n<func"
        )
        self.assertEqual([Call("weather", '{"city": "A"}', is_finished=True)], joined.calls)
        self.assertEqual("<func", joined.content)

    def test_stop_after_a_missing_tag(self) -> None:
        self.assert_call(
            "<tool_call><function=weather><parameter=city>\nA\n</function>\n</tool",
            "weather",
            '{"city": "A"}',
        )

    def test_stop_in_a_closing_tag(self) -> None:
        for value, expected in (("A", "A"), ("\r\nA\r\n", "A"), ("\nA\n", "A"), ("\nA", "A")):
            for tag in ("</parameter", "</par", "</p", "</function", "</f"):
                for outer in ("<tool_call>", ""):
                    joined = self.parse(f"{outer}<function=weather><parameter=city>{value}{tag}")
                    self.assertEqual(
                        [{"city": expected}], [call.parsed_arguments for call in joined.calls]
                    )
        for tail, expected in (("A<", "A<"), ("A</", "A</"), ("\nA\n<", "A"), ("\nA\n</", "A")):
            joined = self.parse("<function=weather><parameter=city>" + tail)
            self.assertEqual([{"city": expected}], [call.parsed_arguments for call in joined.calls])
        joined = self.parse("<tool_call><function=weather><parameter=days>\n5\n</par")
        self.assertEqual([{"days": 5}], [call.parsed_arguments for call in joined.calls])

    def test_stop_in_the_last_tag(self) -> None:
        for tail, content in (("</t", ""), ("\n</tool_call", ""), ("</", "</"), ("\n<", "<")):
            for call in ("<function=now></function>", '<tool_call>{"name": "now"}'):
                joined = self.parse(call + tail)
                self.assertEqual((content, 1), (joined.content, len(joined.calls)))

    def test_stop_in_a_value(self) -> None:
        for tail, value in (("\r", "\r"), ("\r\nA\r", "A\r"), ("A\n", "A\n"), ("A</par", "A")):
            joined = self.parse("<function=weather><parameter=city>" + tail)
            self.assertEqual([{"city": value}], [call.parsed_arguments for call in joined.calls])


class StreamingTests(ParserTestCase):
    def test_the_first_arguments_are_sent_with_the_head(self) -> None:
        joined, _ = parse_pieces(["<tool_call><function=weather>\n<parameter=city>"], reason=None)
        self.assertEqual([Call("weather", '{"city": "')], joined.calls)

    def test_strings_stream(self) -> None:
        head = "<tool_call><function=weather>\n<parameter=city>\n"
        for end, arguments in (("a", "a"), ("ab", "ab"), ("ab<b", "ab<b"), ("ab\n", "ab")):
            self.assertEqual(
                [Call("weather", '{"city": "' + arguments)],
                parse_pieces([head + end], reason=None)[0].calls,
            )

    def test_text_that_can_only_be_a_string_streams(self) -> None:
        head = "<tool_call><function=weather>\n<parameter={}>\n"
        for key, text in (
            ("either", "so far"),
            ("unit", "Not"),
            ("days", "3 days"),
            ("tags", "a, b"),
        ):
            for end in ("", " and on", " and on </parameter"):
                joined = self.parse(head.format(key) + text + end, reason=None)
                shown = text + end.removesuffix("</parameter")
                self.assertEqual([Call("weather", f'{{"{key}": "{shown}')], joined.calls)
            joined = self.parse(
                f"{head.format(key)}{text}\n</parameter>\n</function>\n</tool_call>"
            )
            self.assertEqual([{key: text}], [call.parsed_arguments for call in joined.calls])

    def test_certain_at_the_limit_of_max_hold(self) -> None:
        for size in range(8, 14):
            text = (
                f"<tool_call><function=now></function><function=weather><parameter=days>{'1' * 10}x"
            )
            self.parse(text, options=TranslationOptions(max_hold=size), reason=None)
            self.parse(text + "y</parameter></function>", options=TranslationOptions(max_hold=size))

    def test_other_values_are_held(self) -> None:
        parser = ToolCallParser(TOOLS)
        deltas = parser.feed("<tool_call><function=weather>\n<parameter=days>\n12")
        self.assertEqual([Call("weather", '{"days": ')], ParserOutput.from_deltas(deltas).calls)
        self.assertEqual([], parser.feed("3"))
        self.assertEqual([CallArguments('"123')], parser.finish(None))

    def test_in_code_the_name_must_be_offered(self) -> None:
        options = TranslationOptions(fenced_calls=True)
        for name, calls in (("now", 1), ("nope", 0)):
            text = f"```\n<tool_call><function={name}></function></tool_call>\n```"
            self.assertEqual(calls, len(self.parse(text, options=options).calls))

    def test_schemas_of_any_shape(self) -> None:
        tools = OfferedTools({"now": [], "weather": {"properties": None}})
        self.assert_call(xml_call(days="3"), "weather", '{"days": "3"}', tools=tools)
        self.assertIsNot(tools, TOOLS)
