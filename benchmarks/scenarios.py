"""Which work is put on which proxies, and how it is counted."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.figures import BARE, FLOOR, OURS, USUAL, Figure, cpu_per_frame, cpu_per_response
from benchmarks.streams import FAST, FORMATS, IDLE, PLAIN, WHOLE, Script

CUTS = (1, 4, 11)
QUICK_CUT = 4


@dataclass(frozen=True)
class Scenario:
    """
    One kind of work.

    :param unit: what its CPU is counted by, `chunk` or `request`
    :param slow_connections: connections for targets that more would saturate
    :param slow_frames: frames of a stream for them
    :param against: who does it
    :param size: bytes of a request
    """

    name: str
    what: str
    mode: str
    script: Script
    connections: int = 1
    unit: str = "chunk"
    slow_connections: int = 1
    slow_frames: int = 0
    against: tuple[str, ...] = (BARE, FLOOR, OURS, USUAL)
    size: int = 0

    @property
    def figure(self) -> Figure:
        return cpu_per_frame if self.unit == "chunk" else cpu_per_response


#: Frames of a fast stream; of a paced one as many as its seconds have.
LONG, LONG_SLOW = 20_000, 2_000
STREAMS, RATE, SLOW_STREAMS = 50, 100, 4
#: Streams under the profiler.
PROFILED = 10
_REQUEST = Script(WHOLE, 4, 15)

MAIN = (
    Scenario(
        "paced",
        f"{STREAMS} streams at {RATE} tokens/s",
        "paced",
        Script(PLAIN, 4, 0, RATE),
        STREAMS,
        slow_connections=SLOW_STREAMS,
    ),
    Scenario(
        "fast",
        "one stream as fast as possible",
        "loop",
        Script(PLAIN, 4, LONG, FAST),
        slow_frames=LONG_SLOW,
    ),
    Scenario("small", "small whole requests", "loop", _REQUEST, 4, "request"),
    Scenario("20k", "requests of 20 KB", "loop", _REQUEST, 4, "request", size=20_000),
    Scenario("400k", "requests of 400 KB", "loop", _REQUEST, 2, "request", size=400_000),
    Scenario("first", "first token, one at a time", "loop", Script(PLAIN, 4, 4, 400), 1, "request"),
    Scenario("idle", "200 idle streams", "idle", Script(PLAIN, 4, 15, IDLE), 200, "request", 20),
)


def _of_format(kind: str, cut: int, mode: str) -> Scenario:
    if mode == "paced":
        script = Script(kind, cut, 0, RATE)
        return Scenario(
            f"paced-{kind}-{cut}",
            f"{kind}, {cut} characters a frame",
            mode,
            script,
            STREAMS,
            against=(OURS,),
        )
    script = Script(kind, cut, LONG // 2, FAST)
    return Scenario(
        f"fast-{kind}-{cut}", f"{kind}, {cut} characters a frame", "loop", script, against=(OURS,)
    )


BY_FORMAT = tuple(
    _of_format(kind, cut, mode)
    for mode in ("paced", "fast")
    for cut in CUTS
    for kind in (PLAIN, *FORMATS)
)

#: Scenarios with calls, each with the one that has plain text instead.
PAIRS = tuple(
    (f"{mode}-{kind}-{cut}", f"{mode}-{PLAIN}-{cut}")
    for mode in ("paced", "fast")
    for kind in FORMATS
    for cut in CUTS
)


GROUPS = {
    "main": [each.name for each in MAIN],
    "formats": [each.name for each in BY_FORMAT],
}


class Unknown(Exception):
    """There is no such scenario; the text names those that there are."""


def choose(only: str, *, quick: bool) -> list[Scenario]:
    """
    Return the scenarios of a list of names, separated by commas.

    :param only: empty for all; groups count as all that is in them
    :param quick: whether formats come at one cut alone, where all are wanted
    :raises Unknown: a name is none
    """
    every = {each.name: each for each in (*MAIN, *BY_FORMAT)}
    if not only:
        left_out = {each.name for each in BY_FORMAT if each.script.cut != QUICK_CUT}
        return [each for name, each in every.items() if not (quick and name in left_out)]
    names = [name for part in only.split(",") for name in GROUPS.get(part, [part])]
    for name in names:
        if name not in every:
            raise Unknown(f"there is no {name}; there are {', '.join([*GROUPS, *every])}")
    return [every[name] for name in dict.fromkeys(names)]
