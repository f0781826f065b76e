"""
Measures blockops as a whole, side by side with nginx (the minimum) and LiteLLM's proxy.

    python benchmarks/proxy.py                    everything: about half an hour
    python benchmarks/proxy.py --quick            one short round: three minutes
    python benchmarks/proxy.py --only replay --rounds 3 --seconds 1.5
                                                  replayed streams of real servers: five minutes
    python benchmarks/proxy.py --only paced,fast --targets nginx,blockops --rounds 3
    python benchmarks/proxy.py --check            ... and print which bounds are met
    python benchmarks/proxy.py --markdown         ... as the tables of docs/performance.md

In each round every target does the same work, directly one after the other, in an order that
changes. Other load on the machine therefore affects all of them, and the ratios within a round are
reliable even where its absolute times are not. All targets forward to one mock backend
(mock_backend.py) and get their requests from one load generator (load.py). Each is a separate
process. Every stream is checked for order, completeness, [DONE] and its calls. CPU is user and
system time of the proxy's processes with all threads.

The streams of the group `replay` have the chunks of recorded real streams (shapes.py), with prose,
code and calls that are split as tokenizers split them (texts.py). Their CPU time is that of their
whole life, from the first connect to the last close.

To see where blockops spends its time:

    python benchmarks/proxy.py --profile FOLDER --only paced

This runs only blockops, in a new process per scenario under `twistd --profile ... --profiler
cprofile`. It prints the most expensive functions, in microseconds per chunk or request, and leaves
FOLDER/SCENARIO.prof for `python -m pstats`. The profiler's own time is subtracted. It makes
blockops several times slower, so paced scenarios have ten streams there.

nginx is Debian's package. LiteLLM is installed once from PyPI into a separate environment, in
~/.cache/blockops-bench/litellm or the folder named by --litellm or BLOCKOPS_BENCH_LITELLM. Absent
targets are skipped with a message. The exit status is 1 if a stream was wrong or a run failed, and
with --check also if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import targets
from benchmarks.figures import BLOCKOPS, DIRECT, LITELLM, NGINX, Rounds
from benchmarks.load import LoadPlan, Outcome
from benchmarks.mock_backend import SendTimes
from benchmarks.profiles import profile_tables
from benchmarks.report import bounds_table, report
from benchmarks.scenarios import (
    GROUPS,
    PROFILED_STREAMS,
    Scenario,
    UnknownScenario,
    select_scenarios,
)
from benchmarks.streams import FAST, PLAIN, Script
from benchmarks.targets import Program, Target, TargetUnavailable
from benchmarks.usage import Usage, memory_usage


class Benchmark:
    """
    The backend, the running targets, and their results.

    :param folder: for files of all processes
    :param seconds: length of each measurement
    :ivar programs: the process of each running target, by the target's name
    :ivar failures: messages about wrong responses and failed runs
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._seconds = seconds
        self._send_times = folder / "times"
        SendTimes(str(self._send_times))
        port = targets.free_port()
        command = [sys.executable, "-m", "benchmarks.mock_backend"]
        self.backend = Program(
            [*command, str(port), str(self._send_times)], folder / "backend", port
        )
        self.programs: dict[str, Program | None] = {}
        self.rounds = Rounds()
        self.failures: list[str] = []

    def start(self, target: Target) -> None:
        """Start a target and keep it running; print a message if it cannot be started."""
        try:
            program = target.start(self.backend.port)
        except TargetUnavailable as error:
            print(f"SKIPPED {target.name}: {error}", flush=True)
            if target.name == BLOCKOPS:
                self._fail("blockops did not start")
            return
        self.programs[target.name] = program
        self._record_start_memory(target, program)

    def _record_start_memory(self, target: Target, program: Program | None) -> None:
        if program is not None:
            # A program that accepts connections may not have finished starting.
            time.sleep(0.5)
            sizes = self.rounds.start_memory.setdefault(target.name, [])
            sizes.append(memory_usage(program.pids()))

    def stop(self) -> None:
        for program in filter(None, [*self.programs.values(), self.backend]):
            program.stop()

    def measure(self, scenario: Scenario, target: Target, round_number: int) -> None:
        """Run one scenario on a target and store the outcome."""
        program = self.programs[target.name]
        if scenario.mode == "idle" and not target.is_slow and program is not None:
            # A process does not return memory that it has used, so a new one is measured.
            fresh = target.start(self.backend.port)
            assert fresh is not None
            self._record_start_memory(target, fresh)
            try:
                warm_up = replace(self._default_plan(target, fresh), seconds=0.1)
                self._execute(replace(warm_up, script=Script(PLAIN, 4, 15, FAST)))
                self.run_load(scenario, target, round_number, fresh)
            finally:
                fresh.stop()
            return
        self.run_load(scenario, target, round_number, program)

    def run_load(
        self, scenario: Scenario, target: Target, round_number: int, program: Program | None
    ) -> None:
        """
        Run one scenario on a process of `target`; store the outcome or the failure.

        :param program: None for the backend without a proxy
        """
        name = f"{scenario.name}, {target.name}"
        try:
            outcome = self._execute(self._plan(scenario, target, program))
        except (subprocess.SubprocessError, ValueError) as error:
            self._fail(f"{name}: {error}")
            return
        self.rounds.add(scenario.name, target.name, round_number, outcome)
        if outcome.wrong:
            errors = "; ".join(outcome.errors)
            self._fail(f"{name}: {outcome.wrong} of {outcome.checked} streams were wrong: {errors}")

    def _default_plan(self, target: Target, program: Program | None) -> LoadPlan:
        return LoadPlan(
            port=(program or self.backend).port,
            mode="loop",
            script=Script(PLAIN),
            proxy_pids=program.pids() if program is not None else [],
            backend_pids=self.backend.pids(),
            send_times=str(self._send_times),
            is_translated=target.is_translating,
            seconds=self._seconds,
            timeout=30 + 5 * self._seconds,
        )

    def _plan(self, scenario: Scenario, target: Target, program: Program | None) -> LoadPlan:
        """Return the plan of a scenario, with less load for slow targets."""
        script = scenario.script
        if scenario.start_interval is not None:
            script = script._replace(frames=int(script.pace * self._seconds))
        elif scenario.mode == "paced":
            # Streams start one after the other, those of slow targets much later. The spare
            # seconds keep all of them running during the measurement.
            spare = 2.5 if target.is_slow else 0.5
            script = script._replace(frames=int(script.pace * (self._seconds + spare)))
        elif target.is_slow and scenario.slow_frames:
            script = script._replace(frames=scenario.slow_frames)
        return replace(
            self._default_plan(target, program),
            mode=scenario.mode,
            script=script,
            connections=scenario.slow_connections if target.is_slow else scenario.connections,
            start_interval=scenario.start_interval or 0.0,
            seconds=min(self._seconds, scenario.max_seconds),
            request_size=scenario.request_size,
        )

    def _execute(self, plan: LoadPlan) -> Outcome:
        """
        Execute a plan in a load generator's process.

        :raises subprocess.SubprocessError: the load generator failed
        :raises ValueError: its output is not JSON
        """
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"],
            input=json.dumps(asdict(plan)),
            capture_output=True,
            text=True,
            cwd=targets.ROOT,
            timeout=plan.timeout + 30,
            check=False,
        )
        if process.returncode:
            raise subprocess.SubprocessError(process.stderr.strip()[-300:])
        fields = json.loads(process.stdout)
        usages = {key: Usage(*fields[key]) for key in ("proxy", "backend", "load", "life")}
        return Outcome(**(fields | usages))

    def _fail(self, message: str) -> None:
        self.failures.append(message)
        print(f"WRONG {message}", flush=True)


def profile(
    benchmark: Benchmark, scenarios: list[Scenario], blockops: targets.Blockops, folder: Path
) -> None:
    """Run each scenario on a new blockops under the profiler, and print its profile."""
    folder.mkdir(parents=True, exist_ok=True)
    for full_scenario in scenarios:
        connections = full_scenario.connections
        if full_scenario.mode == "paced":
            connections = min(connections, PROFILED_STREAMS)
        scenario = replace(full_scenario, connections=connections)
        path = folder / f"{scenario.name}.prof"
        program = blockops.start_profiled(benchmark.backend.port, path)
        benchmark.programs = {blockops.name: program}
        try:
            benchmark.run_load(scenario, blockops, 0, program)
        finally:
            del benchmark.programs[blockops.name]
            program.stop()
        outcome = benchmark.rounds.outcomes(scenario.name, blockops.name)[-1]
        print(profile_tables(path, scenario.name, scenario.unit, outcome), flush=True)


def scenarios_of(options: argparse.Namespace) -> list[Scenario]:
    """Return the scenarios that `--only` and `--quick` select; exit if a name is unknown."""
    try:
        return select_scenarios(options.only, quick=options.quick)
    except UnknownScenario as error:
        sys.exit(f"--only: {error}")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="one round of one second, no fast replays, dialects at 4",
    )
    add("--seconds", type=float, help="length of each measurement (default 2)")
    add("--rounds", type=int, help="number of rounds (default 5)")
    add(
        "--only",
        default="",
        help=f"scenarios or the groups {', '.join(GROUPS)}, separated by commas",
    )
    default_targets = f"{DIRECT},{NGINX},{BLOCKOPS},{LITELLM}"
    add("--targets", default=default_targets, help=f"separated by commas ({default_targets})")
    add("--minutes", type=float, default=40.0, help="start no measurement later (default 40)")
    add("--check", action="store_true", help="compare the results with the bounds")
    add("--markdown", action="store_true", help="print tables for docs/performance.md")
    add("--profile", type=Path, metavar="FOLDER", help="profile blockops in each scenario")
    add("--python", default=sys.executable, help="a Python that has blockops and Twisted")
    add("--option", action="append", default=[], help="a further option for blockops (repeatable)")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "blockops-bench"
    default = os.environ.get(targets.LITELLM_VARIABLE, str(cache / "litellm"))
    add("--litellm", type=Path, default=Path(default), help=f"LiteLLM's environment ({default})")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def measure(
    benchmark: Benchmark,
    scenarios: list[Scenario],
    selected_targets: Sequence[Target],
    round_count: int,
) -> Iterator[str]:
    """
    Start the targets, then measure round by round.

    Yield a description of each step before it is done.
    """
    required = {name for scenario in scenarios for name in scenario.targets}
    for target in selected_targets:
        if target.name in required:
            yield f"starting {target.name}"
            benchmark.start(target)
    for number in range(round_count):
        for scenario in scenarios:
            order = [target for target in selected_targets if target.name in scenario.targets]
            # Each round begins with another target.
            for target in order[number % len(order) :] + order[: number % len(order)]:
                if target.name in benchmark.programs:
                    yield f"round {number + 1}: {scenario.name}, {target.name}"
                    benchmark.measure(scenario, target, number)


def main() -> None:
    options = parse_arguments(sys.argv[1:])
    scenarios = scenarios_of(options)
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="blockops-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        benchmark = Benchmark(folder, options.seconds)
        stack.callback(benchmark.stop)
        blockops = targets.Blockops(folder, options.python, options.option)
        if options.profile:
            profile(benchmark, scenarios, blockops, options.profile)
            sys.exit(bool(benchmark.failures))
        litellm = targets.LiteLLM(folder, options.litellm)
        every: list[Target] = [targets.Direct(folder), targets.Nginx(folder), blockops, litellm]
        selected = [target for target in every if target.name in options.targets.split(",")]
        for step in measure(benchmark, scenarios, selected, options.rounds):
            print(f"\r{step:60}", end="", file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                print(f"\nSTOPPED after {options.minutes:g} minutes", flush=True)
                break
        print(f"\r{'':60}\r", end="", file=sys.stderr, flush=True)
    sys.exit(print_results(benchmark, scenarios, options))


def print_results(
    benchmark: Benchmark, scenarios: list[Scenario], options: argparse.Namespace
) -> int:
    """Print all tables and failures; return the exit status."""
    for part in report(benchmark.rounds, scenarios, markdown=options.markdown):
        print(part + "\n")
    text, is_met = bounds_table(benchmark.rounds, markdown=options.markdown)
    if options.check or options.markdown:
        print(text + "\n")
    for failure in benchmark.failures:
        print(f"WRONG {failure}")
    outcomes = [outcome for _, _, outcome in benchmark.rounds.all_outcomes()]
    wrong = sum(outcome.wrong for outcome in outcomes)
    print(f"{wrong} wrong of {sum(outcome.checked for outcome in outcomes)} responses")
    return int(bool(benchmark.failures) or (options.check and not is_met))


if __name__ == "__main__":
    main()
