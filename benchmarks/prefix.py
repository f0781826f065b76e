"""
Measures how much of each prompt a prefix cache can reuse: blockops against a sliding window.

It simulates an agent with a system prompt of 6,000 tokens, tools, a first message of the user and a
few more, and 400 steps whose tool results have 50 to 20,000 tokens, log-uniform. Each prompt is
compared with the previous one: a prefix cache can reuse their common beginning.

    python benchmarks/prefix.py [--steps 400] [--seed 1]

It also measures the CPU time of `ContextTrimmer.trim` for a history of 400 messages and 400 KB: for
a history that is new, and for the next request, which has two new messages.
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

from blockops.conversation.context_window import (
    MARKER_TOKENS,
    ContextLimits,
    ContextTrimmer,
    TrimPoint,
)
from blockops.conversation.messages import Message, MessageParser
from blockops.conversation.token_counts import ModelCounts

HARD_LIMIT = 100_000
LIMITS = ContextLimits(warn=80_000, hard=HARD_LIMIT, target=HARD_LIMIT // 2)
WORDS = [
    *("the", "file", "has", "been", "read", "and", "nothing", "in", "it", "says", "why", "this"),
    *("test", "fails", "on", "a", "slow", "machine"),
]
#: The user sends another message after this many steps.
STEPS_PER_USER_MESSAGE = 97

JsonMessage = dict[str, Any]


def prose(generator: random.Random, tokens: int) -> str:
    """Return text of about `tokens` tokens by `estimate_tokens`: 3.5 characters each."""
    return " ".join(generator.choices(WORDS, k=max(1, round(tokens * 3.5 / 5.2))))


def session(steps: int, seed: int) -> Iterator[list[JsonMessage]]:
    """Yield the history of each request of the session: always the same list, which grows."""
    generator = random.Random(seed)
    history: list[JsonMessage] = [
        {"role": "system", "content": prose(generator, 6_000)},
        {"role": "user", "content": prose(generator, 300)},
    ]
    yield history
    for step in range(steps):
        if step % STEPS_PER_USER_MESSAGE == STEPS_PER_USER_MESSAGE - 1:
            history.append({"role": "assistant", "content": prose(generator, 200)})
            history.append({"role": "user", "content": prose(generator, 100)})
            yield history
        calls = [f"call_{step}_{n}" for n in range(generator.choice((1, 1, 1, 2)))]
        function = {"name": "read", "arguments": json.dumps({"path": prose(generator, 20)})}
        history.append(
            {
                "role": "assistant",
                "content": prose(generator, 60),
                "tool_calls": [
                    {"id": call, "type": "function", "function": function} for call in calls
                ],
            }
        )
        for call in calls:
            tokens = math.exp(generator.uniform(math.log(50), math.log(20_000 / len(calls))))
            result = prose(generator, round(tokens))
            history.append({"role": "tool", "tool_call_id": call, "content": result})
        yield history


TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": name, "description": " ".join(WORDS * 4)}}
        for name in ("read", "write", "run", "search")
    ]
).encode()


@dataclass
class SessionResult:
    """
    The totals of a session.

    :ivar prompt_tokens: tokens of all prompts
    :ivar shared_tokens: those that a prompt shares with the beginning of the previous one
    :ivar largest_prompt: in tokens
    :ivar trims: prompts that do not begin with the whole previous prompt
    :ivar slowest_trim: seconds of CPU time
    """

    requests: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    largest_prompt: int = 0
    trims: int = 0
    slowest_trim: float = 0.0

    @property
    def shared_fraction(self) -> float:
        return self.shared_tokens / self.prompt_tokens


#: Returns the part of a history that is sent to the backend.
Trim = Callable[[list[Message]], list[Message]]


def simulate(
    steps: int, seed: int, trim: Trim, counts: ModelCounts, parser: MessageParser
) -> SessionResult:
    """
    Run a session and compare each prompt with the previous one.

    :raises AssertionError: a prompt is invalid
    :raises ValueError: a prompt has a tool result without its call
    """
    result = SessionResult()
    previous: list[Message] = []
    overhead = counts.count(parser.tools_info(TOOLS))
    raw: list[bytes] = []
    for history in session(steps, seed):
        raw += [json.dumps(message).encode() for message in history[len(raw) :]]
        start = time.process_time()
        sent = trim(parser.parse(raw))
        result.slowest_trim = max(result.slowest_trim, time.process_time() - start)
        check_prompt(sent)
        total = overhead + sum(counts.count(message.info) for message in sent)
        shared = common_length(previous, sent)
        result.requests += 1
        result.prompt_tokens += total
        result.largest_prompt = max(result.largest_prompt, total)
        if previous:
            result.shared_tokens += overhead + sum(
                counts.count(message.info) for message in sent[:shared]
            )
            result.trims += shared < len(previous)
        previous = sent
    return result


def common_length(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Return the number of messages that both prompts begin with."""
    for index, (message, counterpart) in enumerate(zip(one, other, strict=False)):
        if message.raw != counterpart.raw:
            return index
    return min(len(one), len(other))


def check_prompt(sent: Sequence[Message]) -> None:
    """
    Check the beginning of a prompt, and that its calls and tool results belong together.

    :raises AssertionError: the system prompt or the first user message is missing, or a call is
        unanswered
    :raises ValueError: a tool result has no call
    """
    assert [message.info.role for message in sent[:2]] == ["system", "user"]
    open_calls: list[str] = []
    for message in sent:
        if message.info.role == "tool":
            open_calls.remove(message.info.tool_call_id)
        else:
            assert not open_calls, "an unanswered call"
            open_calls = list(message.info.call_ids)
    assert not open_calls, "an unanswered call"


def blockops_trimmer(counts: ModelCounts, parser: MessageParser) -> Trim:
    trimmer = ContextTrimmer(LIMITS, parser.parse)
    overhead = counts.count(parser.tools_info(TOOLS))
    trim_point = TrimPoint()

    def trim(history: list[Message]) -> list[Message]:
        nonlocal trim_point
        result = trimmer.trim(history, trim_point, counts.count, overhead=overhead)
        trim_point = result.trim_point
        return result.messages

    return trim


def sliding_window(counts: ModelCounts, parser: MessageParser) -> Trim:
    """Return the usual method: for each request, drop only as many steps as necessary."""

    def trim(history: list[Message]) -> list[Message]:
        free_tokens = HARD_LIMIT - counts.count(parser.tools_info(TOOLS)) - MARKER_TOKENS
        free_tokens -= sum(counts.count(message.info) for message in history)
        # The system prompt and the first user message stay.
        first_kept = 2
        while first_kept < len(history) and (
            free_tokens < 0 or history[first_kept].info.role == "tool"
        ):
            free_tokens += counts.count(history[first_kept].info)
            first_kept += 1
        return history if first_kept == 2 else history[:2] + history[first_kept:]  # noqa: PLR2004

    return trim


def measure_trim(rounds: int = 20) -> tuple[int, float, float]:
    """
    Return the size of a history of 400 messages and the CPU time of two trims.

    :return: bytes, milliseconds for a new history, milliseconds for the next request
    """
    generator = random.Random(1)
    messages: list[JsonMessage] = [
        {"role": "system", "content": prose(generator, 6_000)},
        {"role": "user", "content": prose(generator, 300)},
    ]
    for number in range(200):
        call = {"id": f"c{number}", "function": {"name": "read", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        result = {"role": "tool", "tool_call_id": f"c{number}", "content": prose(generator, 540)}
        messages.append(result)
    raw = [json.dumps(message).encode() for message in messages]
    first_times: list[float] = []
    next_times: list[float] = []
    for _ in range(rounds):
        parser, counts = MessageParser(), ModelCounts()
        trimmer = ContextTrimmer(ContextLimits(40_000, 60_000, 30_000), parser.parse)
        trim_point = TrimPoint()
        for end, times in ((-2, first_times), (len(raw), next_times)):
            start = time.process_time()
            history = parser.parse(raw[:end])
            trim_point = trimmer.trim(history, trim_point, counts.count).trim_point
            times.append(1000 * (time.process_time() - start))
    return sum(map(len, raw)), min(first_times), min(next_times)


def main() -> None:
    options_parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options_parser.add_argument(
        "--steps", type=int, default=400, help="steps of the agent (default 400)"
    )
    options_parser.add_argument(
        "--seed", type=int, default=1, help="of the random generator (default 1)"
    )
    options = options_parser.parse_args()
    print(f"{options.steps} steps, seed {options.seed}, at most {HARD_LIMIT:,} tokens")
    print(f"{'':16}{'requests':>10}{'prompt tokens':>16}{'shared':>9}{'trims':>6}{'largest':>10}")
    for name, make_trim in (("blockops", blockops_trimmer), ("sliding window", sliding_window)):
        parser, counts = MessageParser(), ModelCounts()
        trim = make_trim(counts, parser)
        result = simulate(options.steps, options.seed, trim, counts, parser)
        print(
            f"{name:16}{result.requests:>10}{result.prompt_tokens:>16,}{result.shared_fraction:>8.1%}"
            f"{result.trims:>7}{result.largest_prompt:>10,}   slowest trim "
            f"{1000 * result.slowest_trim:.1f} ms"
        )
    size, first, following = measure_trim()
    print(
        f"400 messages, {size:,} bytes: {first:.1f} ms if new, "
        f"{following:.1f} ms for the next request"
    )


if __name__ == "__main__":
    main()
