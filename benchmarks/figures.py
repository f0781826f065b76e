"""Figures of all rounds: medians with their range, ratios, and the bounds that they must meet."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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

    def ratio_to_plain(self, scenario: str, plain: str) -> Range | None:
        """Return the CPU per frame of `scenario` divided by that of `plain`, for blockops."""
        return self.compare(
            (scenario, plain), (BLOCKOPS, BLOCKOPS), cpu_per_frame, operator.truediv
        )


@dataclass(frozen=True)
class Bound:
    """
    One line of the bounds in docs/performance.md.

    :param must: the bound; `--check` fails if it is missed
    :param aim: the value aimed at, or None for that of nginx
    :param measured: None if it was not measured
    :param is_minimum: whether `must` is a lower bound
    """

    name: str
    must: float
    aim: float | None
    measured: Range | None
    is_minimum: bool = False

    @property
    def is_met(self) -> bool | None:
        """True if the median meets the bound; None if it was not measured."""
        if self.measured is None:
            return None
        if self.is_minimum:
            return self.measured.median >= self.must
        return self.measured.median <= self.must


def bounds(rounds: Rounds, plain_pairs: Sequence[tuple[str, str]]) -> list[Bound]:
    """
    Return all bounds with the measured ranges.

    :param plain_pairs: names of scenarios with calls, each with its counterpart in plain text
    """
    paced, fast, small = "paced", "fast", "small"
    start_memory = range_of(size / MEGA for size in rounds.start_memory.get(BLOCKOPS, []))
    wrong = [outcome.wrong for _, _, outcome in rounds.all_outcomes()]
    return [
        Bound(
            "CPU per paced chunk, x nginx",
            1.8,
            1.35,
            rounds.ratio(paced, BLOCKOPS, NGINX, cpu_per_frame),
        ),
        Bound(
            "CPU per chunk of a fast stream, x nginx",
            2.0,
            1.6,
            rounds.ratio(fast, BLOCKOPS, NGINX, cpu_per_frame),
        ),
        Bound(
            "CPU per small non-streaming request, x nginx",
            6.0,
            2.0,
            rounds.ratio(small, BLOCKOPS, NGINX, cpu_per_response),
        ),
        Bound(
            "time to first token added, ms",
            0.8,
            0.4,
            rounds.overhead("first", BLOCKOPS, first_token_median),
        ),
        Bound(
            "added latency p99, 50 x 100 tok/s, ms",
            0.7,
            None,
            rounds.overhead(paced, BLOCKOPS, latency_p99),
        ),
        Bound(
            "CPU per paced chunk, LiteLLM / blockops",
            15.0,
            22.0,
            rounds.ratio(paced, LITELLM, BLOCKOPS, cpu_per_frame),
            is_minimum=True,
        ),
        Bound("KB per idle stream", 25.0, 12.0, rounds.figure("idle", BLOCKOPS, memory_per_stream)),
        Bound("MB at start", 60.0, 45.0, start_memory),
        *(
            Bound(
                f"dialects against plain text, {mode}, worst",
                1.25,
                1.1,
                _worst_ratio(rounds, [pair for pair in plain_pairs if pair[0].startswith(mode)]),
            )
            for mode in (paced, fast)
        ),
        Bound("wrong streams", 0.0, 0.0, range_of([float(sum(wrong))]) if wrong else None),
    ]


def _worst_ratio(rounds: Rounds, plain_pairs: Iterable[tuple[str, str]]) -> Range | None:
    ratios = [rounds.ratio_to_plain(scenario, plain) for scenario, plain in plain_pairs]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


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
