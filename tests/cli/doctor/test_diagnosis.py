"""The whole examination, and the command."""

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

from blockops.cli.doctor.diagnosis import Examination, local_port
from blockops.cli.doctor.findings import Examined, Finding
from blockops.errors import ApiError
from blockops.upstream.client import Upstream
from tests.cli.doctor.scripted import completion
from tests.live.backends import Backend, Exchange
from tests.live.harness import clean_environ, free_port
from tests.world import Backend as Wire
from tests.world import Reactor

TOPICS = ["server", "context", "places", "streams", "tools", "calls", "tokens", "cache", "leaving"]


def answer(exchange: Exchange) -> None:
    """Be a backend that knows no tools."""
    if exchange.path == "/v1/chat/completions":
        if exchange.json().get("tools"):
            body: Any = {"error": {"message": "tools? none!"}}
            exchange.whole(json.dumps(body).encode(), "400 Bad Request")
        else:
            exchange.whole(json.dumps(completion(prompt_tokens=5)).encode())
    else:
        exchange.whole(b'{"detail":"Not Found"}', "404 Not Found")


class Command(SynchronousTestCase):
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
            told = json.loads(done.stdout)
        verdicts = {each["topic"]: each["verdict"] for each in told["findings"]}
        self.assertEqual(verdicts["tools"], "refused")
        self.assertEqual(verdicts["cache"], "stays")
        self.assertEqual(verdicts["leaving"], "cannot tell")
        self.assertTrue(told["command"].startswith("twistd -n blockops --backend="))

    def test_nobody_there(self) -> None:
        done = self.run_doctor("--backend", f"http://127.0.0.1:{free_port()}")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("cannot be reached", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_the_key_is_not_told(self) -> None:
        def refuse(exchange: Exchange) -> None:
            said = f"bad key {exchange.headers['authorization']}\x1b[2J"
            exchange.whole(json.dumps({"error": {"message": said}}).encode(), "401 Unauthorized")

        with Backend(refuse) as backend:
            done = self.run_doctor("--backend", backend.url, key="sk-secret-1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("bad key Bearer ***\ufffd[2J", done.stderr)

    def test_no_url(self) -> None:
        done = self.run_doctor("--backend", "nonsense")
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.startswith("blockops: "), done.stderr)


class Examined_(SynchronousTestCase):  # noqa: N801 - beside what it tests
    def test_the_command_line_is_one_for_a_shell(self) -> None:
        finding = Finding(topic="a", verdict="b", text="c", options=("--x=1 2",), hint="Do this.")
        examined = Examined(backend="http://h/a?b", findings=(finding,))
        self.assertEqual(examined.command, "twistd -n blockops '--backend=http://h/a?b' '--x=1 2'")
        self.assertIn("  - Do this.\n", examined.written())
        told = msgspec.json.decode(examined.json())
        self.assertEqual(told["findings"][0]["hint"], "Do this.")

    def test_what_a_backend_says_is_made_presentable(self) -> None:
        finding = Finding(topic="a", verdict="\x9b k", text="k3y\x1b]0;x\x07, of k3y")
        told = finding.presentable("k3y")
        self.assertEqual((told.verdict, told.text), ("\ufffd k", "***\ufffd]0;x\ufffd, of ***"))
        self.assertEqual(finding.presentable(None).text[:3], "k3y")

    def test_without_hints(self) -> None:
        finding = Finding(topic="a", verdict="b", text="word " * 60)
        written = Examined(backend="http://h", findings=(finding,)).written()
        self.assertNotIn("At the backend", written)
        self.assertLessEqual(max(map(len, written.splitlines())), 100)


class Asked(SynchronousTestCase):
    """One question after another, over connections in memory."""

    def examine(self, replies: dict[str, Any]) -> tuple[list[Finding], BaseException | None]:
        reactor, found = Reactor(), []

        async def examine() -> None:
            upstream = Upstream(reactor, "http://192.0.2.7:8082")
            async for finding in Examination(reactor, upstream).findings():
                found.append(finding)  # noqa: PERF401 - what came before a failure counts

        outcome = Deferred.fromCoroutine(examine())
        self.asked: list[str] = []
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
        return found, next(iter(failures), None)

    def _accept(self, reactor: Reactor, factory: Any, replies: dict[str, Any]) -> None:
        wire = Wire(reactor, factory.buildProtocol(None))
        reactor.advance(0)
        call = " ".join(wire.request().decode().split(" ")[:2])
        self.asked.append(call)
        if call in replies:
            wire.answer(replies[call])
        else:
            wire.answer({"detail": "Not Found"}, "404 Not Found")

    def test_in_order(self) -> None:
        found, failure = self.examine(
            {"GET /v1/models": {"data": []}, "POST /v1/chat/completions": completion()}
        )
        self.assertIsNone(failure)
        self.assertEqual([each.topic for each in found], TOPICS)
        self.assertEqual(self.asked[0], "GET /v1/models")
        self.assertEqual(found[-1].verdict, "cannot tell")

    def test_a_backend_that_refuses_everything(self) -> None:
        found, failure = self.examine({})
        self.assertIsInstance(failure, ApiError)
        self.assertIn("refuses a plain question", str(failure))
        self.assertEqual([each.topic for each in found], TOPICS[:3])


class Silent(SynchronousTestCase):
    def test_a_backend_that_takes_connections_and_nothing_else(self) -> None:
        reactor = Reactor()
        upstream = Upstream(reactor, "http://192.0.2.7:8082")

        async def examine() -> list[Finding]:
            return [each async for each in Examination(reactor, upstream, patience=30).findings()]

        first = Deferred.fromCoroutine(examine())
        factory: Any = reactor.tcpClients[0][2]
        Wire(reactor, factory.buildProtocol(None))
        reactor.advance(29)
        self.assertNoResult(first)
        reactor.advance(1)
        self.assertIn("within 30 seconds", str(self.failureResultOf(first, ApiError).value))


class Ports(SynchronousTestCase):
    def test_of_this_machine(self) -> None:
        for url, port in (
            ("http://127.0.0.1:8082", 8082),
            ("http://localhost", 80),
            ("https://[::1]/x", 443),
            ("http://gpu.example:8082", None),
            ("http://192.0.2.7:8082", None),
        ):
            self.assertEqual(local_port(url), port, url)
