"""Parses every text of the corpus at every split, and translates it as stream and response."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.stream import StreamTranslator
from tests.api.requests import translate_response
from tests.toolcalls.reading import Call, ParserOutput, parse_pieces, splits

CORPUS = Path(__file__).parent.parent / "corpus"
TOOLS: dict[str, Any] = json.loads((CORPUS / "tools.json").read_text())
RANDOM_SPLITS = 20


@dataclass
class Case:
    """One text of the corpus."""

    name: str
    text: str
    finish: str
    options: TranslationOptions
    request: dict[str, Any]
    content: str
    reasoning: str
    calls: list[Call]
    expect: str

    @classmethod
    def from_toml(cls, name: str, fields: dict[str, Any]) -> Case:
        finish = fields.get("finish", "stop")
        calls = [
            Call(function, text, is_finished=not open_)
            for function, text, *open_ in fields.get("calls", ())
        ]
        return cls(
            name=name,
            text=fields["text"],
            finish=finish,
            options=TranslationOptions(**fields.get("rules", {})),
            request=fields.get("request", {}),
            content=fields.get("content", ""),
            reasoning=fields.get("reasoning", ""),
            calls=calls,
            expect=fields.get("expect", "tool_calls" if calls and finish == "stop" else finish),
        )

    @property
    def chat_request(self) -> ChatRequest:
        tools = [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in TOOLS.items()
        ]
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
        return ChatRequest(json.dumps(body | self.request).encode())


def cases() -> Iterator[Case]:
    for path in sorted(CORPUS.glob("*.toml")):
        document = tomllib.loads(path.read_text())
        for each in document["case"]:
            yield Case.from_toml(f"{path.stem}: {each['name']}", each)


def random_splits(case: Case) -> Iterator[list[str]]:
    choose = random.Random(case.name)
    for _ in range(RANDOM_SPLITS):
        count = choose.randint(0, min(8, len(case.text)))
        ends = [*sorted(choose.sample(range(len(case.text) + 1), count)), len(case.text)]
        yield [case.text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


class CorpusTests(SynchronousTestCase):
    def test_it_is_large_and_names_are_unique(self) -> None:
        all_cases = list(cases())
        self.assertGreaterEqual(len(all_cases), 200)
        self.assertEqual(len(all_cases), len({case.name for case in all_cases}))

    def test_every_split(self) -> None:
        for case in cases():
            tools = case.chat_request.offered_tools(case.options)
            for pieces in ([case.text], *splits(case.text), *random_splits(case)):
                output, _ = parse_pieces(pieces, tools, case.options, case.finish)
                self.assert_output(case, output, pieces)

    def assert_output(self, case: Case, output: ParserOutput, pieces: list[str]) -> None:
        self.assertEqual(case.calls, output.calls, (case.name, pieces))
        self.assertEqual(case.content, output.content, (case.name, pieces))
        self.assertEqual(case.reasoning, output.reasoning, (case.name, pieces))

    def test_complete_calls_hold_json_but_for_five(self) -> None:
        broken = {
            case.name
            for case in cases()
            for call in case.calls
            if call.is_finished and not _is_object(call)
        }
        self.assertEqual(5, len(broken), broken)


class TranslationTests(SynchronousTestCase):
    """The corpus through `translation`."""

    def response(self, message: dict[str, Any], finish: str) -> dict[str, Any]:
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]}

    def test_non_streaming_responses(self) -> None:
        for case in cases():
            message = {"role": "assistant", "content": case.text}
            body, _ = translate_response(
                json.dumps(self.response(message, case.finish)).encode(),
                case.chat_request,
                case.options,
            )
            (choice,) = json.loads(body)["choices"]
            self.assert_message(case, choice["message"], choice["finish_reason"])

    def test_streams(self) -> None:
        for case in cases():
            translator = StreamTranslator(case.chat_request, case.options)
            stream = b"".join(
                translator.receive_data(event) for event in _events(case.text, case.finish)
            )
            message, finish = _message_of(stream + translator.end(is_truncated=False))
            self.assert_message(case, message, finish)

    def assert_message(self, case: Case, message: dict[str, Any], finish: str) -> None:
        self.assertEqual(case.content, message.get("content") or "", case.name)
        self.assertEqual(case.reasoning, message.get("reasoning_content") or "", case.name)
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        self.assertEqual(
            [(call.name, call.arguments) for call in case.calls],
            [(each["name"], each["arguments"]) for each in functions],
            case.name,
        )
        self.assertEqual(case.expect, finish, case.name)


def _is_object(call: Call) -> bool:
    try:
        return isinstance(call.parsed_arguments, dict)
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


def _message_of(stream: bytes) -> tuple[dict[str, Any], str]:
    """Return the message and the finish reason of a stream of chunks."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    finish = ""
    for line in stream.decode().split("\n\n")[:-2]:
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
