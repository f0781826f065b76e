"""How a backend streams."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.findings import Finding
from blockops.cli.doctor.streams import stream_finding
from blockops.upstream.probe import Answer
from tests.cli.doctor.scripted import CHAT, Scripted, completion, said
from tests.world import DONE, chunk

USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
TOLD = f"data: {json.dumps({'id': 'c', 'choices': [], 'usage': USAGE})}\n\n"


class Streams(SynchronousTestCase):
    def finding(self, reply: Any) -> Finding:
        self.asking = Scripted({CHAT: reply})
        return self.successResultOf(Deferred.fromCoroutine(stream_finding(self.asking, "m", 9.0)))

    def stream(self, *events: str) -> Answer:
        return Answer(200, "".join(events).encode())

    def test_usage(self) -> None:
        words = (chunk("OK"), chunk(finish="stop"))
        self.assertEqual(self.finding(self.stream(*words, TOLD, DONE)).verdict, "usage")
        self.assertEqual(self.finding(self.stream(*words, DONE)).verdict, "no usage")
        self.assertTrue(self.asking.asked[0][1]["stream_options"]["include_usage"])

    def test_the_wish_is_refused(self) -> None:
        def reply(body: Any) -> Answer:
            if "stream_options" in body:
                return said({"error": {"message": "stream_options?"}}, 400)
            return self.stream(chunk("OK"), chunk(finish="stop"), DONE)

        self.assertEqual(self.finding(reply).verdict, "no usage")

    def test_broken(self) -> None:
        for answer in (self.stream(chunk("OK")), self.stream()):
            self.assertEqual(self.finding(answer).verdict, "broken")

    def test_whole(self) -> None:
        self.assertEqual(self.finding(said(completion())).verdict, "whole")

    def test_refused(self) -> None:
        finding = self.finding(said({"error": {"message": "no streams"}}, 400))
        self.assertEqual(finding.verdict, "refused")
        self.assertIn("no streams", finding.text)
        self.assertIn("no answer", self.finding(None).text)
