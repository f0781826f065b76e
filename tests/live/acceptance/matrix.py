"""Runs the cells: servers side by side, clients as many at once as the machine bears."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.live.acceptance.cells import Between, Cell, Outcome
from tests.live.acceptance.clients import CLIENTS, Agent, Client
from tests.live.acceptance.known import LOST, READ_THEMSELVES, broken
from tests.live.acceptance.oracle import Judged, judge_all
from tests.live.real_backends import LLAMA_CPP, REAL_BACKENDS, VLLM_MLX, RealBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ORACLE = "oracle"

BLOCKOPS = Between()
PROMPT = Between(tools="prompt")
NOTHING = Between(daemon=False)

_BACKENDS = {one.name for one in REAL_BACKENDS}
_CLIENTS = {one.name for one in CLIENTS} | {ORACLE}


@dataclass(frozen=True)
class Wanted:
    """
    What of the matrix is to be run, and how.

    :param only: names of servers and clients; nothing is all
    :param heartbeat_style: empty for servers as quick as they are
    """

    only: list[str]
    heartbeat_style: str

    def backends(self) -> list[RealBackend]:
        return [one for one in REAL_BACKENDS if self._takes(one.name, _BACKENDS)]

    def clients(self) -> list[Client]:
        return [one for one in CLIENTS if self._takes(one.name, _CLIENTS)]

    def columns(self) -> list[tuple[RealBackend, Between]]:
        """Return each server with what is between it and its clients."""
        between = replace(BLOCKOPS, heartbeat_style=self.heartbeat_style)
        columns = [(backend, between) for backend in self.backends()]
        if LLAMA_CPP in self.backends() and not self.heartbeat_style:
            columns += [(LLAMA_CPP, PROMPT), (LLAMA_CPP, NOTHING)]
        if VLLM_MLX in self.backends() and not self.heartbeat_style:
            columns.append((VLLM_MLX, PROMPT))
        return columns

    def oracle(self) -> bool:
        # It asks 288 questions of each server: with slow answers it would take an hour.
        return self._takes(ORACLE, _CLIENTS) and not self.heartbeat_style

    def _takes(self, name: str, kind: set[str]) -> bool:
        asked = kind.intersection(self.only)
        return not asked or name in asked

    def unknown(self) -> list[str]:
        return sorted(set(self.only) - _BACKENDS - _CLIENTS)


@dataclass
class Row:
    """
    One cell and what came of it.

    :param who: the client's name, or ORACLE
    :param trouble: empty if all is as it should be
    """

    backend: RealBackend
    who: str
    between: Between = BLOCKOPS
    outcome: Outcome = field(default_factory=Outcome)
    judged: list[Judged] = field(default_factory=list)
    trouble: str = ""
    skipped: str = ""


class Matrix:
    """
    All cells that are wanted.

    :param folder: for all logs
    :ivar rows: what was run
    """

    def __init__(self, wanted: Wanted, folder: Path) -> None:
        if wanted.unknown():
            there = sorted(_BACKENDS | _CLIENTS)
            raise SystemExit(f"no {wanted.unknown()} here; there are {there}")
        self.wanted = wanted
        self.folder = folder
        self.rows: list[Row] = []
        self.seconds = 0.0

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.trouble]

    @property
    def skipped(self) -> list[Row]:
        return [row for row in self.rows if row.skipped]

    def run(self) -> None:
        start = time.monotonic()
        cores = os.cpu_count() or 1
        # What waits for slow answers leaves the machine to others.
        crowd = cores * 4 if self.wanted.heartbeat_style else cores + 1
        with (
            contextlib.ExitStack() as servers,
            ThreadPoolExecutor(crowd) as many,
            # Agents all write the same file.
            ThreadPoolExecutor(1) as one_by_one,
        ):
            urls = self._start(servers)
            work: list[Future[Row]] = []
            for row, run in self._plan(urls):
                agent = any(one.name == row.who for one in CLIENTS if isinstance(one, Agent))
                work.append((one_by_one if agent else many).submit(self._run, row, run))
            for done in work:
                done.result()
        self.seconds = time.monotonic() - start

    def _start(self, servers: contextlib.ExitStack) -> dict[RealBackend, str]:
        """Start the servers that are installed, all at once."""
        urls: dict[RealBackend, str] = {}

        def start(number: int, backend: RealBackend) -> None:
            running = backend.running(self.folder / f"backend-{number}")
            urls[backend] = servers.enter_context(running).url

        with ThreadPoolExecutor() as starting:
            there = [one for one in self.wanted.backends() if not one.missing()]
            for done in [starting.submit(start, *pair) for pair in enumerate(there)]:
                error = done.exception()
                if error:
                    say(f"FAILED to start: {error}")
        return urls

    def _plan(self, urls: dict[RealBackend, str]) -> list[tuple[Row, Callable[[Row], None]]]:
        plan: list[tuple[Row, Callable[[Row], None]]] = []
        # The longest first.
        if self.wanted.oracle():
            plan += [
                (Row(backend, ORACLE, between), self._oracle(urls.get(backend, "")))
                for backend, between in reversed(self.wanted.columns())
                if between.daemon
            ]
        for client in reversed(self.wanted.clients()):
            for backend, between in self.wanted.columns():
                cell = Cell(backend, client, between)
                plan.append((Row(backend, client.name, between), self._cell(cell, urls)))
        return plan

    def _run(self, row: Row, run: Callable[[Row], None]) -> Row:
        start = time.monotonic()
        try:
            run(row)
        except Exception as error:  # noqa: BLE001 - one cell is no reason to stop the others
            row.trouble = f"{type(error).__name__}: {error}"
        self.rows.append(row)
        state = "FAILED " if row.trouble else "skipped" if row.skipped else "ok     "
        what = f"{row.backend.name}{row.between} x {row.who}"
        say(f"{state} {time.monotonic() - start:5.1f} s  {what}  {row.skipped or row.trouble}")
        return row

    def _cell(self, cell: Cell, urls: dict[RealBackend, str]) -> Callable[[Row], None]:
        def run(row: Row) -> None:
            row.skipped = cell.backend.missing() or cell.client.missing() or ""
            if row.skipped:
                return
            if cell.backend not in urls:
                raise AssertionError("the server did not start")
            number = f"cell-{id(row):x}"
            row.outcome = cell.run(urls[cell.backend], self.folder / number)
            row.trouble = judge_cell(cell, row.outcome)

        return run

    def _oracle(self, url: str) -> Callable[[Row], None]:
        def run(row: Row) -> None:
            row.skipped = row.backend.missing() or ""
            if row.skipped:
                return
            folder = self.folder / f"oracle-{id(row):x}"
            folder.mkdir(parents=True)
            with row.between.running(url, folder) as (near, _):
                row.judged = judge_all(row.backend, near.url, url)
            row.trouble = judge_oracle(lost(row.backend, row.between), row.judged)

        return run


def judge_cell(cell: Cell, outcome: Outcome) -> str:
    """Return what is not as it should be, in words; nothing if all is."""
    asked = {key[0] for key in cell.keys}
    if cell.between.daemon:
        known = broken(cell.backend, cell.client.name)
        lost = asked.intersection(*[set("".join(one.formats for one in known))])
        # Where all of it is known not to work, the client may well end in an error.
        troubles = [] if lost == asked else list(outcome.troubles)
    else:
        lost = asked - set(READ_THEMSELVES.get(cell.client.name, ""))
        troubles = []
    for one in outcome.told:
        if one.key[0] not in lost and not one.good:
            troubles.append(f"{one.key} {one.way}: {one}")
    if not outcome.told and not troubles:
        troubles.append("nothing was told")
    works = lost.intersection(outcome.worked)
    if works:
        troubles.append(f"works, although known.py says it cannot: {sorted(works)}")
    return "; ".join(troubles)


def lost(backend: RealBackend, between: Between) -> set[str]:
    """Return the names of the texts that a server is known to lose."""
    # A parser works where a request offers tools: those in the prompt it does not know of.
    return LOST.get(backend, set()) if between.tools == "pass" else set()


def judge_oracle(known: set[str], judged: list[Judged]) -> str:
    """Return what is not as it should be, in words; nothing if `known` was lost, and no more."""
    troubles = [f"{one.name} {one.trouble}" for one in judged if one.trouble]
    lost = {one.name for one in judged if one.ways}
    if lost - known:
        troubles.append(f"lost, and known.py does not say so: {sorted(lost - known)}")
    if known - lost:
        troubles.append(f"not lost, although known.py says so: {sorted(known - lost)}")
    return "; ".join(troubles)


def say(line: str) -> None:
    sys.stderr.write(f"{line[:3000]}\n")
