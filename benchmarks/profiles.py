"""What a profile of blockops says, per chunk or request."""

from __future__ import annotations

import cProfile
import pstats
import time
from pathlib import Path

from benchmarks.figures import table
from benchmarks.load import Outcome

#: File, line and name.
Function = tuple[str, int, str]
#: Direct calls, calls, own seconds, seconds with callees, and the same for each caller.
Timing = tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]


def costs(path: Path, name: str, unit: str, outcome: Outcome, lines: int = 40) -> str:
    """
    Return the functions that took most themselves, per chunk or request of the whole run.

    What the profiler took is taken off what a function took itself.
    """
    units = outcome.checked if unit == "request" else outcome.sent
    inside, outside = _overhead()
    rows = []
    every = _timings(path)
    made = _made(every)
    for function, (_, calls, own, below, _) in every.items():
        if function[2] != "<method 'poll' of 'select.epoll' objects>":  # mostly waiting
            spent = max(0.0, own - inside * calls - outside * made.get(function, 0))
            figures = (1e6 * spent / units, calls / units, 1e6 * below / units)
            rows.append((figures, _where(function)))
    rows.sort(reverse=True)
    heads = [f"{name}: {units} x {unit}", "own us", "calls", "raw, with callees"]
    shown = [[where, *(f"{figure:.2f}" for figure in figures)] for figures, where in rows]
    modules: dict[str, float] = {}
    for figures, where in rows:
        module = where.partition(":")[0] if ":" in where else "built in"
        modules[module] = modules.get(module, 0.0) + figures[0]
    by_module = sorted(((own, module) for module, own in modules.items()), reverse=True)
    total = f"{sum(modules.values()):.2f}"
    return "\n\n".join(
        [
            table(heads, shown[:lines], markdown=False),
            table(
                [f"{name}, by module", "own us"],
                [["all", total], *([each, f"{own:.2f}"] for own, each in by_module[: lines // 2])],
                markdown=False,
            ),
            "",
        ]
    )


def _timings(source: Path | cProfile.Profile) -> dict[Function, Timing]:
    stats = pstats.Stats(source if isinstance(source, cProfile.Profile) else str(source))
    found: dict[Function, Timing] = stats.stats  # type: ignore[attr-defined]
    return found


def _made(every: dict[Function, Timing]) -> dict[Function, int]:
    """Return how many calls each function made."""
    made: dict[Function, int] = {}
    for _, _, _, _, callers in every.values():
        for caller, (calls, *_) in callers.items():
            made[caller] = made.get(caller, 0) + calls
    return made


def _nothing() -> None:
    pass


def _calls(count: int) -> None:
    for _ in range(count):
        _nothing()


def _overhead(count: int = 10_000, rounds: int = 20) -> tuple[float, float]:
    """Return the seconds that the profiler adds to a call, and to its caller."""
    inside, outside, plain = [], [], []
    for _ in range(rounds):
        profiler = cProfile.Profile()
        profiler.runcall(_calls, count)
        own = {function[2]: timing[2] for function, timing in _timings(profiler).items()}
        inside.append(own["_nothing"] / count)
        outside.append(own["_calls"] / count)
        began = time.perf_counter()
        _calls(count)
        plain.append((time.perf_counter() - began) / count)
    # What a call takes without a profiler is half the function's and half its caller's.
    half = min(plain) / 2
    return max(0.0, min(inside) - half), max(0.0, min(outside) - half)


def _where(function: Function) -> str:
    file, line, name = function
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {name}" if line else name
