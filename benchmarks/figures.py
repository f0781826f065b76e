"""Figures of all rounds: medians with their range, ratios, and the bounds that they must meet."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

from benchmarks.load import Outcome

MICRO, MILLI, KILO, MEGA = 1e6, 1e3, 1 << 10, 1 << 20

#: Names of the targets, in the order of the tables' columns.
DIRECT = "direct"
NGINX = "nginx"
BLOCKOPS = "blockops"
LITELLM = "litellm"


class Range(NamedTuple):
    """The median of some rounds, with their minimum and maximum."""

    median: float
    minimum: float
    maximum: float

    def as_text(self, digits: int = 1) -> str:
        if self.minimum == self.maximum:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.minimum:.{digits}f}-{self.maximum:.{digits}f})"


def range_of(values: Iterable[float]) -> Range | None:
    """Return the range of `values`, or None if there are none."""
    ordered = sorted(values)
    return Range(median(ordered), ordered[0], ordered[-1]) if ordered else None


def cpu_per_frame(outcome: Outcome) -> float | None:
    """Return microseconds of the proxy's CPU time."""
    return MICRO * outcome.proxy.cpu / outcome.frames if outcome.frames else None


def life_cpu_per_frame(outcome: Outcome) -> float | None:
    """Return microseconds of the proxy's CPU time over the whole life of paced streams."""
    return MICRO * outcome.life.cpu / outcome.life_frames if outcome.life_frames else None


def cpu_per_response(outcome: Outcome) -> float | None:
    """Return microseconds of the proxy's CPU time."""
    return MICRO * outcome.proxy.cpu / outcome.responses if outcome.responses else None


def memory_per_stream(outcome: Outcome) -> float | None:
    """Return the growth of the proxy's memory per stream in KB."""
    growth = outcome.memory_after - outcome.memory_before
    return growth / KILO / outcome.responses if outcome.responses else None


def idle_cpu(outcome: Outcome) -> float | None:
    """Return the proxy's CPU time for idle streams, in percent of one core."""
    return 100 * outcome.proxy.cpu / outcome.wall if outcome.wall else None


def first_token_median(outcome: Outcome) -> float | None:
    """Return milliseconds."""
    return MILLI * outcome.first_token[0] if outcome.first_token else None


def latency_median(outcome: Outcome) -> float | None:
    """Return milliseconds."""
    return MILLI * outcome.latency[0] if outcome.latency else None


def latency_p99(outcome: Outcome) -> float | None:
    """Return milliseconds."""
    return MILLI * outcome.latency[1] if outcome.latency else None


def life_latency_p99(outcome: Outcome) -> float | None:
    """Return milliseconds."""
    return MILLI * outcome.life_latency[1] if outcome.life_latency else None


#: Computes a figure from an outcome; None if the outcome lacks the data.
Figure = Callable[[Outcome], float | None]


class Rounds:
    """
    The outcomes of all rounds.

    :ivar start_memory: bytes of memory of each target before its first request, one per start
    """

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], dict[int, Outcome]] = {}
        self.start_memory: dict[str, list[int]] = {}

    def add(self, scenario: str, target: str, round_number: int, outcome: Outcome) -> None:
        self._outcomes.setdefault((scenario, target), {})[round_number] = outcome

    def outcomes(self, scenario: str, target: str) -> list[Outcome]:
        return list(self._outcomes.get((scenario, target), {}).values())

    def all_outcomes(self) -> Iterable[tuple[str, str, Outcome]]:
        """Yield scenario, target and outcome."""
        for (scenario, target), outcomes in self._outcomes.items():
            for outcome in outcomes.values():
                yield scenario, target, outcome

    def figure(self, scenario: str, target: str, figure: Figure) -> Range | None:
        values = map(figure, self.outcomes(scenario, target))
        return range_of(value for value in values if value is not None)

    def compare(
        self,
        scenarios: tuple[str, str],
        targets: tuple[str, str],
        figure: Figure,
        operation: Callable[[float, float], float],
    ) -> Range | None:
        """
        Return the range of `operation(one, other)` over the rounds that have both figures.

        :param scenarios: the scenario of `one` and of `other`
        :param targets: the target of `one` and of `other`
        """
        one, other = (
            {number: figure(outcome) for number, outcome in self._outcomes.get(key, {}).items()}
            for key in zip(scenarios, targets, strict=True)
        )
        pairs = ((one[number], other[number]) for number in one if number in other)
        return range_of(operation(a, b) for a, b in pairs if a is not None and b)

    def ratio(self, scenario: str, target: str, reference: str, figure: Figure) -> Range | None:
        """Return the figure of `target` divided by that of `reference`."""
        return self.compare((scenario, scenario), (target, reference), figure, operator.truediv)

    def overhead(self, scenario: str, target: str, figure: Figure) -> Range | None:
        """Return the figure of `target` minus that of a run without a proxy."""
        return self.compare((scenario, scenario), (target, DIRECT), figure, operator.sub)

    def ratio_of_scenarios(
        self, scenario: str, reference: str, figure: Figure, target: str = BLOCKOPS
    ) -> Range | None:
        """Return the figure of `scenario` divided by that of `reference`, both of `target`."""
        return self.compare((scenario, reference), (target, target), figure, operator.truediv)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, markdown: bool) -> str:
    """Return a table in Markdown, or one with columns padded by spaces."""
    lines = [list(heads), *map(list, rows)]
    if markdown:
        head, *body = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join([head, "| " + " | ".join("---" for _ in lines[0]) + " |", *body])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)
