"""How a backend handles tools, by its responses to two questions."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.chat import ChatProbe
from blockops.cli.doctor.tools import MAX_TOKENS, ToolAnswer, ask_model, findings
from blockops.errors import ApiError
from blockops.upstream.probe import ProbeResponse
from tests.cli.doctor.scripted import CHAT, ScriptedProbe, completion, json_response

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}
TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class AskModelTests(SynchronousTestCase):
    def ask(self, reply: ProbeResponse | None, *, offer_tool: bool = True) -> ToolAnswer:
        self.probe = ScriptedProbe({CHAT: reply})
        answer = ask_model(ChatProbe(self.probe, "m", 7), "How?", offer_tool=offer_tool)
        return self.successResultOf(Deferred.fromCoroutine(answer))

    def test_request(self) -> None:
        for offer_tool in (True, False):
            self.ask(json_response(completion()), offer_tool=offer_tool)
            ((_, body),) = self.probe.requests
            self.assertEqual(body["model"], "m")
            self.assertEqual(body["max_tokens"], MAX_TOKENS)
            self.assertEqual(body["messages"], [{"role": "user", "content": "How?"}])
            self.assertEqual("tools" in body, offer_tool)

    def test_calls(self) -> None:
        structured = self.ask(json_response(completion(None, "tool_calls", [CALL])))
        self.assertEqual((structured.structured_calls, structured.text_calls), (1, 0))
        text = self.ask(json_response(completion(TEXT, prompt_tokens=9, completion_tokens=5)))
        self.assertEqual((text.structured_calls, text.text_calls), (0, 1))
        self.assertEqual((text.prompt_tokens, text.answer_tokens), (9, 5))

    def test_error_response(self) -> None:
        answer = self.ask(json_response({"error": {"message": "no tools here"}}, 400))
        self.assertEqual(answer.error, "no tools here")
        self.assertEqual(self.ask(ProbeResponse(500, b"")).error, "status 500")

    def test_invalid_responses(self) -> None:
        for reply, status in (
            (None, 504),
            (json_response([]), 502),
            (json_response({"choices": []}), 502),
        ):
            chat = ChatProbe(ScriptedProbe({CHAT: reply}), None, 7)
            answer = ask_model(chat, "How?", offer_tool=True)
            failure = self.failureResultOf(Deferred.fromCoroutine(answer), ApiError)
            self.assertEqual(failure.value.status, status)


class FindingTests(SynchronousTestCase):
    def verdicts(
        self, without_tool: ToolAnswer, with_tool: ToolAnswer, model: str = "m"
    ) -> dict[str, Any]:
        self.by_topic = {each.topic: each for each in findings(without_tool, with_tool, model)}
        return {topic: finding.verdict for topic, finding in self.by_topic.items()}

    def test_rejected(self) -> None:
        verdicts = self.verdicts(
            ToolAnswer(text="Hi"), ToolAnswer(error='"auto" tool choice requires')
        )
        self.assertEqual(verdicts, {"tools": "rejected"})
        self.assertIn('"auto" tool choice requires', self.by_topic["tools"].text)
        self.assertEqual(self.by_topic["tools"].options, ("--tools=prompt",))

    def test_in_prompt(self) -> None:
        verdicts = self.verdicts(
            ToolAnswer(prompt_tokens=20), ToolAnswer(text="Hi", prompt_tokens=150)
        )
        self.assertEqual(verdicts, {"tools": "in prompt", "calls": "none"})
        self.assertEqual(self.by_topic["tools"].options, ())

    def test_ignored(self) -> None:
        verdicts = self.verdicts(
            ToolAnswer(prompt_tokens=20), ToolAnswer(text="Hi", prompt_tokens=20)
        )
        self.assertEqual(verdicts["tools"], "ignored")
        self.assertEqual(self.by_topic["tools"].options, ("--tools=prompt",))

    def test_models_with_the_xml_dialect(self) -> None:
        for model in ("Qwen3-Coder-30B-A3B", "qwen3.5-4b", "mlx-community/Qwen-3-Coder"):
            self.verdicts(ToolAnswer(prompt_tokens=20), ToolAnswer(prompt_tokens=20), model)
            options = self.by_topic["tools"].options
            self.assertEqual(options, ("--tools=prompt", "--tool-format=xml"), model)
        self.verdicts(ToolAnswer(prompt_tokens=20), ToolAnswer(prompt_tokens=20), "Qwen3-8B")
        self.assertEqual(self.by_topic["tools"].options, ("--tools=prompt",))

    def test_unreported_usage(self) -> None:
        for without_tool, with_tool in (
            (ToolAnswer(), ToolAnswer(prompt_tokens=20)),
            (ToolAnswer(prompt_tokens=20), ToolAnswer()),
        ):
            self.assertEqual(self.verdicts(without_tool, with_tool)["tools"], "unknown")

    def test_calls(self) -> None:
        for answer, verdict in (
            (ToolAnswer(structured_calls=1), "structured"),
            (ToolAnswer(structured_calls=1, text="<tool_call"), "structured"),
            (ToolAnswer(text_calls=1, text=TEXT), "text"),
            (ToolAnswer(finish_reason="tool_calls"), "lost"),
            (ToolAnswer(answer_tokens=30, text=" \n"), "lost"),
            (ToolAnswer(answer_tokens=1), "none"),
            (ToolAnswer(text="It is sunny.", answer_tokens=30), "none"),
        ):
            self.assertEqual(self.verdicts(ToolAnswer(), answer)["calls"], verdict, answer)

    def test_a_leaked_tag_is_reported(self) -> None:
        self.verdicts(ToolAnswer(), ToolAnswer(structured_calls=1, text="<tool_call"))
        self.assertIn("removes it", self.by_topic["calls"].text)

    def test_lost_calls_suggest_the_line_dialect(self) -> None:
        self.verdicts(ToolAnswer(), ToolAnswer(finish_reason="tool_calls"))
        self.assertIn("--tool-format=line", self.by_topic["calls"].options)
