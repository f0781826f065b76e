"""Rules of all dialects: names, parallel calls, held text, calls in think blocks, the end."""

from __future__ import annotations

from blockops.toolcalls.deltas import (
    CallArguments,
    CallFinished,
    CallStarted,
    Delta,
    ReasoningDelta,
    TextDelta,
)
from blockops.toolcalls.dialect import Opener
from blockops.toolcalls.dialects import BUILT_IN
from blockops.toolcalls.grammar.json_call import MAX_COMMENTS_BEFORE_CALL
from blockops.toolcalls.grammar.json_stream import MAX_WORD
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.parser import READ_SIZE, ToolCallParser, join_adjacent
from blockops.toolcalls.reader import (
    CallEnded,
    CallReader,
    CallTruncated,
    NotACall,
    OpeningContext,
)
from blockops.toolcalls.tools import OfferedTools
from tests.toolcalls.reading import (
    SCHEMAS,
    TOOLS,
    Call,
    ParserOutput,
    ParserTestCase,
    parse_pieces,
    splits,
)

CALL = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
LINE = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1}}'
XML = "<tool_call><function=now><parameter=a>1</parameter></function></tool_call>"
ALL = (CALL, LINE, XML)


class NameTests(ParserTestCase):
    def test_offered_names_are_calls(self) -> None:
        for call in ALL:
            self.assertEqual({"calls": 1}, self.parse_and_count(call)[1])

    def test_other_names_are_calls_and_counted(self) -> None:
        for call in ALL:
            output, counters = self.parse_and_count(call.replace("now", "nope"))
            self.assertEqual("nope", output.calls[0].name)
            self.assertEqual({"calls": 1, "unknown_name": 1}, counters)

    def test_calls_of_forbidden_tools_are_text(self) -> None:
        """The request has the tool, but forbids it now."""
        tools = OfferedTools(SCHEMAS, forbidden_tools=frozenset({"nope"}))
        for call in ALL:
            forbidden = call.replace("now", "nope")
            self.assertEqual(
                ParserOutput(content=forbidden, order="T"), self.parse(forbidden, tools)
            )
            output = self.parse(f"{forbidden}\n{call}", tools)
            self.assertEqual(
                (forbidden, ["now"]), (output.content, [each.name for each in output.calls])
            )

    def test_forbidden_tool_after_another_call_in_its_tag(self) -> None:
        tools = OfferedTools(SCHEMAS, forbidden_tools=frozenset({"nope"}))
        objects = '{"name": "now"}\n{"name": "nope"}'
        output = self.parse(f"<tool_call>{objects}</tool_call>", tools)
        self.assertEqual(["now"], [call.name for call in output.calls])
        self.assertIn('{"name": "nope"}', output.content)

    def test_dialects_may_be_mixed(self) -> None:
        output = self.parse(f"A {CALL}\n{LINE} B {XML}\n{LINE}\nC")
        self.assertEqual(("A B\nC", 4), (output.content, len(output.calls)))
        self.assertEqual("TCCTCCT", output.order)


class ParallelTests(ParserTestCase):
    def test_later_calls_are_dropped_and_counted(self) -> None:
        tools = OfferedTools(SCHEMAS, parallel=False)
        for text in (
            f"A {CALL}\n{LINE} B {XML} C",
            f"A {XML}\n{CALL} B\n{LINE} C",
            f"A\n{LINE}\n{XML} B {CALL} C",
        ):
            output, counters = self.parse_and_count(text, tools=tools)
            self.assertEqual(1, len(output.calls))
            self.assertTrue(output.calls[0].is_finished)
            self.assertEqual("A B C", output.content.replace("\n", " "))
            self.assertEqual({"calls": 1, "dropped_parallel": 2}, counters)

    def test_calls_in_one_tag(self) -> None:
        tools = OfferedTools(SCHEMAS, parallel=False)
        output, counters = self.parse_and_count(
            '<tool_call>[{"name": "now"}, {"name": "now", "arguments": {"b": "x"}}]</tool_call>',
            tools=tools,
        )
        self.assertEqual([Call("now", "{}", is_finished=True)], output.calls)
        self.assertEqual({"calls": 1, "dropped_parallel": 1}, counters)

    def test_a_dropped_call_may_be_truncated(self) -> None:
        tools = OfferedTools(SCHEMAS, parallel=False)
        for text in (CALL[:-20], XML[:-35]):
            output = self.parse(f"{LINE}\n{text}", tools=tools, reason="length")
            self.assertEqual(("", 1), (output.content, len(output.calls)))


class HoldTests(ParserTestCase):
    """The upper bound of the text that is held back while a call is not certain."""

    def test_the_bound_holds_at_every_split(self) -> None:
        late = '<tool_call>{"arguments": {"a": "b"}, "name": "now"}</tool_call>'
        name_end = late.index('"now"') + len('"now"')
        for text, length in ((late, name_end), (CALL, CALL.index("{", 20) + 1)):
            for max_hold, calls in ((length - 1, 0), (length, 1)):
                output, counters = self.parse_and_count(
                    text, options=TranslationOptions(max_hold=max_hold)
                )
                self.assertEqual(calls, len(output.calls))
                self.assertEqual(1 - calls, counters["gave_up"])
                if not calls:
                    self.assertEqual(text, output.content)

    def test_a_bound_smaller_than_an_opener(self) -> None:
        for max_hold in (0, 5, 11):
            self.assert_text(CALL, options=TranslationOptions(max_hold=max_hold))

    def test_a_call_inside_rejected_text(self) -> None:
        text = '<tool_call>{"x": "' + "y" * 60 + CALL
        output = self.parse(text, options=TranslationOptions(max_hold=55))
        self.assertEqual('<tool_call>{"x": "' + "y" * 60, output.content)
        self.assertEqual(1, len(output.calls))

    def test_white_space_after_the_tag(self) -> None:
        for spaces, calls in ((10, 1), (80, 0)):
            text = CALL.replace("\n", " " * spaces, 1)
            self.assertEqual(
                calls, len(self.parse(text, options=TranslationOptions(max_hold=70)).calls)
            )


class ThinkCallTests(ParserTestCase):
    """A call in a think block counts if there is no other call."""

    OPTIONS = TranslationOptions(think_calls=True)

    def test_the_call_is_added_at_the_end(self) -> None:
        for call in ALL:
            for think in (
                f"<think>\n{call}\n</think>",
                f"<think>\n{call}",
                f"<think>{call} x</think> B",
            ):
                output, counters = self.parse_and_count(think, options=self.OPTIONS)
                self.assertEqual(think, output.content)
                self.assertEqual(1, len(output.calls))
                self.assertTrue(output.calls[0].is_finished)
                self.assertEqual({"calls": 1, "think_calls": 1}, counters)

    def test_the_call_may_be_split_off_as_reasoning(self) -> None:
        output = self.parse(
            f"x\n{CALL}\n</think>B",
            options=TranslationOptions(think_calls=True, think_prefilled=True, reasoning="split"),
        )
        self.assertEqual(("B", f"x\n{CALL}\n"), (output.content, output.reasoning))
        self.assertEqual([Call("now", '{"a": 1}', is_finished=True)], output.calls)

    def test_the_option_is_required(self) -> None:
        self.assert_text(f"<think>{CALL}</think>")

    def test_the_last_call_counts(self) -> None:
        output = self.parse(
            f"<think>{CALL}</think><think>{LINE.replace('1', '2')}", options=self.OPTIONS
        )
        self.assertEqual([Call("now", '{"a": 2}', is_finished=True)], output.calls)

    def test_another_call_takes_precedence(self) -> None:
        output = self.parse(f"<think>{CALL}</think>{LINE.replace('1', '2')}", options=self.OPTIONS)
        self.assertEqual([Call("now", '{"a": 2}', is_finished=True)], output.calls)

    def test_the_call_must_be_complete_and_offered(self) -> None:
        for think in (
            f"<think>{CALL.replace('now', 'nope')}</think>",
            f'<think>{CALL[:-18]}"</think>',
            f"<think>`{CALL}`</think>".replace("\n", ""),
            "<think>x</think>",
        ):
            self.assert_text(think, options=self.OPTIONS)

    def test_a_truncated_answer_has_no_such_call(self) -> None:
        for reason in ("length", None):
            self.assert_text(f"<think>{CALL}</think>", options=self.OPTIONS, reason=reason)

    def test_the_arguments_are_bounded(self) -> None:
        options = TranslationOptions(think_calls=True, max_hold=60)
        for size, calls in ((52, 1), (53, 0)):
            call = f'{{"name": "now", "arguments": {{"a": "{"x" * (size - 1)}"}}}}'
            text = f"<think><tool_call>{call}</tool_call></think>"
            self.assertEqual(calls, len(self.parse(text, options=options).calls), size)


class EndTests(ParserTestCase):
    def test_finish_reasons(self) -> None:
        text = "<tool_call>" + CALL[12:-14]
        for reason, is_finished in (
            ("stop", True),
            ("tool_calls", True),
            ("function_call", True),
            ("length", False),
            ("content_filter", False),
            ("abort", False),
            (None, False),
        ):
            output = self.parse(text, reason=reason)
            self.assertEqual(is_finished, output.calls[0].is_finished, reason)

    def test_an_empty_answer(self) -> None:
        self.assertEqual([], ToolCallParser(TOOLS).finish("stop"))

    def test_partial_calls_are_text(self) -> None:
        for text in (
            "<tool_call>{",
            "A <tool",
            "TOOL_CALL: {",
            "<function=now",
            "A \n<tool_call> ",
        ):
            for reason in ("length", None):
                self.assert_text(text, reason=reason)

    def test_a_call_in_text_rejected_at_the_end(self) -> None:
        output = self.parse('<tool_call>{"x": "<tool_call>{"name": "now"')
        self.assertEqual('<tool_call>{"x": "', output.content)
        self.assertEqual([Call("now", "{}", is_finished=True)], output.calls)

    def test_reading_again_takes_linear_time(self) -> None:
        # Without bounds each opener would read all the text after it, which takes minutes.
        for opener in (
            "<tool_call>{/*",
            "<tool_call>{//",
            '<tool_call>{"a":',
            "<tool_call>{'",
            "<tool_call>{/**//*",
            "<tool_call>{a:[1,/**/1],a:[1,/*",
            "<tool_call>{arguments:{a:[1,/**/1],a:[1,/*",
            "TOOL_CALL: {\n",
            "TOOL_CALL: {a:{\n",
            "TOOL_CALL: {arguments:{\n",
        ):
            text = opener * 500
            self.assertEqual(text, parse_pieces([text])[0].content)

    def test_an_opener_copies_a_bounded_part_of_the_text(self) -> None:
        dialect = RejectingDialect()
        text = "<tool_call>" * 5000
        output, _ = parse_pieces([text], options=TranslationOptions(dialects=(dialect,)))
        self.assertEqual(text, output.content)
        self.assertEqual(5000, len(dialect.sizes))
        self.assertLessEqual(max(dialect.sizes), READ_SIZE)

    def test_consecutive_openers(self) -> None:
        self.assert_text("<tool_call>" * 50)
        self.assert_text("<tool_call>{" * 20)


class RejectingDialect:
    """A dialect that rejects all text, and records how many characters each feed had."""

    name = "rejecting"
    openers = (Opener("<tool_call>"),)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def reader(self, context: OpeningContext) -> RejectingDialect:
        return self

    def feed(self, text: str, out: list[Delta]) -> NotACall:
        self.sizes.append(len(text))
        return NotACall()

    def finish(self, *, is_complete: bool, out: list[Delta]) -> NotACall:
        self.sizes.append(0)
        return NotACall()


class LongKeyTests(ParserTestCase):
    def test_long_keys_are_not_stored(self) -> None:
        parser = ToolCallParser(TOOLS)
        parser.feed('<tool_call>{"name": "now", "arguments": {}, "')
        for _ in range(100):
            parser.feed("a" * 1000)
        stored = parser._reader._call._member_pieces  # type: ignore[attr-defined]
        self.assertLessEqual(sum(map(len, stored)), MAX_WORD + 1)
        text = f'<tool_call>{{"name": "now", "{"a" * 10_000}": 1, "args": {{"b": 1}}}}</tool_call>'
        for pieces in ([text], [*text]):
            self.assertEqual(
                [Call("now", '{"b": 1}', is_finished=True)], parse_pieces(pieces)[0].calls
            )


class CommentTests(ParserTestCase):
    def test_bound_before_the_call(self) -> None:
        for size, calls in ((MAX_COMMENTS_BEFORE_CALL, 1), (MAX_COMMENTS_BEFORE_CALL + 1, 0)):
            first, second = "x" * (size - 20), "y" * 20
            text = f'<tool_call>{{//{first}\n"a": [//{second}\n], "name": "now"}}</tool_call>'
            for pieces in ([text], [*text]):
                self.assertEqual(calls, len(parse_pieces(pieces)[0].calls))

    def test_no_bound_in_the_arguments(self) -> None:
        comment = "/*" + "x" * MAX_COMMENTS_BEFORE_CALL + "*/"
        text = f'{{"name": "now", "arguments": {{{comment}"a": 1}}}}'
        for opener in ("<tool_call>", "TOOL_CALL:"):
            for pieces in ([opener + text], [*(opener + text)]):
                self.assertEqual('{"a": 1}', parse_pieces(pieces)[0].calls[0].arguments)

    def test_the_opener_is_not_a_key(self) -> None:
        inner = LINE.removeprefix("TOOL_CALL: ")
        self.assertEqual("TOOL_CALL: {", self.parse("TOOL_CALL: {\n" + LINE).content.rstrip())
        for text in ("{TOOL_CALL: 1}", "{a: {TOOL_CALL: 1}}", "{arguments: {TOOL_CALL: 1}}"):
            self.assert_text("TOOL_CALL: " + text)
        self.assert_call(f"TOOL_CALL: {{'TOOL_CALL': 1, {inner[1:]}", "now", '{"a": 1}')
        self.assert_call(
            "TOOL_CALL: {name: 'now', args: {TOOL_CALL: 1}}", "now", '{"TOOL_CALL": 1}'
        )


class StreamingTests(ParserTestCase):
    def test_deltas_of_a_call(self) -> None:
        parser = ToolCallParser(TOOLS)
        deltas = [delta for char in f"A {CALL}" for delta in parser.feed(char)]
        self.assertEqual(
            [
                TextDelta("A"),
                CallStarted("now", "json"),
                *(CallArguments(char) for char in '{"a": 1}'),
                CallFinished(),
            ],
            deltas,
        )

    def test_adjacent_texts_and_arguments_are_one_delta(self) -> None:
        parser = ToolCallParser(TOOLS)
        self.assertEqual(
            [
                TextDelta("A <tool_call> B"),
                CallStarted("now", "line"),
                CallArguments('{"a": 1}'),
                CallFinished(),
            ],
            parser.feed(f"A <tool_call> B\n{LINE}"),
        )

    def test_trailing_spaces_wait_for_the_next_text(self) -> None:
        parser = ToolCallParser(TOOLS, TranslationOptions(max_hold=3))
        deltas = [
            parser.feed(text) for text in ("one", "two ", "three  ", "four", "five     ", "six")
        ]
        texts = ["one", "two", " three", "  four", "five     ", "six"]
        self.assertEqual(deltas, [[TextDelta(text)] for text in texts])

    def test_choices_do_not_mix(self) -> None:
        parsers = ToolCallParser(TOOLS), ToolCallParser(TOOLS)
        texts = f"A {CALL} B", f"`x\n{XML}\nD"
        outputs: tuple[list[Delta], list[Delta]] = ([], [])
        for chars in zip(*(text.ljust(120) for text in texts), strict=True):
            outputs[0].extend(parsers[0].feed(chars[0]))
            outputs[1].extend(parsers[1].feed(chars[1]))
        for parser, deltas, text in zip(parsers, outputs, texts, strict=True):
            deltas.extend(parser.finish("stop"))
            self.assertEqual(parse_pieces([text.ljust(120)])[0], ParserOutput.from_deltas(deltas))


class ShoutedDialect:
    """A dialect with calls `!NAME!`, and `!NAME?` for a call that another one follows."""

    name = "shouted"
    openers = (Opener("!"), Opener("<tool_call>"))

    def reader(self, context: OpeningContext) -> CallReader:
        return ShoutedReader(context)


class ShoutedReader:
    def __init__(self, context: OpeningContext) -> None:
        self._context = context
        self._name = ""

    def feed(self, text: str, out: list[Delta]) -> NotACall | CallEnded | None:
        for pos, char in enumerate(text):
            if char in "!?" and self._name:
                out += [CallStarted(self._name), CallArguments("{}"), CallFinished()]
                next_reader = ShoutedReader(self._context) if char == "?" else None
                return CallEnded(text[pos + 1 :], next_reader)
            if not char.isalpha():
                return NotACall()
            self._name += char
        return None

    def finish(
        self, *, is_complete: bool, out: list[Delta]
    ) -> NotACall | CallEnded | CallTruncated:
        if is_complete and self._name:
            out += [CallStarted(self._name), CallArguments("{}"), CallFinished()]
            return CallEnded("")
        return NotACall()


class DialectTests(ParserTestCase):
    """Dialects from other packages."""

    OPTIONS = TranslationOptions(dialects=(*BUILT_IN, ShoutedDialect()))

    def test_own_openers(self) -> None:
        output = self.parse("A !now! B !now?now! C! D", options=self.OPTIONS)
        self.assertEqual("A B C! D", output.content)
        self.assertEqual(["shouted"] * 3, output.dialects)
        self.assertEqual([Call("now", "{}", is_finished=True)] * 3, output.calls)

    def test_shared_openers(self) -> None:
        output = self.parse(f"<tool_call>now! {CALL} {XML} <tool_call>{{x", options=self.OPTIONS)
        self.assertEqual(["shouted", "json", "xml"], output.dialects)
        self.assertEqual("<tool_call>{x", output.content)

    def test_dialects_are_tried_in_turn_at_the_end(self) -> None:
        output = self.parse("A <tool_call>now", options=self.OPTIONS)
        self.assertEqual(("A", ["shouted"]), (output.content, output.dialects))

    def test_not_a_call_after_a_call(self) -> None:
        output = self.parse("!now? x", options=self.OPTIONS)
        self.assertEqual("x", output.content)

    def test_every_split_of_mixed_dialects(self) -> None:
        text = f"!now!{CALL}\n{LINE}<tool_call>a?b! {XML}! x"
        at_once = parse_pieces([text], options=self.OPTIONS)
        for pieces in splits(text):
            self.assertEqual(at_once, parse_pieces(pieces, options=self.OPTIONS))


class JoinTests(ParserTestCase):
    def test_adjacent_deltas(self) -> None:
        deltas: list[Delta] = [
            *(ReasoningDelta("1"), ReasoningDelta("2"), TextDelta("a"), TextDelta("b")),
            *(CallStarted("f"), CallArguments("{"), CallArguments("}"), CallFinished()),
            *(CallStarted("g"), CallArguments("{")),
        ]
        self.assertEqual(
            join_adjacent(deltas),
            [
                *(ReasoningDelta("12"), TextDelta("ab"), CallStarted("f"), CallArguments("{}")),
                *(CallFinished(), CallStarted("g"), CallArguments("{")),
            ],
        )
