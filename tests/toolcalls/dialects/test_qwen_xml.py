"""Format 3: functions and parameters in tags; each text is read whole and at every cut."""

from __future__ import annotations

import json

from blockops.toolcalls.dialects.qwen_xml import MAX_HEAD, MAX_SPACE
from blockops.toolcalls.events import CallArguments, Text
from blockops.toolcalls.options import Rules
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import Offer
from tests.toolcalls.reading import OFFER, Call, Joined, ReadCase, say

TEMPLATE = "<tool_call>\n<function=weather>\n{}</function>\n</tool_call>"


def parameter(key: str, value: str) -> str:
    """Return a parameter as the template writes it."""
    return f"<parameter={key}>\n{value}\n</parameter>\n"


def written(**values: str) -> str:
    """Return a call as the template writes it."""
    return TEMPLATE.format("".join(parameter(*item) for item in values.items()))


class TaggedXmlTests(ReadCase):
    def test_template(self) -> None:
        self.assert_call(written(city="Oslo", days="3"), "weather", '{"city": "Oslo", "days": 3}')

    def test_compact(self) -> None:
        self.assert_call(
            "<tool_call><function=weather><parameter=city>Oslo</parameter><parameter=days>3"
            "</parameter></function></tool_call>",
            "weather",
            '{"city": "Oslo", "days": 3}',
        )

    def test_without_the_outer_tag(self) -> None:
        inner = written(city="Oslo").removeprefix("<tool_call>\n")
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
            joined = self.read(text)
            self.assertEqual("", joined.content)
            self.assertTrue(all(call.ended for call in joined.calls))
            self.assertEqual(
                [{"days": 2}] * text.count("weather"),
                [call.meant for call in joined.calls if call.name == "weather"],
            )
            self.assertEqual(text.count("<function="), len(joined.calls))

    def test_unknown_function_in_a_tag(self) -> None:
        joined, tally = self.read_counting(
            "<tool_call><function=nope><parameter=n>3</parameter></function></tool_call>"
        )
        self.assertEqual([Call("nope", '{"n": "3"}', ended=True)], joined.calls)
        self.assertEqual(1, tally["unknown_name"])

    def test_keys_of_any_kind(self) -> None:
        for key in ("a b", "$filter", "@type", "größe", "a.b[0]", 'a"b', "x" * 500, "a=b"):
            for head in (f"<parameter={key}>", f"<parameter name='{key}'>"):
                text = f"<function=now>{head}1</parameter></function>"
                self.assertEqual({key: "1"}, say([*text])[0].calls[0].meant)
                self.assertEqual({key: "1"}, say([text])[0].calls[0].meant)


class ValueTests(ReadCase):
    def value(self, raw: str, key: str = "city") -> object:
        """Return what the text between the tags of a parameter means."""
        joined = self.read(
            f"<tool_call><function=weather><parameter={key}>{raw}</parameter></function></tool_call>"
        )
        self.assertTrue(joined.calls[0].ended)
        return joined.calls[0].meant[key]

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
        joined = self.read("<function=weather><parameter=city>A</parameter></function> x")
        self.assertEqual("x", joined.content)
        self.assertEqual([Call("weather", '{"city": "A"}', ended=True)], joined.calls)

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

    def test_what_does_not_fit_stays_verbatim(self) -> None:
        self.assertEqual(" [1, \n", self.value("\n [1, \n\n", "tags"))

    def test_spelling_of_numbers(self) -> None:
        joined = self.read(written(scale="1.500", tags="[1.0]"))
        self.assertEqual('{"scale": 1.500, "tags": [1.0]}', joined.calls[0].arguments)

    def test_value_that_outgrows_what_may_be_held(self) -> None:
        rules = Rules(max_hold=200)
        for size in (199, 200, 201, 250):
            value = "[" + " " * (size - 2) + "]"
            text = f"<tool_call><function=weather><parameter=tags>{value}</parameter></function>"
            whole = say([text], rules=rules)
            self.assertEqual(whole, say([*text], rules=rules))
            self.assertEqual([] if size <= 200 else value, whole[0].calls[0].meant["tags"])
            self.assertEqual(int(size > 200), whole[1]["gave_up"])


class ForgottenTests(ReadCase):
    """Closing tags that the model forgot."""

    def test_parameter_in_front_of_a_parameter(self) -> None:
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

    def test_parameter_in_front_of_the_end(self) -> None:
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
        joined = self.read(f"<tool_call><function=weather><parameter=city>{value}</parameter>")
        self.assertEqual([{"city": value}], [call.meant for call in joined.calls])

    def test_tool_call_and_what_lies_behind(self) -> None:
        joined = self.read("<tool_call><function=now></function>\nDone </tool_call>")
        self.assertEqual("Done </tool_call>", joined.content)
        joined = self.read("<function=now></function>\nDone </tool_call>")
        self.assertEqual("Done </tool_call>", joined.content)


class NoCallTests(ReadCase):
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
                self.assertEqual(calls, len(say(pieces)[0].calls))
            text = f"<function=now><parameter={name}></parameter></function>"
            for pieces in ([text], [*text]):
                self.assertEqual(calls, len(say(pieces)[0].calls))

    def test_white_space_between_tags_is_bounded(self) -> None:
        for size, value in ((MAX_SPACE, "v"), (MAX_SPACE + 1, None)):
            text = f"<function=now><parameter=a>v</parameter>{' ' * size}</function>"
            for pieces in ([text], [*text]):
                call = say(pieces)[0].calls[0]
                self.assertEqual(value or text[27:-11], call.meant["a"])
        text = f"<tool_call><function=now></function>{' ' * (MAX_SPACE + 1)}"
        for end, ended in ((len(text), True), (len(text) - 1, False)):
            for pieces in ([text[:end]], [*text[:end]]):
                self.assertIs(ended, say(pieces, reason="length")[0].calls[0].ended)

    def test_a_head_is_waited_for_only_as_long_as_it_may_be_one(self) -> None:
        for head, wrong in (
            ("<function ", "f"),
            ("<function na", "n"),
            ("<function name ", "o"),
            ("<function = now ", "t"),
            ("<function name='now' ", "'"),
            ('<function="', '"'),
        ):
            parser = ToolCallParser(OFFER)
            self.assertEqual([], parser.feed(head))
            self.assertEqual([Text(head + wrong)], parser.feed(wrong), head)
        parser = ToolCallParser(OFFER)
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

    def test_white_space_in_front_of_what_is_no_function(self) -> None:
        joined = self.read("hello <tool_call><function=now></function>\n\n<function foo> bar")
        self.assertEqual("hello\n\n<function foo> bar", joined.content)

    def test_second_function_that_is_no_call(self) -> None:
        joined = self.read("<tool_call><function=now></function><function=now> x</tool_call>")
        self.assertEqual("<function=now> x</tool_call>", joined.content)
        self.assertEqual(1, len(joined.calls))
        joined = self.read("<tool_call><function=now></function><func")
        self.assertEqual("<func", joined.content)


class CutOffTests(ReadCase):
    def test_stop_completes_what_lacks_closing_tags_only(self) -> None:
        whole = (
            "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n"
        )
        begun = whole.index("<parameter=city>") + len("<parameter=city>")
        value_end = whole.index("\n</parameter>")
        for end in range(begun, len(whole) + 1):
            joined = self.read(whole[:end])
            self.assertTrue(joined.calls[0].ended)
            if value_end <= end <= value_end + 1 or end >= value_end + len("\n</parameter>"):
                self.assertEqual({"city": "Oslo"}, joined.calls[0].meant, whole[:end])

    def test_cut_off_never_looks_whole(self) -> None:
        for outer in ("<tool_call>\n", ""):
            whole = (
                outer + "<function=weather>\n" + parameter("city", "Oslo") + parameter("days", "3")
            )
            arguments = say([whole])[0].calls[0].arguments
            for end in range(1, len(whole) + 1):
                for reason in ("length", None):
                    joined = self.read(whole[:end], reason=reason)
                    if not joined.calls:
                        self.assertEqual(whole[:end].rstrip(), joined.content.rstrip())
                        continue
                    self.assertFalse(joined.calls[0].ended)
                    self.assertRaises(ValueError, json.loads, joined.calls[0].arguments)
                    # A value that was not whole is shown as the text that came.
                    shown = joined.calls[0].arguments.replace('"days": "', '"days": ')
                    self.assertTrue(arguments.startswith(shown))

    def test_cut_off_in_a_value_that_is_kept(self) -> None:
        tail = "5</parameter></tool_call>Here is a long answer."
        text = "<tool_call><function=weather><parameter=days>" + tail
        for reason in ("length", None):
            joined = self.read(text, reason=reason)
            self.assertEqual([Call("weather", '{"days": "' + tail)], joined.calls)
        for tail in ("[1, 2", " ", "null", "['a"):
            joined = self.read(f"<function=weather>\n<parameter=tags>\n{tail}", reason="length")
            self.assertEqual([Call("weather", '{"tags": "' + tail)], joined.calls)

    def test_empty_call_in_a_tag(self) -> None:
        joined = self.read("<tool_call><function=now></function>\n", reason="length")
        self.assertEqual([Call("now", "{")], joined.calls)
        joined = self.read("<tool_call><function=now></function>\n</tool_c", reason="length")
        self.assertEqual([Call("now", "{}", ended=True)], joined.calls)
        self.assertEqual("", joined.content)

    def test_stop_in_front_of_another_parameter(self) -> None:
        joined, tally = self.read_counting(
            "<tool_call><function=weather><parameter=city>A</parameter>\n<parameter=da"
        )
        self.assertEqual([Call("weather", '{"city": "A</parameter>\\n<parameter=da')], joined.calls)
        self.assertEqual(1, tally["unclosed"])

    def test_stop_in_front_of_another_function(self) -> None:
        joined = self.read(
            "<tool_call><function=weather><parameter=city>A</parameter></function>\n<func"
        )
        self.assertEqual([Call("weather", '{"city": "A"}', ended=True)], joined.calls)
        self.assertEqual("<func", joined.content)

    def test_stop_behind_a_forgotten_tag(self) -> None:
        self.assert_call(
            "<tool_call><function=weather><parameter=city>\nA\n</function>\n</tool",
            "weather",
            '{"city": "A"}',
        )

    def test_stop_in_a_closing_tag(self) -> None:
        for value, meant in (("A", "A"), ("\r\nA\r\n", "A"), ("\nA\n", "A"), ("\nA", "A")):
            for tag in ("</parameter", "</par", "</p", "</function", "</f"):
                for outer in ("<tool_call>", ""):
                    joined = self.read(f"{outer}<function=weather><parameter=city>{value}{tag}")
                    self.assertEqual([{"city": meant}], [call.meant for call in joined.calls])
        for tail, meant in (("A<", "A<"), ("A</", "A</"), ("\nA\n<", "A"), ("\nA\n</", "A")):
            joined = self.read("<function=weather><parameter=city>" + tail)
            self.assertEqual([{"city": meant}], [call.meant for call in joined.calls])
        joined = self.read("<tool_call><function=weather><parameter=days>\n5\n</par")
        self.assertEqual([{"days": 5}], [call.meant for call in joined.calls])

    def test_stop_in_the_last_tag(self) -> None:
        for tail, content in (("</t", ""), ("\n</tool_call", ""), ("</", "</"), ("\n<", "<")):
            for call in ("<function=now></function>", '<tool_call>{"name": "now"}'):
                joined = self.read(call + tail)
                self.assertEqual((content, 1), (joined.content, len(joined.calls)))

    def test_stop_in_a_value(self) -> None:
        for tail, value in (("\r", "\r"), ("\r\nA\r", "A\r"), ("A\n", "A\n"), ("A</par", "A")):
            joined = self.read("<function=weather><parameter=city>" + tail)
            self.assertEqual([{"city": value}], [call.meant for call in joined.calls])


class StreamingTests(ReadCase):
    def test_the_first_fragment_comes_with_the_head(self) -> None:
        joined, _ = say(["<tool_call><function=weather>\n<parameter=city>"], reason=None)
        self.assertEqual([Call("weather", '{"city": "')], joined.calls)

    def test_strings_stream(self) -> None:
        head = "<tool_call><function=weather>\n<parameter=city>\n"
        for end, arguments in (("a", "a"), ("ab", "ab"), ("ab<b", "ab<b"), ("ab\n", "ab")):
            self.assertEqual(
                [Call("weather", '{"city": "' + arguments)],
                say([head + end], reason=None)[0].calls,
            )

    def test_what_can_only_be_a_string_streams(self) -> None:
        head = "<tool_call><function=weather>\n<parameter={}>\n"
        for key, text in (
            ("either", "so far"),
            ("unit", "Not"),
            ("days", "3 days"),
            ("tags", "a, b"),
        ):
            for end in ("", " and on", " and on </parameter"):
                joined = self.read(head.format(key) + text + end, reason=None)
                shown = text + end.removesuffix("</parameter")
                self.assertEqual([Call("weather", f'{{"{key}": "{shown}')], joined.calls)
            joined = self.read(f"{head.format(key)}{text}\n</parameter>\n</function>\n</tool_call>")
            self.assertEqual([{key: text}], [call.meant for call in joined.calls])

    def test_certain_at_the_limit_of_what_may_be_held(self) -> None:
        for size in range(8, 14):
            text = (
                f"<tool_call><function=now></function><function=weather><parameter=days>{'1' * 10}x"
            )
            self.read(text, rules=Rules(max_hold=size), reason=None)
            self.read(text + "y</parameter></function>", rules=Rules(max_hold=size))

    def test_other_values_wait(self) -> None:
        parser = ToolCallParser(OFFER)
        said = parser.feed("<tool_call><function=weather>\n<parameter=days>\n12")
        self.assertEqual([Call("weather", '{"days": ')], Joined.of(said).calls)
        self.assertEqual([], parser.feed("3"))
        self.assertEqual([CallArguments('"123')], parser.finish(None))

    def test_in_code_the_name_must_be_offered(self) -> None:
        rules = Rules(fenced_calls=True)
        for name, calls in (("now", 1), ("nope", 0)):
            text = f"```\n<tool_call><function={name}></function></tool_call>\n```"
            self.assertEqual(calls, len(self.read(text, rules=rules).calls))

    def test_schemas_of_any_shape(self) -> None:
        offer = Offer({"now": [], "weather": {"properties": None}})
        self.assert_call(written(days="3"), "weather", '{"days": "3"}', offer=offer)
        self.assertIsNot(offer, OFFER)
