"""The tables that a run of the benchmark prints."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import figures
from benchmarks.figures import BARE, FLOOR, OURS, USUAL, Rounds, table
from benchmarks.load import Outcome
from benchmarks.scenarios import CUTS, MAIN, PAIRS, Scenario
from benchmarks.streams import FORMATS, PLAIN


def report(found: Rounds, chosen: list[Scenario], *, markdown: bool) -> Iterator[str]:
    """Yield the tables: CPU, latency, memory, formats, and who took how much of a core."""
    names = [scenario.name for scenario in chosen]
    main = [scenario for scenario in MAIN if scenario.name in names and scenario.name != "idle"]
    yield from _cpu(found, main, markdown=markdown)
    yield from _latency(found, names, markdown=markdown)
    yield from _memory(found, names, markdown=markdown)
    yield from _formats(found, names, markdown=markdown)
    if not markdown:
        yield from _shares(found)


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
    """
    Return how many frames the load generator found at a time.

    In paced streams it is 1 on a quiet machine; more says that somebody had to wait for the CPU.
    """
    reads = sum(each.reads for each in every)
    if not scenario.startswith(("fast", "paced")) or not reads:
        return ""
    return f"{sum(each.sent for each in every) / reads:.1f}"


def verdicts(found: Rounds, *, markdown: bool) -> tuple[str, bool]:
    """Return the table of what has to be reached, and whether all that was measured is."""
    every = figures.musts(found, PAIRS)
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
