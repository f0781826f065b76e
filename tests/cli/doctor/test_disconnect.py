"""Client disconnects, and the load that shows whether they are noticed."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.disconnect import (
    ANSWER_TIMEOUT,
    KNOWN_RESULTS,
    MIN_ANSWER_TIME,
    RUNNING_REQUESTS,
    DisconnectTest,
    LoadMeter,
    make_cpu_meter,
    make_request_meter,
)
from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import ProbeResponse
from tests.cli.doctor.scripted import ScriptedProbe, SlowBackend


async def _read(load: LoadMeter) -> float | None:
    return await load()


class DisconnectTests(SynchronousTestCase):
    def finding(self, *, is_reported: bool = True, kind: str = "", **backend: Any) -> Finding:
        self.clock = Clock()
        self.backend = SlowBackend(self.clock, **backend)
        load = self.backend.load
        test = DisconnectTest(
            self.clock, self.backend, "m", load, is_reported=is_reported, kind=kind
        )
        outcome = Deferred.fromCoroutine(test.finding())
        for _ in range(1000):
            self.clock.advance(0.1)
        return self.successResultOf(outcome)

    def test_noticed(self) -> None:
        for length in (60.0, ANSWER_TIMEOUT - 0.5):
            finding = self.finding(length=length, notices_after=1.0)
            self.assertEqual((finding.verdict, finding.options), ("noticed", ()), length)
            self.assertIn("within 2.0 s", finding.text)
        self.assertEqual(self.backend.bodies[0]["model"], "m")
        self.assertEqual(self.backend.running, 0)

    def test_not_noticed(self) -> None:
        for length in (60.0, ANSWER_TIMEOUT - 0.5):
            finding = self.finding(length=length, notices_after=None)
            self.assertEqual(finding.verdict, "not noticed", length)
            self.assertEqual(finding.options, ("--whole-as-stream",))

    def test_noticed_when_idle(self) -> None:
        finding = self.finding(notices_when_idle=True)
        self.assertEqual(finding.verdict, "noticed when idle")
        self.assertEqual(finding.options, ("--whole-as-stream",))

    def test_cpu_load_is_not_measured_during_a_stream(self) -> None:
        self.assertEqual(self.finding(notices_when_idle=True, is_reported=False).verdict, "noticed")
        self.assertFalse(any(body.get("stream") for body in self.backend.bodies))

    def test_short_answers(self) -> None:
        finding = self.finding(length=MIN_ANSWER_TIME - 0.5)
        self.assertEqual(finding.verdict, "unknown")
        self.assertIn("too soon", finding.text)
        self.assertEqual(finding.options, ())

    def test_short_answers_of_a_known_server(self) -> None:
        for kind, known in KNOWN_RESULTS.items():
            finding = self.finding(length=MIN_ANSWER_TIME - 0.5, kind=kind)
            self.assertEqual(finding.verdict, "unknown")
            self.assertIn(known, finding.text)
            self.assertEqual(finding.options, ("--whole-as-stream",))
        self.assertEqual(self.finding(length=60.0, notices_after=1.0, kind="mlx-lm").options, ())

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
        for load in (None, 1.0):
            clock = Clock()

            async def constant(load: float | None = load) -> float | None:
                return load

            test = DisconnectTest(clock, SlowBackend(clock), None, constant, is_reported=True)
            outcome = Deferred.fromCoroutine(test.finding())
            for _ in range(200):
                clock.advance(0.1)
            self.assertEqual(self.successResultOf(outcome).verdict, "unknown", load)


class ReportedLoadTests(SynchronousTestCase):
    def load(self, kind: str, body: bytes, status: int = 200) -> float | None:
        probe = ScriptedProbe({RUNNING_REQUESTS[kind][0]: ProbeResponse(status, body)})
        return self.successResultOf(Deferred.fromCoroutine(_read(make_request_meter(probe, kind))))

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
            self.assertIsNone(self.load(kind, b"[]", 501))


class CpuLoadTests(SynchronousTestCase):
    """The CPU use of the process that listens on a port."""

    def measure(self, port: int | None) -> float | None:
        clock = Clock()
        outcome = Deferred.fromCoroutine(_read(make_cpu_meter(clock, port)))
        total = 0
        for number in range(200_000):
            total += number * number
        clock.advance(1)
        return self.successResultOf(outcome)

    def test_this_process(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            load = self.measure(listening.getsockname()[1])
        assert load is not None
        self.assertGreaterEqual(load, 0)

    def test_no_process_listens(self) -> None:
        # Bound, so that no other process can listen on this port meanwhile.
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.assertIsNone(self.measure(bound.getsockname()[1]))
        self.assertIsNone(self.measure(None))
