"""The examples of `docs/translation.md` give the results that the page shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest
from blockops.toolcalls.options import TranslationOptions
from tests.api.requests import translate_response
from tests.toolcalls.reading import parse_pieces, splits

PAGE = (Path(__file__).parent.parent.parent / "docs" / "translation.md").read_text()
TOOLS = re.compile(r"^```tools\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(
    r"^````model ?(.*?)\n(.*?)\n````\n````client\n(.*?)\n````$", re.DOTALL | re.MULTILINE
)


class TranslationPageTests(SynchronousTestCase):
    def setUp(self) -> None:
        (tools,) = TOOLS.findall(PAGE)
        functions = [
            {"name": name, "parameters": schema} for name, schema in json.loads(tools).items()
        ]
        self.request = {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": each} for each in functions],
        }

    def test_examples_are_found(self) -> None:
        self.assertEqual(PAGE.count("````model"), len(EXAMPLE.findall(PAGE)))
        self.assertGreater(PAGE.count("````model"), 25)

    def test_non_streaming_responses(self) -> None:
        for example_json, text, expected in EXAMPLE.findall(PAGE):
            example = json.loads(example_json or "{}")
            request = ChatRequest(json.dumps(self.request | example.get("request", {})).encode())
            body, _ = translate_response(
                _response(text, example.get("finish", "stop")),
                request,
                TranslationOptions(**example.get("rules", {})),
            )
            (choice,) = json.loads(body)["choices"]
            self.assertEqual(json.loads(expected), _as_on_the_page(choice), text)

    def test_every_split(self) -> None:
        for example_json, text, _ in EXAMPLE.findall(PAGE):
            example = json.loads(example_json or "{}")
            options = TranslationOptions(**example.get("rules", {}))
            request = ChatRequest(json.dumps(self.request | example.get("request", {})).encode())
            tools, finish = request.offered_tools(options), example.get("finish", "stop")
            at_once = parse_pieces([text], tools, options, finish)
            for pieces in splits(text):
                self.assertEqual(at_once, parse_pieces(pieces, tools, options, finish))


def _response(text: str, finish: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def _as_on_the_page(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice in the notation of the page."""
    message = {key: value for key, value in choice["message"].items() if key != "role"}
    if calls := message.get("tool_calls"):
        functions = [call["function"] for call in calls]
        message["tool_calls"] = [[each["name"], each["arguments"]] for each in functions]
    return message | {"finish_reason": choice["finish_reason"]}
