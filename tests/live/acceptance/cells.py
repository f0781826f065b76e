"""
A cell of the matrix: one client, one server, and a separate `twistd` between them.

    client, recording proxy, blockops, recording proxy, server

A cell passes if, in each way of the client and for each dialect, the tool ran once with the model's
arguments, its result was sent in a request, and the user saw the model's final answer.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.live.acceptance.clients import Client, ClientResult
from tests.live.acceptance.known_failures import supported_dialects
from tests.live.harness import Daemon
from tests.live.real_backends import LLAMA_CPP, RealBackend
from tests.live.recording_proxy import RecordingProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds before each piece of a server's response: long enough for heartbeats in every pause.
SLOW_PAUSE = 0.15

HEARTBEAT_INTERVAL = "0.05"

_CHUNK_HEARTBEAT = re.compile(rb'"delta":\s*\{\},\s*"finish_reason":\s*null')
_TOOLS_FIELD = re.compile(rb'[{,]\s*"tools"\s*:')
_COMMENT_HEARTBEAT = re.compile(rb"^: heartbeat", re.MULTILINE)


class RecordedTraffic(Protocol):
    """The bytes recorded by a `RecordingProxy`."""

    request_bytes: bytearray
    response_bytes: bytearray


@dataclass(frozen=True)
class ProxySetup:
    """
    The setup between client and server.

    :param has_daemon: True with blockops, False for a direct connection
    :param tools: the value of `--tools`
    :param heartbeat_style: the style of the heartbeats in slowed-down responses, or "" for
        responses at full speed
    """

    has_daemon: bool = True
    tools: str = "pass"
    heartbeat_style: str = ""

    def __str__(self) -> str:
        if not self.has_daemon:
            return ", without blockops"
        return "" if self.tools == "pass" else f", `--tools {self.tools}`"

    @property
    def options(self) -> list[str]:
        beats = [
            "--heartbeat",
            HEARTBEAT_INTERVAL,
            "--heartbeat-style",
            self.heartbeat_style,
            "--heartbeat-json",
        ]
        return ["--tools", self.tools, *(beats if self.heartbeat_style else ())]

    @contextlib.contextmanager
    def running(
        self, backend_url: str, folder: Path
    ) -> Iterator[tuple[RecordingProxy, RecordingProxy]]:
        """
        Yield the recording proxies at the client and at the server.

        Without blockops both are the same proxy.

        :raises AssertionError: blockops did not exit cleanly
        """
        with RecordingProxy(backend_url, SLOW_PAUSE if self.heartbeat_style else 0) as far:
            if not self.has_daemon:
                yield far, far
                return
            log = ("--log-file", str(folder / "traffic.log"))
            daemon = Daemon(folder / "daemon", "--backend", far.url, *log, *self.options)
            try:
                daemon.wait_for_port(("127.0.0.1", daemon.port), timeout=60)
                with RecordingProxy(daemon.url) as near:
                    yield near, far
            finally:
                daemon.terminate()
            check_log(daemon)

    def count_heartbeats(self, response_bytes: bytes | bytearray) -> int:
        """Return the number of heartbeats that a client received."""
        pattern = _CHUNK_HEARTBEAT if self.heartbeat_style == "chunk" else _COMMENT_HEARTBEAT
        return len(pattern.findall(response_bytes))


def check_log(daemon: Daemon) -> None:
    log_text = daemon.read_log()
    for marker in ("Traceback", "Unhandled", "Error in Deferred", "CRITICAL"):
        if marker in log_text:
            raise AssertionError(f"In the log of blockops:\n{log_text}")


@dataclass(frozen=True)
class Outcome:
    """
    The outcome of a cell.

    :param results: the client's results for each key and way
    :param problems: descriptions of other problems
    :param seconds: the duration
    """

    results: list[ClientResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0

    @property
    def working_dialects(self) -> list[str]:
        """The dialects that worked in all ways."""
        failed = {each.key[0] for each in self.results if not each.is_good}
        return sorted({each.key[0] for each in self.results} - failed)


@dataclass(frozen=True)
class Cell:
    """One client with one server."""

    backend: RealBackend
    client: Client
    setup: ProxySetup

    @property
    def keys(self) -> list[str]:
        """The keys of the answers to request: all dialects, or one if a run takes long."""
        dialects = supported_dialects(self.backend, self.client)
        if self.setup.tools == "prompt":
            # The prompt describes JSON in `<tool_call>` to the model.
            dialects = "j"
        elif not self.client.is_quick and (self.backend, self.setup) != (LLAMA_CPP, ProxySetup()):
            dialects = "l"
        return [f"{mark}-{self.client.suffix}" for mark in dialects]

    def run(self, backend_url: str, folder: Path) -> Outcome:
        """Run the cell and return its outcome, which includes all errors."""
        start = time.monotonic()
        folder.mkdir(parents=True)
        results: list[ClientResult] = []
        problems: list[str] = []
        try:
            with self.setup.running(backend_url, folder) as (near, far):
                results = self.client.run(near.url, self.keys, folder / "client")
            problems = self.check(results, near, far)
        except Exception as error:  # noqa: BLE001 - the other cells continue
            problems = [f"{type(error).__name__}: {error}"]
        return Outcome(results, problems, seconds=time.monotonic() - start)

    def check(
        self, results: list[ClientResult], near: RecordedTraffic, far: RecordedTraffic
    ) -> list[str]:
        """Return descriptions of the problems in the recorded traffic."""
        problems = []
        tool_runs = sum(each.is_good for each in results)
        sent = len(re.findall(self.client.result_pattern, near.request_bytes))
        if sent < tool_runs:
            problems.append(f"{tool_runs} tools ran, but {sent} results were sent")
        beats = self.setup.count_heartbeats(near.response_bytes)
        if self.setup.heartbeat_style and beats < len(results):
            problems.append(f"{beats} heartbeats in {len(results)} conversations")
        if self.setup.tools == "prompt" and not _has_tools_in_prompt_only(far.request_bytes):
            problems.append("the tools are not in the prompt alone")
        return problems


def _has_tools_in_prompt_only(request_bytes: bytes | bytearray) -> bool:
    return b"<tools>" in request_bytes and not _TOOLS_FIELD.search(request_bytes)
