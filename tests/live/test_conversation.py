"""
Long conversations with a real llama.cpp: prompt tokens processed, token counts, cache resets.

llama.cpp keeps the last prompt of each slot in its cache. `timings.prompt_n` is the number of
prompt tokens that it had to process because they were not in the cache.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import send_request, skip_without, start_daemon, start_llama, wait_for

SKIP_REASON = skip_without("xllamacpp")

Message = dict[str, Any]

HARD_THRESHOLD = 1_400
STEPS = 60
WORDS = ("search", "the", "weather", "in", "Paris", "and", "add", "a", "note", "to", "it")


def random_words(dice: random.Random, words: float) -> str:
    return " ".join(dice.choices(WORDS, k=max(1, round(words))))


def session() -> list[list[Message]]:
    """Return the steps of an agent's session; the first one has the system prompt and the task."""
    dice = random.Random(4)
    # With the key `full` the model's template renders all messages, not only the key.
    steps: list[list[Message]] = [
        [
            {"role": "system", "content": random_words(dice, 60)},
            {"role": "user", "content": f"[[full]] {random_words(dice, 20)}"},
        ]
    ]
    for number in range(STEPS):
        function = {"name": "search", "arguments": "{}"}
        call = {"id": f"c{number}", "type": "function", "function": function}
        words = math.exp(dice.uniform(math.log(4), math.log(120)))
        result = {
            "role": "tool",
            "tool_call_id": f"c{number}",
            "content": random_words(dice, words),
        }
        steps.append([{"role": "assistant", "content": "Well.", "tool_calls": [call]}, result])
    return steps


class PromptTests(SynchronousTestCase):
    skip = SKIP_REASON

    def setUp(self) -> None:
        self.llama = start_llama(self)
        self.counts: dict[str, int] = {}

    def send(self, url: str, messages: Sequence[Message]) -> tuple[int, int]:
        """Send the history; return the tokens of the prompt and those that were processed."""
        body = {"messages": messages, "max_tokens": 1, "id_slot": 0, "cache_prompt": True}
        response = send_request(url, body)
        self.assertEqual(response.status, 200, response.body)
        completion = response.json()
        return completion["usage"]["prompt_tokens"], completion["timings"]["prompt_n"]

    def run_session(
        self, url: str, transform: Callable[[list[Message]], list[Message]]
    ) -> list[int]:
        """
        Run a session.

        :param transform: returns the messages to send for a history
        :returns: the tokens of all prompts, those processed, and those of the largest prompt
        """
        history: list[Message] = []
        total, processed, largest = 0, 0, 0
        for step in session():
            history += step
            prompt, new = self.send(url, transform(history))
            total, processed, largest = total + prompt, processed + new, max(largest, prompt)
        return [total, processed, largest]

    def window(self, history: list[Message]) -> list[Message]:
        """Return the first two messages and as many of the newest as fit: a sliding window."""
        pinned = history[:2]
        room = HARD_THRESHOLD - sum(map(self.count, pinned))
        newest = len(history)
        while newest > len(pinned):
            room -= sum(map(self.count, history[newest - 2 : newest]))
            if room < 0:
                break
            newest -= 2
        return pinned + history[newest:]

    def count(self, message: Message) -> int:
        text = f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        if text not in self.counts:
            counted = send_request(self.llama, {"content": text}, path="/tokenize").json()
            self.counts[text] = len(counted["tokens"])
        return self.counts[text]

    def test_trimming_against_a_sliding_window(self) -> None:
        threshold = ("--token-hard-threshold", str(HARD_THRESHOLD))
        daemon = start_daemon(self, "--backend", self.llama, *threshold)
        ours = self.run_session(daemon.url, lambda history: history)
        window = self.run_session(self.llama, self.window)
        for name, (total, processed, largest) in (("blockops", ours), ("sliding window", window)):
            print(  # noqa: T201 - a measurement
                f"\n{name}: {total:,} tokens in {STEPS + 1} prompts, the largest {largest:,}; "
                f"processed {processed:,} ({processed / total:.1%})"
            )
        self.assertLessEqual(ours[2], HARD_THRESHOLD)
        self.assertIn("with the backend's /tokenize", daemon.read_log())
        self.assertLess(ours[1] / ours[0], 0.25)
        self.assertLess(ours[1], window[1] / 2)

    def test_tokens_are_counted_by_llama_cpp(self) -> None:
        """The threshold counts real tokens, not an estimate from the characters."""
        threshold = ("--token-hard-threshold", "300", "--token-target", "200")
        daemon = start_daemon(self, "--backend", self.llama, *threshold)
        for words, status in ((20, 200), (1_000, 400)):
            text = f"[[full]] {random_words(random.Random(1), words)}"
            message = {"role": "user", "content": text}
            self.assertEqual(self.count(message) > 300, status == 400)
            response = send_request(daemon.url, {"messages": [message], "max_tokens": 1})
            self.assertEqual(response.status, status, response.body)
            if status == 400:
                self.assertEqual(response.error["code"], "context_length_exceeded")

    def test_a_missing_reset_call_is_logged_once(self) -> None:
        daemon = start_daemon(self, "--backend", self.llama)
        for _ in range(3):
            completion = send_request(
                daemon.url, {"messages": [{"role": "user", "content": "/new"}]}
            ).json()
            self.assertIn("New session.", completion["choices"][0]["message"]["content"])
            chat_request = {"messages": [{"role": "user", "content": "/new [[p-hello]]"}]}
            completion = send_request(daemon.url, {**chat_request, "temperature": 0}).json()
            self.assertIn("Hello!", completion["choices"][0]["message"]["content"])
        line = "the backend has no POST /slots/0?action=erase"
        wait_for(lambda: line in daemon.read_log(), "the line is not in the log")
        self.assertEqual(daemon.read_log().count(line), 1, daemon.read_log())
        health = send_request(daemon.url, path="/health", method="GET").json()
        self.assertEqual(health["caches_purged"], 0)

    def test_usage_is_hidden_unless_requested(self) -> None:
        daemon = start_daemon(self, "--backend", self.llama)
        message = {"role": "user", "content": "[[p-hello]]"}
        body = {"messages": [message], "stream": True, "temperature": 0}
        default_body = send_request(daemon.url, body).body
        self.assertNotIn(b'"usage"', default_body)
        self.assertIn(b'"timings"', default_body)
        self.assertTrue(default_body.endswith(b"data: [DONE]\n\n"))
        response_body = send_request(
            daemon.url, {**body, "stream_options": {"include_usage": True}}
        ).body
        chunks = [
            json.loads(line[6:]) for line in response_body.split(b"\n\n") if line[6:7] == b"{"
        ]
        self.assertGreater(chunks[-1]["usage"]["prompt_tokens"], 0)
