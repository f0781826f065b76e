"""The bounds that the figures must meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.figures import (
    BLOCKOPS,
    LITELLM,
    MEGA,
    NGINX,
    Figure,
    Range,
    Rounds,
    cpu_per_frame,
    cpu_per_response,
    first_token_median,
    latency_p99,
    life_cpu_per_frame,
    life_latency_p99,
    memory_per_stream,
    range_of,
)
from benchmarks.scenarios import (
    BY_SHAPE,
    BY_TEXT,
    PLAIN_PAIRS,
    USUAL_SHAPE,
    USUAL_TEXT,
    WITHOUT_TOOLS,
)


@dataclass(frozen=True)
class Bound:
    """
    One line of the bounds in docs/performance.md.

    :param must: the bound; `--check` fails if it is missed
    :param aim: the value aimed at, or None if it is `must`
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


def bounds(rounds: Rounds) -> list[Bound]:
    """Return all bounds with the measured ranges."""
    return [*_chunk_bounds(rounds), *_replay_bounds(rounds), *_other_bounds(rounds)]


def _chunk_bounds(rounds: Rounds) -> Iterator[Bound]:
    """Yield the bounds of a chunk beside nginx."""
    paced = [paced.name for paced, _ in BY_SHAPE.values()]
    fast = ["fast", *(fast.name for _, fast in BY_SHAPE.values())]
    usual = BY_SHAPE[USUAL_SHAPE][0].name
    replayed = _worst(rounds.ratio(name, BLOCKOPS, NGINX, life_cpu_per_frame) for name in paced)
    yield Bound("CPU per paced chunk, worst replayed shape, x nginx", 2.0, None, replayed)
    own = rounds.ratio("paced", BLOCKOPS, NGINX, cpu_per_frame)
    yield Bound("CPU per paced chunk, own shape, x nginx", 1.8, 1.35, own)
    fast_ratio = _worst(rounds.ratio(name, BLOCKOPS, NGINX, cpu_per_frame) for name in fast)
    yield Bound("CPU per chunk of a fast stream, worst shape, x nginx", 3.0, None, fast_ratio)
    latency = rounds.overhead(usual, BLOCKOPS, life_latency_p99)
    yield Bound("added latency p99, replayed, 50 x 100 tok/s, ms", 0.7, None, latency)
    latency = rounds.overhead("paced", BLOCKOPS, latency_p99)
    yield Bound("added latency p99, own shape, 50 x 100 tok/s, ms", 0.7, None, latency)


def _replay_bounds(rounds: Rounds) -> Iterator[Bound]:
    """Yield the bounds of a chunk's cost relative to that of another shape or text."""
    shapes = [paced.name for paced, _ in BY_SHAPE.values()]
    base = cheapest(rounds, shapes, life_cpu_per_frame)
    ratios = [rounds.ratio_of_scenarios(name, base, life_cpu_per_frame) for name in shapes]
    yield Bound("paced, worst shape, x the cheapest shape", 1.25, None, _worst(ratios))
    prose = BY_TEXT[USUAL_TEXT][0].name
    texts = [paced.name for paced, _ in BY_TEXT.values()]
    ratios = [rounds.ratio_of_scenarios(name, prose, life_cpu_per_frame) for name in texts]
    yield Bound("paced, worst text, x prose", 1.25, None, _worst(ratios))
    # All texts together: one text's ratio varies by more than the tolerance.
    pairs = [(without.name, BY_TEXT[text][0].name) for text, without in WITHOUT_TOOLS.items()]
    measured = [rounds.ratio_of_scenarios(*pair, life_cpu_per_frame) for pair in pairs]
    medians = range_of(each.median for each in measured if each is not None)
    yield Bound("paced, no tools, x with tools", 1.05, 1.0, medians)


def _other_bounds(rounds: Rounds) -> Iterator[Bound]:
    small = rounds.ratio("small", BLOCKOPS, NGINX, cpu_per_response)
    yield Bound("CPU per small non-streaming request, x nginx", 20.0, 14.0, small)
    first_token = rounds.overhead("first", BLOCKOPS, first_token_median)
    yield Bound("time to first token added, ms", 1.2, 0.8, first_token)
    litellm = rounds.ratio("paced", LITELLM, BLOCKOPS, cpu_per_frame)
    yield Bound("CPU per paced chunk, LiteLLM / blockops", 15.0, 22.0, litellm, is_minimum=True)
    memory = rounds.figure("idle", BLOCKOPS, memory_per_stream)
    yield Bound("KB per idle stream", 25.0, 12.0, memory)
    start_memory = range_of(size / MEGA for size in rounds.start_memory.get(BLOCKOPS, []))
    yield Bound("MB at start", 60.0, 45.0, start_memory)
    for mode in ("paced", "fast"):
        pairs = [pair for pair in PLAIN_PAIRS if pair[0].startswith(mode)]
        dialects = _worst(rounds.ratio_of_scenarios(*pair, cpu_per_frame) for pair in pairs)
        yield Bound(f"dialects against plain text, {mode}, worst", 1.25, 1.1, dialects)
    wrong = [outcome.wrong for _, _, outcome in rounds.all_outcomes()]
    measured = range_of([float(sum(wrong))]) if wrong else None
    yield Bound("wrong streams", 0.0, None, measured)


def _worst(ratios: Iterable[Range | None]) -> Range | None:
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def cheapest(rounds: Rounds, names: list[str], figure: Figure) -> str:
    """Return the scenario in which blockops has the lowest figure; the first if none has one."""
    measured = {name: rounds.figure(name, BLOCKOPS, figure) for name in names}
    costs = {name: value.median for name, value in measured.items() if value is not None}
    return min(costs, key=costs.__getitem__, default=names[0])
