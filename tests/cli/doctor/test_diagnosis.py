"""The complete diagnosis, its report, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.diagnosis import diagnose
from blockops.cli.doctor.findings import DiagnosisReport, Finding
from blockops.errors import ApiError
from blockops.upstream.client import BackendClient
from tests.cli.doctor.scripted import completion
from tests.live.backends import Backend, Exchange
from tests.live.harness import clean_environ, free_port
from tests.world import Backend as Wire
from tests.world import Reactor

TOPICS = [
    "server",
    "context",
    "slots",
    "streams",
    "tools",
    "calls",
    "tokens",
    "cache",
    "disconnect",
]


def answer(exchange: Exchange) -> None:
    """Respond as a backend that rejects tools."""
    if exchange.path == "/v1/chat/completions":
        if exchange.json().get("tools"):
            body: Any = {"error": {"message": "tools? none!"}}
            exchange.respond(json.dumps(body).encode(), "400 Bad Request")
        else:
            exchange.respond(json.dumps(completion(prompt_tokens=5)).encode())
    else:
        exchange.respond(b'{"detail":"Not Found"}', "404 Not Found")


class CommandTests(SynchronousTestCase):
    def run_doctor(self, *options: str, key: str = "") -> subprocess.CompletedProcess[str]:
        home = Path(self.mktemp()).resolve()
        home.mkdir()
        return subprocess.run(
            [sys.executable, "-m", "blockops.doctor", *options],
            env=clean_environ(home) | ({"BLOCKOPS_BACKEND_KEY": key} if key else {}),
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_a_backend(self) -> None:
        with Backend(answer) as backend:
            for form in ([], ["--json"]):
                done = self.run_doctor("--backend", backend.url, *form)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn("--tools=prompt", done.stdout)
                self.assertIn(backend.url, done.stdout)
            report = json.loads(done.stdout)
        verdicts = {each["topic"]: each["verdict"] for each in report["findings"]}
        self.assertEqual(verdicts["tools"], "rejected")
        self.assertEqual(verdicts["cache"], "not supported")
        self.assertEqual(verdicts["disconnect"], "unknown")
        self.assertTrue(report["command"].startswith("twistd -n blockops --backend="))

    def test_unreachable_backend(self) -> None:
        done = self.run_doctor("--backend", f"http://127.0.0.1:{free_port()}")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("cannot be reached", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_the_key_is_masked(self) -> None:
        def reject(exchange: Exchange) -> None:
            message = f"bad key {exchange.headers['authorization']}\x1b[2J"
            exchange.respond(
                json.dumps({"error": {"message": message}}).encode(), "401 Unauthorized"
            )

        with Backend(reject) as backend:
            done = self.run_doctor("--backend", backend.url, key="sk-secret-1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("bad key Bearer ***\ufffd[2J", done.stderr)

    def test_invalid_url(self) -> None:
        done = self.run_doctor("--backend", "nonsense")
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.startswith("blockops: "), done.stderr)


class ReportTests(SynchronousTestCase):
    def test_the_command_is_quoted_for_a_shell(self) -> None:
        finding = Finding(topic="a", verdict="b", text="c", options=("--x=1 2",), hint="Do this.")
        report = DiagnosisReport(backend="http://h/a?b", findings=(finding,))
        self.assertEqual(report.command, "twistd -n blockops '--backend=http://h/a?b' '--x=1 2'")
        self.assertIn("  - Do this.\n", report.as_text())
        decoded = msgspec.json.decode(report.as_json())
        self.assertEqual(decoded["findings"][0]["hint"], "Do this.")

    def test_sanitized(self) -> None:
        finding = Finding(topic="a", verdict="\x9b k", text="k3y\x1b]0;x\x07, of k3y")
        sanitized = finding.sanitized("k3y")
        self.assertEqual(
            (sanitized.verdict, sanitized.text), ("\ufffd k", "***\ufffd]0;x\ufffd, of ***")
        )
        self.assertEqual(finding.sanitized(None).text[:3], "k3y")

    def test_without_hints(self) -> None:
        finding = Finding(topic="a", verdict="b", text="word " * 60)
        text = DiagnosisReport(backend="http://h", findings=(finding,)).as_text()
        self.assertNotIn("At the backend", text)
        self.assertLessEqual(max(map(len, text.splitlines())), 100)


class DiagnosisTests(SynchronousTestCase):
    """The requests in order, over connections in memory."""

    def diagnose(self, replies: dict[str, Any]) -> tuple[list[Finding], BaseException | None]:
        reactor, findings = Reactor(), []

        async def collect() -> None:
            client = BackendClient(reactor, "http://192.0.2.7:8082")
            async for finding in diagnose(reactor, client):
                findings.append(finding)  # noqa: PERF401 - findings before a failure count

        outcome = Deferred.fromCoroutine(collect())
        self.requests: list[str] = []
        while not outcome.called:
            for _, _, factory, *_ in reactor.tcpClients:
                self._accept(reactor, factory, replies)
            reactor.tcpClients.clear()
            reactor.advance(0.25)
        failures: list[BaseException] = []

        def failed(failure: Failure) -> None:
            assert failure.value is not None
            failures.append(failure.value)

        outcome.addErrback(failed)
        return findings, next(iter(failures), None)

    def _accept(self, reactor: Reactor, factory: Any, replies: dict[str, Any]) -> None:
        wire = Wire(reactor, factory.buildProtocol(None))
        reactor.advance(0)
        call = " ".join(wire.request().decode().split(" ")[:2])
        self.requests.append(call)
        if call in replies:
            wire.respond(replies[call])
        else:
            wire.respond({"detail": "Not Found"}, "404 Not Found")

    def test_in_order(self) -> None:
        findings, failure = self.diagnose(
            {"GET /v1/models": {"data": []}, "POST /v1/chat/completions": completion()}
        )
        self.assertIsNone(failure)
        self.assertEqual([each.topic for each in findings], TOPICS)
        self.assertEqual(self.requests[0], "GET /v1/models")
        self.assertEqual(findings[-1].verdict, "unknown")

    def test_a_backend_that_rejects_every_request(self) -> None:
        findings, failure = self.diagnose({})
        self.assertIsInstance(failure, ApiError)
        self.assertIn("rejects a plain question", str(failure))
        self.assertEqual([each.topic for each in findings], TOPICS[:3])


class CompressionTests(SynchronousTestCase):
    def test_a_backend_that_compresses(self) -> None:
        reactor = Reactor()
        client = BackendClient(reactor, "http://192.0.2.7:8082")

        async def first_finding() -> Finding:
            return await anext(diagnose(reactor, client))

        outcome = Deferred.fromCoroutine(first_finding())
        factory: Any = reactor.tcpClients[0][2]
        backend = Wire(reactor, factory.buildProtocol(None))
        backend.respond(b"tight", kind="application/json\r\nContent-Encoding: gzip")
        error = self.failureResultOf(outcome, ApiError).value
        self.assertIn("compressed its response (gzip)", str(error))


class TimeoutTests(SynchronousTestCase):
    def test_a_backend_that_only_accepts_connections(self) -> None:
        reactor = Reactor()
        client = BackendClient(reactor, "http://192.0.2.7:8082")

        async def collect() -> list[Finding]:
            return [each async for each in diagnose(reactor, client, response_timeout=30)]

        outcome = Deferred.fromCoroutine(collect())
        factory: Any = reactor.tcpClients[0][2]
        Wire(reactor, factory.buildProtocol(None))
        reactor.advance(29)
        self.assertNoResult(outcome)
        reactor.advance(1)
        self.assertIn("within 30 seconds", str(self.failureResultOf(outcome, ApiError).value))
