"""The rewrites of one choice for the deltas of a scripted parser."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.answer import (
    AnswerEvent,
    BackendCalls,
    ContentDelta,
    Finished,
    PartDropped,
    RoleStarted,
)
from blockops.api.answer import ReasoningDelta as ReasoningEvent
from blockops.api.chat.chunks import ChunkChoice, Delta, Function, ToolCall
from blockops.api.chat.encoder import OutgoingDelta, to_deltas
from blockops.api.report import AnswerReport
from blockops.toolcalls.deltas import (
    CallArguments,
    CallFinished,
    CallStarted,
    ReasoningDelta,
    TextDelta,
)
from blockops.toolcalls.deltas import Delta as ParserDelta
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.tools import OfferedTools
from blockops.translation import choice as choice_module
from blockops.translation.choice import ChoiceTranslator
from blockops.translation.structured_calls import StructuredCalls
from tests.api.requests import counted_ids

FIRST = "call_" + "0" * 24
SECOND = "call_" + "0" * 23 + "1"
START: list[ParserDelta] = [CallStarted("f")]
CALL: list[ParserDelta] = [CallStarted("f"), CallArguments("{}"), CallFinished()]


class ScriptedParser:
    """A parser that returns scripted deltas for some texts, and passes other texts through."""

    def __init__(self, script: dict[str, list[ParserDelta]], end: list[ParserDelta]) -> None:
        self.script = script
        self.end = end
        self.reasons: list[str | None] = []
        self.counters = Counter(scripted=1)

    def passes(self, text: str) -> bool:
        return False

    def feed(self, text: str) -> list[ParserDelta]:
        return self.script.get(text, [TextDelta(text)])

    def finish(self, reason: str | None) -> list[ParserDelta]:
        self.reasons.append(reason)
        return self.end


def part(content: str | None = None, finish: str | None = None, **fields: Any) -> ChunkChoice:
    return ChunkChoice(0, delta=Delta(content=content, **fields), finish_reason=finish)


def started_call(index: int, call_id: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": ""}
    return {
        "tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]
    }


def arguments(text: str, index: int = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


class ChoiceTestCase(SynchronousTestCase):
    def translator(
        self,
        *end: ParserDelta,
        forced: str | None = None,
        role: bool = True,
        **script: list[ParserDelta],
    ) -> ChoiceTranslator:
        """Return a translator with a scripted parser; with `role` it has received the role."""
        self.parser = ScriptedParser(script, list(end))
        self.patch(choice_module, "ToolCallParser", lambda *_: self.parser)
        self.report = AnswerReport()
        translator = ChoiceTranslator(
            0, OfferedTools(forced_tool=forced), TranslationOptions(), counted_ids(), self.report
        )
        if role:
            self.assertIsNone(translator.receive(part("", role="assistant")))
        return translator

    def deltas(self, events: list[AnswerEvent] | None) -> list[OutgoingDelta]:
        assert events is not None
        return to_deltas(events)


class TextTests(ChoiceTestCase):
    def test_text_passes_unchanged(self) -> None:
        choice = self.translator()
        self.assertIsNone(choice.receive(part("Hello")))
        self.assertIsNone(choice.receive(part("")))
        self.assertIsNone(choice.receive(part(None)))
        self.assertIsNone(choice.receive(part("!", "stop")))
        self.assertEqual(self.report.finish_reasons, {0: "stop"})

    def test_equal_text_is_not_the_same_text(self) -> None:
        """Text that the parser has held back is new, even if it is equal."""
        choice = self.translator(ab=[TextDelta("ab"[:1] + "b")])
        self.assertEqual(self.deltas(choice.receive(part("ab"))), [({"content": "ab"}, None)])

    def test_held_text(self) -> None:
        choice = self.translator(a=[], b=[TextDelta("ab")])
        self.assertEqual(self.deltas(choice.receive(part("a"))), [])
        self.assertEqual(self.deltas(choice.receive(part("b"))), [({"content": "ab"}, None)])

    def test_held_text_comes_before_the_end(self) -> None:
        choice = self.translator(TextDelta("<t"))
        self.assertEqual(
            self.deltas(choice.receive(part(None, "stop"))),
            [({"content": "<t"}, None), ({}, "stop")],
        )
        self.assertEqual(self.parser.reasons, ["stop"])

    def test_text_at_the_end_is_joined_with_its_neighbour(self) -> None:
        """White space at the end gets no separate delta."""
        choice = self.translator(TextDelta("\n"), a=[TextDelta("a")])
        self.assertEqual(
            self.deltas(choice.receive(part("a", "length"))),
            [({"content": "a\n"}, None), ({}, "length")],
        )

    def test_reasoning(self) -> None:
        choice = self.translator(a=[ReasoningDelta("12"), TextDelta("b")])
        self.assertEqual(
            self.deltas(choice.receive(part("a"))),
            [({"reasoning_content": "12"}, None), ({"content": "b"}, None)],
        )

    def test_empty_finish_reason_is_none(self) -> None:
        choice = self.translator()
        self.assertIsNone(choice.receive(part("a", "")))
        self.assertFalse(choice.is_finished)

    def test_missing_delta(self) -> None:
        choice = self.translator()
        self.assertEqual(
            self.deltas(choice.receive(ChunkChoice(finish_reason="stop"))), [({}, "stop")]
        )

    def test_nothing_after_the_end(self) -> None:
        choice = self.translator()
        choice.receive(part("a", "stop"))
        for late in (part("b"), part(None, "stop"), ChunkChoice()):
            self.assertEqual(choice.receive(late), [PartDropped(0)])
        self.assertEqual(self.report.counters["after_finish"], 1)
        self.assertEqual(choice.finish(), [])
        self.assertEqual(choice.flush(), [])

    def test_counters_are_reported_once(self) -> None:
        choice = self.translator()
        choice.receive(part(None, "stop"))
        choice.flush()
        self.assertEqual(self.report.counters, Counter(scripted=1))


class RoleTests(ChoiceTestCase):
    def test_role_is_added(self) -> None:
        choice = self.translator(role=False)
        self.assertEqual(
            self.deltas(choice.receive(part("a"))), [({"role": "assistant", "content": "a"}, None)]
        )
        self.assertIsNone(choice.receive(part("b")))

    def test_role_is_added_to_any_part(self) -> None:
        role = {"role": "assistant"}
        cases: list[tuple[ChunkChoice, list[Any]]] = [
            (part(None), [(role, None)]),
            (part(None, "stop"), [(role, "stop")]),
            (ChunkChoice(), [(role, None)]),
            (part("held"), [(role, None)]),
            (part("call"), [({**role, **started_call(0, FIRST)}, None)]),
            (part(None, tool_calls=[ToolCall(0)]), [(role, None)]),
        ]
        for choice, rewrite in cases:
            translator = self.translator(role=False, held=[], call=START)
            self.assertEqual(self.deltas(translator.receive(choice)), rewrite)

    def test_role_of_the_backend_is_kept(self) -> None:
        choice = self.translator(role=False, held=[])
        self.assertEqual(
            self.deltas(choice.receive(part("held", role="robot"))), [({"role": "robot"}, None)]
        )

    def test_role_is_sent_once(self) -> None:
        choice = self.translator()
        again = {"role": "assistant"}
        self.assertEqual(
            self.deltas(choice.receive(part("a", **again))), [({"content": "a"}, None)]
        )
        self.assertEqual(choice.receive(part(None, **again)), [])
        self.assertEqual(self.deltas(choice.receive(part(None, "stop", **again))), [({}, "stop")])

    def test_start(self) -> None:
        choice = self.translator(role=False)
        self.assertEqual(self.deltas(choice.start()), [({"role": "assistant"}, None)])
        self.assertEqual(choice.start(), [])
        self.assertIsNone(choice.receive(part("a")))


class CallTests(ChoiceTestCase):
    def test_deltas_of_a_call(self) -> None:
        choice = self.translator(
            a=START, b=[CallArguments("{")], c=[CallArguments("}"), CallFinished()]
        )
        self.assertEqual(self.deltas(choice.receive(part("a"))), [(started_call(0, FIRST), None)])
        self.assertEqual(self.deltas(choice.receive(part("b"))), [(arguments("{"), None)])
        self.assertEqual(self.deltas(choice.receive(part("c"))), [(arguments("}"), None)])
        self.assertEqual(self.deltas(choice.receive(part(None, "stop"))), [({}, "tool_calls")])
        self.assertEqual(self.report.tool_names, ["f"])
        self.assertEqual(self.report.finish_reasons, {0: "tool_calls"})

    def test_two_calls_in_one_delta(self) -> None:
        choice = self.translator(a=[TextDelta("x"), *CALL, *CALL])
        self.assertEqual(
            self.deltas(choice.receive(part("a", "stop"))),
            [
                ({"content": "x"}, None),
                (started_call(0, FIRST), None),
                (arguments("{}"), None),
                (started_call(1, SECOND), None),
                (arguments("{}", 1), None),
                ({}, "tool_calls"),
            ],
        )
        self.assertEqual(self.report.calls, 2)

    def test_finish_reasons(self) -> None:
        """The backend's reason and the client's, after a complete call."""
        for reason, expected in {
            "stop": "tool_calls",
            "eos": "tool_calls",
            "tool_calls": "tool_calls",
            "length": "length",
            "content_filter": "content_filter",
            "abort": "abort",
        }.items():
            choice = self.translator(a=CALL)
            choice.receive(part("a"))
            rewrite = choice.receive(part(None, reason))
            if expected == reason:
                self.assertIsNone(rewrite)
            else:
                self.assertEqual(self.deltas(rewrite), [({}, expected)])
            self.assertEqual(self.report.finish_reasons, {0: expected})

    def test_reason_without_a_call(self) -> None:
        """A client would search for the call that the reason announces."""
        choice = self.translator()
        choice.receive(part("a"))
        self.assertEqual(self.deltas(choice.receive(part(None, "tool_calls"))), [({}, "stop")])

    def test_parser_gets_known_reasons_only(self) -> None:
        choice = self.translator()
        self.assertIsNone(choice.receive(part(None, "abort")))
        self.assertEqual(self.parser.reasons, [None])

    def test_forced_by_name(self) -> None:
        choice = self.translator(forced="f", a=CALL)
        choice.receive(part("a"))
        self.assertIsNone(choice.receive(part(None, "stop")))

    def test_open_call_never_looks_complete(self) -> None:
        for reason in ("stop", "tool_calls"):
            choice = self.translator(a=START)
            choice.receive(part("a"))
            self.assertEqual(self.deltas(choice.receive(part(None, reason))), [({}, "length")])

    def test_call_at_the_end(self) -> None:
        choice = self.translator(*CALL)
        self.assertEqual(
            self.deltas(choice.receive(part(None, "stop"))),
            [(started_call(0, FIRST), None), (arguments("{}"), None), ({}, "tool_calls")],
        )


class EndTests(ChoiceTestCase):
    def test_finish(self) -> None:
        """The reason for the client if the backend has sent none."""
        whole, rest = ToolCall(0, Function("g", "{}")), ToolCall(0, Function(None, "{"))
        cases: list[tuple[list[ChunkChoice], str | None, str]] = [
            ([], None, "stop"),
            ([part("text")], None, "stop"),
            ([part("call")], None, "tool_calls"),
            ([part("call")], "f", "stop"),
            ([part("open")], None, "length"),
            ([part(tool_calls=[whole])], None, "tool_calls"),
            ([part(tool_calls=[whole, rest])], None, "length"),
        ]
        for choices, forced, expected in cases:
            translator = self.translator(forced=forced, call=CALL, open=START)
            for choice in choices:
                translator.receive(choice)
            self.assertEqual(self.deltas(translator.finish()), [({}, expected)])
            self.assertTrue(translator.is_finished)
            self.assertEqual(self.report.finish_reasons, {0: expected})

    def test_finish_before_the_role(self) -> None:
        choice = self.translator(role=False)
        self.assertEqual(choice.finish(), [RoleStarted(0, "assistant"), Finished(0, "stop")])

    def test_finish_with_held_text(self) -> None:
        choice = self.translator(TextDelta("<t"))
        self.assertEqual(self.deltas(choice.finish()), [({"content": "<t"}, None), ({}, "stop")])
        self.assertEqual(self.parser.reasons, [None])

    def test_flush(self) -> None:
        choice = self.translator(TextDelta("<t"))
        self.assertEqual(self.deltas(choice.flush()), [({"content": "<t"}, None)])
        self.assertEqual(self.report.finish_reasons, {})
        self.assertEqual(choice.flush(), [])
        self.assertEqual(choice.receive(part("late")), [PartDropped(0)])

    def test_flush_before_the_role(self) -> None:
        choice = self.translator(TextDelta("x"), role=False)
        self.assertEqual(choice.flush(), [RoleStarted(0, "assistant"), ContentDelta(0, "x")])
        self.assertEqual(self.translator(role=False).flush(), [])

    def test_flush_after_structured_calls(self) -> None:
        choice = self.translator()
        choice.receive(part(tool_calls=[ToolCall(0, Function("g"))]))
        self.assertEqual(choice.flush(), [])
        self.assertEqual(self.parser.reasons, [None])


class BackendCallTests(ChoiceTestCase):
    """Calls structured by the backend."""

    BACKEND_CALL = ToolCall(0, Function("g", "{}"))

    def test_unchanged(self) -> None:
        choice = self.translator(b=CALL)
        self.assertIsNone(choice.receive(part("a")))
        self.assertIsNone(choice.receive(part(tool_calls=[self.BACKEND_CALL])))
        self.assertIsNone(choice.receive(part("b")))
        self.assertIsNone(choice.receive(part(tool_calls=[ToolCall(0, Function(None, "}"))])))
        self.assertIsNone(choice.receive(part(None, "tool_calls")))
        self.assertEqual(self.report.tool_names, ["g"])

    def test_all_in_one_part(self) -> None:
        choice = self.translator()
        self.assertIsNone(choice.receive(part("a", "tool_calls", tool_calls=[self.BACKEND_CALL])))
        self.assertTrue(choice.is_finished)

    def test_empty_list_is_no_call(self) -> None:
        choice = self.translator(b=CALL)
        self.assertIsNone(choice.receive(part("a", tool_calls=[])))
        self.assertEqual(len(self.deltas(choice.receive(part("b")))), 2)

    def test_index_follows_ours(self) -> None:
        choice = self.translator(a=CALL)
        choice.receive(part("a"))
        self.assertEqual(choice.receive(part(tool_calls=[self.BACKEND_CALL])), [BackendCalls(0, 1)])
        self.assertEqual(
            choice.receive(part("t", tool_calls=[self.BACKEND_CALL])),
            [ContentDelta(0, "t"), BackendCalls(0, 1)],
        )
        self.assertEqual(
            choice.receive(part(None, "stop")),
            [Finished(0, "tool_calls")],
        )
        self.assertEqual(self.report.tool_names, ["f", "g"])

    def test_leaked_tag_is_dropped(self) -> None:
        for tag in ("<tool_call", "\n\n<tool", "<tool_call>\n", "\n\n", "<tool_cal"):
            choice = self.translator(TextDelta(tag))
            self.assertIsNone(choice.receive(part(tool_calls=[self.BACKEND_CALL])), tag)

    def test_text_is_kept(self) -> None:
        for held in ("<", "<too", "T", "<tool_call>{", "<tool_call><", "a <tool_call"):
            choice = self.translator(TextDelta(held))
            self.assertEqual(
                choice.receive(part(tool_calls=[self.BACKEND_CALL])),
                [ContentDelta(0, held), BackendCalls(0)],
            )

    def test_held_text_and_the_end(self) -> None:
        choice = self.translator(TextDelta("T"))
        self.assertEqual(
            choice.receive(part("a", "tool_calls", tool_calls=[self.BACKEND_CALL])),
            [ContentDelta(0, "aT"), BackendCalls(0), Finished(0, "tool_calls")],
        )

    def test_held_reasoning_is_kept(self) -> None:
        choice = self.translator(ReasoningDelta("hm"))
        self.assertEqual(
            choice.receive(part(tool_calls=[self.BACKEND_CALL])),
            [ReasoningEvent(0, "hm"), BackendCalls(0)],
        )

    def test_our_open_call_before_it(self) -> None:
        choice = self.translator(a=START)
        choice.receive(part("a"))
        rewrite = choice.receive(part(None, "tool_calls", tool_calls=[self.BACKEND_CALL]))
        self.assertEqual(rewrite, [BackendCalls(0, 1), Finished(0, "length")])

    def test_function_call(self) -> None:
        """The API's deprecated field passes."""
        choice = self.translator(a=CALL)
        self.assertIsNone(choice.receive(part(function_call=Function("g", ""))))
        self.assertIsNone(choice.receive(part(function_call=Function(None, "{}"))))
        self.assertIsNone(choice.receive(part("a")))
        self.assertIsNone(choice.receive(part(None, "function_call")))
        self.assertEqual(self.report.tool_names, ["g"])


class StructuredCallsTests(SynchronousTestCase):
    """The record of calls structured by the backend."""

    def record(self, *calls: ToolCall) -> tuple[list[str], bool]:
        calls_seen = StructuredCalls()
        names = [name for call in calls for name in calls_seen.record(Delta(tool_calls=[call]))]
        return names, calls_seen.is_complete

    def test_none(self) -> None:
        self.assertEqual(self.record(), ([], True))
        self.assertFalse(StructuredCalls().has_started)

    def test_name_repeated(self) -> None:
        calls = [ToolCall(0, Function("f", "{")), ToolCall(0, Function("f", "}"))]
        self.assertEqual(self.record(*calls), (["f"], True))

    def test_without_index(self) -> None:
        calls = [
            ToolCall(None, Function("f", "{}")),
            ToolCall(None, Function("g", "{")),
            ToolCall(None, Function(None, "}")),
        ]
        self.assertEqual(self.record(*calls), (["f", "g"], True))

    def test_without_function(self) -> None:
        self.assertEqual(self.record(ToolCall(0)), ([], False))

    def test_incomplete(self) -> None:
        for text in ("", '{"a": ', "[]", "[" * 100_000):
            self.assertEqual(self.record(ToolCall(0, Function("f", text))), (["f"], False))

    def test_too_long_to_check(self) -> None:
        many = [ToolCall(0, Function("f", '{"a": "'))]
        many += [ToolCall(0, Function(None, "x" * 1000))] * 1100
        many += [ToolCall(0, Function(None, '"}'))]
        self.assertEqual(self.record(*many), (["f"], False))
