"""
Start and stop the real programs, and send them HTTP requests over plain sockets.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.trial.unittest import SynchronousTestCase

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODEL = HERE / "tiny-model"
CHAT_PATH = "/v1/chat/completions"

#: The folder of the environments that `tests/live/run` installs; "" under plain trial.
INSTALLS = os.environ.get("BLOCKOPS_LIVE", "")

#: Seconds after which a wait fails. Generous: no test measures time with it.
TIMEOUT = 60.0

SKIP_UNLESS_LIVE = None if INSTALLS else "takes long: `bash tests/live/run` runs it"

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

_UNPREFIXED_VARIABLES = (
    "BACKEND_URL",
    "PORT",
    "MODEL_NAME",
    "MAX_CONCURRENT",
    "MAX_QUEUE",
    "QUEUE_TIMEOUT",
)


def skip_without(*modules: str) -> str | None:
    """Return the reason to skip a test that imports `modules`, or None if it can run here."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if SKIP_UNLESS_LIVE or not missing:
        return SKIP_UNLESS_LIVE
    return f"{', '.join(missing)} not installed: `bash tests/live/run` installs it"


def free_port() -> int:
    """
    Return a free TCP port.

    It is below the ephemeral ports, so that an outgoing connection of another process cannot take
    it before the test listens on it.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(condition: Any, failure: str, timeout: float = TIMEOUT) -> None:
    """
    Poll `condition` until it is true.

    :param failure: describes the state in which `condition` is false
    :raises AssertionError: `condition` is still false after `timeout` seconds
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"After {timeout} s: {failure}")
        time.sleep(0.02)


class Program:
    """
    A child process.

    :param log: the file for its standard output and standard error
    """

    def __init__(
        self, command: list[str], log: Path, environ: dict[str, str], pass_fds: tuple[int, ...] = ()
    ) -> None:
        self.log = log
        self._is_stopping = False
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environ,
                cwd=log.parent,
                pass_fds=pass_fds,
            )

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_port(self, address: tuple[str, int] | str, timeout: float = TIMEOUT) -> None:
        def listens() -> bool:
            if self.process.poll() is not None:
                status = self.process.returncode
                raise AssertionError(f"The process exited with {status}:\n{self.read_log()}")
            return _accepts_connections(address)

        wait_for(listens, f"nothing listens on {address}", timeout)

    def send_sigterm(self) -> None:
        """Send SIGTERM on the first call; do nothing on later calls."""
        if not self._is_stopping and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._is_stopping = True

    def terminate(self, timeout: float = TIMEOUT) -> int:
        """
        Send SIGTERM, wait, and return the exit status as in `Popen.returncode`.

        :raises AssertionError: the process still runs after `timeout` seconds; it is killed
        """
        self.send_sigterm()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(
                f"The process still runs {timeout} s after SIGTERM:\n{self.read_log()}"
            ) from None


def _accepts_connections(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


class Daemon(Program):
    """
    A real `twistd -n blockops`, isolated from the user's environment, files and ports.

    :param folder: the working directory and HOME
    :param options: the command line after `blockops`
    :cvar twistd: the command line before `blockops`
    """

    twistd: ClassVar[tuple[str, ...]] = (*TWISTD, "-n", "--pidfile=")

    def __init__(self, folder: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        if not any(each.startswith("--listen") for each in options):
            options = (*options, "--port", str(self.port))
        command = [*self.twistd, "blockops", *options]
        super().__init__(command, folder / "twistd.log", clean_environ(folder) | (environ or {}))

    def is_listening(self) -> bool:
        return _accepts_connections(("127.0.0.1", self.port))

    def rss(self) -> int:
        """Return the resident memory of the process in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def backend_connections(self, backend_url: str) -> int:
        """Return the number of open connections to `backend_url`."""
        port = urlsplit(backend_url).port
        return sum(1 for each in self.connections() if each.raddr.port == port)

    def connections(self) -> list[Any]:
        """Return the open TCP connections to clients and backends."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return [each for each in connections if each.raddr]


def clean_environ(home: Path) -> dict[str, str]:
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BLOCKOPS_", "TOKEN_")) and name not in _UNPREFIXED_VARIABLES
    }
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return variables | {"HOME": str(home), "PYTHONPATH": path.rstrip(os.pathsep)}


def start_daemon(
    test: SynchronousTestCase,
    *options: str,
    environ: dict[str, str] | None = None,
    address: tuple[str, int] | str | None = None,
    kind: type[Daemon] = Daemon,
) -> Daemon:
    """
    Start blockops for `test`; stop it in a cleanup that also asserts a clean exit.

    :param address: the address that `options` make it listen on, if they contain `--listen`
    :param kind: the class that starts it
    """
    daemon = kind(Path(test.mktemp()).resolve(), *options, environ=environ)
    test.addCleanup(assert_clean_exit, test, daemon)
    daemon.wait_for_port(address or ("127.0.0.1", daemon.port))
    return daemon


def assert_clean_exit(test: SynchronousTestCase, daemon: Program) -> None:
    status = daemon.terminate()
    log = daemon.read_log()
    # After a complete stop twistd kills itself with the signal, which systemd counts as clean.
    test.assertIn(status, (0, -signal.SIGTERM), log)
    for marker in ("Traceback", "Unhandled", "Error in Deferred", "exceptions.", "CRITICAL"):
        test.assertNotIn(marker, log, f"In the log of blockops:\n{log}")


def start_llama(test: SynchronousTestCase) -> str:
    """Start llama.cpp's server with the tiny model and return its URL."""
    folder = Path(test.mktemp()).resolve()
    folder.mkdir()
    port = free_port()
    command = [sys.executable, str(HERE / "llama_server.py"), str(MODEL), str(port)]
    llama = Program(command, folder / "llama.log", dict(os.environ))
    test.addCleanup(llama.terminate)
    llama.wait_for_port(("127.0.0.1", port), timeout=60)
    url = f"http://127.0.0.1:{port}"
    wait_for(
        lambda: send_request(url, path="/health", method="GET").status == 200,
        "llama.cpp is not ready",
    )
    return url


@dataclass
class Response:
    """A complete response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """
        The `error` object.

        :raises AssertionError: the body is not in OpenAI's error format
        """
        error = self.json()["error"]
        if set(error) < {"message", "type", "param", "code"} or not error["message"]:
            raise AssertionError(f"not in OpenAI's error format: {self.body!r}")
        return dict(error)


def connect(url: str, timeout: float) -> http.client.HTTPConnection:
    """Connect to `url`; after `timeout` seconds the connection is shut down."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    connection.connect()
    # A socket's timeout starts again with each heartbeat; the timer bounds the total time.
    timer = threading.Timer(timeout, _shut_down, [connection.sock])
    timer.daemon = True
    timer.start()
    return connection


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def send_request(
    url: str,
    body: Any = None,
    *,
    method: str = "POST",
    path: str = CHAT_PATH,
    headers: dict[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Response:
    """Send one request and return the response; a `body` other than bytes is sent as JSON."""
    connection = connect(url, timeout)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, names, response.read())
    finally:
        connection.close()


@dataclass
class Stream:
    """
    An open event stream, parsed as it is read.

    :ivar comments: the comment lines so far, such as heartbeats
    :ivar chunks: the JSON of the chunks so far
    :ivar errors: the JSON of the error events so far
    :ivar done_count: the number of `[DONE]` events so far
    """

    response: http.client.HTTPResponse
    connection: http.client.HTTPConnection
    comments: list[str] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    done_count: int = 0

    def iter_lines(self) -> Iterator[str]:
        """
        Yield and record each line that is not empty, as soon as it arrives.

        :raises AssertionError: a line follows an error event or `[DONE]`
        """
        while line := self.response.readline():
            text = line.decode().rstrip("\r\n")
            if text:
                self._record(text)
                yield text

    def _record(self, line: str) -> None:
        if self.errors or self.done_count:
            raise AssertionError(f"after the end of the stream: {line!r}")
        if line.startswith(":"):
            self.comments.append(line)
        elif line == "data: [DONE]":
            self.done_count += 1
        else:
            data = json.loads(line.removeprefix("data: "))
            (self.errors if "error" in data else self.chunks).append(data)

    def read(self) -> Stream:
        for _ in self.iter_lines():
            pass
        self.close()
        return self

    def close(self) -> None:
        self.response.close()
        self.connection.close()

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)

    @property
    def finish_reasons(self) -> list[str]:
        return [each["finish_reason"] for each in self.choices if each.get("finish_reason")]

    @property
    def calls(self) -> list[tuple[str, Any]]:
        """The name and arguments of each call, joined as a strict client joins the deltas."""
        names: dict[int, str] = {}
        texts: dict[int, str] = {}
        for choice in self.choices:
            for part in choice["delta"].get("tool_calls", ()):
                if "id" in part:
                    names[part["index"]] = part["function"]["name"]
                texts[part["index"]] = texts.get(part["index"], "") + part["function"]["arguments"]
        return [(name, json.loads(texts[index])) for index, name in sorted(names.items())]


def open_stream(url: str, body: Any, timeout: float = TIMEOUT) -> Stream:
    """Send a chat request and return the stream once the headers have arrived."""
    connection = connect(url, timeout)
    connection.request(
        "POST", CHAT_PATH, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    if response.status != 200:
        raise AssertionError(f"{response.status}: {response.read()!r}")
    return Stream(response, connection)


def chat_body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]} | fields
