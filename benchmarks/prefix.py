"""
How much of each prompt the backend has read before, with blockops' cut and with a sliding window.

A simulated agent: a system prompt of 6,000 tokens, tools, one first message of a user and a few
more, and 400 steps whose tool results have from 50 to 20,000 tokens, log-uniform. Each prompt is
compared with the one before it; what they begin with in common is what a prefix cache can serve.

    python benchmarks/prefix.py [--steps 400] [--seed 1]

Behind that, what the guard itself costs: CPU time for 400 messages of 400 KB in all, when none of
them was seen before, and for the next turn, when two are new.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blockops.conversation.context_window import MARKER_TOKENS, Cut, Guard, Limits
from blockops.conversation.messages import Line, Reader
from blockops.conversation.token_counts import Tally, of_tools

HARD = 100_000
LIMITS = Limits(warn=80_000, hard=HARD, target=HARD // 2)
WORDS = [
    *("the", "file", "has", "been", "read", "and", "nothing", "in", "it", "says", "why", "this"),
    *("test", "fails", "on", "a", "slow", "machine"),
]
#: Steps between two messages of the user.
USER_EVERY = 97

Message = dict[str, Any]


def prose(random_: random.Random, tokens: int) -> str:
    """Return text of about so many tokens by the count of `weigh`: 3.5 characters each."""
    return " ".join(random_.choices(WORDS, k=max(1, round(tokens * 3.5 / 5.2))))


def session(steps: int, seed: int) -> Iterator[list[Message]]:
    """Yield the history of each request of the session: it is the same list, which grows."""
    dice = random.Random(seed)
    history: list[Message] = [
        {"role": "system", "content": prose(dice, 6_000)},
        {"role": "user", "content": prose(dice, 300)},
    ]
    yield history
    for step in range(steps):
        if step % USER_EVERY == USER_EVERY - 1:
            history.append({"role": "assistant", "content": prose(dice, 200)})
            history.append({"role": "user", "content": prose(dice, 100)})
            yield history
        calls = [f"call_{step}_{n}" for n in range(dice.choice((1, 1, 1, 2)))]
        function = {"name": "read", "arguments": json.dumps({"path": prose(dice, 20)})}
        history.append(
            {
                "role": "assistant",
                "content": prose(dice, 60),
                "tool_calls": [
                    {"id": call, "type": "function", "function": function} for call in calls
                ],
            }
        )
        for call in calls:
            tokens = math.exp(dice.uniform(math.log(50), math.log(20_000 / len(calls))))
            result = prose(dice, round(tokens))
            history.append({"role": "tool", "tool_call_id": call, "content": result})
        yield history


TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": name, "description": " ".join(WORDS * 4)}}
        for name in ("read", "write", "run", "search")
    ]
).encode()


@dataclass
class Outcome:
    """What a session came to, in tokens."""

    requests: int = 0
    prompt: int = 0
    shared: int = 0
    largest: int = 0
    cuts: int = 0
    slowest: float = 0.0

    @property
    def share(self) -> float:
        return self.shared / self.prompt


Fit = Callable[[list[Line]], list[Line]]


def measure(steps: int, seed: int, fit: Fit, count: Tally, reader: Reader) -> Outcome:
    """Run the session, and compare each prompt with the one before it."""
    outcome = Outcome()
    before: list[Line] = []
    beside = count.count(of_tools(TOOLS))
    raw: list[bytes] = []
    for history in session(steps, seed):
        raw += [json.dumps(message).encode() for message in history[len(raw) :]]
        began = time.process_time()
        sent = fit(reader.read(raw))
        outcome.slowest = max(outcome.slowest, time.process_time() - began)
        check(sent)
        total = beside + sum(count.count(line.facts) for line in sent)
        shared = common(before, sent)
        outcome.requests += 1
        outcome.prompt += total
        outcome.largest = max(outcome.largest, total)
        if before:
            outcome.shared += beside + sum(count.count(line.facts) for line in sent[:shared])
            outcome.cuts += shared < len(before)
        before = sent
    return outcome


def common(one: Sequence[Line], other: Sequence[Line]) -> int:
    """Return how many messages two prompts have in common at their beginning."""
    for place, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine.raw != yours.raw:
            return place
    return min(len(one), len(other))


def check(sent: Sequence[Line]) -> None:
    """Refuse a prompt that no backend should be sent."""
    assert [line.facts.role for line in sent[:2]] == ["system", "user"]
    open_calls: list[str] = []
    for line in sent:
        if line.facts.role == "result":
            open_calls.remove(line.facts.answers)  # ValueError: an orphan
        else:
            assert not open_calls, "an unanswered call"
            open_calls = list(line.facts.calls)
    assert not open_calls, "an unanswered call"


def blockops_cut(count: Tally, reader: Reader) -> Fit:
    guard = Guard(LIMITS, reader.read)
    beside = count.count(of_tools(TOOLS))
    cut = Cut()

    def fit(lines: list[Line]) -> list[Line]:
        nonlocal cut
        fitted = guard.fit(lines, cut, count.count, beside=beside)
        cut = fitted.cut
        return fitted.lines

    return fit


def sliding_window(count: Tally, _: Reader) -> Fit:
    """Drop just as much as is needed, at each request: what is usually done."""

    def fit(lines: list[Line]) -> list[Line]:
        room = HARD - count.count(of_tools(TOOLS)) - MARKER_TOKENS
        room -= sum(count.count(line.facts) for line in lines)
        gone = 2  # the system prompt and the first user message stay
        while gone < len(lines) and (room < 0 or lines[gone].facts.role == "result"):
            room += count.count(lines[gone].facts)
            gone += 1
        return lines if gone == 2 else lines[:2] + lines[gone:]  # noqa: PLR2004

    return fit


def cost(rounds: int = 20) -> tuple[int, float, float]:
    """Return the bytes of a history of 400 messages, and the ms of its first and next fit."""
    dice = random.Random(1)
    messages: list[Message] = [
        {"role": "system", "content": prose(dice, 6_000)},
        {"role": "user", "content": prose(dice, 300)},
    ]
    for number in range(200):
        call = {"id": f"c{number}", "function": {"name": "read", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        result = {"role": "tool", "tool_call_id": f"c{number}", "content": prose(dice, 540)}
        messages.append(result)
    raw = [json.dumps(message).encode() for message in messages]
    first, following = [], []
    for _ in range(rounds):
        reader, count = Reader(), Tally()
        guard, cut = Guard(Limits(40_000, 60_000, 30_000), reader.read), Cut()
        for upto, times in ((-2, first), (len(raw), following)):
            began = time.process_time()
            cut = guard.fit(reader.read(raw[:upto]), cut, count.count).cut
            times.append(1000 * (time.process_time() - began))
    return sum(map(len, raw)), min(first), min(following)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.steps} steps, seed {options.seed}, at most {HARD:,} tokens")
    print(f"{'':16}{'requests':>10}{'prompt tokens':>16}{'shared':>9}{'cuts':>6}{'largest':>10}")
    for name, make in (("blockops", blockops_cut), ("sliding window", sliding_window)):
        reader, count = Reader(), Tally()
        outcome = measure(options.steps, options.seed, make(count, reader), count, reader)
        print(
            f"{name:16}{outcome.requests:>10}{outcome.prompt:>16,}{outcome.share:>8.1%}"
            f"{outcome.cuts:>7}{outcome.largest:>10,}   slowest fit "
            f"{1000 * outcome.slowest:.1f} ms"
        )
    size, first, following = cost()
    print(
        f"400 messages, {size:,} bytes: {first:.1f} ms at first, {following:.1f} ms the next turn"
    )


if __name__ == "__main__":
    main()
