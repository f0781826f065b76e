"""
What blockops costs on the whole path, side by side with nginx (the floor) and LiteLLM's proxy.

    python benchmarks/proxy.py                    all of it: about ten minutes
    python benchmarks/proxy.py --quick            one short round: a minute
    python benchmarks/proxy.py --only paced,fast --targets nginx,blockops --rounds 3
    python benchmarks/proxy.py --check            ... and say whether what has to be reached is
    python benchmarks/proxy.py --markdown         ... as the tables of docs/performance.md

In each round every target does the same work, one behind the other, in an order that changes; so
what the machine does beside hits all of them, and the ratios of a round can be believed where its
times cannot. All targets stand before one mock backend (mock_backend.py), and one load generator
(load.py) asks them; each is a process of its own. Every stream is checked for order, completeness,
[DONE], and its calls. CPU is user and system time of the proxy's processes, all of its threads.

To see where blockops spends its time:

    python benchmarks/proxy.py --profile FOLDER --only paced

runs blockops alone, a fresh one for each scenario under `twistd --profile ... --profiler cprofile`,
prints what costs most, in microseconds per chunk or request, and leaves FOLDER/SCENARIO.prof for
`python -m pstats`. What the profiler itself takes is taken off. Under it blockops is several times
as slow, so paced scenarios have ten streams there.

nginx is Debian's package. LiteLLM is installed once from PyPI into an environment of its own, in
~/.cache/blockops-bench/litellm or what --litellm or BLOCKOPS_BENCH_LITELLM names. What is absent is
skipped, and said to be. Exit status: 1 if a stream was wrong or a run failed, with --check also if
something is not reached.
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
from benchmarks.figures import BARE, FLOOR, OURS, USUAL, Rounds
from benchmarks.load import Order, Outcome
from benchmarks.mock_backend import Times
from benchmarks.profiles import costs
from benchmarks.report import report, verdicts
from benchmarks.scenarios import PROFILED, Scenario, Unknown, choose
from benchmarks.streams import FAST, PLAIN, Script
from benchmarks.targets import Absent, Program, Target
from benchmarks.usage import Used, memory


class Bench:
    """
    The backend, all targets, and what was measured.

    :param seconds: how long each measurement takes
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._seconds = seconds
        self._times = folder / "times"
        Times(str(self._times))
        port = targets.free_port()
        command = [sys.executable, "-m", "benchmarks.mock_backend", str(port), str(self._times)]
        self.backend = Program(command, folder / "backend", port)
        self.running: dict[str, Program | None] = {}
        self.rounds = Rounds()
        self.failures: list[str] = []

    def start(self, target: Target) -> None:
        """Start a target and keep it running; say so if that cannot be done."""
        try:
            program = target.start(self.backend.port)
        except Absent as absent:
            print(f"SKIPPED {target.name}: {absent}", flush=True)
            if target.name == OURS:
                self._fail("blockops did not start")
            return
        self.running[target.name] = program
        self._note_start(target, program)

    def _note_start(self, target: Target, program: Program | None) -> None:
        if program is not None:
            # What listens may still be starting: the first answers are not waited for here.
            time.sleep(0.5)
            sizes = self.rounds.starting.setdefault(target.name, [])
            sizes.append(memory(program.pids()))

    def stop(self) -> None:
        for program in filter(None, [*self.running.values(), self.backend]):
            program.stop()

    def measure(self, scenario: Scenario, target: Target, turn: int) -> None:
        """Put the load on a target, and keep what it took."""
        program = self.running[target.name]
        if scenario.mode == "idle" and not target.slow and program is not None:
            # What a process was given once it keeps: memory is measured in a fresh one.
            fresh = target.start(self.backend.port)
            assert fresh is not None
            self._note_start(target, fresh)
            try:
                self._practise(target, fresh)
                self.put_on(scenario, target, turn, fresh)
            finally:
                fresh.stop()
            return
        self.put_on(scenario, target, turn, program)

    def _practise(self, target: Target, program: Program) -> None:
        script = Script(PLAIN, 4, 15, FAST)
        self._put(replace(self._order(target, program), mode="loop", script=script, seconds=0.1))

    def _order(self, target: Target, program: Program | None) -> Order:
        return Order(
            port=(program or self.backend).port,
            mode="loop",
            script=Script(PLAIN),
            proxy=program.pids() if program is not None else [],
            backend=self.backend.pids(),
            times=str(self._times),
            translated=target.translates,
            seconds=self._seconds,
            patience=30 + 5 * self._seconds,
        )

    def put_on(self, scenario: Scenario, target: Target, turn: int, on: Program | None) -> None:
        """Put the load on a process of the target."""
        order = self.ordered(scenario, target, on)
        try:
            outcome = self._put(order)
        except (subprocess.SubprocessError, ValueError) as failure:
            self._fail(f"{scenario.name}, {target.name}: {failure}")
            return
        self.rounds.add(scenario.name, target.name, turn, outcome)
        if outcome.wrong:
            self._fail(
                f"{scenario.name}, {target.name}: {outcome.wrong} of {outcome.checked} streams were"
                f" wrong: {'; '.join(outcome.complaints)}"
            )

    def ordered(self, scenario: Scenario, target: Target, on: Program | None) -> Order:
        """Return what the load generator has to do: less of it where a target is slow."""
        script = scenario.script
        if scenario.mode == "paced":
            # Besides what is measured: streams start one after the other, slow ones much later.
            spare = 2.5 if target.slow else 0.5
            script = script._replace(frames=int(script.pace * (self._seconds + spare)))
        elif target.slow and scenario.slow_frames:
            script = script._replace(frames=scenario.slow_frames)
        return replace(
            self._order(target, on),
            mode=scenario.mode,
            script=script,
            connections=scenario.slow_connections if target.slow else scenario.connections,
            size=scenario.size,
        )

    def _put(self, order: Order) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"],
            input=json.dumps(asdict(order)),
            capture_output=True,
            text=True,
            cwd=targets.ROOT,
            timeout=order.patience + 30,
            check=False,
        )
        if done.returncode:
            raise subprocess.SubprocessError(done.stderr.strip()[-300:])
        found = json.loads(done.stdout)
        shares = {key: Used(*found[key]) for key in ("proxy", "backend", "load")}
        return Outcome(**(found | shares))

    def _fail(self, what: str) -> None:
        self.failures.append(what)
        print(f"WRONG {what}", flush=True)


def rounds(
    bench: Bench, chosen: list[Scenario], every: Sequence[Target], turns: int
) -> Iterator[str]:
    """Measure round by round, each target of a scenario right behind the other."""
    for turn in range(turns):
        for scenario in chosen:
            order = [each for each in every if each.name in scenario.against]
            for target in order[turn % len(order) :] + order[: turn % len(order)]:
                if target.name in bench.running:
                    yield f"round {turn + 1}: {scenario.name}, {target.name}"
                    bench.measure(scenario, target, turn)


def profile(bench: Bench, chosen: list[Scenario], ours: targets.Blockops, folder: Path) -> None:
    """Run each scenario on a blockops of its own under the profiler, and print what costs most."""
    folder.mkdir(parents=True, exist_ok=True)
    for full in chosen:
        few = min(full.connections, PROFILED) if full.mode == "paced" else full.connections
        scenario = replace(full, connections=few)
        path = folder / f"{scenario.name}.prof"
        bench.running = {ours.name: ours.start_profiled(bench.backend.port, path)}
        try:
            bench.put_on(scenario, ours, 0, bench.running[ours.name])
        finally:
            program = bench.running.pop(ours.name)
            assert program is not None
            program.stop()
        outcome = bench.rounds.of(scenario.name, ours.name)[-1]
        print(costs(path, scenario.name, scenario.unit, outcome), flush=True)


def scenarios(options: argparse.Namespace) -> list[Scenario]:
    try:
        return choose(options.only, quick=options.quick)
    except Unknown as unknown:
        sys.exit(f"--only: {unknown}")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of a second each, formats at 4 only")
    add("--seconds", type=float, help="how long each measurement takes (default 2)")
    add("--rounds", type=int, help="how many (default 5)")
    add("--only", default="", help="scenarios, by commas; main and formats are groups of them")
    add("--targets", default=f"{BARE},{FLOOR},{OURS},{USUAL}", help="of these, by commas")
    add("--minutes", type=float, default=20.0, help="no measurement begins later (default 20)")
    add("--check", action="store_true", help="compare with what has to be reached")
    add("--markdown", action="store_true", help="print tables for docs/performance.md")
    add("--profile", type=Path, metavar="FOLDER", help="profile blockops in each scenario")
    add("--python", default=sys.executable, help="the Python that has blockops and Twisted")
    add("--option", action="append", default=[], help="one more argument for blockops")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "blockops-bench"
    default = os.environ.get(targets.LITELLM_FOLDER, str(cache / "litellm"))
    add("--litellm", type=Path, default=Path(default), help=f"its environment ({default})")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def measure(
    bench: Bench, chosen: list[Scenario], every: Sequence[Target], turns: int
) -> Iterator[str]:
    """Start what is needed, then yield what is done next, until all rounds are done."""
    needed = {name for scenario in chosen for name in scenario.against}
    for target in every:
        if target.name in needed:
            yield f"starting {target.name}"
            bench.start(target)
    yield from rounds(bench, chosen, every, turns)


def main() -> None:
    options = parsed(sys.argv[1:])
    chosen = scenarios(options)
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="blockops-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        bench = Bench(folder, options.seconds)
        stack.callback(bench.stop)
        ours = targets.Blockops(folder, options.python, options.option)
        if options.profile:
            profile(bench, chosen, ours, options.profile)
            sys.exit(bool(bench.failures))
        litellm = targets.LiteLLM(folder, options.litellm)
        known: list[Target] = [targets.Direct(folder), targets.Nginx(folder), ours, litellm]
        every = [each for each in known if each.name in options.targets.split(",")]
        for step in measure(bench, chosen, every, options.rounds):
            print(f"\r{step:60}", end="", file=sys.stderr, flush=True)
            if time.monotonic() > until:
                print(f"\nSTOPPED after {options.minutes:g} minutes", flush=True)
                break
        print(f"\r{'':60}\r", end="", file=sys.stderr, flush=True)
    sys.exit(finish(bench, chosen, options))


def finish(bench: Bench, chosen: list[Scenario], options: argparse.Namespace) -> int:
    """Print what was measured; return the exit status."""
    for part in report(bench.rounds, chosen, markdown=options.markdown):
        print(part + "\n")
    text, reached = verdicts(bench.rounds, markdown=options.markdown)
    if options.check or options.markdown:
        print(text + "\n")
    for failure in bench.failures:
        print(f"WRONG {failure}")
    outcomes = [outcome for _, _, outcome in bench.rounds.all()]
    wrong, checked = (sum(getattr(o, what) for o in outcomes) for what in ("wrong", "checked"))
    print(f"{wrong} wrong of {checked} answers")
    return int(bool(bench.failures) or (options.check and not reached))


if __name__ == "__main__":
    main()
