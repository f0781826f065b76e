"""Runs the cells of the matrix in parallel: all servers, and clients according to the cores."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.live.acceptance.cells import Cell, Outcome, ProxySetup
from tests.live.acceptance.clients import CLIENTS, Agent, Client
from tests.live.acceptance.known_failures import LOST_TEXTS, TEXT_CALL_PARSERS, known_failures
from tests.live.acceptance.oracle import Verdict, judge_all
from tests.live.real_backends import LLAMA_CPP, REAL_BACKENDS, VLLM_MLX, RealBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ORACLE = "oracle"

WITH_BLOCKOPS = ProxySetup()
TOOLS_IN_PROMPT = ProxySetup(tools="prompt")
WITHOUT_BLOCKOPS = ProxySetup(has_daemon=False)

_BACKENDS = {each.name for each in REAL_BACKENDS}
_CLIENTS = {each.name for each in CLIENTS} | {ORACLE}


@dataclass(frozen=True)
class Selection:
    """
    The part of the matrix to run.

    :param only: names of servers and clients; empty to run all
    :param heartbeat_style: see `ProxySetup`
    """

    only: list[str]
    heartbeat_style: str

    def backends(self) -> list[RealBackend]:
        return [each for each in REAL_BACKENDS if self._includes(each.name, _BACKENDS)]

    def clients(self) -> list[Client]:
        return [each for each in CLIENTS if self._includes(each.name, _CLIENTS)]

    def columns(self) -> list[tuple[RealBackend, ProxySetup]]:
        """Return the columns of the table: each server with its setups."""
        setup = replace(WITH_BLOCKOPS, heartbeat_style=self.heartbeat_style)
        columns = [(backend, setup) for backend in self.backends()]
        if LLAMA_CPP in self.backends() and not self.heartbeat_style:
            columns += [(LLAMA_CPP, TOOLS_IN_PROMPT), (LLAMA_CPP, WITHOUT_BLOCKOPS)]
        if VLLM_MLX in self.backends() and not self.heartbeat_style:
            columns.append((VLLM_MLX, TOOLS_IN_PROMPT))
        return columns

    def includes_oracle(self) -> bool:
        # It sends 288 requests to each server, which takes an hour with slow responses.
        return self._includes(ORACLE, _CLIENTS) and not self.heartbeat_style

    def _includes(self, name: str, names: set[str]) -> bool:
        requested = names.intersection(self.only)
        return not requested or name in requested

    def unknown_names(self) -> list[str]:
        return sorted(set(self.only) - _BACKENDS - _CLIENTS)


@dataclass
class Row:
    """
    One cell and its outcome.

    :param client_name: the client's name, or ORACLE
    :param problem: a description of the failure, or "" if the cell passed
    :param skip_reason: the reason why the cell was not run, or ""
    """

    backend: RealBackend
    client_name: str
    setup: ProxySetup = WITH_BLOCKOPS
    outcome: Outcome = field(default_factory=Outcome)
    verdicts: list[Verdict] = field(default_factory=list)
    problem: str = ""
    skip_reason: str = ""


class Matrix:
    """
    All selected cells.

    :param folder: the folder for all logs
    :ivar rows: the cells run so far
    :ivar seconds: the duration of the run
    :raises SystemExit: `selection` has an unknown name
    """

    def __init__(self, selection: Selection, folder: Path) -> None:
        if selection.unknown_names():
            available = sorted(_BACKENDS | _CLIENTS)
            raise SystemExit(f"unknown names {selection.unknown_names()}; choose from {available}")
        self.selection = selection
        self.folder = folder
        self.rows: list[Row] = []
        self.seconds = 0.0

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.problem]

    @property
    def skipped(self) -> list[Row]:
        return [row for row in self.rows if row.skip_reason]

    def run(self) -> None:
        start = time.monotonic()
        cores = os.cpu_count() or 1
        # Clients that wait for slow responses use little of the machine.
        max_workers = cores * 4 if self.selection.heartbeat_style else cores + 1
        with (
            contextlib.ExitStack() as servers,
            ThreadPoolExecutor(max_workers) as parallel,
            # All agents write the same file.
            ThreadPoolExecutor(1) as sequential,
        ):
            urls = self._start(servers)
            futures: list[Future[Row]] = []
            for row, run in self._plan(urls):
                is_agent = any(
                    each.name == row.client_name for each in CLIENTS if isinstance(each, Agent)
                )
                futures.append((sequential if is_agent else parallel).submit(self._run, row, run))
            for future in futures:
                future.result()
        self.seconds = time.monotonic() - start

    def _start(self, servers: contextlib.ExitStack) -> dict[RealBackend, str]:
        """Start all installed servers in parallel and return their URLs."""
        urls: dict[RealBackend, str] = {}

        def start(number: int, backend: RealBackend) -> None:
            running = backend.running(self.folder / f"backend-{number}")
            urls[backend] = servers.enter_context(running).url

        with ThreadPoolExecutor() as starting:
            available = [each for each in self.selection.backends() if not each.skip_reason()]
            for future in [starting.submit(start, *pair) for pair in enumerate(available)]:
                error = future.exception()
                if error:
                    print_progress(f"FAILED to start: {error}")
        return urls

    def _plan(self, urls: dict[RealBackend, str]) -> list[tuple[Row, Callable[[Row], None]]]:
        plan: list[tuple[Row, Callable[[Row], None]]] = []
        # The longest first, to shorten the whole run.
        if self.selection.includes_oracle():
            plan += [
                (Row(backend, ORACLE, setup), self._oracle_task(urls.get(backend, "")))
                for backend, setup in reversed(self.selection.columns())
                if setup.has_daemon
            ]
        for client in reversed(self.selection.clients()):
            for backend, setup in self.selection.columns():
                cell = Cell(backend, client, setup)
                plan.append((Row(backend, client.name, setup), self._cell_task(cell, urls)))
        return plan

    def _run(self, row: Row, run: Callable[[Row], None]) -> Row:
        start = time.monotonic()
        try:
            run(row)
        except Exception as error:  # noqa: BLE001 - the other cells continue
            row.problem = f"{type(error).__name__}: {error}"
        self.rows.append(row)
        state = "FAILED " if row.problem else "skipped" if row.skip_reason else "ok     "
        cell_name = f"{row.backend.name}{row.setup} x {row.client_name}"
        reason = row.skip_reason or row.problem
        print_progress(f"{state} {time.monotonic() - start:5.1f} s  {cell_name}  {reason}")
        return row

    def _cell_task(self, cell: Cell, urls: dict[RealBackend, str]) -> Callable[[Row], None]:
        def run(row: Row) -> None:
            row.skip_reason = cell.backend.skip_reason() or cell.client.skip_reason() or ""
            if row.skip_reason:
                return
            if cell.backend not in urls:
                raise AssertionError("the server did not start")
            number = f"cell-{id(row):x}"
            row.outcome = cell.run(urls[cell.backend], self.folder / number)
            row.problem = check_cell(cell, row.outcome)

        return run

    def _oracle_task(self, url: str) -> Callable[[Row], None]:
        def run(row: Row) -> None:
            row.skip_reason = row.backend.skip_reason() or ""
            if row.skip_reason:
                return
            folder = self.folder / f"oracle-{id(row):x}"
            folder.mkdir(parents=True)
            with row.setup.running(url, folder) as (near, _):
                row.verdicts = judge_all(row.backend, near.url, url)
            row.problem = check_oracle(lost_texts(row.backend, row.setup), row.verdicts)

        return run


def check_cell(cell: Cell, outcome: Outcome) -> str:
    """Return a description of the problems of a cell; "" if it passed."""
    requested = {key[0] for key in cell.keys}
    if cell.setup.has_daemon:
        known = known_failures(cell.backend, cell.client.name)
        expected_lost = requested & set("".join(each.dialects for each in known))
        # If all dialects are known to fail, the client may end with an error.
        problems = [] if expected_lost == requested else list(outcome.problems)
    else:
        expected_lost = requested - set(TEXT_CALL_PARSERS.get(cell.client.name, ""))
        problems = []
    for each in outcome.results:
        if each.key[0] not in expected_lost and not each.is_good:
            problems.append(f"{each.key} {each.way}: {each}")
    if not outcome.results and not problems:
        problems.append("the client returned no results")
    unexpected = expected_lost.intersection(outcome.working_dialects)
    if unexpected:
        problems.append(f"works, but is listed in known_failures.py: {sorted(unexpected)}")
    return "; ".join(problems)


def lost_texts(backend: RealBackend, setup: ProxySetup) -> set[str]:
    """Return the names of the texts that a server is known to lose."""
    # A server's parser is active if the request offers tools; tools in the prompt do not count.
    return LOST_TEXTS.get(backend, set()) if setup.tools == "pass" else set()


def check_oracle(known: set[str], verdicts: list[Verdict]) -> str:
    """Return a description of the differences between the lost texts and `known`; "" if none."""
    problems = [f"{each.name} {each.problem}" for each in verdicts if each.problem]
    lost = {each.name for each in verdicts if each.lost_ways}
    if lost - known:
        problems.append(f"lost, but not listed in known_failures.py: {sorted(lost - known)}")
    if known - lost:
        problems.append(f"not lost, but listed in known_failures.py: {sorted(known - lost)}")
    return "; ".join(problems)


def print_progress(line: str) -> None:
    sys.stderr.write(f"{line[:3000]}\n")
