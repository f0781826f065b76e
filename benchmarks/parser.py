"""
Measures the CPU time of the tool-call parser per delta of four characters.

    python benchmarks/parser.py [--rounds 5] [--json]

For each kind of text and each length it prints: microseconds of CPU per delta; the ratio to a
reference loop (`str.find` on the same deltas) that runs in the same rounds, to compare machines;
the ratio of the last tenth of the deltas to the first; and the longest single call of `feed`. Each
figure is the minimum over the rounds, because other programs can only increase it. Takes about 20
seconds.
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

from blockops.toolcalls.deltas import CallArguments, CallStarted
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools

LENGTHS = (1_000, 4_000, 16_000, 64_000)
DELTA_SIZE = 4
SCHEMA = {"properties": {"text": {"type": "string"}, "rows": {"type": "array"}}}
CODE = 'def f(x):\n    return "a < b" and {"k": [1, 2]}  # it\'s\n<div class="x">é</div>\n'
PROSE = "The quick brown fox jumps over the lazy dog, and then it sleeps. "

# Upper bounds, in microseconds of CPU.
MAX_PER_DELTA = 5.0
MAX_PER_PLAIN_DELTA = 2.0
MAX_FEED = 1_000.0
#: Upper bound of the ratio of the last tenth of the deltas to the first: the cost of a delta must
#: not depend on the text before it.
MAX_LAST_TO_FIRST = 1.2


@dataclass
class Measurement:
    """
    One line of the table; times in microseconds of CPU.

    :param length: characters of the text
    :param to_reference: `per_delta` divided by that of the reference loop
    :param last_to_first: time of the last tenth of the deltas divided by that of the first
    :param first_argument_at: after how many characters of a call the first part of its arguments
        is returned; None if the text is no call
    """

    text: str
    length: int
    per_delta: float
    to_reference: float
    last_to_first: float
    longest_feed: float
    first_argument_at: int | None


def repeated(text: str, length: int) -> str:
    return (text * (length // len(text) + 1))[:length]


def string_contents(length: int) -> str:
    """Return code as it stands inside a JSON string."""
    return json.dumps(repeated(CODE, length), ensure_ascii=False)[1:-1][:length].rstrip("\\")


def row_array(length: int) -> str:
    """Return the beginning of a JSON array of objects."""
    rows = [
        {"id": n, "name": f"row {n}", "ok": True, "v": [1.5, None]} for n in range(length // 40)
    ]
    return json.dumps(rows)[:length]


#: The beginning of a text, which is fed at once, and the rest, which is fed in deltas.
Text = tuple[str, str]
TEXTS: dict[str, Callable[[int], Text]] = {
    "json, a string": lambda n: (
        '<tool_call>\n{"name": "f", "arguments": {"text": "',
        string_contents(n),
    ),
    "json, rows": lambda n: ('<tool_call>\n{"name": "f", "arguments": {"rows": ', row_array(n)),
    "json, name last": lambda n: ('<tool_call>\n{"arguments": {"text": "', string_contents(n)),
    "json in a string": lambda n: (
        '<tool_call>\n{"name": "f", "arguments": "{\\"text\\": \\"',
        json.dumps(string_contents(n))[1:-1][:n].rstrip("\\"),
    ),
    "line, a string": lambda n: (
        'TOOL_CALL: {"name": "f", "arguments": {"text": "',
        string_contents(n),
    ),
    "xml, a string": lambda n: ("<tool_call>\n<function=f>\n<parameter=text>\n", repeated(CODE, n)),
    "xml, rows": lambda n: ("<tool_call>\n<function=f>\n<parameter=rows>\n", row_array(n)),
    "plain text": lambda n: ("Hello", repeated(PROSE, n)),
    "markdown": lambda n: ("Hello", repeated(CODE, n)),
    "code in a fence": lambda n: ("```\n", repeated(CODE, n)),
    "a think block": lambda n: ("<think>\n", repeated(CODE, n)),
}
PLAIN = {"plain text"}


def new_parser() -> ToolCallParser:
    return ToolCallParser(OfferedTools({"f": SCHEMA}))


def deltas_of(text: Text) -> list[str]:
    return [text[1][at : at + DELTA_SIZE] for at in range(0, len(text[1]), DELTA_SIZE)]


def time_each_feed(text: Text) -> list[float]:
    """Return the microseconds of each call of `feed`."""
    parser = new_parser()
    parser.feed(text[0])
    times = []
    clock, feed = time.thread_time_ns, parser.feed
    for delta in deltas_of(text):
        start = clock()
        feed(delta)
        times.append((clock() - start) / 1000)
    return times


def first_argument_at(text: Text) -> int | None:
    """
    Return the number of characters of a call that must arrive before its first `CallArguments`.

    Return None if the text is no call.
    """
    if not any(isinstance(output, CallStarted) for output in new_parser().feed(text[0])):
        return None
    parser = new_parser()
    for count, char in enumerate(text[0], 1):
        if any(isinstance(output, CallArguments) for output in parser.feed(char)):
            return count
    return None


def time_per_delta(text: Text) -> float:
    """Return the microseconds per delta, without the clock's own cost."""
    parser = new_parser()
    parser.feed(text[0])
    deltas = deltas_of(text)
    feed = parser.feed
    start = time.thread_time_ns()
    for delta in deltas:
        feed(delta)
    return (time.thread_time_ns() - start) / 1000 / len(deltas)


def time_reference(text: Text) -> float:
    """Return the microseconds per delta of a search for one character."""
    deltas = deltas_of(text)
    total = 0
    start = time.thread_time_ns()
    for delta in deltas:
        total += delta.find("<")
    return (time.thread_time_ns() - start) / 1000 / len(deltas)


def measure(name: str, length: int, rounds: int) -> Measurement:
    text = TEXTS[name](length)
    per_delta = min(time_per_delta(text) for _ in range(rounds))
    reference = min(time_reference(text) for _ in range(rounds))
    # The minimum for each delta: a pause of the machine is not the parser's.
    feeds = [time_each_feed(text) for _ in range(rounds)]
    times = [min(round_times) for round_times in zip(*feeds, strict=True)]
    tenth = max(1, len(times) // 10)
    return Measurement(
        text=name,
        length=length,
        per_delta=per_delta,
        to_reference=per_delta / reference,
        last_to_first=sum(times[-tenth:]) / sum(times[:tenth]),
        longest_feed=max(times),
        first_argument_at=first_argument_at(text),
    )


def measure_last_feed(length: int, rounds: int) -> dict[str, float]:
    """
    Return the microseconds of the `feed` that ends a call, by text.

    A call that was held back is returned by it.
    """
    ends = {
        "json, a string": '"}}\n</tool_call>',
        "json, name last": '"}, "name": "f"}\n</tool_call>',
        "xml, a string": "\n</parameter>\n</function>\n</tool_call>",
        "xml, rows": "]\n</parameter>\n</function>\n</tool_call>",
    }
    last_feed = {}
    for name, end in ends.items():
        head, body = TEXTS[name](length)
        times = []
        for _ in range(rounds):
            parser = new_parser()
            for at in range(0, len(body), 1024):
                parser.feed((head if not at else "") + body[at : at + 1024])
            start = time.thread_time_ns()
            parser.feed(end)
            times.append((time.thread_time_ns() - start) / 1000)
        last_feed[name] = min(times)
    return last_feed


def main() -> None:
    options_parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add = options_parser.add_argument
    add("--rounds", type=int, default=5, help="number of rounds (default 5)")
    add("--json", action="store_true", help="print JSON instead of a table")
    options = options_parser.parse_args()
    gc.disable()
    measurements = [measure(name, length, options.rounds) for name in TEXTS for length in LENGTHS]
    last_feed = measure_last_feed(LENGTHS[-1], options.rounds)
    if options.json:
        deltas = [asdict(measurement) for measurement in measurements]
        print(json.dumps({"deltas": deltas, "last_feed_us": last_feed}))
        return
    heads = ("text", "chars", "us/delta", "x ref", "last/first", "longest us")
    print("{:18} {:>6} {:>9} {:>6} {:>11} {:>11}".format(*heads))
    for each in measurements:
        print(
            f"{each.text:18} {each.length:6} {each.per_delta:9.2f} {each.to_reference:6.1f} "
            f"{each.last_to_first:11.2f} {each.longest_feed:11.1f}"
        )
    print("\nthe feed that ends a call of 64,000 characters, us:")
    for name, microseconds in last_feed.items():
        print(f"  {name:18} {microseconds:8.1f}")
    print("\nthe first part of the arguments is returned after this many characters of the call:")
    for each in measurements:
        if each.first_argument_at is not None and each.length == LENGTHS[0]:
            print(f"  {each.text:18} {each.first_argument_at} of {len(TEXTS[each.text](1)[0])}")
    for violation in find_violations(measurements, last_feed):
        print("over the bound:", violation)


def find_violations(measurements: list[Measurement], last_feed: dict[str, float]) -> list[str]:
    """Return a description of each figure above its upper bound."""
    violations = []
    for each in measurements:
        name = f"{each.text}, {each.length}"
        if each.per_delta > (MAX_PER_PLAIN_DELTA if each.text in PLAIN else MAX_PER_DELTA):
            violations.append(f"{name}: {each.per_delta:.2f} us per delta")
        if each.longest_feed > MAX_FEED:
            violations.append(f"{name}: a feed of {each.longest_feed:.0f} us")
        if each.length == LENGTHS[-1] and each.last_to_first > MAX_LAST_TO_FIRST:
            ratio = f"{each.last_to_first:.2f}"
            violations.append(f"{name}: the last tenth costs {ratio} times the first")
    violations += [
        f"{name}: the last feed takes {microseconds:.0f} us"
        for name, microseconds in last_feed.items()
        if microseconds > MAX_FEED
    ]
    return violations


if __name__ == "__main__":
    main()
