"""
Measures the CPU time per event of the recorded streams of real servers (`tests/captures`).

    python benchmarks/captures.py [--rounds 5] [--only vllm,mlx] [--check]

Each stream passes through a `StreamTranslator` that is built as the daemon builds it with default
settings: once for a request that offers tools and once for one without. Every event is a read of
its own, as servers send them (`--one-read`: the whole stream is one read). The measured time begins
with the backend's bytes and ends with the client's; reading the request is not a part of it. For
each stream it prints: microseconds of CPU per event, over the life of the stream; the same for the
bare cost, splitting the bytes into events and decoding them with msgspec into typed structs, which
is a lower bound for a proxy that decodes each event; and the share of the events that the client
gets byte for byte. Making the translator is printed apart (`start us`), because it does not depend
on the stream. The first and the last events of a stream cost the most, so short streams are the
most expensive ones. Comments, such as heartbeats, are left out.

Each figure is the minimum over the rounds, because other programs can only increase it. A round
goes over all streams and takes the median of the repetitions (`--repeat`) of each. The output is
checked in every round: a stream that `tests/api/strict.py` rejects is wrong. Takes about ten
seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.figures import table
from benchmarks.recorded import Stream, read_streams
from benchmarks.translators import (
    NO_TOOLS,
    TOOLS,
    find_error,
    passed_share,
    translate,
    translator_factory,
)
from blockops.translation.stream import StreamTranslator

#: Upper bound of the cost of an event: in microseconds, and divided by that of the cheapest stream.
MAX_COST, MAX_TO_CHEAPEST = 6.0, 2.5

_DATA, _DONE = b"data: ", b"data: [DONE]"


class BareFunction(msgspec.Struct, gc=False):
    """The function of a call, or a part of it."""

    name: str | None = None
    arguments: str | None = None


class BareCall(msgspec.Struct, gc=False):
    """A call of a delta, or a part of it."""

    index: int
    function: BareFunction
    id: str | None = None


class BareDelta(msgspec.Struct, gc=False):
    """The fields of a delta that a proxy has to read."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[BareCall] | None = None


class BareChoice(msgspec.Struct, gc=False):
    """A choice of a chunk."""

    index: int
    delta: BareDelta
    finish_reason: str | None = None


class BareChunk(msgspec.Struct, gc=False):
    """A chunk."""

    choices: list[BareChoice]


_decode_bare = msgspec.json.Decoder(BareChunk).decode


@dataclass
class Measurement:
    """
    The figures of one stream; times in microseconds of CPU per event.

    :param variant: `TOOLS` or `NO_TOOLS`
    :param events: the number of events
    :param passed: the share of the events that were passed byte for byte
    :param rounds: the cost in each round
    :param bare_rounds: the bare cost in each round
    :param start_rounds: the time in which a translator is made, in each round
    :param errors: what is wrong with the output, for each round in which it is
    """

    stream: str
    server: str
    variant: str
    events: int
    passed: float
    rounds: list[float] = field(default_factory=list)
    bare_rounds: list[float] = field(default_factory=list)
    start_rounds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.stream}, {self.variant}"

    @property
    def cost(self) -> float:
        return min(self.rounds)

    @property
    def bare_cost(self) -> float:
        return min(self.bare_rounds)

    @property
    def start_cost(self) -> float:
        return min(self.start_rounds)


def decode_bare(reads: Sequence[bytes]) -> list[BareChunk]:
    """Return the chunks in these reads."""
    return [
        _decode_bare(event[len(_DATA) :])
        for read in reads
        for event in read.split(b"\n\n")
        if event.startswith(_DATA) and event != _DONE
    ]


def cpu_microseconds(function: Callable[[], object]) -> float:
    start = time.process_time_ns()
    function()
    return (time.process_time_ns() - start) / 1000


class Captures:
    """
    Measures streams in rounds.

    :param repeat: repetitions of each stream in a round
    :param is_one_read: True if a stream arrives in one read; False for one event per read
    :ivar measurements: one for each stream and variant
    """

    def __init__(self, streams: Sequence[Stream], *, repeat: int, is_one_read: bool) -> None:
        self._repeat = repeat
        factories = {variant: translator_factory(variant) for variant in (TOOLS, NO_TOOLS)}
        self._work: list[tuple[Measurement, Callable[[], StreamTranslator], list[bytes]]] = []
        for stream in streams:
            reads = [b"".join(stream.events)] if is_one_read else list(stream.events)
            for variant, factory in factories.items():
                share = passed_share(stream, factory)
                size = len(stream.events)
                measurement = Measurement(stream.name, stream.server, variant, size, share)
                self._work.append((measurement, factory, reads))
        self.measurements = [measurement for measurement, _, _ in self._work]

    def run_round(self) -> None:
        """Measure each stream once, in the reverse of the previous round's order."""
        self._work.reverse()
        gc.collect()
        for measurement, factory, reads in self._work:
            self._measure(measurement, factory, reads)

    def _measure(
        self,
        measurement: Measurement,
        factory: Callable[[], StreamTranslator],
        reads: Sequence[bytes],
    ) -> None:
        out: list[bytes] = []
        translators: list[StreamTranslator] = []
        times, bare_times, start_times = [], [], []
        for _ in range(self._repeat):
            out.clear()
            start_times.append(cpu_microseconds(lambda: translators.append(factory())))
            times.append(cpu_microseconds(lambda: out.extend(translate(translators.pop(), reads))))
            bare_times.append(cpu_microseconds(partial(decode_bare, reads)))
        measurement.rounds.append(median(times) / measurement.events)
        measurement.bare_rounds.append(median(bare_times) / measurement.events)
        measurement.start_rounds.append(median(start_times))
        error = find_error(b"".join(out))
        if error is not None:
            measurement.errors.append(error)


def cheapest(measurements: Sequence[Measurement], variant: str) -> float:
    """Return the cost of the cheapest stream of a variant."""
    return min(each.cost for each in measurements if each.variant == variant)


def find_violations(measurements: Sequence[Measurement], bound: float) -> Iterator[str]:
    """
    Yield a description of each figure above its upper bound.

    :param bound: microseconds per event
    """
    for each in measurements:
        if each.cost > bound:
            yield f"{each.name}: {each.cost:.2f} us per event, more than {bound:g}"
        ratio = each.cost / cheapest(measurements, each.variant)
        if ratio > MAX_TO_CHEAPEST:
            yield f"{each.name}: {ratio:.2f} x the cheapest, more than {MAX_TO_CHEAPEST:g}"


def stream_table(measurements: Sequence[Measurement], *, markdown: bool) -> str:
    """Return the table with a line for each stream."""
    heads = ["stream, us per event", "events"]
    for variant in (TOOLS, NO_TOOLS):
        heads += [variant, "x bare", "x cheapest", "passed %", "start us"]
    heads.append("bare")
    by_stream: dict[str, list[Measurement]] = {}
    for each in measurements:
        by_stream.setdefault(each.stream, []).append(each)
    rows = []
    for name, variants in by_stream.items():
        bare = min(each.bare_cost for each in variants)
        row = [name, str(variants[0].events)]
        for each in sorted(variants, key=lambda each: each.variant != TOOLS):
            ratio = each.cost / cheapest(measurements, each.variant)
            row += [f"{each.cost:.2f}", f"{each.cost / bare:.1f}", f"{ratio:.2f}"]
            row += [f"{100 * each.passed:.0f}", f"{each.start_cost:.1f}"]
        rows.append([*row, f"{bare:.2f}"])
    return table(heads, rows, markdown=markdown)


def server_table(measurements: Sequence[Measurement], *, markdown: bool) -> str:
    """Return the table with a line for each server: its events together, and its extremes."""
    heads = ["server, us per event", "streams", "events"]
    for variant in (TOOLS, NO_TOOLS):
        heads += [variant, "min", "max", "passed %"]
    heads.append("bare")
    rows = []
    for server in dict.fromkeys(each.server for each in measurements):
        row: list[str] = []
        for variant in (TOOLS, NO_TOOLS):
            group = [
                each for each in measurements if (each.server, each.variant) == (server, variant)
            ]
            events = sum(each.events for each in group)
            row = row or [server, str(len(group)), str(events)]
            row.append(f"{sum(each.cost * each.events for each in group) / events:.2f}")
            costs = [each.cost for each in group]
            row += [f"{min(costs):.2f}", f"{max(costs):.2f}"]
            row.append(f"{100 * sum(each.passed * each.events for each in group) / events:.0f}")
            bare = sum(each.bare_cost * each.events for each in group) / events
        rows.append([*row, f"{bare:.2f}"])
    return table(heads, rows, markdown=markdown)


def as_json(measurements: Sequence[Measurement], violations: Sequence[str]) -> str:
    """Return all figures as one JSON object."""
    figures = [
        {
            **asdict(each),
            "us": each.cost,
            "median_us": median(each.rounds),
            "bare_us": each.bare_cost,
            "start_us": each.start_cost,
            "to_cheapest": each.cost / cheapest(measurements, each.variant),
        }
        for each in measurements
    ]
    return json.dumps({"streams": figures, "violations": list(violations)})


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    options_parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add = options_parser.add_argument
    add("--rounds", type=int, default=5, help="number of rounds (default 5)")
    add("--repeat", type=int, default=25, help="repetitions of a stream in a round (default 25)")
    add("--only", default="", help="beginnings of the streams' names, separated by commas")
    add("--one-read", action="store_true", help="deliver each stream in one read")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--markdown", action="store_true", help="print the tables in Markdown")
    add(
        "--check",
        action="store_true",
        help=f"exit with 1 if a stream costs more than {MAX_TO_CHEAPEST:g} x the cheapest, or more"
        " than --bound",
    )
    bound_help = f"upper bound per event in microseconds (default {MAX_COST:g})"
    add("--bound", type=float, default=MAX_COST, help=bound_help)
    return options_parser.parse_args(arguments)


def selected_streams(options: argparse.Namespace) -> list[Stream]:
    streams = read_streams()
    selected = [each for each in streams if each.name.startswith(tuple(options.only.split(",")))]
    if not selected:
        names = ", ".join(each.name for each in streams)
        sys.exit(f"No stream's name begins with {options.only!r}; there are {names}.")
    return selected


def main() -> None:
    options = parse_arguments(sys.argv[1:])
    captures = Captures(
        selected_streams(options), repeat=options.repeat, is_one_read=options.one_read
    )
    gc.disable()
    for _ in range(options.rounds):
        captures.run_round()
    sys.exit(print_results(captures.measurements, options))


def print_results(measurements: Sequence[Measurement], options: argparse.Namespace) -> int:
    """Print everything; return the exit status."""
    violations = list(find_violations(measurements, options.bound)) if options.check else []
    wrong = sum(len(each.errors) for each in measurements)
    if options.json:
        print(as_json(measurements, violations))
        return int(bool(wrong or violations))
    for make_table in (stream_table, server_table):
        print(make_table(measurements, markdown=options.markdown) + "\n")
    for each in measurements:
        if each.errors:
            print(f"WRONG {each.name}: {each.errors[0]}")
    for violation in violations:
        print("over the bound:", violation)
    checked = sum(len(each.rounds) for each in measurements)
    print(f"{wrong} wrong of {checked} streams")
    return int(bool(wrong or violations))


if __name__ == "__main__":
    main()
