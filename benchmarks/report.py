"""The tables that a run of the benchmark prints."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import figures
from benchmarks.bounds import bounds, cheapest
from benchmarks.figures import (
    BLOCKOPS,
    DIRECT,
    LITELLM,
    NGINX,
    Figure,
    Range,
    Rounds,
    cpu_per_frame,
    life_cpu_per_frame,
    table,
)
from benchmarks.load import Outcome
from benchmarks.scenarios import (
    BATCHED,
    BY_SHAPE,
    BY_TEXT,
    DELTA_SIZES,
    MAIN,
    USUAL_SHAPE,
    USUAL_TEXT,
    WITHOUT_TOOLS,
    Scenario,
)
from benchmarks.streams import DIALECTS, PLAIN


def report(rounds: Rounds, scenarios: list[Scenario], *, markdown: bool) -> Iterator[str]:
    """Yield the tables: CPU, replays, latency, memory, dialects, each program's share of a core."""
    names = [scenario.name for scenario in scenarios]
    yield from _cpu(rounds, names, markdown=markdown)
    yield from _shapes(rounds, names, markdown=markdown)
    yield from _texts(rounds, names, markdown=markdown)
    yield from _latency(rounds, names, markdown=markdown)
    yield from _memory(rounds, names, markdown=markdown)
    yield from _dialects(rounds, names, markdown=markdown)
    if not markdown:
        yield from _breakdown(rounds)


def _measured_proxies(rounds: Rounds) -> list[str]:
    measured = {target for _, target, _ in rounds.all_outcomes()}
    return [target for target in (NGINX, BLOCKOPS, LITELLM) if target in measured]


def _as_text(value: Range | None, digits: int = 1) -> str:
    return "" if value is None else value.as_text(digits)


def _cpu(rounds: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    rows = []
    proxies = _measured_proxies(rounds)
    for scenario in MAIN:
        if scenario.name not in names or scenario.name == "idle":
            continue
        name, figure = scenario.name, scenario.figure
        row = [scenario.title, scenario.unit]
        row += [_as_text(rounds.figure(name, proxy, figure)) for proxy in proxies]
        row += [_as_text(rounds.ratio(name, proxy, NGINX, figure), 2) for proxy in proxies[1:]]
        rows.append(row)
    if rows:
        heads = ["CPU, us", "per", *proxies, *(f"{proxy} / nginx" for proxy in proxies[1:])]
        yield table(heads, rows, markdown=markdown)


def _shapes(rounds: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    """Yield the cost of a chunk by the shape of the server's stream, own shape first."""
    shapes = [paced.name for paced, _ in BY_SHAPE.values()]
    if not any(name in names for name in shapes):
        return
    base = cheapest(rounds, shapes, life_cpu_per_frame)
    lines = [("own shape", "paced", "fast")]
    lines += [(paced.title, paced.name, fast.name) for paced, fast in BY_SHAPE.values()]
    lines.append((BATCHED.title, BATCHED.name, ""))
    rows = []
    for title, paced, fast in lines:
        to_cheapest = rounds.ratio_of_scenarios(paced, base, life_cpu_per_frame)
        rows.append(
            [
                title,
                *_beside_nginx(rounds, paced, life_cpu_per_frame),
                _as_text(to_cheapest, 2),
                _as_text(rounds.ratio(paced, BLOCKOPS, NGINX, cpu_per_frame), 2),
                *_beside_nginx(rounds, fast, cpu_per_frame)[1:],
            ]
        )
    heads = ["replayed, CPU us per chunk", "paced, nginx", "paced, blockops", "x nginx"]
    heads += ["x cheapest", "x nginx, all running", "fast, blockops", "fast, x nginx"]
    yield table(heads, rows, markdown=markdown)


def _beside_nginx(rounds: Rounds, scenario: str, figure: Figure) -> list[str]:
    """Return the figure of nginx, that of blockops, and their ratio."""
    nginx, blockops = (rounds.figure(scenario, target, figure) for target in (NGINX, BLOCKOPS))
    ratio = rounds.ratio(scenario, BLOCKOPS, NGINX, figure)
    return [_as_text(nginx), _as_text(blockops), _as_text(ratio, 2)]


def _texts(rounds: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    """Yield the cost of a chunk by text, with and without tools, relative to prose."""
    if not any(paced.name in names for text, (paced, _) in BY_TEXT.items() if text != USUAL_TEXT):
        return
    prose_paced, prose_fast = BY_TEXT[USUAL_TEXT]
    rows = []
    for text, (paced, fast) in BY_TEXT.items():
        row = [paced.title if text != USUAL_TEXT else USUAL_TEXT]
        row.append(_as_text(rounds.figure(paced.name, BLOCKOPS, life_cpu_per_frame)))
        ratio = rounds.ratio_of_scenarios(paced.name, prose_paced.name, life_cpu_per_frame)
        row += [_as_text(ratio, 2), "", ""]
        if text in WITHOUT_TOOLS:
            without = WITHOUT_TOOLS[text].name
            cost = rounds.figure(without, BLOCKOPS, life_cpu_per_frame)
            ratio = rounds.ratio_of_scenarios(without, paced.name, life_cpu_per_frame)
            row[-2:] = [_as_text(cost), _as_text(ratio, 2)]
        row.append(_as_text(rounds.figure(fast.name, BLOCKOPS, cpu_per_frame)))
        ratio = rounds.ratio_of_scenarios(fast.name, prose_fast.name, cpu_per_frame)
        row.append(_as_text(ratio, 2))
        rows.append(row)
    heads = ["replayed, blockops, us per chunk", "paced", "x prose", "paced, no tools"]
    heads += ["x with tools", "fast", "fast, x prose"]
    yield table(heads, rows, markdown=markdown)


def _latency(rounds: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    rows = []
    proxies = _measured_proxies(rounds)
    usual, batched = BY_SHAPE[USUAL_SHAPE][0].name, BATCHED.name
    for name, title, figure in (
        ("paced", "added to a paced chunk, median", figures.latency_median),
        ("paced", "added to a paced chunk, p99", figures.latency_p99),
        (usual, "replayed, with starts and ends, p99", figures.life_latency_p99),
        (batched, "replayed, all streams in one batch, p99", figures.life_latency_p99),
        ("first", "added to the first token, median", figures.first_token_median),
    ):
        direct = rounds.figure(name, DIRECT, figure)
        if name in names and direct is not None:
            row = [_as_text(rounds.overhead(name, proxy, figure), 3) for proxy in proxies]
            rows.append([title, _as_text(direct, 3), *row])
    if rows:
        yield table(["latency, ms", "direct (total)", *proxies], rows, markdown=markdown)


def _memory(rounds: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    if "idle" not in names:
        return
    rows = []
    for proxy in _measured_proxies(rounds):
        sizes = rounds.start_memory.get(proxy, [])
        rows.append(
            [
                proxy,
                _as_text(figures.range_of(size / figures.MEGA for size in sizes)),
                _as_text(rounds.figure("idle", proxy, figures.memory_per_stream)),
                _as_text(rounds.figure("idle", proxy, figures.idle_cpu), 2),
            ]
        )
    heads = ["memory", "MB at start", "KB per idle stream", "% of a core, all idle streams"]
    yield table(heads, rows, markdown=markdown)


def _dialects(rounds: Rounds, names: list[str], *, markdown: bool) -> Iterator[str]:
    rows = []
    kinds = (PLAIN, *DIALECTS)
    for mode in ("paced", "fast"):
        for delta_size in DELTA_SIZES:
            if not any(f"{mode}-{kind}-{delta_size}" in names for kind in kinds):
                continue
            row = [f"{mode}, {delta_size} a frame"]
            for kind in kinds:
                name = f"{mode}-{kind}-{delta_size}"
                cpu = _as_text(rounds.figure(name, BLOCKOPS, figures.cpu_per_frame))
                plain = f"{mode}-{PLAIN}-{delta_size}"
                ratio = rounds.ratio_of_scenarios(name, plain, cpu_per_frame)
                row.append(cpu + (f" = {ratio.as_text(2)} x" if ratio and kind != PLAIN else ""))
            rows.append(row)
    if rows:
        yield table(["blockops, us per chunk", *kinds], rows, markdown=markdown)


def _breakdown(rounds: Rounds) -> Iterator[str]:
    """
    Yield each program's share of a core, per scenario and target.

    It shows that neither the backend nor the load generator limits the result.
    """
    rows = []
    keys = dict.fromkeys((scenario, target) for scenario, target, _ in rounds.all_outcomes())
    for scenario, target in keys:
        outcomes = rounds.outcomes(scenario, target)
        wall = sum(outcome.wall for outcome in outcomes) or 1
        cpu, user, system = (
            sum(times) for times in zip(*(outcome.proxy for outcome in outcomes), strict=True)
        )
        backend = sum(outcome.backend.cpu for outcome in outcomes)
        load = sum(outcome.load.cpu for outcome in outcomes)
        wrong = sum(outcome.wrong for outcome in outcomes)
        checked = sum(outcome.checked for outcome in outcomes)
        rows.append(
            [
                f"{scenario}, {target}",
                f"{sum(outcome.frames for outcome in outcomes) / wall:.0f}",
                f"{sum(outcome.responses for outcome in outcomes) / wall:.0f}",
                _frames_per_read(scenario, outcomes),
                *(f"{100 * share / wall:.1f}" for share in (cpu, backend, load)),
                f"{100 * system / (user + system or 1):.0f}" if cpu else "",
                f"{wrong} / {checked}",
            ]
        )
    heads = ["breakdown", "chunks/s", "responses/s", "chunks/read", "proxy %", "backend %"]
    heads += ["load %", "system % of proxy", "wrong"]
    yield table(heads, rows, markdown=False)


def _frames_per_read(scenario: str, outcomes: list[Outcome]) -> str:
    """
    Return the average number of frames per read of the load generator; empty if not streaming.

    It is 1 in paced streams on a quiet machine. More means that a program had to wait for the CPU.
    """
    reads = sum(outcome.reads for outcome in outcomes)
    if not scenario.startswith(("fast", "paced")) or not reads:
        return ""
    return f"{sum(outcome.frames_in_all for outcome in outcomes) / reads:.1f}"


def bounds_table(rounds: Rounds, *, markdown: bool) -> tuple[str, bool]:
    """Return the table of the bounds, and True if every bound that was measured is met."""
    measured_bounds = bounds(rounds)
    words = {True: "yes", False: "NO", None: "not measured"}
    rows = []
    for bound in measured_bounds:
        relation = ">=" if bound.is_minimum else "<="
        rows.append(
            [
                bound.name,
                f"{relation} {bound.must:g}",
                "" if bound.aim is None else f"{relation} {bound.aim:g}",
                _as_text(bound.measured, 2),
                words[bound.is_met],
            ]
        )
    text = table(["", "must", "aim", "measured", "met"], rows, markdown=markdown)
    return text, all(bound.is_met is not False for bound in measured_bounds)
