"""What one choice becomes, for what its parser finds; the parser here does what it is told."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.chunks import Choice, Delta, Function, Piece, Rewritten, ToolCall
from blockops.api.report import Report
from blockops.toolcalls.events import (
    CallArguments,
    CallBegan,
    CallEnded,
    Reasoning,
    Text,
)
from blockops.toolcalls.events import Delta as Found
from blockops.toolcalls.options import Rules
from blockops.toolcalls.tools import Offer
from blockops.translation import choice as rewrite
from blockops.translation.choice import Rewriter, StructuredCalls
from tests.api.requests import counted_ids

FIRST = "call_" + "0" * 24
SECOND = "call_" + "0" * 23 + "1"
BEGIN: list[Found] = [CallBegan("f")]
CALL: list[Found] = [CallBegan("f"), CallArguments("{}"), CallEnded()]


class ScriptedParser:
    """A parser that finds in each text what its script says, and in any other text that text."""

    def __init__(self, script: dict[str, list[Found]], end: list[Found]) -> None:
        self.script = script
        self.end = end
        self.reasons: list[str | None] = []
        self.tally = Counter(scripted=1)

    def passes(self, text: str) -> bool:
        return False

    def feed(self, text: str) -> list[Found]:
        return self.script.get(text, [Text(text)])

    def finish(self, reason: str | None) -> list[Found]:
        self.reasons.append(reason)
        return self.end


def said(content: str | None = None, finish: str | None = None, **fields: Any) -> Choice:
    return Choice(0, delta=Delta(content=content, **fields), finish_reason=finish)


def began(index: int, call_id: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": ""}
    return {
        "tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]
    }


def arguments(text: str, index: int = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


class RewriterTestCase(SynchronousTestCase):
    def rewriter(
        self,
        *end: Found,
        forced: str | None = None,
        role: bool = True,
        **script: list[Found],
    ) -> Rewriter:
        """Return a rewriter whose parser is scripted; with `role` its first delta is behind it."""
        self.parser = ScriptedParser(script, list(end))
        self.patch(rewrite, "ToolCallParser", lambda *_: self.parser)
        self.report = Report()
        made = Rewriter(0, Offer(forced=forced), Rules(), counted_ids(), self.report)
        if role:
            self.assertIsNone(made.take(said("", role="assistant")))
        return made

    def pieces(self, becomes: Rewritten | list[Piece] | None) -> list[tuple[dict[str, Any], Any]]:
        assert becomes is not None
        pieces = becomes.pieces if isinstance(becomes, Rewritten) else becomes
        return [(piece.delta, piece.finish_reason) for piece in pieces]


class TextTests(RewriterTestCase):
    def test_text_goes_as_it_came(self) -> None:
        choice = self.rewriter()
        self.assertIsNone(choice.take(said("Hello")))
        self.assertIsNone(choice.take(said("")))
        self.assertIsNone(choice.take(said(None)))
        self.assertIsNone(choice.take(said("!", "stop")))
        self.assertEqual(self.report.finish_reasons, {0: "stop"})

    def test_equal_text_is_not_the_same_text(self) -> None:
        """Text that the parser held and gives back now is new, even if it reads alike."""
        choice = self.rewriter(ab=[Text("ab"[:1] + "b")])
        self.assertEqual(self.pieces(choice.take(said("ab"))), [({"content": "ab"}, None)])

    def test_held_text(self) -> None:
        choice = self.rewriter(a=[], b=[Text("ab")])
        self.assertEqual(self.pieces(choice.take(said("a"))), [])
        self.assertEqual(self.pieces(choice.take(said("b"))), [({"content": "ab"}, None)])

    def test_held_text_comes_before_the_end(self) -> None:
        choice = self.rewriter(Text("<t"))
        self.assertEqual(
            self.pieces(choice.take(said(None, "stop"))), [({"content": "<t"}, None), ({}, "stop")]
        )
        self.assertEqual(self.parser.reasons, ["stop"])

    def test_text_of_the_end_joins_its_neighbour(self) -> None:
        """White space at the end is no delta of its own."""
        choice = self.rewriter(Text("\n"), a=[Text("a")])
        self.assertEqual(
            self.pieces(choice.take(said("a", "length"))),
            [({"content": "a\n"}, None), ({}, "length")],
        )

    def test_reasoning(self) -> None:
        choice = self.rewriter(a=[Reasoning("1"), Reasoning("2"), Text("b")])
        self.assertEqual(
            self.pieces(choice.take(said("a"))),
            [({"reasoning_content": "12"}, None), ({"content": "b"}, None)],
        )

    def test_empty_finish_reason_is_none(self) -> None:
        choice = self.rewriter()
        self.assertIsNone(choice.take(said("a", "")))
        self.assertFalse(choice.finished)

    def test_missing_delta(self) -> None:
        choice = self.rewriter()
        self.assertEqual(self.pieces(choice.take(Choice(finish_reason="stop"))), [({}, "stop")])

    def test_nothing_behind_the_end(self) -> None:
        choice = self.rewriter()
        choice.take(said("a", "stop"))
        for late in (said("b"), said(None, "stop"), Choice()):
            self.assertEqual(choice.take(late), Rewritten([], "nowhere"))
        self.assertEqual(self.report.tally["after_finish"], 1)
        self.assertEqual(choice.complete(), [])
        self.assertEqual(choice.release(), [])

    def test_tally_is_told_once(self) -> None:
        choice = self.rewriter()
        choice.take(said(None, "stop"))
        choice.release()
        self.assertEqual(self.report.tally, Counter(scripted=1))


class RoleTests(RewriterTestCase):
    def test_role_is_added(self) -> None:
        choice = self.rewriter(role=False)
        self.assertEqual(
            self.pieces(choice.take(said("a"))), [({"role": "assistant", "content": "a"}, None)]
        )
        self.assertIsNone(choice.take(said("b")))

    def test_role_is_added_to_whatever_comes(self) -> None:
        role = {"role": "assistant"}
        cases: list[tuple[Choice, list[Any]]] = [
            (said(None), [(role, None)]),
            (said(None, "stop"), [(role, "stop")]),
            (Choice(), [(role, None)]),
            (said("held"), [(role, None)]),
            (said("call"), [({**role, **began(0, FIRST)}, None)]),
            (said(None, tool_calls=[ToolCall(0)]), [(role, None)]),
        ]
        for choice, becomes in cases:
            rewriter = self.rewriter(role=False, held=[], call=BEGIN)
            self.assertEqual(self.pieces(rewriter.take(choice)), becomes)

    def test_own_role_stays(self) -> None:
        choice = self.rewriter(role=False, held=[])
        self.assertEqual(
            self.pieces(choice.take(said("held", role="robot"))), [({"role": "robot"}, None)]
        )

    def test_a_role_is_told_once(self) -> None:
        choice = self.rewriter()
        again = {"role": "assistant"}
        self.assertEqual(self.pieces(choice.take(said("a", **again))), [({"content": "a"}, None)])
        self.assertEqual(self.pieces(choice.take(said(None, **again))), [({}, None)])
        self.assertEqual(self.pieces(choice.take(said(None, "stop", **again))), [({}, "stop")])

    def test_begin(self) -> None:
        choice = self.rewriter(role=False)
        self.assertEqual(self.pieces(choice.begin()), [({"role": "assistant"}, None)])
        self.assertEqual(choice.begin(), [])
        self.assertIsNone(choice.take(said("a")))


class CallTests(RewriterTestCase):
    def test_deltas_of_a_call(self) -> None:
        choice = self.rewriter(a=BEGIN, b=[CallArguments("{")], c=[CallArguments("}"), CallEnded()])
        self.assertEqual(self.pieces(choice.take(said("a"))), [(began(0, FIRST), None)])
        self.assertEqual(self.pieces(choice.take(said("b"))), [(arguments("{"), None)])
        self.assertEqual(self.pieces(choice.take(said("c"))), [(arguments("}"), None)])
        self.assertEqual(self.pieces(choice.take(said(None, "stop"))), [({}, "tool_calls")])
        self.assertEqual(self.report.names, ["f"])
        self.assertEqual(self.report.finish_reasons, {0: "tool_calls"})

    def test_two_calls_in_one_delta(self) -> None:
        choice = self.rewriter(a=[Text("x"), *CALL, *CALL])
        self.assertEqual(
            self.pieces(choice.take(said("a", "stop"))),
            [
                ({"content": "x"}, None),
                (began(0, FIRST), None),
                (arguments("{}"), None),
                (began(1, SECOND), None),
                (arguments("{}", 1), None),
                ({}, "tool_calls"),
            ],
        )
        self.assertEqual(self.report.calls, 2)

    def test_finish_reasons(self) -> None:
        """Said by the backend, told to the client, with a whole call in between."""
        for reason, told in {
            "stop": "tool_calls",
            "eos": "tool_calls",
            "tool_calls": "tool_calls",
            "length": "length",
            "content_filter": "content_filter",
            "abort": "abort",
        }.items():
            choice = self.rewriter(a=CALL)
            choice.take(said("a"))
            becomes = choice.take(said(None, reason))
            if told == reason:
                self.assertIsNone(becomes)
            else:
                self.assertEqual(self.pieces(becomes), [({}, told)])
            self.assertEqual(self.report.finish_reasons, {0: told})

    def test_reason_without_a_call(self) -> None:
        """A client that looks for the call which the reason speaks of finds none."""
        choice = self.rewriter()
        choice.take(said("a"))
        self.assertEqual(self.pieces(choice.take(said(None, "tool_calls"))), [({}, "stop")])

    def test_parser_is_told_only_what_it_knows(self) -> None:
        choice = self.rewriter()
        self.assertIsNone(choice.take(said(None, "abort")))
        self.assertEqual(self.parser.reasons, [None])

    def test_forced_by_name(self) -> None:
        choice = self.rewriter(forced="f", a=CALL)
        choice.take(said("a"))
        self.assertIsNone(choice.take(said(None, "stop")))

    def test_open_call_never_looks_whole(self) -> None:
        for reason in ("stop", "tool_calls"):
            choice = self.rewriter(a=BEGIN)
            choice.take(said("a"))
            self.assertEqual(self.pieces(choice.take(said(None, reason))), [({}, "length")])

    def test_call_at_the_end(self) -> None:
        choice = self.rewriter(*CALL)
        self.assertEqual(
            self.pieces(choice.take(said(None, "stop"))),
            [(began(0, FIRST), None), (arguments("{}"), None), ({}, "tool_calls")],
        )


class EndTests(RewriterTestCase):
    def test_complete(self) -> None:
        """The reason that is told where the backend gave none."""
        whole, rest = ToolCall(0, Function("g", "{}")), ToolCall(0, Function(None, "{"))
        cases: list[tuple[list[Choice], str | None, str]] = [
            ([], None, "stop"),
            ([said("text")], None, "stop"),
            ([said("call")], None, "tool_calls"),
            ([said("call")], "f", "stop"),
            ([said("open")], None, "length"),
            ([said(tool_calls=[whole])], None, "tool_calls"),
            ([said(tool_calls=[whole, rest])], None, "length"),
        ]
        for choices, forced, told in cases:
            rewriter = self.rewriter(forced=forced, call=CALL, open=BEGIN)
            for choice in choices:
                rewriter.take(choice)
            self.assertEqual(self.pieces(rewriter.complete()), [({}, told)])
            self.assertTrue(rewriter.finished)
            self.assertEqual(self.report.finish_reasons, {0: told})

    def test_complete_from_the_beginning(self) -> None:
        choice = self.rewriter(role=False)
        self.assertEqual(
            self.pieces(choice.complete()), [({"role": "assistant"}, None), ({}, "stop")]
        )

    def test_held_text_is_completed(self) -> None:
        choice = self.rewriter(Text("<t"))
        self.assertEqual(self.pieces(choice.complete()), [({"content": "<t"}, None), ({}, "stop")])
        self.assertEqual(self.parser.reasons, [None])

    def test_release(self) -> None:
        choice = self.rewriter(Text("<t"))
        self.assertEqual(self.pieces(choice.release()), [({"content": "<t"}, None)])
        self.assertEqual(self.report.finish_reasons, {})
        self.assertEqual(choice.release(), [])
        self.assertEqual(choice.take(said("late")), Rewritten([], "nowhere"))

    def test_release_from_the_beginning(self) -> None:
        choice = self.rewriter(Text("x"), role=False)
        self.assertEqual(
            self.pieces(choice.release()), [({"role": "assistant"}, None), ({"content": "x"}, None)]
        )
        self.assertEqual(self.rewriter(role=False).release(), [])

    def test_release_behind_structured_calls(self) -> None:
        choice = self.rewriter()
        choice.take(said(tool_calls=[ToolCall(0, Function("g"))]))
        self.assertEqual(choice.release(), [])
        self.assertEqual(self.parser.reasons, [None])


class StructuredTests(RewriterTestCase):
    """The backend has calls of its own."""

    GIVEN = ToolCall(0, Function("g", "{}"))

    def test_untouched(self) -> None:
        choice = self.rewriter(b=CALL)
        self.assertIsNone(choice.take(said("a")))
        self.assertIsNone(choice.take(said(tool_calls=[self.GIVEN])))
        self.assertIsNone(choice.take(said("b")))
        self.assertIsNone(choice.take(said(tool_calls=[ToolCall(0, Function(None, "}"))])))
        self.assertIsNone(choice.take(said(None, "tool_calls")))
        self.assertEqual(self.report.names, ["g"])

    def test_all_in_one(self) -> None:
        choice = self.rewriter()
        self.assertIsNone(choice.take(said("a", "tool_calls", tool_calls=[self.GIVEN])))
        self.assertTrue(choice.finished)

    def test_empty_list_is_none(self) -> None:
        choice = self.rewriter(b=CALL)
        self.assertIsNone(choice.take(said("a", tool_calls=[])))
        self.assertEqual(len(self.pieces(choice.take(said("b")))), 2)

    def test_index_goes_on_from_ours(self) -> None:
        choice = self.rewriter(a=CALL)
        choice.take(said("a"))
        self.assertEqual(choice.take(said(tool_calls=[self.GIVEN])), Rewritten([], shift=1))
        self.assertEqual(
            choice.take(said("t", tool_calls=[self.GIVEN])),
            Rewritten([Piece({"content": "t"})], shift=1),
        )
        self.assertEqual(
            choice.take(said(None, "stop")), Rewritten([Piece({}, "tool_calls")], shift=1)
        )
        self.assertEqual(self.report.names, ["f", "g"])

    def test_leak_vanishes(self) -> None:
        for leak in ("<tool_call", "\n\n<tool", "<tool_call>\n", "\n\n", "<tool_cal"):
            choice = self.rewriter(Text(leak))
            self.assertIsNone(choice.take(said(tool_calls=[self.GIVEN])), leak)

    def test_text_does_not_vanish(self) -> None:
        for held in ("<", "<too", "T", "<tool_call>{", "<tool_call><", "a <tool_call"):
            choice = self.rewriter(Text(held))
            self.assertEqual(
                choice.take(said(tool_calls=[self.GIVEN])),
                Rewritten([Piece({"content": held})]),
            )

    def test_held_text_and_the_end(self) -> None:
        choice = self.rewriter(Text("T"))
        self.assertEqual(
            choice.take(said("a", "tool_calls", tool_calls=[self.GIVEN])),
            Rewritten([Piece({"content": "aT"}), Piece({}, "tool_calls")]),
        )

    def test_held_reasoning_does_not_vanish(self) -> None:
        choice = self.rewriter(Reasoning("hm"))
        self.assertEqual(
            choice.take(said(tool_calls=[self.GIVEN])),
            Rewritten([Piece({"reasoning_content": "hm"})]),
        )

    def test_our_open_call_before_it(self) -> None:
        choice = self.rewriter(a=BEGIN)
        choice.take(said("a"))
        becomes = choice.take(said(None, "tool_calls", tool_calls=[self.GIVEN]))
        self.assertEqual(becomes, Rewritten([Piece({}, "length")], shift=1))

    def test_function_call(self) -> None:
        """The API's older shape passes."""
        choice = self.rewriter(a=CALL)
        self.assertIsNone(choice.take(said(function_call=Function("g", ""))))
        self.assertIsNone(choice.take(said(function_call=Function(None, "{}"))))
        self.assertIsNone(choice.take(said("a")))
        self.assertIsNone(choice.take(said(None, "function_call")))
        self.assertEqual(self.report.names, ["g"])


class StructuredCallsTests(SynchronousTestCase):
    """What is remembered of calls that the backend structured."""

    def note(self, *calls: ToolCall) -> tuple[list[str], bool]:
        noted = StructuredCalls()
        names = [name for call in calls for name in noted.note(Delta(tool_calls=[call]))]
        return names, noted.whole

    def test_none(self) -> None:
        self.assertEqual(self.note(), ([], True))
        self.assertFalse(StructuredCalls().begun)

    def test_name_repeated(self) -> None:
        calls = [ToolCall(0, Function("f", "{")), ToolCall(0, Function("f", "}"))]
        self.assertEqual(self.note(*calls), (["f"], True))

    def test_without_index(self) -> None:
        calls = [
            ToolCall(None, Function("f", "{}")),
            ToolCall(None, Function("g", "{")),
            ToolCall(None, Function(None, "}")),
        ]
        self.assertEqual(self.note(*calls), (["f", "g"], True))

    def test_without_function(self) -> None:
        self.assertEqual(self.note(ToolCall(0)), ([], False))

    def test_not_whole(self) -> None:
        for text in ("", '{"a": ', "[]", "[" * 100_000):
            self.assertEqual(self.note(ToolCall(0, Function("f", text))), (["f"], False))

    def test_too_long_to_tell(self) -> None:
        many = [ToolCall(0, Function("f", '{"a": "'))]
        many += [ToolCall(0, Function(None, "x" * 1000))] * 1100
        many += [ToolCall(0, Function(None, '"}'))]
        self.assertEqual(self.note(*many), (["f"], False))
