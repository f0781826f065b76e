"""
A long conversation at a real llama.cpp: what it has to read, who counts, what is forgotten.

llama.cpp keeps what it has read of a slot's last prompt, and says in `timings.prompt_n` how many
tokens it had to read anew.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import ask, needs, start_daemon, start_llama, wait_for

_MISSING = needs("xllamacpp")

Message = dict[str, Any]

HARD = 1_400
STEPS = 60
WORDS = ("search", "the", "weather", "in", "Paris", "and", "add", "a", "note", "to", "it")


def prose(dice: random.Random, words: float) -> str:
    return " ".join(dice.choices(WORDS, k=max(1, round(words))))


def session() -> list[list[Message]]:
    """Return an agent's steps, the first of them its system prompt and its task."""
    dice = random.Random(4)
    # With this key the model's template renders all messages, not just the key.
    steps: list[list[Message]] = [
        [
            {"role": "system", "content": prose(dice, 60)},
            {"role": "user", "content": f"[[full]] {prose(dice, 20)}"},
        ]
    ]
    for number in range(STEPS):
        function = {"name": "search", "arguments": "{}"}
        call = {"id": f"c{number}", "type": "function", "function": function}
        words = math.exp(dice.uniform(math.log(4), math.log(120)))
        result = {"role": "tool", "tool_call_id": f"c{number}", "content": prose(dice, words)}
        steps.append([{"role": "assistant", "content": "Well.", "tool_calls": [call]}, result])
    return steps


class Reading(SynchronousTestCase):
    skip = _MISSING

    def setUp(self) -> None:
        self.llama = start_llama(self)
        self.counts: dict[str, int] = {}

    def read(self, url: str, messages: Sequence[Message]) -> tuple[int, int]:
        """Ask for an answer, and return how many tokens the prompt has, and how many were read."""
        body = {"messages": messages, "max_tokens": 1, "id_slot": 0, "cache_prompt": True}
        answer = ask(url, body)
        self.assertEqual(answer.status, 200, answer.body)
        said = answer.json()
        return said["usage"]["prompt_tokens"], said["timings"]["prompt_n"]

    def run_session(self, url: str, fit: Callable[[list[Message]], list[Message]]) -> list[int]:
        """Return the tokens of all prompts, those that were read, and those of the largest."""
        history: list[Message] = []
        had, read, largest = 0, 0, 0
        for step in session():
            history += step
            prompt, new = self.read(url, fit(history))
            had, read, largest = had + prompt, read + new, max(largest, prompt)
        return [had, read, largest]

    def window(self, history: list[Message]) -> list[Message]:
        """Return what a sliding window leaves: as much of the newest as there is room for."""
        kept = history[:2]
        room = HARD - sum(map(self.count, kept))
        newest = len(history)
        while newest > len(kept):
            room -= sum(map(self.count, history[newest - 2 : newest]))
            if room < 0:
                break
            newest -= 2
        return kept + history[newest:]

    def count(self, message: Message) -> int:
        text = f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        if text not in self.counts:
            counted = ask(self.llama, {"content": text}, path="/tokenize").json()
            self.counts[text] = len(counted["tokens"])
        return self.counts[text]

    def test_blockops_cut_and_a_sliding_window(self) -> None:
        threshold = ("--token-hard-threshold", str(HARD))
        daemon = start_daemon(self, "--backend", self.llama, *threshold)
        ours = self.run_session(daemon.url, lambda history: history)
        window = self.run_session(self.llama, self.window)
        for name, (had, read, largest) in (("blockops", ours), ("sliding window", window)):
            print(  # noqa: T201 - this is a measurement
                f"\n{name}: {had:,} tokens in {STEPS + 1} prompts, the largest {largest:,}; "
                f"read {read:,} ({read / had:.1%})"
            )
        self.assertLessEqual(ours[2], HARD)
        self.assertIn("by its /tokenize", daemon.logged())
        self.assertLess(ours[1] / ours[0], 0.25)
        self.assertLess(ours[1], window[1] / 2)

    def test_the_count_is_llamacpps_own(self) -> None:
        """What blockops refuses is what has too many tokens, not what has too many characters."""
        threshold = ("--token-hard-threshold", "300", "--token-target", "200")
        daemon = start_daemon(self, "--backend", self.llama, *threshold)
        for words, status in ((20, 200), (1_000, 400)):
            text = f"[[full]] {prose(random.Random(1), words)}"
            message = {"role": "user", "content": text}
            self.assertEqual(self.count(message) > 300, status == 400)
            answer = ask(daemon.url, {"messages": [message], "max_tokens": 1})
            self.assertEqual(answer.status, status, answer.body)
            if status == 400:
                self.assertEqual(answer.error["code"], "context_length_exceeded")

    def test_a_server_without_the_call_costs_one_line_ever(self) -> None:
        daemon = start_daemon(self, "--backend", self.llama)
        for _ in range(3):
            said = ask(daemon.url, {"messages": [{"role": "user", "content": "/new"}]}).json()
            self.assertIn("New session.", said["choices"][0]["message"]["content"])
            question = {"messages": [{"role": "user", "content": "/new [[p-hello]]"}]}
            answer = ask(daemon.url, {**question, "temperature": 0}).json()
            self.assertIn("Hello!", answer["choices"][0]["message"]["content"])
        line = "The backend has no POST /slots/0?action=erase"
        wait_for(lambda: line in daemon.logged(), "the line in the log")
        self.assertEqual(daemon.logged().count(line), 1, daemon.logged())
        health = ask(daemon.url, path="/health", method="GET").json()
        self.assertEqual(health["caches_purged"], 0)

    def test_usage_is_hidden_from_who_did_not_ask(self) -> None:
        daemon = start_daemon(self, "--backend", self.llama)
        message = {"role": "user", "content": "[[p-hello]]"}
        body = {"messages": [message], "stream": True, "temperature": 0}
        plain = ask(daemon.url, body).body
        self.assertNotIn(b'"usage"', plain)
        self.assertIn(b'"timings"', plain)
        self.assertTrue(plain.endswith(b"data: [DONE]\n\n"))
        told = ask(daemon.url, {**body, "stream_options": {"include_usage": True}}).body
        chunks = [json.loads(line[6:]) for line in told.split(b"\n\n") if line[6:7] == b"{"]
        self.assertGreater(chunks[-1]["usage"]["prompt_tokens"], 0)
