"""Who leaves a backend, and what shows of it."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.cancellation import (
    COUNTERS,
    KNOWN,
    LONG_ENOUGH,
    TOO_SHORT,
    Leaving,
    Load,
    burnt,
    counted,
)
from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import Answer
from tests.cli.doctor.scripted import Scripted, Slow


async def _awaited(load: Load) -> float | None:
    return await load()


class Told(SynchronousTestCase):
    def finding(self, *, counts: bool = True, kind: str = "", **backend: Any) -> Finding:
        self.clock = Clock()
        self.backend = Slow(self.clock, **backend)
        load = self.backend.load
        leaving = Leaving(self.clock, self.backend, "m", load, counts=counts, kind=kind)
        outcome = Deferred.fromCoroutine(leaving.finding())
        for _ in range(1000):
            self.clock.advance(0.1)
        return self.successResultOf(outcome)

    def test_noticed(self) -> None:
        for length in (60.0, LONG_ENOUGH - 0.5):
            finding = self.finding(length=length, notices=1.0)
            self.assertEqual((finding.verdict, finding.options), ("noticed", ()), length)
            self.assertIn("within 2.0 s", finding.text)
        self.assertEqual(self.backend.asked[0]["model"], "m")
        self.assertEqual(self.backend.running, 0)

    def test_not_noticed(self) -> None:
        for length in (60.0, LONG_ENOUGH - 0.5):
            finding = self.finding(length=length, notices=None)
            self.assertEqual(finding.verdict, "goes on", length)
            self.assertEqual(finding.options, ("--whole-as-stream",))

    def test_noticed_while_nobody_else_is_served(self) -> None:
        finding = self.finding(alone=True)
        self.assertEqual(finding.verdict, "noticed alone")
        self.assertEqual(finding.options, ("--whole-as-stream",))

    def test_a_load_that_counts_nobody_is_not_looked_at_beside_a_stream(self) -> None:
        self.assertEqual(self.finding(alone=True, counts=False).verdict, "noticed")
        self.assertFalse(any(body.get("stream") for body in self.backend.asked))

    def test_answers_that_are_over_too_soon(self) -> None:
        finding = self.finding(length=TOO_SHORT - 0.5)
        self.assertEqual(finding.verdict, "cannot tell")
        self.assertIn("too soon", finding.text)
        self.assertEqual(finding.options, ())

    def test_what_is_known_of_the_server_counts_where_nothing_can_be_seen(self) -> None:
        for kind, known in KNOWN.items():
            finding = self.finding(length=TOO_SHORT - 0.5, kind=kind)
            self.assertEqual(finding.verdict, "cannot tell")
            self.assertIn(known, finding.text)
            self.assertEqual(finding.options, ("--whole-as-stream",))
        self.assertEqual(self.finding(length=60.0, notices=1.0, kind="mlx-lm").options, ())

    def test_a_backend_that_finds_fault_with_the_question_gets_a_milder_one(self) -> None:
        finding = self.finding(refuses=lambda body: "ignore_eos" in body)
        self.assertEqual(finding.verdict, "noticed")
        self.assertEqual(
            ["ignore_eos" in body for body in self.backend.asked[:3]], [True, False, False]
        )

    def test_a_backend_that_refuses_that_too(self) -> None:
        finding = self.finding(refuses=lambda _: True)
        self.assertEqual(finding.verdict, "cannot tell")
        self.assertEqual(len(self.backend.asked), 2)

    def test_nothing_shows(self) -> None:
        for load in (None, 1.0):
            clock = Clock()

            async def unmoved(load: float | None = load) -> float | None:
                return load

            leaving = Leaving(clock, Slow(clock), None, unmoved, counts=True)
            outcome = Deferred.fromCoroutine(leaving.finding())
            for _ in range(200):
                clock.advance(0.1)
            self.assertEqual(self.successResultOf(outcome).verdict, "cannot tell", load)


class Counted(SynchronousTestCase):
    def count(self, kind: str, body: bytes, status: int = 200) -> float | None:
        asking = Scripted({COUNTERS[kind][0]: Answer(status, body)})
        return self.successResultOf(Deferred.fromCoroutine(_awaited(counted(asking, kind))))

    def test_each_kind(self) -> None:
        slots = b'[{"id":0,"is_processing":true},{"id":1,"is_processing":false},{"id":2}]'
        self.assertEqual(self.count("llama.cpp", slots), 1)
        status = b'{"status":"running","num_running":2,"num_waiting":3}'
        self.assertEqual(self.count("vllm-mlx", status), 5)
        metrics = (
            b"# TYPE vllm:num_requests_running gauge\n"
            b'vllm:num_requests_running{engine="0",model_name="a b"} 2.0\n'
            b'vllm:num_requests_running{engine="1",model_name="a b"} 1.0\n'
            b'vllm:num_requests_waiting{engine="0",model_name="a b"} 7.0\n'
        )
        self.assertEqual(self.count("vLLM", metrics), 3)

    def test_what_is_not_told(self) -> None:
        for kind in COUNTERS:
            self.assertIsNone(self.count(kind, b"<html>"))
            self.assertIsNone(self.count(kind, b"[]", 501))


class Burnt(SynchronousTestCase):
    """How busy a process is, by the port that it listens on."""

    def measured(self, port: int | None) -> float | None:
        clock = Clock()
        outcome = Deferred.fromCoroutine(_awaited(burnt(clock, port)))
        spent = 0
        for number in range(200_000):
            spent += number * number
        clock.advance(1)
        return self.successResultOf(outcome)

    def test_this_process(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            measured = self.measured(listening.getsockname()[1])
        assert measured is not None
        self.assertGreaterEqual(measured, 0)

    def test_nobody_listens(self) -> None:
        # It is taken, so that nobody else listens there meanwhile.
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            self.assertIsNone(self.measured(silent.getsockname()[1]))
        self.assertIsNone(self.measured(None))
