"""What a backend does with tools, told by its answers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.tools import MAX_TOKENS, Said, ask, findings
from blockops.errors import ApiError
from blockops.upstream.probe import Answer
from tests.cli.doctor.scripted import CHAT, Scripted, completion, said

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}
TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class Asked(SynchronousTestCase):
    def ask(self, reply: Answer | None, *, offer: bool = True) -> Said:
        self.asking = Scripted({CHAT: reply})
        asked = ask(self.asking, "m", "How?", offer=offer, patience=7)
        return self.successResultOf(Deferred.fromCoroutine(asked))

    def test_the_question(self) -> None:
        for offer in (True, False):
            self.ask(said(completion()), offer=offer)
            ((_, body),) = self.asking.asked
            self.assertEqual(body["model"], "m")
            self.assertEqual(body["max_tokens"], MAX_TOKENS)
            self.assertEqual(body["messages"], [{"role": "user", "content": "How?"}])
            self.assertEqual("tools" in body, offer)

    def test_calls(self) -> None:
        structured = self.ask(said(completion(None, "tool_calls", [CALL])))
        self.assertEqual((structured.structured, structured.found), (1, 0))
        text = self.ask(said(completion(TEXT, prompt_tokens=9, completion_tokens=5)))
        self.assertEqual((text.structured, text.found), (0, 1))
        self.assertEqual((text.prompt, text.answer), (9, 5))

    def test_refused(self) -> None:
        refused = self.ask(said({"error": {"message": "no tools here"}}, 400))
        self.assertEqual(refused.refusal, "no tools here")
        self.assertEqual(self.ask(Answer(500, b"")).refusal, "status 500")

    def test_no_answer(self) -> None:
        for reply, status in ((None, 504), (said([]), 502), (said({"choices": []}), 502)):
            asked = ask(Scripted({CHAT: reply}), None, "How?", offer=True, patience=7)
            failure = self.failureResultOf(Deferred.fromCoroutine(asked), ApiError)
            self.assertEqual(failure.value.status, status)


class Findings(SynchronousTestCase):
    def verdicts(self, without: Said, offered: Said, model: str = "m") -> dict[str, Any]:
        self.found = {each.topic: each for each in findings(without, offered, model)}
        return {topic: finding.verdict for topic, finding in self.found.items()}

    def test_refused(self) -> None:
        verdicts = self.verdicts(Said(text="Hi"), Said(refusal='"auto" tool choice requires'))
        self.assertEqual(verdicts, {"tools": "refused"})
        self.assertIn('"auto" tool choice requires', self.found["tools"].text)
        self.assertEqual(self.found["tools"].options, ("--tools=prompt",))

    def test_the_model_is_told(self) -> None:
        verdicts = self.verdicts(Said(prompt=20), Said(text="Hi", prompt=150))
        self.assertEqual(verdicts, {"tools": "told", "calls": "none"})
        self.assertEqual(self.found["tools"].options, ())

    def test_the_model_is_not_told(self) -> None:
        verdicts = self.verdicts(Said(prompt=20), Said(text="Hi", prompt=20))
        self.assertEqual(verdicts["tools"], "not told")
        self.assertEqual(self.found["tools"].options, ("--tools=prompt",))

    def test_models_with_a_format_of_their_own(self) -> None:
        for model in ("Qwen3-Coder-30B-A3B", "qwen3.5-4b", "mlx-community/Qwen-3-Coder"):
            self.verdicts(Said(prompt=20), Said(prompt=20), model)
            options = self.found["tools"].options
            self.assertEqual(options, ("--tools=prompt", "--tool-format=xml"), model)
        self.verdicts(Said(prompt=20), Said(prompt=20), "Qwen3-8B")
        self.assertEqual(self.found["tools"].options, ("--tools=prompt",))

    def test_usage_is_not_told(self) -> None:
        for without, offered in ((Said(), Said(prompt=20)), (Said(prompt=20), Said())):
            self.assertEqual(self.verdicts(without, offered)["tools"], "not known")

    def test_calls(self) -> None:
        for offered, verdict in (
            (Said(structured=1), "structured"),
            (Said(structured=1, text="<tool_call"), "structured"),
            (Said(found=1, text=TEXT), "text"),
            (Said(finish="tool_calls"), "lost"),
            (Said(answer=30, text=" \n"), "lost"),
            (Said(answer=1), "none"),
            (Said(text="It is sunny.", answer=30), "none"),
        ):
            self.assertEqual(self.verdicts(Said(), offered)["calls"], verdict, offered)

    def test_a_leaked_tag_is_told_of(self) -> None:
        self.verdicts(Said(), Said(structured=1, text="<tool_call"))
        self.assertIn("takes it away", self.found["calls"].text)

    def test_lost_calls_come_through_as_lines(self) -> None:
        self.verdicts(Said(), Said(finish="tool_calls"))
        self.assertIn("--tool-format=line", self.found["calls"].options)
