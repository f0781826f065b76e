"""What holds for every format: names, parallel calls, holding back, think blocks, the end."""

from __future__ import annotations

from blockops.toolcalls.dialects.registry import BUILT_IN
from blockops.toolcalls.events import CallArguments, CallBegan, CallEnded, Delta, Text
from blockops.toolcalls.grammar.json_call import MAX_LOOSE_COMMENTS
from blockops.toolcalls.grammar.json_stream import MAX_WORD
from blockops.toolcalls.options import Rules
from blockops.toolcalls.parser import MAX_PIECE, ToolCallParser
from blockops.toolcalls.reader import (
    CallReader,
    Ended,
    LeftOpen,
    Opener,
    Opening,
    Refused,
)
from blockops.toolcalls.tools import Offer
from tests.toolcalls.reading import OFFER, SCHEMAS, Call, Joined, ReadCase, cuts, say

CALL = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
LINE = 'TOOL_CALL: {"name": "now", "arguments": {"a": 1}}'
XML = "<tool_call><function=now><parameter=a>1</parameter></function></tool_call>"
ALL = (CALL, LINE, XML)


class NameTests(ReadCase):
    def test_offered(self) -> None:
        for call in ALL:
            self.assertEqual({"calls": 1}, self.read_counting(call)[1])

    def test_not_offered(self) -> None:
        for call in ALL:
            joined, tally = self.read_counting(call.replace("now", "nope"))
            self.assertEqual("nope", joined.calls[0].name)
            self.assertEqual({"calls": 1, "unknown_name": 1}, tally)

    def test_forbidden(self) -> None:
        """The client has it, and has said that it must not be called now."""
        offer = Offer(SCHEMAS, forbidden=frozenset({"nope"}))
        for call in ALL:
            no = call.replace("now", "nope")
            self.assertEqual(Joined(content=no, order="T"), self.read(no, offer))
            joined = self.read(f"{no}\n{call}", offer)
            self.assertEqual((no, ["now"]), (joined.content, [one.name for one in joined.calls]))

    def test_forbidden_behind_another_call_in_its_tag(self) -> None:
        offer = Offer(SCHEMAS, forbidden=frozenset({"nope"}))
        objects = '{"name": "now"}\n{"name": "nope"}'
        joined = self.read(f"<tool_call>{objects}</tool_call>", offer)
        self.assertEqual(["now"], [call.name for call in joined.calls])
        self.assertIn('{"name": "nope"}', joined.content)

    def test_formats_may_be_mixed(self) -> None:
        joined = self.read(f"A {CALL}\n{LINE} B {XML}\n{LINE}\nC")
        self.assertEqual(("A B\nC", 4), (joined.content, len(joined.calls)))
        self.assertEqual("TCCTCCT", joined.order)


class ParallelTests(ReadCase):
    def test_later_calls_are_dropped_and_counted(self) -> None:
        offer = Offer(SCHEMAS, parallel=False)
        for text in (
            f"A {CALL}\n{LINE} B {XML} C",
            f"A {XML}\n{CALL} B\n{LINE} C",
            f"A\n{LINE}\n{XML} B {CALL} C",
        ):
            joined, tally = self.read_counting(text, offer=offer)
            self.assertEqual(1, len(joined.calls))
            self.assertTrue(joined.calls[0].ended)
            self.assertEqual("A B C", joined.content.replace("\n", " "))
            self.assertEqual({"calls": 1, "dropped_parallel": 2}, tally)

    def test_in_one_tag(self) -> None:
        offer = Offer(SCHEMAS, parallel=False)
        joined, tally = self.read_counting(
            '<tool_call>[{"name": "now"}, {"name": "now", "arguments": {"b": "x"}}]</tool_call>',
            offer=offer,
        )
        self.assertEqual([Call("now", "{}", ended=True)], joined.calls)
        self.assertEqual({"calls": 1, "dropped_parallel": 1}, tally)

    def test_dropped_call_that_is_cut_off(self) -> None:
        offer = Offer(SCHEMAS, parallel=False)
        for text in (CALL[:-20], XML[:-35]):
            joined = self.read(f"{LINE}\n{text}", offer=offer, reason="length")
            self.assertEqual(("", 1), (joined.content, len(joined.calls)))


class HoldTests(ReadCase):
    """How much may be held back while a call is not certain."""

    def test_is_bounded_at_every_cut(self) -> None:
        late = '<tool_call>{"arguments": {"a": "b"}, "name": "now"}</tool_call>'
        begins_at = late.index('"now"') + len('"now"')
        for text, length in ((late, begins_at), (CALL, CALL.index("{", 20) + 1)):
            for max_hold, calls in ((length - 1, 0), (length, 1)):
                joined, tally = self.read_counting(text, rules=Rules(max_hold=max_hold))
                self.assertEqual(calls, len(joined.calls))
                self.assertEqual(1 - calls, tally["gave_up"])
                if not calls:
                    self.assertEqual(text, joined.content)

    def test_smaller_than_an_opener(self) -> None:
        for max_hold in (0, 5, 11):
            self.assert_text(CALL, rules=Rules(max_hold=max_hold))

    def test_a_call_inside_what_was_given_back(self) -> None:
        text = '<tool_call>{"x": "' + "y" * 60 + CALL
        joined = self.read(text, rules=Rules(max_hold=55))
        self.assertEqual('<tool_call>{"x": "' + "y" * 60, joined.content)
        self.assertEqual(1, len(joined.calls))

    def test_white_space_behind_the_tag(self) -> None:
        for spaces, calls in ((10, 1), (80, 0)):
            text = CALL.replace("\n", " " * spaces, 1)
            self.assertEqual(calls, len(self.read(text, rules=Rules(max_hold=70)).calls))


class ThinkCallTests(ReadCase):
    """A call in a think block, when no other came."""

    RULES = Rules(think_calls=True)

    def test_is_added_at_the_end(self) -> None:
        for call in ALL:
            for think in (
                f"<think>\n{call}\n</think>",
                f"<think>\n{call}",
                f"<think>{call} x</think> B",
            ):
                joined, tally = self.read_counting(think, rules=self.RULES)
                self.assertEqual(think, joined.content)
                self.assertEqual(1, len(joined.calls))
                self.assertTrue(joined.calls[0].ended)
                self.assertEqual({"calls": 1, "think_calls": 1}, tally)

    def test_its_text_may_be_reasoning(self) -> None:
        joined = self.read(
            f"x\n{CALL}\n</think>B",
            rules=Rules(think_calls=True, think_prefilled=True, reasoning="split"),
        )
        self.assertEqual(("B", f"x\n{CALL}\n"), (joined.content, joined.reasoning))
        self.assertEqual([Call("now", '{"a": 1}', ended=True)], joined.calls)

    def test_not_without_the_option(self) -> None:
        self.assert_text(f"<think>{CALL}</think>")

    def test_the_last_one(self) -> None:
        joined = self.read(
            f"<think>{CALL}</think><think>{LINE.replace('1', '2')}", rules=self.RULES
        )
        self.assertEqual([Call("now", '{"a": 2}', ended=True)], joined.calls)

    def test_not_beside_another_call(self) -> None:
        joined = self.read(f"<think>{CALL}</think>{LINE.replace('1', '2')}", rules=self.RULES)
        self.assertEqual([Call("now", '{"a": 2}', ended=True)], joined.calls)

    def test_not_unless_complete_and_offered(self) -> None:
        for think in (
            f"<think>{CALL.replace('now', 'nope')}</think>",
            f'<think>{CALL[:-18]}"</think>',
            f"<think>`{CALL}`</think>".replace("\n", ""),
            "<think>x</think>",
        ):
            self.assert_text(think, rules=self.RULES)

    def test_not_when_cut_off(self) -> None:
        for reason in ("length", None):
            self.assert_text(f"<think>{CALL}</think>", rules=self.RULES, reason=reason)

    def test_is_bounded(self) -> None:
        rules = Rules(think_calls=True, max_hold=60)
        for size, calls in ((52, 1), (53, 0)):
            call = f'{{"name": "now", "arguments": {{"a": "{"x" * (size - 1)}"}}}}'
            text = f"<think><tool_call>{call}</tool_call></think>"
            self.assertEqual(calls, len(self.read(text, rules=rules).calls), size)


class EndTests(ReadCase):
    def test_reasons(self) -> None:
        text = "<tool_call>" + CALL[12:-14]
        for reason, ended in (
            ("stop", True),
            ("tool_calls", True),
            ("function_call", True),
            ("length", False),
            ("content_filter", False),
            ("abort", False),
            (None, False),
        ):
            joined = self.read(text, reason=reason)
            self.assertEqual(ended, joined.calls[0].ended, reason)

    def test_nothing_at_all(self) -> None:
        self.assertEqual([], ToolCallParser(OFFER).finish("stop"))

    def test_what_is_no_call_is_shown(self) -> None:
        for text in (
            "<tool_call>{",
            "A <tool",
            "TOOL_CALL: {",
            "<function=now",
            "A \n<tool_call> ",
        ):
            for reason in ("length", None):
                self.assert_text(text, reason=reason)

    def test_a_call_in_what_is_given_back_at_the_end(self) -> None:
        joined = self.read('<tool_call>{"x": "<tool_call>{"name": "now"')
        self.assertEqual('<tool_call>{"x": "', joined.content)
        self.assertEqual([Call("now", "{}", ended=True)], joined.calls)

    def test_text_that_is_read_again_and_again(self) -> None:
        # Without bounds each of these would read all that follows it: minutes, not moments.
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
            self.assertEqual(text, say([text])[0].content)

    def test_no_opener_copies_all_that_follows_it(self) -> None:
        listens = Listens()
        text = "<tool_call>" * 5000
        joined, _ = say([text], rules=Rules(formats=(listens,)))
        self.assertEqual(text, joined.content)
        self.assertEqual(5000, len(listens.heard))
        self.assertLessEqual(max(listens.heard), MAX_PIECE)

    def test_openers_that_follow_one_another(self) -> None:
        self.assert_text("<tool_call>" * 50)
        self.assert_text("<tool_call>{" * 20)


class Listens:
    """A format that refuses everything, and notes how many characters it was given at once."""

    name = "listens"
    openers = (Opener("<tool_call>"),)

    def __init__(self) -> None:
        self.heard: list[int] = []

    def reader(self, opening: Opening) -> Listens:
        return self

    def feed(self, text: str, out: list[Delta]) -> Refused:
        self.heard.append(len(text))
        return Refused()

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused:
        self.heard.append(0)
        return Refused()


class LongKeyTests(ReadCase):
    def test_are_not_kept(self) -> None:
        parser = ToolCallParser(OFFER)
        parser.feed('<tool_call>{"name": "now", "arguments": {}, "')
        for _ in range(100):
            parser.feed("a" * 1000)
        kept = parser._reader._object._skipped  # type: ignore[attr-defined]
        self.assertLessEqual(sum(map(len, kept)), MAX_WORD + 1)
        text = f'<tool_call>{{"name": "now", "{"a" * 10_000}": 1, "args": {{"b": 1}}}}</tool_call>'
        for pieces in ([text], [*text]):
            self.assertEqual([Call("now", '{"b": 1}', ended=True)], say(pieces)[0].calls)


class CommentTests(ReadCase):
    def test_room_in_front_of_the_call(self) -> None:
        for size, calls in ((MAX_LOOSE_COMMENTS, 1), (MAX_LOOSE_COMMENTS + 1, 0)):
            one, other = "x" * (size - 20), "y" * 20
            text = f'<tool_call>{{//{one}\n"a": [//{other}\n], "name": "now"}}</tool_call>'
            for pieces in ([text], [*text]):
                self.assertEqual(calls, len(say(pieces)[0].calls))

    def test_room_in_the_arguments(self) -> None:
        comment = "/*" + "x" * MAX_LOOSE_COMMENTS + "*/"
        text = f'{{"name": "now", "arguments": {{{comment}"a": 1}}}}'
        for opener in ("<tool_call>", "TOOL_CALL:"):
            for pieces in ([opener + text], [*(opener + text)]):
                self.assertEqual('{"a": 1}', say(pieces)[0].calls[0].arguments)

    def test_the_opener_is_no_key(self) -> None:
        inner = LINE.removeprefix("TOOL_CALL: ")
        self.assertEqual("TOOL_CALL: {", self.read("TOOL_CALL: {\n" + LINE).content.rstrip())
        for text in ("{TOOL_CALL: 1}", "{a: {TOOL_CALL: 1}}", "{arguments: {TOOL_CALL: 1}}"):
            self.assert_text("TOOL_CALL: " + text)
        self.assert_call(f"TOOL_CALL: {{'TOOL_CALL': 1, {inner[1:]}", "now", '{"a": 1}')
        self.assert_call(
            "TOOL_CALL: {name: 'now', args: {TOOL_CALL: 1}}", "now", '{"TOOL_CALL": 1}'
        )


class StreamingTests(ReadCase):
    def test_deltas_of_a_call(self) -> None:
        parser = ToolCallParser(OFFER)
        said = [delta for char in f"A {CALL}" for delta in parser.feed(char)]
        self.assertEqual(
            [
                Text("A"),
                CallBegan("now", "json"),
                *(CallArguments(char) for char in '{"a": 1}'),
                CallEnded(),
            ],
            said,
        )

    def test_deltas_are_merged(self) -> None:
        parser = ToolCallParser(OFFER)
        self.assertEqual(
            [
                Text("A <tool_call> B"),
                CallBegan("now", "line"),
                CallArguments('{"a": 1'),
                CallArguments("}"),
            ],
            parser.feed(f"A <tool_call> B\n{LINE}")[:-1],
        )

    def test_spaces_at_the_end_wait_for_what_follows(self) -> None:
        parser = ToolCallParser(OFFER, Rules(max_hold=3))
        said = [
            parser.feed(text) for text in ("one", "two ", "three  ", "four", "five     ", "six")
        ]
        texts = ["one", "two", " three", "  four", "five     ", "six"]
        self.assertEqual(said, [[Text(text)] for text in texts])

    def test_what_need_not_be_fed(self) -> None:
        parser = ToolCallParser(OFFER)
        self.assertIsNone(parser.verbatim)
        parser.feed("one")
        self.assertFalse(parser.in_call)
        for text, passes in (("two", 1), ("two ", 0), ("", 0), ("<t", 0), ("two\n", 0)):
            assert parser.verbatim is not None
            self.assertEqual(parser.verbatim.text.fullmatch(text) is not None, passes, text)
        parser.feed("two ")
        self.assertIsNone(parser.verbatim)
        parser.feed("three" + XML.partition("</parameter>")[0])
        self.assertTrue(parser.in_call)
        more = (("x < y", 1), ("a <br>", 1), ("</", 0), ("<p", 0), ("a <", 0), ("<<", 0))
        for text, passes in (
            ("y", 1),
            ("y ", 1),
            ("<", 0),
            ("y\n", 0),
            ("y\nz", 1),
            ('"', 1),
            *more,
        ):
            assert parser.verbatim is not None
            self.assertEqual(parser.verbatim.text.fullmatch(text) is not None, passes, text)
        counting = ToolCallParser(Offer({}, translate=False))
        self.assertEqual(counting.feed("one"), [Text("one")])
        self.assertIsNone(counting.verbatim)

    def test_choices_do_not_mix(self) -> None:
        one, other = ToolCallParser(OFFER), ToolCallParser(OFFER)
        texts = f"A {CALL} B", f"`x\n{XML}\nD"
        said: tuple[list[Delta], list[Delta]] = ([], [])
        for chars in zip(*(text.ljust(120) for text in texts), strict=True):
            said[0].extend(one.feed(chars[0]))
            said[1].extend(other.feed(chars[1]))
        for parser, deltas, text in zip((one, other), said, texts, strict=True):
            deltas.extend(parser.finish("stop"))
            self.assertEqual(say([text.ljust(120)])[0], Joined.of(deltas))


class Shouted:
    """A format for the test: `!NAME!`, and `!NAME?` for a call that is followed by another."""

    name = "shouted"
    openers = (Opener("!"), Opener("<tool_call>"))

    def reader(self, opening: Opening) -> CallReader:
        return ShoutedReader(opening)


class ShoutedReader:
    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._name = ""

    def feed(self, text: str, out: list[Delta]) -> Refused | Ended | None:
        for at, char in enumerate(text):
            if char in "!?" and self._name:
                out += [CallBegan(self._name), CallArguments("{}"), CallEnded()]
                again = ShoutedReader(self._opening) if char == "?" else None
                return Ended(text[at + 1 :], again)
            if not char.isalpha():
                return Refused()
            self._name += char
        return None

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused | Ended | LeftOpen:
        if whole and self._name:
            out += [CallBegan(self._name), CallArguments("{}"), CallEnded()]
            return Ended("")
        return Refused()


class FormatTests(ReadCase):
    """Formats of others."""

    RULES = Rules(formats=(*BUILT_IN, Shouted()))

    def test_openers_of_their_own(self) -> None:
        joined = self.read("A !now! B !now?now! C! D", rules=self.RULES)
        self.assertEqual("A B C! D", joined.content)
        self.assertEqual(["shouted"] * 3, joined.formats)
        self.assertEqual([Call("now", "{}", ended=True)] * 3, joined.calls)

    def test_shared_openers(self) -> None:
        joined = self.read(f"<tool_call>now! {CALL} {XML} <tool_call>{{x", rules=self.RULES)
        self.assertEqual(["shouted", "json", "xml"], joined.formats)
        self.assertEqual("<tool_call>{x", joined.content)

    def test_asked_in_turn_at_the_end(self) -> None:
        joined = self.read("A <tool_call>now", rules=self.RULES)
        self.assertEqual(("A", ["shouted"]), (joined.content, joined.formats))

    def test_refusal_behind_a_call(self) -> None:
        joined = self.read("!now? x", rules=self.RULES)
        self.assertEqual("x", joined.content)

    def test_cuts_of_everything(self) -> None:
        text = f"!now!{CALL}\n{LINE}<tool_call>a?b! {XML}! x"
        whole = say([text], rules=self.RULES)
        for pieces in cuts(text):
            self.assertEqual(whole, say(pieces, rules=self.RULES))
