"""How a backend streams."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.chat import ChatProbe
from blockops.cli.doctor.findings import Finding
from blockops.cli.doctor.streams import stream_finding
from blockops.upstream.probe import ProbeResponse
from tests.cli.doctor.scripted import CHAT, ScriptedProbe, completion, json_response
from tests.world import DONE, chunk

USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
USAGE_EVENT = f"data: {json.dumps({'id': 'c', 'choices': [], 'usage': USAGE})}\n\n"


class StreamTests(SynchronousTestCase):
    def finding(self, reply: Any) -> Finding:
        self.probe = ScriptedProbe({CHAT: reply})
        finding = stream_finding(ChatProbe(self.probe, "m", 9.0))
        return self.successResultOf(Deferred.fromCoroutine(finding))

    def stream(self, *events: str) -> ProbeResponse:
        return ProbeResponse(200, "".join(events).encode())

    def test_usage(self) -> None:
        chunks = (chunk("OK"), chunk(finish="stop"))
        self.assertEqual(self.finding(self.stream(*chunks, USAGE_EVENT, DONE)).verdict, "usage")
        self.assertEqual(self.finding(self.stream(*chunks, DONE)).verdict, "no usage")
        self.assertTrue(self.probe.requests[0][1]["stream_options"]["include_usage"])

    def test_a_backend_that_rejects_stream_options(self) -> None:
        def reply(body: Any) -> ProbeResponse:
            if "stream_options" in body:
                return json_response({"error": {"message": "stream_options?"}}, 400)
            return self.stream(chunk("OK"), chunk(finish="stop"), DONE)

        self.assertEqual(self.finding(reply).verdict, "no usage")

    def test_broken(self) -> None:
        for response in (self.stream(chunk("OK")), self.stream()):
            self.assertEqual(self.finding(response).verdict, "broken")

    def test_not_streamed(self) -> None:
        self.assertEqual(self.finding(json_response(completion())).verdict, "not streamed")

    def test_rejected(self) -> None:
        finding = self.finding(json_response({"error": {"message": "no streams"}}, 400))
        self.assertEqual(finding.verdict, "rejected")
        self.assertIn("no streams", finding.text)
        self.assertIn("no response", self.finding(None).text)
