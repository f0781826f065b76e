"""The scenarios: which load each target gets, and the unit of its CPU time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.figures import (
    BLOCKOPS,
    DIRECT,
    LITELLM,
    NGINX,
    Figure,
    cpu_per_frame,
    cpu_per_response,
)
from benchmarks.shapes import SHAPES
from benchmarks.streams import DIALECTS, FAST, IDLE, NON_STREAMING, PLAIN, Script
from benchmarks.texts import CODE, PROSE, TEXTS, THINK

#: Characters per frame; with `--quick` only one of them.
DELTA_SIZES = (1, 4, 11)
QUICK_DELTA_SIZE = 4


@dataclass(frozen=True)
class Scenario:
    """
    One kind of load.

    :param title: its name in the tables
    :param mode: see `benchmarks.load.LoadPlan`
    :param unit: `chunk` or `request`: the CPU time is divided by their number
    :param start_interval: seconds between the starts of two paced streams; None to start all at
        once and to keep all running during the measurement
    :param max_seconds: upper bound of the length of the measurement
    :param slow_connections: number of connections for slow targets, which more would saturate
    :param slow_frames: frames per stream for slow targets; 0 for as many as the others get
    :param targets: names of the targets that get this load
    :param request_size: approximate length of a request in bytes
    """

    name: str
    title: str
    mode: str
    script: Script
    connections: int = 1
    unit: str = "chunk"
    start_interval: float | None = None
    max_seconds: float = 60.0
    slow_connections: int = 1
    slow_frames: int = 0
    targets: tuple[str, ...] = (DIRECT, NGINX, BLOCKOPS, LITELLM)
    request_size: int = 0

    @property
    def figure(self) -> Figure:
        return cpu_per_frame if self.unit == "chunk" else cpu_per_response


#: Frames of a fast stream. The frames of a paced one follow from the length of the measurement.
FAST_FRAMES, SLOW_TARGET_FRAMES = 20_000, 2_000
STREAMS, RATE, SLOW_TARGET_STREAMS = 50, 100, 4
#: Paced streams under the profiler.
PROFILED_STREAMS = 10
_NON_STREAMING = Script(NON_STREAMING, 4, 15)

MAIN = (
    Scenario(
        "paced",
        f"{STREAMS} streams at {RATE} tokens/s",
        "paced",
        Script(PLAIN, 4, 0, RATE),
        STREAMS,
        slow_connections=SLOW_TARGET_STREAMS,
    ),
    Scenario(
        "fast",
        "one stream as fast as possible",
        "loop",
        Script(PLAIN, 4, FAST_FRAMES, FAST),
        slow_frames=SLOW_TARGET_FRAMES,
    ),
    Scenario("small", "small non-streaming requests", "loop", _NON_STREAMING, 4, "request"),
    Scenario("20k", "requests of 20 KB", "loop", _NON_STREAMING, 4, "request", request_size=20_000),
    Scenario(
        "400k", "requests of 400 KB", "loop", _NON_STREAMING, 2, "request", request_size=400_000
    ),
    Scenario("first", "first token, one at a time", "loop", Script(PLAIN, 4, 4, 400), 1, "request"),
    Scenario(
        "idle",
        "200 idle streams",
        "idle",
        Script(PLAIN, 4, 15, IDLE),
        200,
        "request",
        slow_connections=20,
    ),
)


def _dialect_scenario(kind: str, delta_size: int, mode: str) -> Scenario:
    name = f"{mode}-{kind}-{delta_size}"
    title = f"{kind}, {delta_size} characters a frame"
    if mode == "paced":
        script = Script(kind, delta_size, 0, RATE)
        return Scenario(name, title, "paced", script, STREAMS, targets=(BLOCKOPS,))
    script = Script(kind, delta_size, FAST_FRAMES // 2, FAST)
    return Scenario(name, title, "loop", script, targets=(BLOCKOPS,))


BY_DIALECT = tuple(
    _dialect_scenario(kind, delta_size, mode)
    for mode in ("paced", "fast")
    for delta_size in DELTA_SIZES
    for kind in (PLAIN, *DIALECTS)
)

#: Names of the scenarios with calls, each with its counterpart in plain text.
PLAIN_PAIRS = tuple(
    (f"{mode}-{dialect}-{delta_size}", f"{mode}-{PLAIN}-{delta_size}")
    for mode in ("paced", "fast")
    for dialect in DIALECTS
    for delta_size in DELTA_SIZES
)

#: The shape of the replayed streams whose text varies, and the text of those whose shape varies.
USUAL_SHAPE, USUAL_TEXT = "vllm", PROSE
#: Seconds between two starts: all streams have started within a quarter of a second.
START_INTERVAL = 0.005
_FAST_TOKENS, _FAST_SECONDS = 10_000, 0.5


def _replay_scenario(
    name: str, title: str, script: Script, targets: tuple[str, ...] = (BLOCKOPS,)
) -> tuple[Scenario, Scenario]:
    """Return the paced and the fast scenario of a replayed stream."""
    paced, fast = (
        script._replace(frames=0, pace=RATE),
        script._replace(frames=_FAST_TOKENS, pace=FAST),
    )
    return (
        Scenario(
            f"paced-{name}",
            title,
            "paced",
            paced,
            STREAMS,
            start_interval=START_INTERVAL,
            targets=targets,
        ),
        Scenario(f"fast-{name}", title, "loop", fast, max_seconds=_FAST_SECONDS, targets=targets),
    )


#: Pairs of paced and fast scenarios: prose in each shape.
BY_SHAPE = {
    name: _replay_scenario(
        name,
        shape.title,
        Script(USUAL_TEXT, shape=name),
        (DIRECT, NGINX, BLOCKOPS) if name == USUAL_SHAPE else (NGINX, BLOCKOPS),
    )
    for name, shape in SHAPES.items()
}
#: The same of each text in the usual shape.
BY_TEXT = {USUAL_TEXT: BY_SHAPE[USUAL_SHAPE]} | {
    text: _replay_scenario(text, title, Script(text, shape=USUAL_SHAPE))
    for text, title in TEXTS.items()
    if text != USUAL_TEXT
}
#: The paced scenarios of texts in the usual shape, for requests without tools.
WITHOUT_TOOLS = {
    text: _replay_scenario(
        f"{text}-no-tools", f"{TEXTS[text]}, no tools", Script(text, shape=USUAL_SHAPE, tools=0)
    )[0]
    for text in (PROSE, CODE, THINK)
}
#: The usual stream from a server that decodes all streams in one batch.
BATCHED = replace(
    BY_SHAPE[USUAL_SHAPE][0],
    name="paced-batched",
    title="vLLM, all streams in one batch",
    script=Script(USUAL_TEXT, pace=RATE, shape=USUAL_SHAPE, batched=1),
)


def _replay() -> Iterator[Scenario]:
    """Yield all scenarios with replayed streams; those that are compared are near each other."""
    for shape, (paced, _) in BY_SHAPE.items():
        yield paced
        if shape == USUAL_SHAPE:
            yield BATCHED
            yield WITHOUT_TOOLS[USUAL_TEXT]
    for text, (paced, _) in BY_TEXT.items():
        if text != USUAL_TEXT:
            yield paced
            if text in WITHOUT_TOOLS:
                yield WITHOUT_TOOLS[text]
    yield from _FAST_REPLAYS


_FAST_REPLAYS = tuple(dict.fromkeys(fast for _, fast in (*BY_SHAPE.values(), *BY_TEXT.values())))
REPLAY = tuple(_replay())

#: Names that `--only` accepts for several scenarios.
GROUPS = {
    "main": [scenario.name for scenario in MAIN],
    # With the own shape, whose results are printed beside.
    "replay": ["paced", "fast", *(scenario.name for scenario in REPLAY)],
    "formats": [scenario.name for scenario in BY_DIALECT],
}


class UnknownScenario(Exception):
    """A name of no scenario. The text lists the names that exist."""


def select_scenarios(only: str, *, quick: bool) -> list[Scenario]:
    """
    Return the scenarios with the given names.

    :param only: names of scenarios and groups, separated by commas; empty for all scenarios
    :param quick: whether all scenarios means dialects at `QUICK_DELTA_SIZE`, and no fast replays
    :raises UnknownScenario: there is no scenario of one of these names
    """
    known = {scenario.name: scenario for scenario in (*MAIN, *REPLAY, *BY_DIALECT)}
    if not only:
        slow = {each.name for each in BY_DIALECT if each.script.delta_size != QUICK_DELTA_SIZE}
        slow |= {fast.name for fast in _FAST_REPLAYS}
        return [scenario for name, scenario in known.items() if not (quick and name in slow)]
    names = [name for part in only.split(",") for name in GROUPS.get(part, [part])]
    for name in names:
        if name not in known:
            raise UnknownScenario(f"there is no {name}; there are {', '.join([*GROUPS, *known])}")
    return [known[name] for name in dict.fromkeys(names)]
