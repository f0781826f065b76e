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
prints what costs most, in microseconds of CPU per chunk or request, and leaves FOLDER/SCENARIO.prof
for `python -m pstats`. The profiler makes calls look several times as dear as they are, and system
calls not; so paced scenarios have ten streams there.

nginx is Debian's package. LiteLLM is installed once from PyPI into an environment of its own, in
~/.cache/blockops-bench/litellm or what --litellm or BLOCKOPS_BENCH_LITELLM names. What is absent is
skipped, and said to be. Exit status: 1 if a stream was wrong or a run failed, with --check also if
something is not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import figures, targets
from benchmarks.figures import BARE, FLOOR, OURS, USUAL, Figure, Rounds, table
from benchmarks.load import Order, Outcome
from benchmarks.mock_backend import Times
from benchmarks.streams import FAST, FORMATS, IDLE, PLAIN, WHOLE, Script
from benchmarks.targets import Absent, Program, Target
from benchmarks.usage import Used, memory

CUTS = (1, 4, 11)
QUICK_CUT = 4


@dataclass(frozen=True)
class Scenario:
    """
    One kind of work.

    :param unit: what its CPU is counted by, `chunk` or `request`
    :param slow_connections: connections for targets that more would saturate
    :param slow_frames: frames of a stream for them
    :param against: who does it
    :param size: bytes of a request
    """

    name: str
    what: str
    mode: str
    script: Script
    connections: int = 1
    unit: str = "chunk"
    slow_connections: int = 1
    slow_frames: int = 0
    against: tuple[str, ...] = (BARE, FLOOR, OURS, USUAL)
    size: int = 0

    @property
    def figure(self) -> Figure:
        return figures.cpu_per_frame if self.unit == "chunk" else figures.cpu_per_response


#: Frames of a fast stream; of a paced one as many as its seconds have.
LONG, LONG_SLOW = 20_000, 2_000
STREAMS, RATE, SLOW_STREAMS = 50, 100, 4
#: Streams under the profiler.
PROFILED = 10
_REQUEST = Script(WHOLE, 4, 15)

MAIN = (
    Scenario(
        "paced",
        f"{STREAMS} streams at {RATE} tokens/s",
        "paced",
        Script(PLAIN, 4, 0, RATE),
        STREAMS,
        slow_connections=SLOW_STREAMS,
    ),
    Scenario(
        "fast",
        "one stream as fast as possible",
        "loop",
        Script(PLAIN, 4, LONG, FAST),
        slow_frames=LONG_SLOW,
    ),
    Scenario("small", "small whole requests", "loop", _REQUEST, 4, "request"),
    Scenario("20k", "requests of 20 KB", "loop", _REQUEST, 4, "request", size=20_000),
    Scenario("400k", "requests of 400 KB", "loop", _REQUEST, 2, "request", size=400_000),
    Scenario("first", "first token, one at a time", "loop", Script(PLAIN, 4, 4, 400), 1, "request"),
    Scenario("idle", "200 idle streams", "idle", Script(PLAIN, 4, 15, IDLE), 200, "request", 20),
)


def _of_format(kind: str, cut: int, mode: str) -> Scenario:
    if mode == "paced":
        script = Script(kind, cut, 0, RATE)
        return Scenario(
            f"paced-{kind}-{cut}",
            f"{kind}, {cut} characters a frame",
            mode,
            script,
            STREAMS,
            against=(OURS,),
        )
    script = Script(kind, cut, LONG // 2, FAST)
    return Scenario(
        f"fast-{kind}-{cut}", f"{kind}, {cut} characters a frame", "loop", script, against=(OURS,)
    )


BY_FORMAT = tuple(
    _of_format(kind, cut, mode)
    for mode in ("paced", "fast")
    for cut in CUTS
    for kind in (PLAIN, *FORMATS)
)

#: Scenarios with calls, each with the one that has plain text instead.
PAIRS = tuple(
    (f"{mode}-{kind}-{cut}", f"{mode}-{PLAIN}-{cut}")
    for mode in ("paced", "fast")
    for kind in FORMATS
    for cut in CUTS
)


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
        for program in [*self.running.values(), self.backend]:
            if program is not None:
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
                self._load(scenario, target, turn, fresh)
            finally:
                fresh.stop()
            return
        self._load(scenario, target, turn, program)

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

    def _load(self, scenario: Scenario, target: Target, turn: int, on: Program | None) -> None:
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


def rounds(bench: Bench, chosen: list[Scenario], every: list[Target], turns: int) -> Iterator[str]:
    """Measure round by round, each target of a scenario right behind the other."""
    for turn in range(turns):
        for scenario in chosen:
            order = [each for each in every if each.name in scenario.against]
            for target in order[turn % len(order) :] + order[: turn % len(order)]:
                if target.name in bench.running:
                    yield f"round {turn + 1}: {scenario.name}, {target.name}"
                    bench.measure(scenario, target, turn)


def report(bench: Bench, chosen: list[Scenario], *, markdown: bool) -> Iterator[str]:
    """Yield the tables: CPU, latency, memory, formats, and who took how much of a core."""
    names = [scenario.name for scenario in chosen]
    main = [scenario for scenario in MAIN if scenario.name in names and scenario.name != "idle"]
    yield from _cpu(bench.rounds, main, markdown=markdown)
    yield from _latency(bench.rounds, names, markdown=markdown)
    yield from _memory(bench.rounds, names, markdown=markdown)
    yield from _formats(bench.rounds, names, markdown=markdown)
    if not markdown:
        yield from _shares(bench.rounds)


def _measured(found: Rounds) -> list[str]:
    seen = {target for _, target, _ in found.all()}
    return [each for each in (BARE, FLOOR, OURS, USUAL) if each in seen]


def _show(found: figures.Range | None, digits: int = 1) -> str:
    return "" if found is None else found.show(digits)


def _cpu(found: Rounds, chosen: list[Scenario], *, markdown: bool) -> Iterator[str]:
    rows = []
    proxies = [each for each in _measured(found) if each != BARE]
    for each in chosen:
        row = [each.what, each.unit]
        row += [_show(found.figure(each.name, one, each.figure)) for one in proxies]
        row += [_show(found.ratio(each.name, one, FLOOR, each.figure), 2) for one in proxies[1:]]
        rows.append(row)
    if rows:
        heads = ["CPU, us", "per", *proxies, *(f"{one} / nginx" for one in proxies[1:])]
        yield table(heads, rows, markdown=markdown)


def _latency(found: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    rows = []
    for name, what, figure in (
        ("paced", "added to a paced chunk, median", figures.late_median),
        ("paced", "added to a paced chunk, p99", figures.late_high),
        ("first", "added to the first token, median", figures.first_token),
    ):
        bare = found.figure(name, BARE, figure)
        if name in names and bare is not None:
            proxies = [each for each in _measured(found) if each != BARE]
            row = [_show(found.added(name, each, figure), 3) for each in proxies]
            rows.append([what, _show(bare, 3), *row])
    if rows:
        heads = ["latency, ms", "direct (whole)", *(o for o in _measured(found) if o != BARE)]
        yield table(heads, rows, markdown=markdown)


def _memory(found: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    if "idle" not in names:
        return
    rows = [
        [
            each,
            _show(figures.spread(size / figures.MEGA for size in found.starting.get(each, []))),
            _show(found.figure("idle", each, figures.memory_per_stream)),
            _show(found.figure("idle", each, figures.idle_cpu), 2),
        ]
        for each in _measured(found)
        if each != BARE
    ]
    heads = ["memory", "MB at start", "KB per idle stream", "% of a core, all idle streams"]
    yield table(heads, rows, markdown=markdown)


def _formats(found: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    rows = []
    for mode in ("paced", "fast"):
        for cut in CUTS:
            plain = f"{mode}-{PLAIN}-{cut}"
            if not any(f"{mode}-{kind}-{cut}" in names for kind in (PLAIN, *FORMATS)):
                continue
            row = [f"{mode}, {cut} a frame"]
            for kind in (PLAIN, *FORMATS):
                name = f"{mode}-{kind}-{cut}"
                cpu = _show(found.figure(name, OURS, figures.cpu_per_frame))
                ratio = found.to_plain(name, plain) if kind != PLAIN else None
                row.append(cpu + (f" = {ratio.show(2)} x" if ratio else ""))
            rows.append(row)
    if rows:
        yield table(["blockops, us per chunk", PLAIN, *FORMATS], rows, markdown=markdown)


def _shares(found: Rounds) -> Iterator[str]:
    """Show that neither the backend nor the load generator is what is measured."""
    rows = []
    for scenario, target in dict.fromkeys((each[0], each[1]) for each in found.all()):
        every = found.of(scenario, target)
        wall = sum(each.wall for each in every) or 1
        proxy = [sum(part) for part in zip(*(each.proxy for each in every), strict=True)]
        shares = [
            proxy[0],
            sum(each.backend.cpu for each in every),
            sum(each.load.cpu for each in every),
        ]
        system = 100 * proxy[2] / (proxy[1] + proxy[2] or 1)
        rows.append(
            [
                f"{scenario}, {target}",
                f"{sum(each.frames for each in every) / wall:.0f}",
                f"{sum(each.responses for each in every) / wall:.0f}",
                _per_read(scenario, every),
                *(f"{100 * share / wall:.1f}" for share in shares),
                f"{system:.0f}" if proxy[0] else "",
                f"{sum(each.wrong for each in every)} / {sum(each.checked for each in every)}",
            ]
        )
    heads = ["breakdown", "chunks/s", "answers/s", "chunks/read", "proxy %", "backend %", "load %"]
    yield table([*heads, "system % of proxy", "wrong"], rows, markdown=False)


def _per_read(scenario: str, every: list[Outcome]) -> str:
    """Return how many frames the load generator found at a time in fast streams."""
    reads = sum(each.reads for each in every)
    if not scenario.startswith("fast") or not reads:
        return ""
    return f"{sum(each.sent for each in every) / reads:.1f}"


def verdicts(bench: Bench, *, markdown: bool) -> tuple[str, bool]:
    """Return the table of what has to be reached, and whether all that was measured is."""
    every = figures.musts(bench.rounds, PAIRS)
    words = {True: "yes", False: "NO", None: "not measured"}
    rows = [
        [
            each.what,
            f"{'>=' if each.at_least else '<='} {each.must:g}",
            "nginx's" if each.aim is None else f"{'>=' if each.at_least else '<='} {each.aim:g}",
            _show(each.measured, 2),
            words[each.met],
        ]
        for each in every
    ]
    text = table(["", "must", "aim", "measured", "met"], rows, markdown=markdown)
    return text, all(each.met is not False for each in every)


def profile(bench: Bench, chosen: list[Scenario], ours: targets.Blockops, folder: Path) -> None:
    """Run each scenario on a blockops of its own under the profiler, and print what costs most."""
    folder.mkdir(parents=True, exist_ok=True)
    for full in chosen:
        few = min(full.connections, PROFILED) if full.mode == "paced" else full.connections
        scenario = replace(full, connections=few)
        path = folder / f"{scenario.name}.prof"
        bench.running = {ours.name: ours.start_profiled(bench.backend.port, path)}
        try:
            bench._load(scenario, ours, 0, bench.running[ours.name])  # noqa: SLF001
        finally:
            program = bench.running.pop(ours.name)
            assert program is not None
            program.stop()
        outcome = bench.rounds.of(scenario.name, ours.name)[-1]
        print(costs(path, scenario, outcome), flush=True)


def costs(path: Path, scenario: Scenario, outcome: Outcome, lines: int = 40) -> str:
    """Return the functions that took most themselves, per chunk or request of the whole run."""
    stats = pstats.Stats(str(path))
    units = outcome.checked if scenario.unit == "request" else outcome.sent
    rows = []
    every = stats.stats.items()  # type: ignore[attr-defined]
    for (file, line, name), (_, calls, own, below, _) in sorted(every, key=lambda x: -x[1][2]):
        if name == "<method 'poll' of 'select.epoll' objects>":
            continue  # mostly waiting
        where = "/".join(Path(file).parts[-2:])
        where = f"{where}:{line} {name}" if line else name
        figures_ = (1e6 * own / units, 1e6 * below / units, calls / units)
        rows.append([where, *(f"{figure:.2f}" for figure in figures_)])
    heads = [f"{scenario.name}: {units} of {scenario.unit}", "own us", "with callees us", "calls"]
    return table(heads, rows[:lines], markdown=False) + "\n"


def chosen_from(options: argparse.Namespace) -> list[Scenario]:
    every = {each.name: each for each in (*MAIN, *BY_FORMAT)}
    groups = {
        "main": [each.name for each in MAIN],
        "formats": [each.name for each in BY_FORMAT],
    }
    if not options.only:
        left_out = {each.name for each in BY_FORMAT if each.script.cut != QUICK_CUT}
        return [each for name, each in every.items() if not (options.quick and name in left_out)]
    names = [name for part in options.only.split(",") for name in groups.get(part, [part])]
    for name in names:
        if name not in every:
            sys.exit(f"--only {name}: there are main, formats, {', '.join(every)}")
    return [every[name] for name in dict.fromkeys(names)]


def parsed() -> argparse.Namespace:
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
    options = parser.parse_args()
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def main() -> None:
    options = parsed()
    chosen = chosen_from(options)
    wanted = options.targets.split(",")
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="blockops-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        ours = targets.Blockops(folder, options.python, options.option)
        every = [
            targets.Direct(folder),
            targets.Nginx(folder),
            ours,
            targets.LiteLLM(folder, options.litellm),
        ]
        every = [each for each in every if each.name in wanted]
        bench = Bench(folder, options.seconds)
        stack.callback(bench.stop)
        if options.profile:
            profile(bench, chosen, ours, options.profile)
            sys.exit(bool(bench.failures))
        used = {name for scenario in chosen for name in scenario.against}
        for target in every:
            if target.name in used:
                bench.start(target)
        for step in rounds(bench, chosen, every, options.rounds):
            print(f"\r{step:60}", end="", file=sys.stderr, flush=True)
            if time.monotonic() > until:
                print(f"\nSTOPPED after {options.minutes:g} minutes", flush=True)
                break
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
    sys.exit(finish(bench, chosen, options))


def finish(bench: Bench, chosen: list[Scenario], options: argparse.Namespace) -> int:
    """Print what was measured; return the exit status."""
    for part in report(bench, chosen, markdown=options.markdown):
        print(part + "\n")
    reached = True
    if options.check or options.markdown:
        text, reached = verdicts(bench, markdown=options.markdown)
        print(text + "\n")
    for failure in bench.failures:
        print(f"WRONG {failure}")
    wrong = sum(outcome.wrong for _, _, outcome in bench.rounds.all())
    checked = sum(outcome.checked for _, _, outcome in bench.rounds.all())
    print(f"{wrong} wrong of {checked} answers")
    return int(bool(bench.failures) or (options.check and not reached))


if __name__ == "__main__":
    main()
