"""Tables from a profile of blockops: the functions' own time per chunk or request."""

from __future__ import annotations

import cProfile
import pstats
import time
from pathlib import Path

from benchmarks.figures import table
from benchmarks.load import Outcome

#: File, line and name, as `pstats` has them.
Function = tuple[str, int, str]
#: Primitive calls, calls, own seconds, seconds with callees, and the same for each caller.
Timing = tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]


def profile_tables(path: Path, name: str, unit: str, outcome: Outcome, lines: int = 40) -> str:
    """
    Return the functions and modules with the most own time, per chunk or request of the run.

    The profiler's own time is subtracted.

    :param path: a file written by cProfile
    :param name: the scenario
    :param unit: `chunk` or `request`
    """
    units = outcome.checked if unit == "request" else outcome.frames_in_all
    per_call, per_callee = _profiler_overhead()
    rows = []
    timings = _timings(path)
    callees = _calls_made(timings)
    for function, (_, calls, own, total, _) in timings.items():
        if function[2] != "<method 'poll' of 'select.epoll' objects>":  # mostly waiting
            net = max(0.0, own - per_call * calls - per_callee * callees.get(function, 0))
            figures = (1e6 * net / units, calls / units, 1e6 * total / units)
            rows.append((figures, _location(function)))
    rows.sort(reverse=True)
    heads = [f"{name}: {units} x {unit}", "own us", "calls", "raw, with callees"]
    cells = [[location, *(f"{figure:.2f}" for figure in figures)] for figures, location in rows]
    modules: dict[str, float] = {}
    for figures, location in rows:
        module = location.partition(":")[0] if ":" in location else "built in"
        modules[module] = modules.get(module, 0.0) + figures[0]
    by_module = sorted(((own, module) for module, own in modules.items()), reverse=True)
    module_cells = [[module, f"{own:.2f}"] for own, module in by_module[: lines // 2]]
    module_cells.insert(0, ["all", f"{sum(modules.values()):.2f}"])
    return "\n\n".join(
        [
            table(heads, cells[:lines], markdown=False),
            table([f"{name}, by module", "own us"], module_cells, markdown=False),
            "",
        ]
    )


def _timings(source: Path | cProfile.Profile) -> dict[Function, Timing]:
    stats = pstats.Stats(source if isinstance(source, cProfile.Profile) else str(source))
    timings: dict[Function, Timing] = stats.stats  # type: ignore[attr-defined]
    return timings


def _calls_made(timings: dict[Function, Timing]) -> dict[Function, int]:
    """Return the number of calls that each function made."""
    callees: dict[Function, int] = {}
    for _, _, _, _, callers in timings.values():
        for caller, (calls, *_) in callers.items():
            callees[caller] = callees.get(caller, 0) + calls
    return callees


def _noop() -> None:
    pass


def _call_noop(count: int) -> None:
    for _ in range(count):
        _noop()


def _profiler_overhead(count: int = 10_000, rounds: int = 20) -> tuple[float, float]:
    """Return the seconds that the profiler adds per call: to the function, and to its caller."""
    callee, caller, plain = [], [], []
    for _ in range(rounds):
        profiler = cProfile.Profile()
        profiler.runcall(_call_noop, count)
        own = {function[2]: timing[2] for function, timing in _timings(profiler).items()}
        callee.append(own["_noop"] / count)
        caller.append(own["_call_noop"] / count)
        start = time.perf_counter()
        _call_noop(count)
        plain.append((time.perf_counter() - start) / count)
    # Without a profiler, half of a call's time counts as the function's, half as its caller's.
    half = min(plain) / 2
    return max(0.0, min(callee) - half), max(0.0, min(caller) - half)


def _location(function: Function) -> str:
    file, line, name = function
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {name}" if line else name
