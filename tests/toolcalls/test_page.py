"""The examples of `docs/translation.md` do what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest
from blockops.toolcalls.options import Rules
from blockops.translation.stream import whole
from tests.toolcalls.reading import cuts, say

PAGE = (Path(__file__).parent.parent.parent / "docs" / "translation.md").read_text()
TOOLS = re.compile(r"^```tools\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(
    r"^````model ?(.*?)\n(.*?)\n````\n````client\n(.*?)\n````$", re.DOTALL | re.MULTILINE
)


class PageTests(SynchronousTestCase):
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

    def test_whole_answers(self) -> None:
        for settings, text, expected in EXAMPLE.findall(PAGE):
            how = json.loads(settings or "{}")
            asked = ChatRequest.parse(json.dumps(self.request | how.get("request", {})).encode())
            body, _ = whole(
                _answer(text, how.get("finish", "stop")), asked, Rules(**how.get("rules", {}))
            )
            (choice,) = json.loads(body)["choices"]
            self.assertEqual(json.loads(expected), _seen(choice), text)

    def test_at_every_cut(self) -> None:
        for settings, text, _ in EXAMPLE.findall(PAGE):
            how = json.loads(settings or "{}")
            rules = Rules(**how.get("rules", {}))
            asked = ChatRequest.parse(json.dumps(self.request | how.get("request", {})).encode())
            offer, finish = asked.offer(rules), how.get("finish", "stop")
            at_once = say([text], offer, rules, finish)
            for pieces in cuts(text):
                self.assertEqual(at_once, say(pieces, offer, rules, finish))


def _answer(text: str, finish: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def _seen(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice as the page writes it."""
    message = {key: value for key, value in choice["message"].items() if key != "role"}
    if calls := message.get("tool_calls"):
        functions = [call["function"] for call in calls]
        message["tool_calls"] = [[each["name"], each["arguments"]] for each in functions]
    return message | {"finish_reason": choice["finish_reason"]}
