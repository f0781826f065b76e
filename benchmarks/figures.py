"""What the numbers of all rounds say: medians with their range, ratios, and what issue is met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from benchmarks.load import Outcome

MICRO, MILLI, KILO, MEGA = 1e6, 1e3, 1 << 10, 1 << 20

FLOOR = "nginx"
OURS = "blockops"
USUAL = "litellm"
BARE = "direct"


class Range(NamedTuple):
    """The median of some rounds, and the least and the most of them."""

    middle: float
    least: float
    most: float

    def show(self, digits: int = 1) -> str:
        if self.least == self.most:
            return f"{self.middle:.{digits}f}"
        return f"{self.middle:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


def spread(values: Iterable[float]) -> Range | None:
    every = sorted(values)
    return Range(median(every), every[0], every[-1]) if every else None


def cpu_per_frame(outcome: Outcome) -> float | None:
    return MICRO * outcome.proxy.cpu / outcome.frames if outcome.frames else None


def cpu_per_response(outcome: Outcome) -> float | None:
    return MICRO * outcome.proxy.cpu / outcome.responses if outcome.responses else None


def memory_per_stream(outcome: Outcome) -> float | None:
    grown = outcome.memory_after - outcome.memory_before
    return grown / KILO / outcome.responses if outcome.responses else None


def idle_cpu(outcome: Outcome) -> float | None:
    """Return the share of a core that idle streams take, in percent."""
    return 100 * outcome.proxy.cpu / outcome.wall if outcome.wall else None


def first_token(outcome: Outcome) -> float | None:
    return MILLI * outcome.first[0] if outcome.first else None


def late_median(outcome: Outcome) -> float | None:
    return MILLI * outcome.late[0] if outcome.late else None


def late_high(outcome: Outcome) -> float | None:
    return MILLI * outcome.late[1] if outcome.late else None


Figure = Callable[[Outcome], float | None]


class Rounds:
    """
    All that was measured.

    :ivar starting: bytes of memory of each target before its first request, one for each start
    """

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], dict[int, Outcome]] = {}
        self.starting: dict[str, list[int]] = {}

    def add(self, scenario: str, target: str, turn: int, outcome: Outcome) -> None:
        self._outcomes.setdefault((scenario, target), {})[turn] = outcome

    def of(self, scenario: str, target: str) -> list[Outcome]:
        return list(self._outcomes.get((scenario, target), {}).values())

    def all(self) -> Iterable[tuple[str, str, Outcome]]:
        for (scenario, target), every in self._outcomes.items():
            for outcome in every.values():
                yield scenario, target, outcome

    def figure(self, scenario: str, target: str, figure: Figure) -> Range | None:
        values = map(figure, self.of(scenario, target))
        return spread(value for value in values if value is not None)

    def compared(
        self,
        scenario: tuple[str, str],
        target: tuple[str, str],
        figure: Figure,
        how: Callable[[float, float], float],
    ) -> Range | None:
        """
        Return one figure against another, both of the same round.

        :param scenario: that of either
        :param target: that of either
        """
        one, other = (
            {turn: figure(outcome) for turn, outcome in self._outcomes.get(which, {}).items()}
            for which in zip(scenario, target, strict=True)
        )
        pairs = ((one[turn], other[turn]) for turn in one if turn in other)
        return spread(how(a, b) for a, b in pairs if a is not None and b)

    def ratio(self, scenario: str, target: str, floor: str, figure: Figure) -> Range | None:
        return self.compared((scenario, scenario), (target, floor), figure, _divided)

    def added(self, scenario: str, target: str, figure: Figure) -> Range | None:
        """Return what `target` adds to what the backend alone shows."""
        return self.compared((scenario, scenario), (target, BARE), figure, _less)

    def to_plain(self, kind: str, plain: str) -> Range | None:
        return self.compared((kind, plain), (OURS, OURS), cpu_per_frame, _divided)


def _divided(one: float, other: float) -> float:
    return one / other


def _less(one: float, other: float) -> float:
    return one - other


@dataclass(frozen=True)
class Must:
    """
    One line of what has to be reached.

    :param measured: None where it was not measured
    """

    what: str
    must: float
    aim: float | None
    measured: Range | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        if self.at_least:
            return self.measured.middle >= self.must
        return self.measured.middle <= self.must


def musts(rounds: Rounds, formats: Sequence[tuple[str, str]]) -> list[Must]:
    """
    Return what has to be reached, with what was.

    :param formats: scenarios with calls, each with the one that has plain text instead
    """
    paced, fast, small = "paced", "fast", "small"
    start = spread(size / MEGA for size in rounds.starting.get(OURS, []))
    wrong = [outcome.wrong for _, _, outcome in rounds.all()]
    both = (USUAL, OURS)
    return [
        Must(
            "CPU per paced chunk, x nginx",
            1.8,
            1.35,
            rounds.ratio(paced, OURS, FLOOR, cpu_per_frame),
        ),
        Must(
            "CPU per chunk of a fast stream, x nginx",
            2.0,
            1.6,
            rounds.ratio(fast, OURS, FLOOR, cpu_per_frame),
        ),
        Must(
            "CPU per small whole request, x nginx",
            6.0,
            2.0,
            rounds.ratio(small, OURS, FLOOR, cpu_per_response),
        ),
        Must("time to first token added, ms", 0.8, 0.4, rounds.added("first", OURS, first_token)),
        Must(
            "added latency p99, 50 x 100 tok/s, ms",
            0.7,
            None,
            rounds.added(paced, OURS, late_high),
        ),
        Must(
            "CPU per paced chunk, LiteLLM / blockops",
            15.0,
            22.0,
            rounds.compared((paced, paced), both, cpu_per_frame, _divided),
            at_least=True,
        ),
        Must("KB per idle stream", 25.0, 12.0, rounds.figure("idle", OURS, memory_per_stream)),
        Must("MB at start", 60.0, 45.0, start),
        *(
            Must(
                f"tool-call formats against plain text, {mode}, worst",
                1.25,
                1.1,
                _worst(rounds, [pair for pair in formats if pair[0].startswith(mode)]),
            )
            for mode in (paced, fast)
        ),
        Must("wrong streams", 0.0, 0.0, spread([float(sum(wrong))]) if wrong else None),
    ]


def _worst(rounds: Rounds, formats: Iterable[tuple[str, str]]) -> Range | None:
    ratios = [rounds.to_plain(kind, plain) for kind, plain in formats]
    return max((each for each in ratios if each is not None), default=None)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, markdown: bool) -> str:
    """Return rows of text as a table."""
    every = [list(heads), *map(list, rows)]
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in every]
        return "\n".join([lines[0], "| " + " | ".join("---" for _ in every[0]) + " |", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    padded = (
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in every
    )
    return "\n".join(line.rstrip() for line in padded)
