"""
Operation of the daemon: signals, restarts with systemd's sockets, smuggling, public addresses.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from tests.live import backends
from tests.live.backends import Exchange
from tests.live.harness import (
    SKIP_UNLESS_LIVE,
    TIMEOUT,
    TWISTD,
    Daemon,
    Program,
    assert_clean_exit,
    chat_body,
    clean_environ,
    free_port,
    open_stream,
    send_request,
    wait_for,
)
from tests.live.test_daemon import DaemonTestCase

CHUNKS = 20

#: The steps of systemd between fork and exec: the socket becomes descriptor 3, described by
#: environment variables (sd_listen_fds(3)).
HAND_OVER_SOCKET = """
import os, sys
given = int(sys.argv[1])
if given != 3:
    os.dup2(given, 3)
    os.close(given)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
os.execv(sys.argv[2], sys.argv[2:])
"""


class ReloadTests(DaemonTestCase):
    def test_keys_and_the_log_are_reopened(self) -> None:
        backend = self.backend(backends.stream_text("hello"))
        folder = self.folder()
        keys, key, log = folder / "keys", folder / "key", folder / "proxy.log"
        keys.write_text("alice: sk-alice")
        key.write_text("first")
        daemon = self.daemon(
            backend,
            f"--api-keys-file={keys}",
            f"--log-file={log}",
            environ={"BLOCKOPS_BACKEND_KEY_FILE": str(key)},
        )
        self.assertEqual(self.status(daemon, "sk-alice"), 200)
        wait_for(lambda: log.exists() and log.read_text().count("\n") == 2, "nothing is logged")
        rotated = log.rename(folder / "proxy.log.old")
        keys.write_text("bob: sk-bob")
        key.write_text("second")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(log.exists, "the log is not reopened")
        self.assertEqual([self.status(daemon, one) for one in ("sk-alice", "sk-bob")], [401, 200])
        received = [each.headers["authorization"] for each in backend.requests]
        self.assertEqual(received, ["Bearer first", "Bearer second"])
        wait_for(lambda: log.read_text().count("\n") == 4, "nothing more is logged")
        owners = [json.loads(line).get("key") for line in log.read_text().splitlines()]
        self.assertEqual(owners, [None, None, "bob", None])
        self.assertEqual(rotated.read_text().count("\n"), 2)
        for text in (log.read_text(), rotated.read_text(), daemon.read_log()):
            for secret in ("sk-alice", "sk-bob", "Bearer first", "Bearer second"):
                self.assertNotIn(secret, text)

    def test_invalid_files_keep_the_keys(self) -> None:
        backend = self.backend(backends.stream_text("hello"))
        folder = self.folder()
        keys, key = folder / "keys", folder / "key"
        keys.write_text("alice: sk-alice")
        key.write_text("first")
        daemon = self.daemon(
            backend,
            f"--api-keys-file={keys}",
            environ={"BLOCKOPS_BACKEND_KEY_FILE": str(key)},
        )
        keys.write_text("a b c")
        key.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(
            lambda: "The backend's key is unchanged" in daemon.read_log(),
            "the failed reload is not logged",
        )
        self.assertIn(f"The API keys are unchanged: {keys}, line 1", daemon.read_log())
        self.assertNotIn("Reloaded", daemon.read_log())
        self.assertEqual(self.status(daemon, "sk-alice"), 200)
        self.assertEqual(backend.requests[0].headers["authorization"], "Bearer first")

    def status(self, daemon: Daemon, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return send_request(daemon.url, chat_body(stream=True), headers=headers).status


class StopTests(DaemonTestCase):
    def test_a_second_signal_ends_the_drain_without_a_traceback(self) -> None:
        daemon = self.daemon(self.backend(backends.stall_mid_stream), "--drain=60")
        stream = open_stream(daemon.url, chat_body(stream=True))
        lines = stream.iter_lines()
        next(lines)
        daemon.send_sigterm()
        wait_for(lambda: not daemon.is_listening(), "it still listens")
        daemon.process.send_signal(signal.SIGTERM)
        stream.read()
        self.assertEqual(stream.errors[0]["error"]["code"], "shutting_down")
        self.assertIn("Received a second stop signal", daemon.read_log())

    def test_a_terminal_that_is_closed(self) -> None:
        backend = self.backend(backends.stream_text("hello"))
        folder = self.folder()
        main, terminal = os.openpty()
        command = [*TWISTD, "-n", "--pidfile=", "blockops", "--backend", backend.url, "--port=0"]
        with (folder / "twistd.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _WITH_TERMINAL, *command],
                stdin=terminal,
                stdout=output,
                stderr=output,
                env=clean_environ(folder),
                cwd=folder,
                start_new_session=True,
            )
        self.addCleanup(process.kill)
        os.close(terminal)
        log = folder / "twistd.log"
        wait_for(lambda: "blockops serves" in log.read_text(), "it does not start")
        os.close(main)
        process.wait(TIMEOUT)
        self.assertNotIn("Traceback", log.read_text())
        self.assertNotIn("Reloaded", log.read_text())


#: Makes standard input the controlling terminal of its session, as a login does.
_WITH_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class SocketActivatedDaemon(Program):
    """A daemon that inherits `listener`, as from systemd."""

    def __init__(self, folder: Path, listener: socket.socket, *options: str) -> None:
        number = os.dup(listener.fileno())
        try:
            super().__init__(
                [
                    *(sys.executable, "-c", HAND_OVER_SOCKET, str(number)),
                    *(*TWISTD, "-n", "--pidfile=", "blockops", *options),
                    "--listen=systemd:domain=INET:name=http",
                ],
                folder / f"twistd-{number}-{os.urandom(4).hex()}.log",
                clean_environ(folder),
                pass_fds=(number,),
            )
        finally:
            os.close(number)

    def is_serving(self) -> bool:
        return "blockops serves" in self.read_log()


def is_listening_on(daemon: Program, port: int) -> bool:
    connections = psutil.Process(daemon.process.pid).net_connections("tcp")
    return any(
        each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections
    )


class SocketActivationTests(DaemonTestCase):
    def start(self, listener: socket.socket, *options: str) -> SocketActivatedDaemon:
        daemon = SocketActivatedDaemon(self.run_folder, listener, *options)
        self.addCleanup(assert_clean_exit, self, daemon)
        wait_for(daemon.is_serving, "the daemon does not start")
        return daemon

    def setUp(self) -> None:
        self.run_folder = self.folder()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.addCleanup(self.listener.close)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.resume = threading.Event()

    def stream_slowly(self, exchange: Exchange) -> None:
        exchange.start_chunked()
        exchange.send_chunk(backends.event({"role": "assistant", "content": "0 "}))
        self.resume.wait(TIMEOUT)
        for number in range(1, CHUNKS):
            exchange.send_chunk(backends.event({"content": f"{number} "}))
        exchange.send_chunk(backends.event({}, "stop"))
        exchange.send_chunk(backends.DONE)
        exchange.send_last_chunk()

    def test_no_connection_is_lost(self) -> None:
        backend = self.backend(self.stream_slowly)
        options = ("--backend", backend.url, "--max-concurrent=64", "--drain=60")
        first = self.start(self.listener, *options)
        streams = [open_stream(self.url, chat_body(stream=True)) for _ in range(5)]
        first.send_sigterm()
        wait_for(lambda: not is_listening_on(first, self.port), "it still listens")
        # Only the system holds the socket now: new connections wait in its backlog.
        answers: list[str] = []
        waiting = [threading.Thread(target=self.stream_one, args=(answers,)) for _ in range(20)]
        for each in waiting:
            each.start()
        self.resume.set()
        for stream in streams:
            stream.read()
            self.assertEqual((len(stream.text.split()), stream.done_count), (CHUNKS, 1))
        self.assertIn(first.process.wait(TIMEOUT), (0, -signal.SIGTERM))
        self.assertEqual(answers, [])
        self.start(self.listener, *options)
        for each in waiting:
            each.join(TIMEOUT)
        self.assertEqual(answers, [streams[0].text] * len(waiting))

    def stream_one(self, answers: list[str]) -> None:
        answers.append(open_stream(self.url, chat_body(stream=True), timeout=60).read().text)

    def test_a_socket_on_a_public_address(self) -> None:
        listener = socket.create_server(("0.0.0.0", 0))
        self.addCleanup(listener.close)
        daemon = SocketActivatedDaemon(self.run_folder, listener)
        self.assertEqual(daemon.process.wait(TIMEOUT), 1)
        (line,) = [each for each in daemon.read_log().splitlines() if "blockops: " in each]
        self.assertIn("--insecure-public", line)
        self.assertNotIn("Traceback", daemon.read_log())

    def test_systemd_socket_activate(self) -> None:
        program = shutil.which("systemd-socket-activate")
        if program is None:
            self.skipTest("systemd-socket-activate is not installed")
        port = free_port()
        command = [
            *(program, f"--listen=0.0.0.0:{port}", "--fdname=http"),
            *(f"--setenv={name}" for name in ("PYTHONPATH", "HOME")),
            *(*TWISTD, "-n", "--pidfile=", "blockops"),
            "--listen=systemd:domain=INET:name=http",
        ]
        daemon = Program(command, self.run_folder / "tool.log", clean_environ(self.run_folder))
        self.addCleanup(daemon.terminate)
        # It starts the daemon on the first connection.
        wait_for(
            lambda: is_listening_on(daemon, port) or daemon.process.poll(), "it does not listen"
        )
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        self.assertEqual(daemon.process.wait(TIMEOUT), 1)
        self.assertIn("--insecure-public", daemon.read_log())


#: Requests whose end two servers may see at different places, and a request to smuggle after them.
SMUGGLED_REQUEST = b"GET /v1/poison HTTP/1.1\r\nHost: x\r\n\r\n"
EMBEDDINGS_HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
AMBIGUOUS_REQUESTS = (
    EMBEDDINGS_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    EMBEDDINGS_HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    EMBEDDINGS_HEAD + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    EMBEDDINGS_HEAD + b"Content-Length: 0\r\n Transfer-Encoding: chunked\r\n\r\n",
    EMBEDDINGS_HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    EMBEDDINGS_HEAD + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    EMBEDDINGS_HEAD + b"X: \0\r\n\r\n",
    b"GET http://x/v1/../admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/models http/1.1\r\nHost: x\r\n\r\n",
)


class SmugglingTests(DaemonTestCase):
    """A sample over real sockets; `tests.server.test_smuggling` has all cases."""

    def test_ambiguous_requests_do_not_reach_the_backend(self) -> None:
        backend = self.backend(lambda exchange: exchange.respond(b"{}"))
        daemon = self.daemon(backend)
        for request in AMBIGUOUS_REQUESTS:
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=TIMEOUT) as client:
                client.sendall(request + SMUGGLED_REQUEST)
                response = b""
                with contextlib.suppress(ConnectionResetError):
                    while data := client.recv(65536):
                        response += data
            self.assertRegex(response, rb"^HTTP/1\.1 40[0-9] ", request)
            self.assertEqual(response.count(b'{"error"'), 1, request)
        self.assertEqual(backend.requests, [])

    def test_a_valid_chunked_request_reaches_the_backend_once(self) -> None:
        received: list[tuple[str, bytes]] = []

        def listen(exchange: Exchange) -> None:
            received.append((exchange.path, exchange.body))
            exchange.respond(b"{}")

        daemon = self.daemon(self.backend(listen))
        body = b"5;x=1\r\nhello\r\n0\r\nHost: evil\r\n\r\n"
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=TIMEOUT) as client:
            client.sendall(
                EMBEDDINGS_HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body
            )
            response = b""
            while data := client.recv(65536):
                response += data
        self.assertTrue(response.startswith(b"HTTP/1.1 200 "), response)
        self.assertEqual(received, [("/v1/embeddings", b"hello")])


class AdminPortTests(DaemonTestCase):
    def test_metrics_on_a_separate_port(self) -> None:
        keys = self.folder() / "keys"
        keys.write_text("alice: sk-alice")
        port = free_port()
        backend = self.backend(backends.stream_text("hello"))
        daemon = self.daemon(
            backend, f"--api-keys-file={keys}", f"--admin-listen=tcp:{port}:interface=127.0.0.1"
        )
        key = {"Authorization": "Bearer sk-alice"}
        self.assertEqual(send_request(daemon.url, chat_body(stream=True), headers=key).status, 200)
        self.assertEqual(
            send_request(daemon.url, method="GET", path="/metrics", headers=key).status, 404
        )
        metrics = send_request(f"http://127.0.0.1:{port}", method="GET", path="/metrics")
        self.assertEqual(metrics.status, 200)
        for line in (
            b'blockops_requests_total{outcome="done",route="chat",status="200"} 1.0',
            b'blockops_key_requests_total{key="alice"} ',
            b"process_open_fds ",
        ):
            self.assertIn(line, metrics.body)
        self.assertNotIn(b"sk-alice", metrics.body)
        self.assertEqual(send_request(f"http://127.0.0.1:{port}", {}).status, 404)


class PublicAddressTests(DaemonTestCase):
    skip = SKIP_UNLESS_LIVE

    def test_one_line_and_status_1(self) -> None:
        for options in (
            ("--interface=0.0.0.0",),
            ("--interface=::",),
            ("--listen=tcp:0",),
            ("--listen=tcp:0:interface=127.0.0.1", "--listen=tcp6:0"),
        ):
            daemon = Daemon(self.folder(), "--backend=demo", *options)
            self.assertEqual(daemon.process.wait(TIMEOUT), 1, daemon.read_log())
            log = daemon.read_log().strip().splitlines()
            self.assertIn("--api-keys-file", log[-1])
            self.assertIn("--insecure-public", log[-1])
            self.assertNotIn("Traceback", daemon.read_log())

    def test_the_two_options_that_allow_it(self) -> None:
        keys = self.folder() / "keys"
        keys.write_text("alice: sk-alice")
        for option, status in (("--insecure-public", 200), (f"--api-keys-file={keys}", 401)):
            daemon = self.daemon("demo", "--interface=0.0.0.0", option)
            self.assertEqual(
                send_request(daemon.url, method="GET", path="/v1/models").status, status
            )
