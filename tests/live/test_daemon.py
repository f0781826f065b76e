"""
The daemon as a process: real sockets, a real `twistd`, and backends with one behaviour each.
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
    CHAT_PATH,
    SKIP_UNLESS_LIVE,
    TIMEOUT,
    TWISTD,
    Daemon,
    Program,
    Response,
    Stream,
    chat_body,
    clean_environ,
    connect,
    free_port,
    open_stream,
    send_request,
    start_daemon,
    wait_for,
)

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class DaemonTestCase(SynchronousTestCase):
    def folder(self) -> Path:
        """Create a folder for this test and return its absolute path."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        return folder

    def backend(self, script: Any, tls: ssl.SSLContext | None = None) -> Backend:
        backend = Backend(script, tls)
        self.addCleanup(backend.stop)
        return backend

    def daemon(self, backend: Backend | str, *options: str, **arguments: Any) -> Daemon:
        url = backend if isinstance(backend, str) else backend.url
        return start_daemon(self, "--backend", url, *options, **arguments)

    def assert_error(self, response: Response, status: int, expected: str) -> None:
        """Assert that `response` is an error with `status` whose message contains `expected`."""
        self.assertEqual(
            (response.status, response.headers["content-type"]), (status, "application/json")
        )
        self.assertIn(expected.casefold(), response.error["message"].casefold())


class EndpointTests(DaemonTestCase):
    def test_a_call_in_a_non_streaming_response(self) -> None:
        daemon = self.daemon(self.backend(backends.respond_with_text(CALL)))
        choice = send_request(daemon.url, chat_body(tools=TOOLS)).json()["choices"][0]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertIsNone(choice["message"]["content"])
        self.assertEqual(choice["message"]["tool_calls"][0]["function"]["name"], "add")

    def test_settings_from_the_environment(self) -> None:
        backend = self.backend(backends.stream_text("hello"))
        port = free_port()
        daemon = start_daemon(
            self,
            "--listen",
            f"tcp:{port}:interface=127.0.0.1",
            environ={"BACKEND_URL": backend.url, "BLOCKOPS_BACKEND_KEY": "s3cret"},
            address=("127.0.0.1", port),
        )
        stream = open_stream(f"http://127.0.0.1:{port}", chat_body(stream=True)).read()
        self.assertEqual(stream.text, "hello")
        self.assertEqual(backend.requests[0].headers["authorization"], "Bearer s3cret")
        self.assertNotIn("s3cret", daemon.read_log())

    def test_other_routes_pass_through(self) -> None:
        requests: list[Any] = []

        def embed(exchange: Exchange) -> None:
            requests.append((exchange.method, exchange.path, exchange.body))
            exchange.respond(b'{"data": [1,2,  3]}')

        daemon = self.daemon(self.backend(embed))
        response = send_request(daemon.url, b'{"input":  "x"}', path="/v1/embeddings?a=b%20c")
        self.assertEqual((response.status, response.body), (200, b'{"data": [1,2,  3]}'))
        self.assertEqual(requests, [("POST", "/v1/embeddings?a=b%20c", b'{"input":  "x"}')])

    def test_models(self) -> None:
        daemon = self.daemon(self.backend(backends.send_json_error))
        listed = send_request(daemon.url, method="GET", path="/v1/models").json()
        self.assertEqual([model["id"] for model in listed["data"]], ["m"])

    def test_health_and_readiness(self) -> None:
        backend = self.backend(backends.never_respond)
        daemon = self.daemon(backend)
        self.assertEqual(send_request(daemon.url, method="GET", path="/health").status, 200)
        self.assertEqual(send_request(daemon.url, method="GET", path="/ready").status, 200)
        backend.stop()
        self.assertEqual(send_request(daemon.url, method="GET", path="/health").status, 200)
        self.assert_error(send_request(daemon.url, method="GET", path="/ready"), 503, "backend")


class DemoTests(DaemonTestCase):
    skip = SKIP_UNLESS_LIVE

    def test_calls_in_each_dialect(self) -> None:
        """A new user sees calls without a model, one in each dialect."""
        daemon = self.daemon("demo", "--heartbeat", "0.2")
        weather = {"properties": {"city": {"type": "string"}}}
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": weather}}]
        streams = [
            open_stream(daemon.url, chat_body("Rain in Rome?", stream=True, tools=tools))
            for _ in range(3)
        ]
        for stream in streams:
            stream.read()
            self.assertEqual(stream.calls, [("get_weather", {"city": "Rome"})])
            self.assertEqual((stream.finish_reasons, stream.done_count), (["tool_calls"], 1))
            self.assertGreaterEqual(len(stream.comments), 1)
            self.assertNotIn("tool_call", stream.text)

    def test_a_stop_waits_for_open_streams(self) -> None:
        daemon = self.daemon("demo")
        stream = open_stream(daemon.url, chat_body("17 and 4", stream=True, tools=TOOLS))
        next(stream.iter_lines())
        daemon.send_sigterm()
        self.assertEqual((stream.read().calls, stream.done_count), ([("add", {})], 1))

    def test_the_printed_command(self) -> None:
        if shutil.which("curl") is None:
            self.skipTest("curl is not installed")
        daemon = self.daemon("demo")
        wait_for(lambda: "curl" in daemon.read_log(), "no command is printed")
        command = next(line for line in daemon.read_log().splitlines() if "curl -gN" in line)
        printed = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
        self.assertIn('"tool_calls"', printed.stdout)
        self.assertTrue(printed.stdout.endswith("data: [DONE]\n\n"))


class BadRequestTests(DaemonTestCase):
    def test_each_with_its_own_error(self) -> None:
        daemon = self.daemon(self.backend(backends.stream_text("never requested")))
        for body, expected in (
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
                self.assert_error(send_request(daemon.url, body), 400, expected)

    def test_unknown_routes(self) -> None:
        daemon = self.daemon(self.backend(backends.stream_text("never requested")))
        for method, path in (("GET", "/"), ("GET", "/nothing"), ("POST", "/chat/completions")):
            self.assert_error(send_request(daemon.url, method=method, path=path), 404, path)

    def test_wrong_methods(self) -> None:
        daemon = self.daemon(self.backend(backends.stream_text("never requested")))
        for method, path, allowed in (
            ("GET", CHAT_PATH, "POST"),
            ("DELETE", CHAT_PATH, "POST"),
            ("PUT", CHAT_PATH, "POST"),
            ("PATCH", "/health", "GET"),
            ("POST", "/ready", "GET"),
        ):
            with self.subTest(method=method, path=path):
                response = send_request(daemon.url, method=method, path=path)
                self.assert_error(response, 405, method)
                self.assertIn(allowed, response.headers["allow"])


class LargeBodyTests(DaemonTestCase):
    skip = SKIP_UNLESS_LIVE

    def test_a_body_of_100_mb_with_a_length(self) -> None:
        daemon = self.daemon(self.backend(backends.stream_text("never requested")))
        before = daemon.rss()
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:
            client.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\n" % CHAT_PATH.encode())
            client.sendall(b"Content-Length: %d\r\n\r\n" % 100_000_000)
            # The length alone causes the rejection: no byte of the body is sent yet.
            response = http.client.HTTPResponse(client)
            response.begin()
            self.assertEqual(response.status, 413)
            self.assertIn("max-body", json.loads(response.read())["error"]["message"])
        self.assertLess(daemon.rss() - before, 4 << 20)

    def test_a_body_of_100_mb_in_chunks(self) -> None:
        daemon = self.daemon(
            self.backend(backends.stream_text("never requested")), "--max-body", "8M"
        )
        before = daemon.rss()
        chunk = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as client:
            client.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\n" % CHAT_PATH.encode())
            client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                client.sendall(chunk)
            client.sendall(b"0\r\n\r\n")
            response = http.client.HTTPResponse(client)
            response.begin()
            self.assertEqual(response.status, 413)
            self.assertIn("max-body", json.loads(response.read())["error"]["message"])
        self.assertLess(daemon.rss() - before, 24 << 20)

    def test_a_client_library_that_sends_100_mb_reads_the_error(self) -> None:
        daemon = self.daemon(self.backend(backends.stream_text("never requested")))
        self.assert_error(send_request(daemon.url, b" " * 100_000_000), 413, "max-body")


class BackendFaultTests(DaemonTestCase):
    skip = SKIP_UNLESS_LIVE

    def send_both_modes(self, url: str) -> list[Response]:
        return [send_request(url, chat_body(stream=stream)) for stream in (True, False)]

    def test_down(self) -> None:
        # Without the circuit breaker each request tries to connect.
        daemon = self.daemon(f"http://127.0.0.1:{free_port()}", "--circuit-after=0")
        for response in self.send_both_modes(daemon.url):
            self.assert_error(response, 502, "backend")

    def test_down_for_long(self) -> None:
        daemon = self.daemon(f"http://127.0.0.1:{free_port()}", "--circuit-pause=100")
        first, second = self.send_both_modes(daemon.url)
        self.assert_error(first, 502, "backend")
        # Five consecutive failures open the circuit: later requests fail at once.
        for response in (second, *self.send_both_modes(daemon.url)):
            self.assert_error(response, 503, "backend")
            self.assertLessEqual(int(response.headers["retry-after"]), 100)

    def test_html_with_500(self) -> None:
        daemon = self.daemon(self.backend(backends.send_html_error))
        for response in self.send_both_modes(daemon.url):
            self.assert_error(response, 500, "out of memory on device")

    def test_an_error_in_json_passes_unchanged(self) -> None:
        daemon = self.daemon(self.backend(backends.send_json_error))
        for response in self.send_both_modes(daemon.url):
            self.assertEqual((response.status, response.json()["extra"]), (400, 1))

    def test_close_before_headers(self) -> None:
        daemon = self.daemon(self.backend(backends.close_before_headers))
        for response in self.send_both_modes(daemon.url):
            self.assert_error(response, 502, "backend")

    def test_close_mid_stream(self) -> None:
        daemon = self.daemon(self.backend(backends.close_mid_stream))
        stream = open_stream(daemon.url, chat_body(stream=True)).read()
        self.assertEqual((stream.text, stream.done_count, len(stream.errors)), ("Hel", 0, 1))

    def test_garbage(self) -> None:
        daemon = self.daemon(self.backend(backends.send_garbage))
        stream = open_stream(daemon.url, chat_body(stream=True)).read()
        self.assertEqual((stream.text, stream.done_count, len(stream.errors)), ("", 0, 1))
        self.assert_error(send_request(daemon.url, chat_body()), 502, "backend")

    def test_no_response(self) -> None:
        backend = self.backend(backends.never_respond)
        daemon = self.daemon(backend, "--first-byte-timeout", "0.3")
        for response in self.send_both_modes(daemon.url):
            self.assert_error(response, 504, "first-byte-timeout")
        self.assertTrue(backend.wait_until(lambda it: it.open_connections == 0))

    def test_no_response_after_heartbeats(self) -> None:
        daemon = self.daemon(
            self.backend(backends.never_respond), "--first-byte-timeout=3", "--heartbeat=0.2"
        )
        stream = open_stream(daemon.url, chat_body(stream=True)).read()
        self.assertGreaterEqual(len(stream.comments), 2)
        self.assertEqual(
            (stream.done_count, stream.errors[0]["error"]["code"]), (0, "backend_timeout")
        )

    def test_stall_mid_stream(self) -> None:
        backend = self.backend(backends.stall_mid_stream)
        daemon = self.daemon(backend, "--idle-timeout", "2")
        stream = open_stream(daemon.url, chat_body(stream=True)).read()
        self.assertEqual((stream.text, stream.done_count, len(stream.errors)), ("Hel", 0, 1))
        self.assertTrue(backend.wait_until(lambda it: it.open_connections == 0))


class HeartbeatTests(DaemonTestCase):
    skip = SKIP_UNLESS_LIVE

    def setUp(self) -> None:
        self.gate = backends.Gate()

    def pause_twice(self, exchange: Exchange) -> None:
        """Pause before and within the response, each time until a heartbeat has arrived."""
        self.gate.wait()
        exchange.start_chunked()
        exchange.send_chunk(backends.event({"role": "assistant", "content": "Hel"}))
        self.gate.wait()
        exchange.send_chunk(backends.event({"content": "lo"}))
        exchange.send_chunk(backends.event({}, "stop"))
        exchange.send_chunk(backends.DONE)
        exchange.send_last_chunk()

    def read(self, stream: Stream, is_heartbeat: Callable[[str], bool]) -> str:
        """Return the order of the lines received: "." for heartbeats, "d" for data."""
        order = ""
        for line in stream.iter_lines():
            is_beat = is_heartbeat(line)
            if is_beat and not order.endswith("."):
                self.gate.open()
            order += "." if is_beat else "d"
        return order

    def test_comments_before_the_first_byte_and_mid_stream(self) -> None:
        daemon = self.daemon(self.backend(self.pause_twice), "--heartbeat", "0.2")
        stream = open_stream(daemon.url, chat_body(stream=True))
        order = self.read(stream, lambda line: line.startswith(":"))
        self.assertRegex(order, r"^\.+d+\.+d+$")
        self.assertEqual((stream.text, stream.done_count), ("Hello", 1))

    def test_chunks(self) -> None:
        daemon = self.daemon(
            self.backend(self.pause_twice), "--heartbeat", "0.2", "--heartbeat-style", "chunk"
        )
        stream = open_stream(daemon.url, chat_body(stream=True))
        order = self.read(stream, lambda line: "content" not in line and "stop" not in line)
        deltas = [choice["delta"] for choice in stream.choices]
        self.assertEqual(deltas[0], {"role": "assistant"})
        self.assertRegex(order.removesuffix("."), r"^\.+d\.+d+$")
        self.assertEqual((stream.comments, stream.text, stream.done_count), ([], "Hello", 1))

    def test_while_queued(self) -> None:
        backend = self.backend(backends.stall_mid_stream)
        daemon = self.daemon(backend, "--max-concurrent", "1", "--heartbeat", "0.2")
        first = open_stream(daemon.url, chat_body(stream=True))
        backend.wait_until(lambda it: len(it.requests) == 1)
        backend.script = backends.stream_text("second")
        queued = open_stream(daemon.url, chat_body(stream=True))
        lines = queued.iter_lines()
        self.assertTrue(next(lines).startswith(":"))
        self.assertEqual(len(backend.requests), 1)
        first.close()
        self.assertEqual(queued.read().text, "second")

    def test_white_space_keeps_a_non_streaming_response_alive(self) -> None:
        def wait_and_respond(exchange: Exchange) -> None:
            self.gate.wait()
            backends.respond_with_text("hello")(exchange)

        daemon = self.daemon(
            self.backend(wait_and_respond), "--heartbeat", "0.2", "--heartbeat-json"
        )
        connection = connect(daemon.url, timeout=TIMEOUT)
        self.addCleanup(connection.close)
        connection.request("POST", CHAT_PATH, json.dumps(chat_body()))
        response = connection.getresponse()
        heartbeat_bytes = response.read(2)
        self.gate.open()
        self.assertEqual(heartbeat_bytes.strip(), b"")
        answer = json.loads(response.read())
        self.assertEqual(answer["choices"][0]["message"]["content"], "hello")


class DisconnectTests(DaemonTestCase):
    skip = SKIP_UNLESS_LIVE

    def test_a_disconnect_cancels_the_backend_request(self) -> None:
        for name, script in (
            ("before headers", backends.never_respond),
            ("mid-stream", backends.stall_mid_stream),
        ):
            with self.subTest(name):
                backend = self.backend(script)
                daemon = self.daemon(backend, "--max-concurrent", "1")
                with socket.create_connection(("127.0.0.1", daemon.port)) as client:
                    body = json.dumps(chat_body(stream=True)).encode()
                    client.sendall(_post(body))
                    backend.wait_until(lambda it: len(it.requests) == 1)
                self.assertTrue(backend.wait_until(lambda it: it.open_connections == 0))
                # The only slot is free again.
                backend.script = backends.stream_text("next")
                text = open_stream(daemon.url, chat_body(stream=True)).read().text
                self.assertEqual(text, "next")

    def test_over_the_limits(self) -> None:
        backend = self.backend(backends.never_respond)
        daemon = self.daemon(backend, "--max-concurrent", "1", "--max-queue", "1")
        waiting = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(2)]
        body = json.dumps(chat_body(stream=True)).encode()
        for client in waiting:
            client.sendall(_post(body))
            self.addCleanup(client.close)
        wait_for(lambda: _health(daemon)["waiting"] == 1, "the second request does not wait")
        response = send_request(daemon.url, chat_body(stream=True))
        self.assert_error(response, 429, "")
        self.assertEqual(response.error["code"], "concurrency_limit")
        self.assertGreater(int(response.headers["retry-after"]), 0)


def _post(body: bytes) -> bytes:
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _health(daemon: Daemon) -> dict[str, Any]:
    return dict(send_request(daemon.url, method="GET", path="/health").json())


class StopTests(DaemonTestCase):
    def test_an_idle_daemon_stops_at_once(self) -> None:
        daemon = self.daemon(self.backend(backends.stream_text("hello")))
        send_request(daemon.url, chat_body())
        self.assertIn(daemon.terminate(timeout=20), (0, -signal.SIGTERM))

    def test_a_port_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as blocker:
            port = blocker.getsockname()[1]
            daemon = Daemon(self.folder(), "--listen", f"tcp:{port}:interface=127.0.0.1")
            self.assertEqual(daemon.process.wait(20), 1)
        self.assertIn(str(port), daemon.read_log())


class CertificateTestCase(DaemonTestCase):
    """Provides a certificate authority and a certificate that it signed for 127.0.0.1."""

    def setUp(self) -> None:
        self.authority = Authority.make(self.folder())
        self.pem = self.authority.certify(self.authority.path.parent, "127.0.0.1")


class TlsTests(CertificateTestCase):
    def test_a_backend_with_a_private_authority(self) -> None:
        backend = self.backend(backends.stream_text("over TLS"), server_context(self.pem))
        daemon = self.daemon(backend, "--backend-ca", str(self.authority.path))
        stream = open_stream(daemon.url, chat_body(stream=True)).read()
        self.assertEqual((stream.text, stream.done_count), ("over TLS", 1))

    def test_listening_with_tls(self) -> None:
        backend = self.backend(backends.stream_text("hello"))
        port = free_port()
        files = f"privateKey={self.pem}:certKey={self.pem}"
        listen = f"ssl:{port}:interface=127.0.0.1:{files}"
        self.daemon(backend, "--listen", listen, address=("127.0.0.1", port))
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            port,
            context=ssl.create_default_context(cafile=self.authority.path),
            timeout=TIMEOUT,
        )
        connection.request("POST", CHAT_PATH, json.dumps(chat_body(stream=True)))
        response = connection.getresponse()
        self.assertEqual(response.status, 200)
        self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))
        connection.close()


class UntrustedCertificateTests(CertificateTestCase):
    skip = SKIP_UNLESS_LIVE

    def test_a_backend_with_an_untrusted_certificate(self) -> None:
        backend = self.backend(backends.stream_text("never sent"), server_context(self.pem))
        other = Authority.make(self.folder())
        daemons = [
            self.daemon(backend, "--backend-ca", str(other.path)),
            self.daemon(backend),
        ]
        for daemon in daemons:
            self.assert_error(send_request(daemon.url, chat_body(stream=True)), 502, "certificate")
        self.assertEqual(backend.requests, [])


class ListenTests(DaemonTestCase):
    def test_a_unix_socket(self) -> None:
        backend = self.backend(backends.stream_text("hello"))
        # Not in the test's folder: the path of a socket has at most 107 bytes.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = f"{folder.name}/http"
        self.daemon(backend, "--listen", f"unix:{path}", address=path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            body = json.dumps(chat_body(stream=True)).encode()
            client.sendall(_post(body))
            response = http.client.HTTPResponse(client)
            response.begin()
            self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))

    def test_two_at_once(self) -> None:
        backend = self.backend(backends.stream_text("hello"))
        ports = [free_port(), free_port()]
        options = [f"--listen=tcp:{port}:interface=127.0.0.1" for port in ports]
        self.daemon(backend, *options, address=("127.0.0.1", ports[1]))
        for port in ports:
            url = f"http://127.0.0.1:{port}"
            self.assertEqual(open_stream(url, chat_body(stream=True)).read().text, "hello")

    def test_a_socket_from_systemd(self) -> None:
        program = shutil.which("systemd-socket-activate")
        if program is None:
            self.skipTest("systemd-socket-activate is not installed")
        backend = self.backend(backends.stream_text("hello"))
        folder = self.folder()
        port = free_port()
        command = [
            *(program, f"--listen=127.0.0.1:{port}", "--fdname=http"),
            *(f"--setenv={name}" for name in ("PYTHONPATH", "HOME")),
            *(*TWISTD, "-n", "--pidfile=", "blockops", "--backend", backend.url),
            "--listen=systemd:domain=INET:name=http",
        ]
        daemon = Program(command, folder / "twistd.log", clean_environ(folder))
        self.addCleanup(daemon.terminate)
        daemon.wait_for_port(("127.0.0.1", port))
        stream = open_stream(f"http://127.0.0.1:{port}", chat_body(stream=True)).read()
        self.assertEqual(stream.text, "hello")
        self.assertNotIn("Traceback", daemon.read_log())


class InvalidSettingsTests(DaemonTestCase):
    skip = SKIP_UNLESS_LIVE

    def test_one_line_and_status_1(self) -> None:
        for options, expected in (
            (("--port", "many"), "many"),
            (("--backend", "ftp://x"), "ftp://x"),
            (("--heartbeat", "0"), "heartbeat"),
            (("--listen", "nonsense:1"), "nonsense"),
        ):
            with self.subTest(options=options):
                folder = self.folder()
                result = subprocess.run(
                    [*TWISTD, "-n", "--pidfile=", "blockops", *options],
                    env=clean_environ(folder),
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT,
                    check=False,
                )
                self.assertEqual(result.returncode, 1)
                output = (result.stdout + result.stderr).strip()
                self.assertIn(expected, output.splitlines()[-1])
                self.assertNotIn("Traceback", output)
