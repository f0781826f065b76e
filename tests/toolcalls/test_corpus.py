"""Every text of the corpus, at every cut, and through the whole of the core."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest
from blockops.toolcalls.options import Rules
from blockops.translation.stream import StreamTranscoder, whole
from tests.toolcalls.reading import Call, Joined, cuts, say

CORPUS = Path(__file__).parent.parent / "corpus"
TOOLS: dict[str, Any] = json.loads((CORPUS / "tools.json").read_text())
RANDOM_CUTS = 20


@dataclass
class Case:
    """One text of the corpus."""

    where: str
    text: str
    finish: str
    rules: Rules
    request: dict[str, Any]
    content: str
    reasoning: str
    calls: list[Call]
    expect: str

    @classmethod
    def of(cls, where: str, read: dict[str, Any]) -> Case:
        finish = read.get("finish", "stop")
        calls = [Call(name, text, ended=not open_) for name, text, *open_ in read.get("calls", ())]
        return cls(
            where=where,
            text=read["text"],
            finish=finish,
            rules=Rules(**read.get("rules", {})),
            request=read.get("request", {}),
            content=read.get("content", ""),
            reasoning=read.get("reasoning", ""),
            calls=calls,
            expect=read.get("expect", "tool_calls" if calls and finish == "stop" else finish),
        )

    @property
    def asked(self) -> ChatRequest:
        """The request that the text answers."""
        tools = [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in TOOLS.items()
        ]
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
        return ChatRequest.parse(json.dumps(body | self.request).encode())


def cases() -> Iterator[Case]:
    for path in sorted(CORPUS.glob("*.toml")):
        read = tomllib.loads(path.read_text())
        for each in read["case"]:
            yield Case.of(f"{path.stem}: {each['name']}", each)


def random_cuts(case: Case) -> Iterator[list[str]]:
    choose = random.Random(case.where)
    for _ in range(RANDOM_CUTS):
        count = choose.randint(0, min(8, len(case.text)))
        ends = [*sorted(choose.sample(range(len(case.text) + 1), count)), len(case.text)]
        yield [case.text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


class CorpusTests(SynchronousTestCase):
    def test_is_large_enough_and_each_text_stands_once(self) -> None:
        every = list(cases())
        self.assertGreaterEqual(len(every), 200)
        self.assertEqual(len(every), len({case.where for case in every}))

    def test_at_every_cut(self) -> None:
        for case in cases():
            offer = case.asked.offer(case.rules)
            for pieces in ([case.text], *cuts(case.text), *random_cuts(case)):
                joined, _ = say(pieces, offer, case.rules, case.finish)
                self.assert_joined(case, joined, pieces)

    def assert_joined(self, case: Case, joined: Joined, pieces: list[str]) -> None:
        self.assertEqual(case.calls, joined.calls, (case.where, pieces))
        self.assertEqual(case.content, joined.content, (case.where, pieces))
        self.assertEqual(case.reasoning, joined.reasoning, (case.where, pieces))

    def test_whole_calls_hold_json_unless_they_say_so(self) -> None:
        broken = {
            case.where
            for case in cases()
            for call in case.calls
            if call.ended and not _is_object(call)
        }
        self.assertEqual(5, len(broken), broken)


class WholeAnswerTests(SynchronousTestCase):
    """The same through the core's door."""

    def answer(self, message: dict[str, Any], finish: str) -> dict[str, Any]:
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]}

    def test_whole_answers(self) -> None:
        for case in cases():
            message = {"role": "assistant", "content": case.text}
            body, _ = whole(
                json.dumps(self.answer(message, case.finish)).encode(), case.asked, case.rules
            )
            (choice,) = json.loads(body)["choices"]
            self.assert_seen(case, choice["message"], choice["finish_reason"])

    def test_streams(self) -> None:
        for case in cases():
            transcoder = StreamTranscoder(case.asked, case.rules)
            sent = b"".join(
                transcoder.receive_data(event) for event in _events(case.text, case.finish)
            )
            message, finish = _joined(sent + transcoder.end(cut=False))
            self.assert_seen(case, message, finish)

    def assert_seen(self, case: Case, message: dict[str, Any], finish: str) -> None:
        self.assertEqual(case.content, message.get("content") or "", case.where)
        self.assertEqual(case.reasoning, message.get("reasoning_content") or "", case.where)
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        self.assertEqual(
            [(call.name, call.arguments) for call in case.calls],
            [(each["name"], each["arguments"]) for each in functions],
            case.where,
        )
        self.assertEqual(case.expect, finish, case.where)


def _is_object(call: Call) -> bool:
    try:
        return isinstance(call.meant, dict)
    except ValueError:
        return False


def _events(text: str, finish: str) -> Iterator[bytes]:
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for char in text:
        choice = {"index": 0, "delta": {"content": char}, "finish_reason": None}
        yield b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n"
    choice = {"index": 0, "delta": {}, "finish_reason": finish}
    yield b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _joined(sent: bytes) -> tuple[dict[str, Any], str]:
    """Join the chunks of a stream to the message and the finish reason that they mean."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    finish = ""
    for line in sent.decode().split("\n\n")[:-2]:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        delta = choice["delta"]
        finish = choice["finish_reason"] or finish
        for key in ("content", "reasoning_content"):
            message[key] += delta.get(key) or ""
        for piece in delta.get("tool_calls", ()):
            if piece["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(piece)
            else:
                call = message["tool_calls"][piece["index"]]
                call["function"]["arguments"] += piece["function"]["arguments"]
    return message, finish
