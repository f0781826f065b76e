"""
What the tool-call parser costs, per delta of four characters.

    python benchmarks/parser.py [--rounds 5] [--json]

For each kind of text and each length: microseconds of CPU per delta; the same as a ratio to a
reference loop (`str.find` on the same deltas) that runs in the same rounds, so that machines
compare; the last tenth of the deltas as a ratio to the first; and the longest single feed. Each
number is the best of the rounds: other programs only ever add to it. Takes about 20 seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from blockops.toolcalls.events import CallArguments, CallBegan, Delta
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import Offer

LENGTHS = (1_000, 4_000, 16_000, 64_000)
DELTA = 4
SCHEMA = {"properties": {"text": {"type": "string"}, "rows": {"type": "array"}}}
CODE = 'def f(x):\n    return "a < b" and {"k": [1, 2]}  # it\'s\n<div class="x">é</div>\n'
PROSE = "The quick brown fox jumps over the lazy dog, and then it sleeps. "

# Targets: microseconds of CPU.
PER_DELTA = 5.0
PER_PLAIN_DELTA = 2.0
LONGEST_FEED = 1_000.0
FLAT = 1.2


@dataclass
class Measured:
    """One line of the table; times in microseconds of CPU."""

    what: str
    length: int
    per_delta: float
    to_reference: float
    last_to_first: float
    longest_feed: float
    first_argument_at: int | None


def repeated(text: str, length: int) -> str:
    return (text * (length // len(text) + 1))[:length]


def in_string(length: int) -> str:
    return json.dumps(repeated(CODE, length), ensure_ascii=False)[1:-1][:length].rstrip("\\")


def rows(length: int) -> str:
    every = [
        {"id": n, "name": f"row {n}", "ok": True, "v": [1.5, None]} for n in range(length // 40)
    ]
    return json.dumps(every)[:length]


Text = tuple[str, str]
TEXTS: dict[str, Callable[[int], Text]] = {
    "json, a string": lambda n: (
        '<tool_call>\n{"name": "f", "arguments": {"text": "',
        in_string(n),
    ),
    "json, rows": lambda n: ('<tool_call>\n{"name": "f", "arguments": {"rows": ', rows(n)),
    "json, name last": lambda n: ('<tool_call>\n{"arguments": {"text": "', in_string(n)),
    "json in a string": lambda n: (
        '<tool_call>\n{"name": "f", "arguments": "{\\"text\\": \\"',
        json.dumps(in_string(n))[1:-1][:n].rstrip("\\"),
    ),
    "line, a string": lambda n: ('TOOL_CALL: {"name": "f", "arguments": {"text": "', in_string(n)),
    "xml, a string": lambda n: ("<tool_call>\n<function=f>\n<parameter=text>\n", repeated(CODE, n)),
    "xml, rows": lambda n: ("<tool_call>\n<function=f>\n<parameter=rows>\n", rows(n)),
    "plain text": lambda n: ("Hello", repeated(PROSE, n)),
    "markdown": lambda n: ("Hello", repeated(CODE, n)),
    "code in a fence": lambda n: ("```\n", repeated(CODE, n)),
    "a think block": lambda n: ("<think>\n", repeated(CODE, n)),
}
PLAIN = {"plain text"}


def run(text: Text) -> tuple[list[float], int | None]:
    """Return what each feed took, and after how many characters the first argument came."""
    parser = ToolCallParser(Offer({"f": SCHEMA}))
    said = parser.feed(text[0])
    pieces = [text[1][at : at + DELTA] for at in range(0, len(text[1]), DELTA)]
    took = []
    clock, feed = time.thread_time_ns, parser.feed
    for piece in pieces:
        begun = clock()
        feed(piece)
        took.append((clock() - begun) / 1000)
    return took, _first_argument(text[0]) if any(isinstance(d, CallBegan) for d in said) else None


def _first_argument(head: str) -> int | None:
    """Return how many characters of `head` had to come before the first fragment did."""
    parser = ToolCallParser(Offer({"f": SCHEMA}))
    for at, char in enumerate(head, 1):
        said: list[Delta] = parser.feed(char)
        if any(isinstance(delta, CallArguments) for delta in said):
            return at
    return None


def total(text: Text) -> float:
    """Return what all feeds took together, without the clock's own cost."""
    parser = ToolCallParser(Offer({"f": SCHEMA}))
    parser.feed(text[0])
    pieces = [text[1][at : at + DELTA] for at in range(0, len(text[1]), DELTA)]
    feed = parser.feed
    begun = time.thread_time_ns()
    for piece in pieces:
        feed(piece)
    return (time.thread_time_ns() - begun) / 1000 / len(pieces)


def reference(text: Text) -> float:
    """Return what looking for one character in each delta takes."""
    pieces = [text[1][at : at + DELTA] for at in range(0, len(text[1]), DELTA)]
    found = 0
    begun = time.thread_time_ns()
    for piece in pieces:
        found += piece.find("<")
    return (time.thread_time_ns() - begun) / 1000 / len(pieces)


def measure(what: str, length: int, rounds: int) -> Measured:
    text = TEXTS[what](length)
    totals = [total(text) for _ in range(rounds)]
    references = [reference(text) for _ in range(rounds)]
    every = [run(text) for _ in range(rounds)]
    # What one feed takes at its best: a pause of the machine is not the parser's.
    best = [min(feeds) for feeds in zip(*(took for took, _ in every), strict=True)]
    tenth = max(1, len(best) // 10)
    return Measured(
        what=what,
        length=length,
        per_delta=min(totals),
        to_reference=min(totals) / min(references),
        last_to_first=sum(best[-tenth:]) / sum(best[:tenth]),
        longest_feed=max(best),
        first_argument_at=every[0][1],
    )


def longest_end(length: int, rounds: int) -> dict[str, float]:
    """Return the feed that ends a call of this length: there, what was held is given out."""
    ends = {
        "json, a string": '"}}\n</tool_call>',
        "json, name last": '"}, "name": "f"}\n</tool_call>',
        "xml, a string": "\n</parameter>\n</function>\n</tool_call>",
        "xml, rows": "]\n</parameter>\n</function>\n</tool_call>",
    }
    longest = {}
    for what, end in ends.items():
        head, body = TEXTS[what](length)
        took = []
        for _ in range(rounds):
            parser = ToolCallParser(Offer({"f": SCHEMA}))
            for at in range(0, len(body), 1024):
                parser.feed((head if not at else "") + body[at : at + 1024])
            begun = time.thread_time_ns()
            parser.feed(end)
            took.append((time.thread_time_ns() - begun) / 1000)
        longest[what] = min(took)
    return longest


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", action="store_true", help="print JSON instead of a table")
    chosen = options.parse_args()
    gc.disable()
    every = [measure(what, length, chosen.rounds) for what in TEXTS for length in LENGTHS]
    ends = longest_end(LENGTHS[-1], chosen.rounds)
    if chosen.json:
        print(json.dumps({"deltas": [asdict(each) for each in every], "last_feed_us": ends}))
        return
    heads = ("text", "chars", "us/delta", "x ref", "last/first", "longest us")
    print("{:18} {:>6} {:>9} {:>6} {:>11} {:>11}".format(*heads))
    for each in every:
        print(
            f"{each.what:18} {each.length:6} {each.per_delta:9.2f} {each.to_reference:6.1f} "
            f"{each.last_to_first:11.2f} {each.longest_feed:11.1f}"
        )
    print("\nthe feed that ends a call of 64,000 characters, us:")
    for what, took in ends.items():
        print(f"  {what:18} {took:8.1f}")
    print("\nfirst fragment of the arguments after that many characters of the call:")
    for each in every:
        if each.first_argument_at is not None and each.length == LENGTHS[0]:
            print(f"  {each.what:18} {each.first_argument_at} of {len(TEXTS[each.what](1)[0])}")
    for complaint in complaints(every, ends):
        print("over the target:", complaint)


def complaints(every: list[Measured], ends: dict[str, float]) -> list[str]:
    found = []
    for each in every:
        name = f"{each.what}, {each.length}"
        if each.per_delta > (PER_PLAIN_DELTA if each.what in PLAIN else PER_DELTA):
            found.append(f"{name}: {each.per_delta:.2f} us a delta")
        if each.longest_feed > LONGEST_FEED:
            found.append(f"{name}: a feed of {each.longest_feed:.0f} us")
        if each.length == LENGTHS[-1] and each.last_to_first > FLAT:
            found.append(f"{name}: the last tenth costs {each.last_to_first:.2f} times the first")
    found += [f"{what}: the last feed, {t:.0f} us" for what, t in ends.items() if t > LONGEST_FEED]
    return found


if __name__ == "__main__":
    main()
