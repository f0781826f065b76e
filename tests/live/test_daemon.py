"""
The daemon as a process: real sockets, a real `twistd`, and backends that do one thing each.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import Authority, server_context
from tests.live import backends
from tests.live.backends import Backend, Exchange
from tests.live.harness import (
    CHAT,
    LONG,
    PATIENCE,
    TWISTD,
    Daemon,
    Program,
    Reply,
    Stream,
    ask,
    clean_environ,
    connect,
    free_port,
    open_stream,
    question,
    start_daemon,
    wait_for,
)

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class Case(SynchronousTestCase):
    def folder(self) -> Path:
        """Make a folder for this test alone; its name begins with a slash."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        return folder

    def backend(self, script: Any, tls: ssl.SSLContext | None = None) -> Backend:
        backend = Backend(script, tls)
        self.addCleanup(backend.stop)
        return backend

    def daemon(self, backend: Backend | str, *options: str, **more: Any) -> Daemon:
        url = backend if isinstance(backend, str) else backend.url
        return start_daemon(self, "--backend", url, *options, **more)

    def assert_error(self, reply: Reply, status: int, words: str) -> None:
        """Assert that `reply` refuses with `status`, in OpenAI's shape, and says `words`."""
        self.assertEqual(
            (reply.status, reply.headers["content-type"]), (status, "application/json")
        )
        self.assertIn(words.casefold(), reply.error["message"].casefold())


class MainJob(Case):
    def test_a_call_in_a_whole_answer(self) -> None:
        daemon = self.daemon(self.backend(backends.says_whole(CALL)))
        choice = ask(daemon.url, question(tools=TOOLS)).json()["choices"][0]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertIsNone(choice["message"]["content"])
        self.assertEqual(choice["message"]["tool_calls"][0]["function"]["name"], "add")

    def test_what_the_environment_sets(self) -> None:
        backend = self.backend(backends.says("hello"))
        port = free_port()
        daemon = start_daemon(
            self,
            "--listen",
            f"tcp:{port}:interface=127.0.0.1",
            environ={"BACKEND_URL": backend.url, "BLOCKOPS_BACKEND_KEY": "s3cret"},
            listening=("127.0.0.1", port),
        )
        stream = open_stream(f"http://127.0.0.1:{port}", question(stream=True)).read()
        self.assertEqual(stream.text, "hello")
        self.assertEqual(backend.requests[0].headers["authorization"], "Bearer s3cret")
        self.assertNotIn("s3cret", daemon.logged())

    def test_other_routes_pass_through(self) -> None:
        heard: list[Any] = []

        def embed(exchange: Exchange) -> None:
            heard.append((exchange.method, exchange.path, exchange.body))
            exchange.whole(b'{"data": [1,2,  3]}')

        daemon = self.daemon(self.backend(embed))
        reply = ask(daemon.url, b'{"input":  "x"}', path="/v1/embeddings?a=b%20c")
        self.assertEqual((reply.status, reply.body), (200, b'{"data": [1,2,  3]}'))
        self.assertEqual(heard, [("POST", "/v1/embeddings?a=b%20c", b'{"input":  "x"}')])

    def test_models(self) -> None:
        daemon = self.daemon(self.backend(backends.refuses_in_json))
        listed = ask(daemon.url, method="GET", path="/v1/models").json()
        self.assertEqual([model["id"] for model in listed["data"]], ["m"])

    def test_health_and_readiness(self) -> None:
        backend = self.backend(backends.never_answers)
        daemon = self.daemon(backend)
        self.assertEqual(ask(daemon.url, method="GET", path="/health").status, 200)
        self.assertEqual(ask(daemon.url, method="GET", path="/ready").status, 200)
        backend.stop()
        self.assertEqual(ask(daemon.url, method="GET", path="/health").status, 200)
        self.assert_error(ask(daemon.url, method="GET", path="/ready"), 503, "backend")


class Demo(Case):
    skip = LONG

    def test_it_calls_in_each_format(self) -> None:
        """What a newcomer sees: no model, and calls in each of the formats."""
        daemon = self.daemon("demo", "--heartbeat", "0.2")
        weather = {"properties": {"city": {"type": "string"}}}
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": weather}}]
        streams = [
            open_stream(daemon.url, question("Rain in Rome?", stream=True, tools=tools))
            for _ in range(3)
        ]
        for stream in streams:
            stream.read()
            self.assertEqual(stream.calls, [("get_weather", {"city": "Rome"})])
            self.assertEqual((stream.finish_reasons, stream.done), (["tool_calls"], 1))
            self.assertGreaterEqual(len(stream.comments), 1)
            self.assertNotIn("tool_call", stream.text)

    def test_it_stays_until_its_last_answer(self) -> None:
        daemon = self.daemon("demo")
        stream = open_stream(daemon.url, question("17 and 4", stream=True, tools=TOOLS))
        next(stream.lines())
        daemon.begin_to_stop()
        self.assertEqual((stream.read().calls, stream.done), ([("add", {})], 1))

    def test_the_command_that_it_tells(self) -> None:
        if shutil.which("curl") is None:
            self.skipTest("curl is not installed")
        daemon = self.daemon("demo")
        wait_for(lambda: "curl" in daemon.logged(), "no command is told")
        command = next(line for line in daemon.logged().splitlines() if "curl -gN" in line)
        told = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        self.assertIn('"tool_calls"', told.stdout)
        self.assertTrue(told.stdout.endswith("data: [DONE]\n\n"))


class BadRequests(Case):
    def test_each_with_its_own_error(self) -> None:
        daemon = self.daemon(self.backend(backends.says("never asked")))
        for body, words in (
            (b"", "JSON"),
            (b"{not json", "JSON"),
            (b"\xff\xfe", "JSON"),
            (b"[" * 50_000, "JSON"),
            (b"[]", "object"),
            (b'"text"', "object"),
            (b"null", "object"),
            (b"{}", "messages"),
            (b'{"messages": null}', "messages"),
            (b'{"messages": "hi"}', "messages"),
            (b'{"messages": {}}', "messages"),
            (b'{"messages": []}', "messages"),
        ):
            with self.subTest(body=body[:20]):
                self.assert_error(ask(daemon.url, body), 400, words)

    def test_unknown_routes(self) -> None:
        daemon = self.daemon(self.backend(backends.says("never asked")))
        for method, path in (("GET", "/"), ("GET", "/nothing"), ("POST", "/chat/completions")):
            self.assert_error(ask(daemon.url, method=method, path=path), 404, path)

    def test_wrong_methods(self) -> None:
        daemon = self.daemon(self.backend(backends.says("never asked")))
        for method, path, allowed in (
            ("GET", CHAT, "POST"),
            ("DELETE", CHAT, "POST"),
            ("PUT", CHAT, "POST"),
            ("PATCH", "/health", "GET"),
            ("POST", "/ready", "GET"),
        ):
            with self.subTest(method=method, path=path):
                reply = ask(daemon.url, method=method, path=path)
                self.assert_error(reply, 405, method)
                self.assertIn(allowed, reply.headers["allow"])


class LargeBodies(Case):
    skip = LONG

    def test_a_body_of_100_mb_that_says_so(self) -> None:
        daemon = self.daemon(self.backend(backends.says("never asked")))
        before = daemon.rss()
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:
            client.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\n" % CHAT.encode())
            client.sendall(b"Content-Length: %d\r\n\r\n" % 100_000_000)
            # Refused by its length alone: not a byte of it is sent yet.
            response = http.client.HTTPResponse(client)
            response.begin()
            self.assertEqual(response.status, 413)
            self.assertIn("max-body", json.loads(response.read())["error"]["message"])
        self.assertLess(daemon.rss() - before, 4 << 20)

    def test_a_body_of_100_mb_in_chunks(self) -> None:
        daemon = self.daemon(self.backend(backends.says("never asked")), "--max-body", "8M")
        before = daemon.rss()
        piece = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:
            client.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\n" % CHAT.encode())
            client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                client.sendall(piece)
            client.sendall(b"0\r\n\r\n")
            response = http.client.HTTPResponse(client)
            response.begin()
            self.assertEqual(response.status, 413)
            self.assertIn("max-body", json.loads(response.read())["error"]["message"])
        self.assertLess(daemon.rss() - before, 24 << 20)

    def test_a_client_library_that_sends_100_mb_reads_the_refusal(self) -> None:
        daemon = self.daemon(self.backend(backends.says("never asked")))
        self.assert_error(ask(daemon.url, b" " * 100_000_000), 413, "max-body")


class BadBackends(Case):
    skip = LONG

    def both_ways(self, url: str) -> list[Reply]:
        return [ask(url, question(stream=stream)) for stream in (True, False)]

    def test_down(self) -> None:
        # Without a circuit breaker each request finds out by itself.
        daemon = self.daemon(f"http://127.0.0.1:{free_port()}", "--circuit-after=0")
        for reply in self.both_ways(daemon.url):
            self.assert_error(reply, 502, "backend")

    def test_down_for_long(self) -> None:
        daemon = self.daemon(f"http://127.0.0.1:{free_port()}", "--circuit-pause=100")
        tried, opened = self.both_ways(daemon.url)
        self.assert_error(tried, 502, "backend")
        # Five failures in a row: from now on nobody waits for the next one.
        for reply in (opened, *self.both_ways(daemon.url)):
            self.assert_error(reply, 503, "backend")
            self.assertLessEqual(int(reply.headers["retry-after"]), 100)

    def test_html_with_500(self) -> None:
        daemon = self.daemon(self.backend(backends.fails_in_html))
        for reply in self.both_ways(daemon.url):
            self.assert_error(reply, 500, "out of memory on device")

    def test_an_error_in_json_passes_as_it_is(self) -> None:
        daemon = self.daemon(self.backend(backends.refuses_in_json))
        for reply in self.both_ways(daemon.url):
            self.assertEqual((reply.status, reply.json()["extra"]), (400, 1))

    def test_closes_before_the_head(self) -> None:
        daemon = self.daemon(self.backend(backends.closes_before_the_head))
        for reply in self.both_ways(daemon.url):
            self.assert_error(reply, 502, "backend")

    def test_closes_in_midstream(self) -> None:
        daemon = self.daemon(self.backend(backends.closes_in_midstream))
        stream = open_stream(daemon.url, question(stream=True)).read()
        self.assertEqual((stream.text, stream.done, len(stream.errors)), ("Hel", 0, 1))

    def test_sends_garbage(self) -> None:
        daemon = self.daemon(self.backend(backends.sends_garbage))
        stream = open_stream(daemon.url, question(stream=True)).read()
        self.assertEqual((stream.text, stream.done, len(stream.errors)), ("", 0, 1))
        self.assert_error(ask(daemon.url, question()), 502, "backend")

    def test_never_answers(self) -> None:
        backend = self.backend(backends.never_answers)
        daemon = self.daemon(backend, "--first-byte-timeout", "0.3")
        for reply in self.both_ways(daemon.url):
            self.assert_error(reply, 504, "first-byte-timeout")
        self.assertTrue(backend.wait_until(lambda it: it.open == 0))

    def test_never_answers_while_the_client_hears_heartbeats(self) -> None:
        daemon = self.daemon(
            self.backend(backends.never_answers), "--first-byte-timeout=3", "--heartbeat=0.2"
        )
        stream = open_stream(daemon.url, question(stream=True)).read()
        self.assertGreaterEqual(len(stream.comments), 2)
        self.assertEqual((stream.done, stream.errors[0]["error"]["code"]), (0, "backend_timeout"))

    def test_stalls_in_midstream(self) -> None:
        backend = self.backend(backends.stalls_in_midstream)
        daemon = self.daemon(backend, "--idle-timeout", "2")
        stream = open_stream(daemon.url, question(stream=True)).read()
        self.assertEqual((stream.text, stream.done, len(stream.errors)), ("Hel", 0, 1))
        self.assertTrue(backend.wait_until(lambda it: it.open == 0))


class Heartbeats(Case):
    skip = LONG

    def setUp(self) -> None:
        self.gate = backends.Gate()

    def pauses(self, exchange: Exchange) -> None:
        """Pause before the answer and within it, until the client has had its heartbeat."""
        self.gate.wait()
        exchange.begin()
        exchange.chunk(backends.event({"role": "assistant", "content": "Hel"}))
        self.gate.wait()
        exchange.chunk(backends.event({"content": "lo"}))
        exchange.chunk(backends.event({}, "stop"))
        exchange.chunk(backends.DONE)
        exchange.end()

    def read(self, stream: Stream, is_heartbeat: Callable[[str], bool]) -> str:
        """Return the order of what came: "." for heartbeats, "d" for data."""
        heard = ""
        for line in stream.lines():
            beat = is_heartbeat(line)
            if beat and not heard.endswith("."):
                self.gate.open()
            heard += "." if beat else "d"
        return heard

    def test_comments_before_the_first_byte_and_in_midstream(self) -> None:
        daemon = self.daemon(self.backend(self.pauses), "--heartbeat", "0.2")
        stream = open_stream(daemon.url, question(stream=True))
        heard = self.read(stream, lambda line: line.startswith(":"))
        self.assertRegex(heard, r"^\.+d+\.+d+$")
        self.assertEqual((stream.text, stream.done), ("Hello", 1))

    def test_chunks(self) -> None:
        daemon = self.daemon(
            self.backend(self.pauses), "--heartbeat", "0.2", "--heartbeat-style", "chunk"
        )
        stream = open_stream(daemon.url, question(stream=True))
        heard = self.read(stream, lambda line: "content" not in line and "stop" not in line)
        deltas = [choice["delta"] for choice in stream.choices]
        self.assertEqual(deltas[0], {"role": "assistant"})
        self.assertRegex(heard.removesuffix("."), r"^\.+d\.+d+$")
        self.assertEqual((stream.comments, stream.text, stream.done), ([], "Hello", 1))

    def test_while_queued(self) -> None:
        backend = self.backend(backends.stalls_in_midstream)
        daemon = self.daemon(backend, "--max-concurrent", "1", "--heartbeat", "0.2")
        first = open_stream(daemon.url, question(stream=True))
        backend.wait_until(lambda it: len(it.requests) == 1)
        backend.script = backends.says("second")
        queued = open_stream(daemon.url, question(stream=True))
        lines = queued.lines()
        self.assertTrue(next(lines).startswith(":"))
        self.assertEqual(len(backend.requests), 1)
        first.close()
        self.assertEqual(queued.read().text, "second")

    def test_a_whole_answer_is_kept_alive_by_white_space(self) -> None:
        def waits(exchange: Exchange) -> None:
            self.gate.wait()
            backends.says_whole("hello")(exchange)

        daemon = self.daemon(self.backend(waits), "--heartbeat", "0.2", "--heartbeat-json")
        connection = connect(daemon.url, within=PATIENCE)
        self.addCleanup(connection.close)
        connection.request("POST", CHAT, json.dumps(question()))
        response = connection.getresponse()
        beats = response.read(2)
        self.gate.open()
        self.assertEqual(beats.strip(), b"")
        answer = json.loads(response.read())
        self.assertEqual(answer["choices"][0]["message"]["content"], "hello")


class Departures(Case):
    skip = LONG

    def test_a_client_that_leaves_frees_the_backend(self) -> None:
        for name, script in (
            ("before the head", backends.never_answers),
            ("in midstream", backends.stalls_in_midstream),
        ):
            with self.subTest(name):
                backend = self.backend(script)
                daemon = self.daemon(backend, "--max-concurrent", "1")
                with socket.create_connection(("127.0.0.1", daemon.port)) as client:
                    body = json.dumps(question(stream=True)).encode()
                    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                    client.sendall(head.encode() + body)
                    backend.wait_until(lambda it: len(it.requests) == 1)
                self.assertTrue(backend.wait_until(lambda it: it.open == 0))
                # Its place is free again: the only one there is.
                backend.script = backends.says("next")
                text = open_stream(daemon.url, question(stream=True)).read().text
                self.assertEqual(text, "next")

    def test_over_the_limits(self) -> None:
        backend = self.backend(backends.never_answers)
        daemon = self.daemon(backend, "--max-concurrent", "1", "--max-queue", "1")
        waiting = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(2)]
        body = json.dumps(question(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        for client in waiting:
            client.sendall(head.encode() + body)
            self.addCleanup(client.close)
        wait_for(lambda: _health(daemon)["waiting"] == 1, "the second request does not wait")
        reply = ask(daemon.url, question(stream=True))
        self.assert_error(reply, 429, "")
        self.assertEqual(reply.error["code"], "concurrency_limit")
        self.assertGreater(int(reply.headers["retry-after"]), 0)


def _health(daemon: Daemon) -> dict[str, Any]:
    return dict(ask(daemon.url, method="GET", path="/health").json())


class Stops(Case):
    def test_an_idle_daemon_stops_at_once(self) -> None:
        daemon = self.daemon(self.backend(backends.says("hello")))
        ask(daemon.url, question())
        self.assertIn(daemon.terminate(within=20), (0, -signal.SIGTERM))

    def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            daemon = Daemon(self.folder(), "--listen", f"tcp:{port}:interface=127.0.0.1")
            self.assertEqual(daemon.process.wait(20), 1)
        self.assertIn(str(port), daemon.logged())


class Certified(Case):
    """With an authority, and what it has certified."""

    def setUp(self) -> None:
        self.authority = Authority.make(self.folder())
        self.pem = self.authority.certify(self.authority.path.parent, "127.0.0.1")


class Encrypted(Certified):
    def test_a_backend_with_a_certificate_of_ones_own(self) -> None:
        backend = self.backend(backends.says("over TLS"), server_context(self.pem))
        daemon = self.daemon(backend, "--backend-ca", str(self.authority.path))
        stream = open_stream(daemon.url, question(stream=True)).read()
        self.assertEqual((stream.text, stream.done), ("over TLS", 1))

    def test_listening_with_tls(self) -> None:
        backend = self.backend(backends.says("hello"))
        port = free_port()
        files = f"privateKey={self.pem}:certKey={self.pem}"
        listen = f"ssl:{port}:interface=127.0.0.1:{files}"
        self.daemon(backend, "--listen", listen, listening=("127.0.0.1", port))
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            port,
            context=ssl.create_default_context(cafile=self.authority.path),
            timeout=PATIENCE,
        )
        connection.request("POST", CHAT, json.dumps(question(stream=True)))
        response = connection.getresponse()
        self.assertEqual(response.status, 200)
        self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))
        connection.close()


class Unvouched(Certified):
    skip = LONG

    def test_a_backend_that_nobody_vouches_for(self) -> None:
        backend = self.backend(backends.says("never heard"), server_context(self.pem))
        other = Authority.make(self.folder())
        daemons = [
            self.daemon(backend, "--backend-ca", str(other.path)),
            self.daemon(backend),
        ]
        for daemon in daemons:
            self.assert_error(ask(daemon.url, question(stream=True)), 502, "certificate")
        self.assertEqual(backend.requests, [])


class Endpoints(Case):
    def test_a_unix_socket(self) -> None:
        backend = self.backend(backends.says("hello"))
        # Not in the test's own folder: the name of a socket has 107 bytes at most.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = f"{folder.name}/http"
        self.daemon(backend, "--listen", f"unix:{path}", listening=path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            body = json.dumps(question(stream=True)).encode()
            client.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            client.sendall(body)
            response = http.client.HTTPResponse(client)
            response.begin()
            self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))

    def test_two_at_once(self) -> None:
        backend = self.backend(backends.says("hello"))
        ports = [free_port(), free_port()]
        options = [f"--listen=tcp:{port}:interface=127.0.0.1" for port in ports]
        self.daemon(backend, *options, listening=("127.0.0.1", ports[1]))
        for port in ports:
            url = f"http://127.0.0.1:{port}"
            self.assertEqual(open_stream(url, question(stream=True)).read().text, "hello")

    def test_a_socket_from_systemd(self) -> None:
        tool = shutil.which("systemd-socket-activate")
        if tool is None:
            self.skipTest("systemd-socket-activate is not installed")
        backend = self.backend(backends.says("hello"))
        folder = self.folder()
        port = free_port()
        command = [
            *(tool, f"--listen=127.0.0.1:{port}", "--fdname=http"),
            *(f"--setenv={name}" for name in ("PYTHONPATH", "HOME")),
            *(*TWISTD, "-n", "--pidfile=", "blockops", "--backend", backend.url),
            "--listen=systemd:domain=INET:name=http",
        ]
        daemon = Program(command, folder / "twistd.log", clean_environ(folder))
        self.addCleanup(daemon.terminate)
        daemon.wait_for_port(("127.0.0.1", port))
        stream = open_stream(f"http://127.0.0.1:{port}", question(stream=True)).read()
        self.assertEqual(stream.text, "hello")
        self.assertNotIn("Traceback", daemon.logged())


class BadSettings(Case):
    skip = LONG

    def test_one_line_and_status_1(self) -> None:
        for options, words in (
            (("--port", "many"), "many"),
            (("--backend", "ftp://x"), "ftp://x"),
            (("--heartbeat", "0"), "heartbeat"),
            (("--listen", "nonsense:1"), "nonsense"),
        ):
            with self.subTest(options=options):
                folder = self.folder()
                ended = subprocess.run(
                    [*TWISTD, "-n", "--pidfile=", "blockops", *options],
                    env=clean_environ(folder),
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                )
                self.assertEqual(ended.returncode, 1)
                said = (ended.stdout + ended.stderr).strip()
                self.assertIn(words, said.splitlines()[-1])
                self.assertNotIn("Traceback", said)
