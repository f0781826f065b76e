"""Client disconnects, and the load that shows whether they are noticed."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.chat import ChatProbe
from blockops.cli.doctor.disconnect import (
    ANSWER_TIMEOUT,
    KNOWN_RESULTS,
    MIN_ANSWER_TIME,
    RUNNING_REQUESTS,
    DisconnectTest,
)
from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import ProbeResponse
from tests.cli.doctor.scripted import SlowBackend, json_response

#: A server that reports its running requests, and one that does not.
REPORTING, SILENT = "vllm-mlx", "Ollama"


class DisconnectTests(SynchronousTestCase):
    def finding(self, kind: str = REPORTING, **backend: Any) -> Finding:
        self.clock = Clock()
        self.backend = SlowBackend(self.clock, **backend)
        test = DisconnectTest(self.clock, ChatProbe(self.backend, "m", 60.0), kind)
        outcome = Deferred.fromCoroutine(test.finding())
        for _ in range(1000):
            self.clock.advance(0.1)
        return self.successResultOf(outcome)

    def test_noticed(self) -> None:
        for kind in (REPORTING, SILENT):
            for length in (60.0, ANSWER_TIMEOUT - 0.5):
                finding = self.finding(kind, length=length, notices_after=1.0)
                self.assertEqual((finding.verdict, finding.options), ("noticed", ()), length)
                self.assertIn("within 2.0 s", finding.text)
            self.assertEqual(self.backend.bodies[0]["model"], "m")
            self.assertEqual(self.backend.running, 0)

    def test_not_noticed(self) -> None:
        for kind in (REPORTING, SILENT):
            for length in (60.0, ANSWER_TIMEOUT - 0.5):
                finding = self.finding(kind, length=length, notices_after=None)
                self.assertEqual(finding.verdict, "not noticed", length)
                self.assertEqual(finding.options, ("--whole-as-stream",))

    def test_noticed_when_idle(self) -> None:
        finding = self.finding(notices_when_idle=True)
        self.assertEqual(finding.verdict, "noticed when idle")
        self.assertEqual(finding.options, ("--whole-as-stream",))

    def test_an_unreported_load_is_not_measured_during_a_stream(self) -> None:
        self.assertEqual(self.finding(SILENT, notices_when_idle=True).verdict, "noticed")
        self.assertFalse(any(body.get("stream") for body in self.backend.bodies))

    def test_an_unreported_load_of_parallel_requests(self) -> None:
        finding = self.finding(SILENT, is_parallel=True)
        self.assertEqual(finding.verdict, "unknown")
        self.assertIn("does not rise", finding.text)

    def test_short_answers(self) -> None:
        finding = self.finding(length=MIN_ANSWER_TIME - 0.5)
        self.assertEqual(finding.verdict, "unknown")
        self.assertIn("too soon", finding.text)
        self.assertEqual(finding.options, ())

    def test_a_known_server(self) -> None:
        for kind, known in KNOWN_RESULTS.items():
            finding = self.finding(kind, length=MIN_ANSWER_TIME - 0.5)
            self.assertEqual(finding.verdict, "unknown")
            self.assertIn(known, finding.text)
            self.assertEqual(finding.options, ("--whole-as-stream",))
        self.assertEqual(self.finding("mlx-lm", length=60.0, notices_after=1.0).options, ())

    def test_a_backend_that_rejects_the_long_request(self) -> None:
        finding = self.finding(rejects=lambda body: "ignore_eos" in body)
        self.assertEqual(finding.verdict, "noticed")
        self.assertEqual(
            ["ignore_eos" in body for body in self.backend.bodies[:3]], [True, False, False]
        )

    def test_a_backend_that_rejects_every_request(self) -> None:
        finding = self.finding(rejects=lambda _: True)
        self.assertEqual(finding.verdict, "unknown")
        self.assertEqual(len(self.backend.bodies), 2)

    def test_constant_load(self) -> None:
        for status in (ProbeResponse(501, b"[]"), json_response({"num_running": 1})):
            self.assertEqual(self.finding(status=status).verdict, "unknown", status)


class ReportedLoadTests(SynchronousTestCase):
    def load(self, kind: str, body: bytes) -> float | None:
        return RUNNING_REQUESTS[kind][1](ProbeResponse(200, body))

    def test_each_kind(self) -> None:
        slots = b'[{"id":0,"is_processing":true},{"id":1,"is_processing":false},{"id":2}]'
        self.assertEqual(self.load("llama.cpp", slots), 1)
        status = b'{"status":"running","num_running":2,"num_waiting":3}'
        self.assertEqual(self.load("vllm-mlx", status), 5)
        metrics = (
            b"# TYPE vllm:num_requests_running gauge\n"
            b'vllm:num_requests_running{engine="0",model_name="a b"} 2.0\n'
            b'vllm:num_requests_running{engine="1",model_name="a b"} 1.0\n'
            b'vllm:num_requests_waiting{engine="0",model_name="a b"} 7.0\n'
        )
        self.assertEqual(self.load("vLLM", metrics), 3)

    def test_unreadable_responses(self) -> None:
        for kind in RUNNING_REQUESTS:
            self.assertIsNone(self.load(kind, b"<html>"))
