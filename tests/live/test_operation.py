"""
What its owner does to the daemon: signals, restarts behind systemd's sockets, public addresses.
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
    LONG,
    PATIENCE,
    TWISTD,
    Daemon,
    Program,
    ask,
    check_peace,
    clean_environ,
    free_port,
    open_stream,
    question,
    wait_for,
)
from tests.live.test_daemon import Case

CHUNKS = 20

#: What systemd does between fork and exec: the socket becomes number 3, and variables tell of it.
HANDED_OVER = """
import os, sys
given = int(sys.argv[1])
if given != 3:
    os.dup2(given, 3)
    os.close(given)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
os.execv(sys.argv[2], sys.argv[2:])
"""


_HUNG_UP_AT_ONCE = """
import os, signal
from blockops import tap
make = tap.makeService
def hung_up(options):
    os.kill(os.getpid(), signal.SIGHUP)
    return make(options)
tap.makeService = hung_up
from twisted.scripts.twistd import run
run()
"""


class Hangup(Case):
    def test_keys_and_the_log_are_opened_anew(self) -> None:
        backend = self.backend(backends.says("hello"))
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
        moved = log.rename(folder / "proxy.log.old")
        keys.write_text("bob: sk-bob")
        key.write_text("second")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(log.exists, "the log is not opened anew")
        self.assertEqual([self.status(daemon, one) for one in ("sk-alice", "sk-bob")], [401, 200])
        heard = [each.headers["authorization"] for each in backend.requests]
        self.assertEqual(heard, ["Bearer first", "Bearer second"])
        wait_for(lambda: log.read_text().count("\n") == 4, "nothing more is logged")
        names = [json.loads(line).get("key") for line in log.read_text().splitlines()]
        self.assertEqual(names, [None, None, "bob", None])
        self.assertEqual(moved.read_text().count("\n"), 2)
        for text in (log.read_text(), moved.read_text(), daemon.logged()):
            for secret in ("sk-alice", "sk-bob", "Bearer first", "Bearer second"):
                self.assertNotIn(secret, text)

    def test_files_that_have_become_bad(self) -> None:
        backend = self.backend(backends.says("hello"))
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
        wait_for(lambda: "Reloaded" in daemon.logged(), "nothing is said")
        self.assertIn(f"The API keys stay as they were: {keys}, line 1", daemon.logged())
        self.assertIn("The backend's key stays as it was", daemon.logged())
        self.assertEqual(self.status(daemon, "sk-alice"), 200)
        self.assertEqual(backend.requests[0].headers["authorization"], "Bearer first")

    def test_one_that_comes_while_the_daemon_starts(self) -> None:
        """It neither ends the process nor is it lost."""
        backend = self.backend(backends.says("hello"))
        daemon = self.daemon(backend, kind=HungUpAtOnce)
        wait_for(lambda: "Reloaded" in daemon.logged(), "nothing is said")
        self.assertEqual(ask(daemon.url, question(stream=True)).status, 200)

    def status(self, daemon: Daemon, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return ask(daemon.url, question(stream=True), headers=headers).status


class HungUpAtOnce(Daemon):
    """blockops that gets a SIGHUP when it has read its settings, and nothing else is there yet."""

    twistd = (
        *(sys.executable, "-c", _HUNG_UP_AT_ONCE),
        *("-n", "--pidfile="),
    )


class Stopping(Case):
    def test_a_second_signal_ends_the_drain_without_a_traceback(self) -> None:
        daemon = self.daemon(self.backend(backends.stalls_in_midstream), "--drain=60")
        stream = open_stream(daemon.url, question(stream=True))
        lines = stream.lines()
        next(lines)
        daemon.begin_to_stop()
        wait_for(lambda: not daemon.listens(), "it listens still")
        daemon.process.send_signal(signal.SIGTERM)
        stream.read()
        self.assertEqual(stream.errors[0]["error"]["code"], "shutting_down")
        self.assertIn("Told to stop once more", daemon.logged())

    def test_a_terminal_that_is_closed(self) -> None:
        backend = self.backend(backends.says("hello"))
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
        said = folder / "twistd.log"
        wait_for(lambda: "blockops serves" in said.read_text(), "it does not start")
        os.close(main)
        process.wait(PATIENCE)
        self.assertNotIn("Traceback", said.read_text())
        self.assertNotIn("Reloaded", said.read_text())


#: Takes standard input for its session's terminal, as a login does.
_WITH_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Activated(Program):
    """A daemon that is handed `listener`, as systemd would."""

    def __init__(self, folder: Path, listener: socket.socket, *options: str) -> None:
        number = os.dup(listener.fileno())
        try:
            super().__init__(
                [
                    *(sys.executable, "-c", HANDED_OVER, str(number)),
                    *(*TWISTD, "-n", "--pidfile=", "blockops", *options),
                    "--listen=systemd:domain=INET:name=http",
                ],
                folder / f"twistd-{number}-{os.urandom(4).hex()}.log",
                clean_environ(folder),
                pass_fds=(number,),
            )
        finally:
            os.close(number)

    def serves(self) -> bool:
        return "blockops serves" in self.logged()


def listens_on(daemon: Program, port: int) -> bool:
    held = psutil.Process(daemon.process.pid).net_connections("tcp")
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in held)


class Restarts(Case):
    def start(self, listener: socket.socket, *options: str) -> Activated:
        daemon = Activated(self.folder_, listener, *options)
        self.addCleanup(check_peace, self, daemon)
        wait_for(daemon.serves, "the daemon does not start")
        return daemon

    def setUp(self) -> None:
        self.folder_ = self.folder()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.addCleanup(self.listener.close)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.go_on = threading.Event()

    def slowly(self, exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(backends.event({"role": "assistant", "content": "0 "}))
        self.go_on.wait(PATIENCE)
        for number in range(1, CHUNKS):
            exchange.chunk(backends.event({"content": f"{number} "}))
        exchange.chunk(backends.event({}, "stop"))
        exchange.chunk(backends.DONE)
        exchange.end()

    def test_no_connection_is_lost(self) -> None:
        backend = self.backend(self.slowly)
        options = ("--backend", backend.url, "--max-concurrent=64", "--drain=60")
        first = self.start(self.listener, *options)
        streams = [open_stream(self.url, question(stream=True)) for _ in range(5)]
        first.begin_to_stop()
        wait_for(lambda: not listens_on(first, self.port), "it takes connections still")
        # Nobody listens now but the system: whoever comes has to wait, and is not refused.
        texts: list[str] = []
        waiting = [threading.Thread(target=self.asks, args=(texts,)) for _ in range(20)]
        for each in waiting:
            each.start()
        self.go_on.set()
        for stream in streams:
            stream.read()
            self.assertEqual((len(stream.text.split()), stream.done), (CHUNKS, 1))
        self.assertIn(first.process.wait(PATIENCE), (0, -signal.SIGTERM))
        self.assertEqual(texts, [])
        self.start(self.listener, *options)
        for each in waiting:
            each.join(PATIENCE)
        self.assertEqual(texts, [streams[0].text] * len(waiting))

    def asks(self, texts: list[str]) -> None:
        texts.append(open_stream(self.url, question(stream=True), within=60).read().text)

    def test_a_socket_that_others_reach(self) -> None:
        listener = socket.create_server(("0.0.0.0", 0))
        self.addCleanup(listener.close)
        daemon = Activated(self.folder_, listener)
        self.assertEqual(daemon.process.wait(PATIENCE), 1)
        (line,) = [each for each in daemon.logged().splitlines() if "blockops: " in each]
        self.assertIn("--insecure-public", line)
        self.assertNotIn("Traceback", daemon.logged())

    def test_by_systemds_own_tool(self) -> None:
        tool = shutil.which("systemd-socket-activate")
        if tool is None:
            self.skipTest("systemd-socket-activate is not installed")
        port = free_port()
        command = [
            *(tool, f"--listen=0.0.0.0:{port}", "--fdname=http"),
            *(f"--setenv={name}" for name in ("PYTHONPATH", "HOME")),
            *(*TWISTD, "-n", "--pidfile=", "blockops"),
            "--listen=systemd:domain=INET:name=http",
        ]
        daemon = Program(command, self.folder_ / "tool.log", clean_environ(self.folder_))
        self.addCleanup(daemon.terminate)
        # It starts the daemon for whoever comes first.
        wait_for(lambda: listens_on(daemon, port) or daemon.process.poll(), "nobody listens")
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        self.assertEqual(daemon.process.wait(PATIENCE), 1)
        self.assertIn("--insecure-public", daemon.logged())


#: What two servers would read differently, with a request behind it that nobody meant to send.
POISON = b"GET /v1/poison HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
AMBIGUOUS = (
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    HEAD + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    HEAD + b"Content-Length: 0\r\n Transfer-Encoding: chunked\r\n\r\n",
    HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"X: \0\r\n\r\n",
    b"GET http://x/v1/../admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/models http/1.1\r\nHost: x\r\n\r\n",
)


class RawRequests(Case):
    """Over real sockets; `tests.server.test_smuggling` has all there is."""

    def test_nothing_that_is_ambiguous_reaches_the_backend(self) -> None:
        backend = self.backend(lambda exchange: exchange.whole(b"{}"))
        daemon = self.daemon(backend)
        for sent in AMBIGUOUS:
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client:
                client.sendall(sent + POISON)
                answer = b""
                with contextlib.suppress(ConnectionResetError):
                    while piece := client.recv(65536):
                        answer += piece
            self.assertRegex(answer, rb"^HTTP/1\.1 40[0-9] ", sent)
            self.assertEqual(answer.count(b'{"error"'), 1, sent)
        self.assertEqual(backend.requests, [])

    def test_what_is_clear_reaches_it_once_and_whole(self) -> None:
        heard: list[tuple[str, bytes]] = []

        def listen(exchange: Exchange) -> None:
            heard.append((exchange.path, exchange.body))
            exchange.whole(b"{}")

        daemon = self.daemon(self.backend(listen))
        body = b"5;x=1\r\nhello\r\n0\r\nHost: evil\r\n\r\n"
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client:
            client.sendall(HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
        self.assertEqual(heard, [("/v1/embeddings", b"hello")])


class AdminPort(Case):
    def test_metrics_have_a_port_of_their_own(self) -> None:
        keys = self.folder() / "keys"
        keys.write_text("alice: sk-alice")
        port = free_port()
        backend = self.backend(backends.says("hello"))
        daemon = self.daemon(
            backend, f"--api-keys-file={keys}", f"--admin-listen=tcp:{port}:interface=127.0.0.1"
        )
        key = {"Authorization": "Bearer sk-alice"}
        self.assertEqual(ask(daemon.url, question(stream=True), headers=key).status, 200)
        self.assertEqual(ask(daemon.url, method="GET", path="/metrics", headers=key).status, 404)
        told = ask(f"http://127.0.0.1:{port}", method="GET", path="/metrics")
        self.assertEqual(told.status, 200)
        for line in (
            b'blockops_requests_total{outcome="done",route="chat",status="200"} 1.0',
            b'blockops_key_requests_total{key="alice"} ',
            b"process_open_fds ",
        ):
            self.assertIn(line, told.body)
        self.assertNotIn(b"sk-alice", told.body)
        self.assertEqual(ask(f"http://127.0.0.1:{port}", {}).status, 404)


class PublicAddresses(Case):
    skip = LONG

    def test_one_line_and_status_1(self) -> None:
        for options in (
            ("--interface=0.0.0.0",),
            ("--interface=::",),
            ("--listen=tcp:0",),
            ("--listen=tcp:0:interface=127.0.0.1", "--listen=tcp6:0"),
        ):
            daemon = Daemon(self.folder(), "--backend=demo", *options)
            self.assertEqual(daemon.process.wait(PATIENCE), 1, daemon.logged())
            said = daemon.logged().strip().splitlines()
            self.assertIn("--api-keys-file", said[-1])
            self.assertIn("--insecure-public", said[-1])
            self.assertNotIn("Traceback", daemon.logged())

    def test_the_two_ways_out(self) -> None:
        keys = self.folder() / "keys"
        keys.write_text("alice: sk-alice")
        for option, status in (("--insecure-public", 200), (f"--api-keys-file={keys}", 401)):
            daemon = self.daemon("demo", "--interface=0.0.0.0", option)
            self.assertEqual(ask(daemon.url, method="GET", path="/v1/models").status, status)
