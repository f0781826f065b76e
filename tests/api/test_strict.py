"""The strict reader accepts OpenAI's streams, and rejects those that have broken clients."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.api.requests import DONE, ROLE, STOP, delta, event, text
from tests.api.strict import InvalidStream, read_strictly

CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
REST = {"index": 0, "function": {"arguments": "{}"}}
ERROR = event({"error": {"message": "no"}})
COMPLETE_CALL = ROLE + delta(tool_calls=[CALL]) + delta(tool_calls=[REST])


def call(**fields: Any) -> bytes:
    return delta(tool_calls=[{**CALL, **fields}])


class StrictTests(SynchronousTestCase):
    def test_accepted(self) -> None:
        for stream in (
            ROLE + text("a") + STOP + DONE,
            b": comment\n\n" + ROLE + text("a") + STOP + event({"choices": [], "usage": {}}) + DONE,
            COMPLETE_CALL + call(index=1, id="b") + delta(_finish="length") + DONE,
            ROLE + text("a") + ERROR,
            ERROR,
        ):
            read_strictly(stream, bare=True)

    def test_contents(self) -> None:
        answer = read_strictly(
            COMPLETE_CALL + text("x") + delta(_finish="tool_calls") + DONE, bare=True
        )
        self.assertEqual(answer.choice.pairs(), [("f", {})])
        self.assertEqual((answer.choice.content, answer.choice.finish_reason), ("x", "tool_calls"))

    def test_rejected(self) -> None:
        for stream in (
            b"",
            b": comment\n\n",
            DONE,
            ROLE + STOP,
            ROLE + DONE,
            ROLE + STOP + DONE[:-1],
            ROLE + STOP + DONE + DONE,
            ROLE + STOP + DONE + b": late\n\n" + text("a"),
            ROLE + STOP + STOP + DONE,
            ROLE + STOP + text("late") + DONE,
            ROLE + ERROR + DONE,
            ROLE + event({"error": "no"}),
            ROLE + event({"error": {"message": ""}}),
            text("a") + STOP + DONE,
            ROLE + text("\ud83d") + STOP + DONE,
            ROLE + event({}) + STOP + DONE,
            ROLE + event([]) + STOP + DONE,
            ROLE + b'data: {"choices":[],"x":NaN}\n\n' + STOP + DONE,
            ROLE + b"event: ping\n" + event({"choices": []}) + STOP + DONE,
            ROLE + b"data: {}\ndata: \n\n" + STOP + DONE,
            ROLE + event({"choices": [{"index": 0}]}) + STOP + DONE,
            ROLE + event({"choices": [{"index": "0", "delta": {}}]}) + STOP + DONE,
            ROLE + text("a") + ROLE + STOP + DONE,
            ROLE + delta(content=["a"]) + STOP + DONE,
            ROLE + delta(_finish="eos") + DONE,
            ROLE + delta(_finish="tool_calls") + DONE,
            ROLE + call(id=None) + STOP + DONE,
            ROLE + call(type=None) + STOP + DONE,
            ROLE + call(index=1) + STOP + DONE,
            ROLE + call(function={"arguments": "{}"}) + STOP + DONE,
            COMPLETE_CALL + call(index=1) + STOP + DONE,
            COMPLETE_CALL + call() + STOP + DONE,
            COMPLETE_CALL
            + delta(tool_calls=[{"index": 0, "function": {"name": "f"}}])
            + STOP
            + DONE,
            COMPLETE_CALL + call(index=1, id="b") + STOP + DONE,
            COMPLETE_CALL + delta(tool_calls=[REST]) + delta(_finish="tool_calls") + DONE,
        ):
            try:
                read_strictly(stream, bare=True)
            except (InvalidStream, UnicodeEncodeError):
                continue
            self.fail(f"accepted: {stream!r}")

    def test_bare(self) -> None:
        self.assertRaises(InvalidStream, read_strictly, ROLE + STOP + DONE)
