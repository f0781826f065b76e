"""What a profile of blockops says, per chunk or request."""

from __future__ import annotations

import pstats
import time
from pathlib import Path
from timeit import timeit

from benchmarks.figures import table
from benchmarks.load import Outcome

#: File, line and name.
Function = tuple[str, int, str]
#: Direct calls, calls, own seconds, seconds with callees, and the same for each caller.
Timing = tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]


def costs(path: Path, name: str, unit: str, outcome: Outcome, lines: int = 40) -> str:
    """
    Return the functions that took most themselves, per chunk or request of the whole run.

    What the profiler's clock took is taken off what a function took itself: once for its call, and
    once for each call that it made.
    """
    units = outcome.checked if unit == "request" else outcome.sent
    every: dict[Function, Timing] = pstats.Stats(str(path)).stats  # type: ignore[attr-defined]
    made: dict[Function, int] = {}
    for _, _, _, _, callers in every.values():
        for caller, (calls, *_) in callers.items():
            made[caller] = made.get(caller, 0) + calls
    clock = timeit(time.thread_time, number=10_000) / 10_000
    rows = []
    for function, (_, calls, own, below, _) in every.items():
        if function[2] != "<method 'poll' of 'select.epoll' objects>":  # mostly waiting
            spent = max(0.0, own - clock * (calls + made.get(function, 0)))
            figures_ = (1e6 * spent / units, calls / units, 1e6 * below / units)
            rows.append((figures_, _where(function)))
    rows.sort(reverse=True)
    heads = [f"{name}: {units} x {unit}", "own us", "calls", "raw, with callees"]
    shown = [[where, *(f"{figure:.2f}" for figure in figures_)] for figures_, where in rows]
    total = f"{sum(figures_[0] for figures_, _ in rows):.2f}"
    return table(heads, [["all", total, "", ""], *shown[:lines]], markdown=False) + "\n"


def _where(function: Function) -> str:
    file, line, name = function
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {name}" if line else name
