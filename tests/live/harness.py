"""
Starts and stops the real programs, and talks HTTP to them over plain sockets.
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
CHAT = "/v1/chat/completions"

#: Where `tests/live/run` put its installs; empty under the plain test command.
INSTALLS = os.environ.get("BLOCKOPS_LIVE", "")

#: Seconds after which what should have happened is said not to have: nothing is judged by them.
PATIENCE = 60.0

LONG = None if INSTALLS else "takes long: `bash tests/live/run` runs it"

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

_ESTABLISHED = ("BACKEND_URL", "PORT", "MODEL_NAME", "MAX_CONCURRENT", "MAX_QUEUE", "QUEUE_TIMEOUT")


def needs(*modules: str) -> str | None:
    """Return why a test that imports `modules` cannot run here, or None."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if LONG or not missing:
        return LONG
    return f"{', '.join(missing)} not installed: `bash tests/live/run` installs it"


def free_port() -> int:
    """
    Return a port that nobody listens on.

    It is below those that systems choose by themselves: whoever connects somewhere in the meantime
    cannot get it for his own end.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(condition: Any, what: str, within: float = PATIENCE) -> None:
    """
    Ask `condition` until it is true.

    :raises AssertionError: it is not true `within` so many seconds
    """
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {within} s")
        time.sleep(0.02)


class Program:
    """
    A child process with its output in a file.

    :param log: the file
    """

    def __init__(
        self, command: list[str], log: Path, environ: dict[str, str], pass_fds: tuple[int, ...] = ()
    ) -> None:
        self.log = log
        self._told = False
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

    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_port(self, address: tuple[str, int] | str, within: float = PATIENCE) -> None:
        def listens() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.logged()}")
            return _accepts(address)

        wait_for(listens, f"nothing listens on {address}", within)

    def begin_to_stop(self) -> None:
        """Send SIGTERM: once, however often this is called."""
        if not self._told and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._told = True

    def terminate(self, within: float = PATIENCE) -> int:
        """Send SIGTERM and return the exit status, as `Popen.returncode` has it."""
        self.begin_to_stop()
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"SIGTERM did not end it:\n{self.logged()}") from None


def _accepts(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


class Daemon(Program):
    """
    A real `twistd -n blockops`, alone: without the user's environment, files and ports.

    :param options: the command line behind `blockops`
    :param folder: where it runs, and where HOME is
    :cvar twistd: the command line before `blockops`
    """

    twistd: ClassVar[tuple[str, ...]] = (*TWISTD, "-n", "--pidfile=")

    def __init__(self, folder: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        if not any(one.startswith("--listen") for one in options):
            options = (*options, "--port", str(self.port))
        command = [*self.twistd, "blockops", *options]
        super().__init__(command, folder / "twistd.log", clean_environ(folder) | (environ or {}))

    def listens(self) -> bool:
        return _accepts(("127.0.0.1", self.port))

    def rss(self) -> int:
        """Return the bytes of memory that the process has."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def backend_connections(self, backend_url: str) -> int:
        """Return how many connections to `backend_url` the process holds."""
        port = urlsplit(backend_url).port
        return sum(1 for one in self.connections() if one.raddr.port == port)

    def connections(self) -> list[Any]:
        """Return the TCP connections that the process holds, with clients and backends."""
        held = psutil.Process(self.process.pid).net_connections("tcp")
        return [one for one in held if one.raddr]


def clean_environ(home: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BLOCKOPS_", "TOKEN_")) and name not in _ESTABLISHED
    }
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return kept | {"HOME": str(home), "PYTHONPATH": path.rstrip(os.pathsep)}


def start_daemon(
    test: SynchronousTestCase,
    *options: str,
    environ: dict[str, str] | None = None,
    listening: tuple[str, int] | str | None = None,
    kind: type[Daemon] = Daemon,
) -> Daemon:
    """
    Start blockops for `test`, and when the test is over stop it and check that it went in peace.

    :param listening: where it listens, if `options` say so themselves
    :param kind: how it is started
    """
    daemon = kind(Path(test.mktemp()).resolve(), *options, environ=environ)
    test.addCleanup(check_peace, test, daemon)
    daemon.wait_for_port(listening or ("127.0.0.1", daemon.port))
    return daemon


def check_peace(test: SynchronousTestCase, daemon: Program) -> None:
    status = daemon.terminate()
    log = daemon.logged()
    # twistd ends by the signal itself once all is stopped; systemd takes that for a clean end.
    test.assertIn(status, (0, -signal.SIGTERM), log)
    for trouble in ("Traceback", "Unhandled", "Error in Deferred", "exceptions.", "CRITICAL"):
        test.assertNotIn(trouble, log, f"in the log of blockops:\n{log}")


def start_llama(test: SynchronousTestCase) -> str:
    """Start llama.cpp's server with the tiny model and return its URL."""
    folder = Path(test.mktemp()).resolve()
    folder.mkdir()
    port = free_port()
    command = [sys.executable, str(HERE / "llama_server.py"), str(MODEL), str(port)]
    llama = Program(command, folder / "llama.log", dict(os.environ))
    test.addCleanup(llama.terminate)
    llama.wait_for_port(("127.0.0.1", port), within=60)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: ask(url, path="/health", method="GET").status == 200, "llama.cpp is not well")
    return url


@dataclass
class Reply:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape; AssertionError if it is not in that shape."""
        error = self.json()["error"]
        if set(error) < {"message", "type", "param", "code"} or not error["message"]:
            raise AssertionError(f"no error in OpenAI's shape: {self.body!r}")
        return dict(error)


def connect(url: str, within: float) -> http.client.HTTPConnection:
    """Connect to `url`; what comes of it has to be over `within` so many seconds."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=within)
    connection.connect()
    # A timeout of the socket counts anew with every heartbeat: this one does not.
    bound = threading.Timer(within, _shut_down, [connection.sock])
    bound.daemon = True
    bound.start()
    return connection


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def ask(
    url: str,
    body: Any = None,
    *,
    method: str = "POST",
    path: str = CHAT,
    headers: dict[str, str] | None = None,
    within: float = PATIENCE,
) -> Reply:
    """Send one request and return the whole response; a body that is no bytes is sent as JSON."""
    connection = connect(url, within)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, names, response.read())
    finally:
        connection.close()


@dataclass
class Stream:
    """An open event stream: what came so far, and whether it was a good stream."""

    response: http.client.HTTPResponse
    connection: http.client.HTTPConnection
    comments: list[str] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0

    def lines(self) -> Iterator[str]:
        """Yield each line that means something, as soon as it is there, and keep account of it."""
        while line := self.response.readline():
            text = line.decode().rstrip("\r\n")
            if text:
                self._take(text)
                yield text

    def _take(self, line: str) -> None:
        if self.errors or self.done:
            raise AssertionError(f"behind the end of the stream came {line!r}")
        if line.startswith(":"):
            self.comments.append(line)
        elif line == "data: [DONE]":
            self.done += 1
        else:
            data = json.loads(line.removeprefix("data: "))
            (self.errors if "error" in data else self.chunks).append(data)

    def read(self) -> Stream:
        for _ in self.lines():
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
        return [one["finish_reason"] for one in self.choices if one.get("finish_reason")]

    @property
    def calls(self) -> list[tuple[str, Any]]:
        """Name and arguments of each call, joined as a strict client joins them."""
        names: dict[int, str] = {}
        texts: dict[int, str] = {}
        for choice in self.choices:
            for part in choice["delta"].get("tool_calls", ()):
                if "id" in part:
                    names[part["index"]] = part["function"]["name"]
                texts[part["index"]] = texts.get(part["index"], "") + part["function"]["arguments"]
        return [(name, json.loads(texts[index])) for index, name in sorted(names.items())]


def open_stream(url: str, body: Any, within: float = PATIENCE) -> Stream:
    """Send a request and return the stream once its head is there."""
    connection = connect(url, within)
    connection.request(
        "POST", CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    if response.status != 200:
        raise AssertionError(f"{response.status}: {response.read()!r}")
    return Stream(response, connection)


def question(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]} | fields
