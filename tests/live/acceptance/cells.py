"""
A cell of the matrix: one client, one server, and a `twistd` of its own between the two.

    client -> wiretap -> blockops -> wiretap -> server

What is asked of a cell: in each way of the client and for each format the tool ran once with what
the model said, its result went back in a request, and the user saw the model's last answer.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.live.acceptance.clients import Client, Told
from tests.live.acceptance.known import possible
from tests.live.harness import Daemon
from tests.live.real_backends import LLAMA_CPP, RealBackend
from tests.live.wiretap import Wiretap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: With so long a pause before each piece of the server's answers there are heartbeats in each.
SLOW = 0.15

BEAT = "0.05"

_CHUNK_BEAT = re.compile(rb'"delta":\s*\{\},\s*"finish_reason":\s*null')
_TOOLS = re.compile(rb'[{,]\s*"tools"\s*:')
_COMMENT_BEAT = re.compile(rb"^: heartbeat", re.MULTILINE)


class Overheard(Protocol):
    """All bytes that went through a wiretap."""

    asked: bytearray
    answered: bytearray


@dataclass(frozen=True)
class Between:
    """
    What stands between client and server.

    :param daemon: whether blockops does
    :param tools: its `--tools`
    :param heartbeat_style: slow answers down and fill the pauses with heartbeats of this style
    """

    daemon: bool = True
    tools: str = "pass"
    heartbeat_style: str = ""

    def __str__(self) -> str:
        if not self.daemon:
            return ", without blockops"
        return "" if self.tools == "pass" else f", `--tools {self.tools}`"

    @property
    def options(self) -> list[str]:
        beats = ["--heartbeat", BEAT, "--heartbeat-style", self.heartbeat_style, "--heartbeat-json"]
        return ["--tools", self.tools, *(beats if self.heartbeat_style else ())]

    @contextlib.contextmanager
    def running(self, backend_url: str, folder: Path) -> Iterator[tuple[Wiretap, Wiretap]]:
        """
        Yield the wiretaps before the client and before the server: the same without blockops.

        :raises AssertionError: blockops did not end in peace
        """
        with Wiretap(backend_url, SLOW if self.heartbeat_style else 0) as far:
            if not self.daemon:
                yield far, far
                return
            log = ("--log-file", str(folder / "traffic.log"))
            daemon = Daemon(folder / "daemon", "--backend", far.url, *log, *self.options)
            try:
                daemon.wait_for_port(("127.0.0.1", daemon.port), within=60)
                with Wiretap(daemon.url) as near:
                    yield near, far
            finally:
                daemon.terminate()
            check_log(daemon)

    def heartbeats(self, answered: bytes | bytearray) -> int:
        """Return how many heartbeats a client got."""
        style = _CHUNK_BEAT if self.heartbeat_style == "chunk" else _COMMENT_BEAT
        return len(style.findall(answered))


def check_log(daemon: Daemon) -> None:
    logged = daemon.logged()
    for trouble in ("Traceback", "Unhandled", "Error in Deferred", "CRITICAL"):
        if trouble in logged:
            raise AssertionError(f"in the log of blockops:\n{logged}")


@dataclass(frozen=True)
class Outcome:
    """
    What came of a cell.

    :param told: for each key and way
    :param troubles: what else is wrong, in words
    :param skipped: why it was not run
    :param seconds: how long it took
    """

    told: list[Told] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0

    @property
    def worked(self) -> list[str]:
        """The formats that worked in all ways."""
        failed = {one.key[0] for one in self.told if not one.good}
        return sorted({one.key[0] for one in self.told} - failed)


@dataclass(frozen=True)
class Cell:
    """One client with one server."""

    backend: RealBackend
    client: Client
    between: Between

    @property
    def keys(self) -> list[str]:
        """The answers that the client asks for: all formats, or one where that takes long."""
        formats = possible(self.backend, self.client)
        if self.between.tools == "prompt":
            # What the model is told of is JSON in `<tool_call>`.
            formats = "j"
        elif not self.client.quick and (self.backend, self.between) != (LLAMA_CPP, Between()):
            formats = "l"
        return [f"{mark}-{self.client.suffix}" for mark in formats]

    def run(self, backend_url: str, folder: Path) -> Outcome:
        """Run it; whatever goes wrong is in the outcome."""
        start = time.monotonic()
        folder.mkdir(parents=True)
        told: list[Told] = []
        troubles: list[str] = []
        try:
            with self.between.running(backend_url, folder) as (near, far):
                told = self.client.ask(near.url, self.keys, folder / "client")
            troubles = self.check(told, near, far)
        except Exception as error:  # noqa: BLE001 - one cell is no reason to stop the others
            troubles = [f"{type(error).__name__}: {error}"]
        return Outcome(told, troubles, seconds=time.monotonic() - start)

    def check(self, told: list[Told], near: Overheard, far: Overheard) -> list[str]:
        """Return what is wrong with what was said, in words."""
        troubles = []
        good = sum(one.good for one in told)
        results = len(re.findall(self.client.result, near.asked))
        if results < good:
            troubles.append(f"{good} tools ran, but {results} results went back")
        beats = self.between.heartbeats(near.answered)
        if self.between.heartbeat_style and beats < len(told):
            troubles.append(f"{beats} heartbeats came in {len(told)} conversations")
        if self.between.tools == "prompt" and not _in_prompt(far.asked):
            troubles.append("the server was not told of the tools in the prompt alone")
        return troubles


def _in_prompt(asked: bytes | bytearray) -> bool:
    return b"<tools>" in asked and not _TOOLS.search(asked)
