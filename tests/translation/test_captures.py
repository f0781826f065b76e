"""
Recorded responses of real backends, translated, split at every byte.

The captures are responses of llama.cpp's server, mlx-lm, vLLM, vllm-mlx and transformers for known
texts (`keys.json`). In some the backend itself has structured the calls.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any
from unittest import SkipTest

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.backend_errors import to_error_response
from blockops.api.chat.decoder import MAX_EVENT
from blockops.api.sse import EventDecoder
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from tests.api.requests import (
    DONE,
    chat,
    counted_ids,
    response_as_stream,
    translate,
    translate_response,
    translator,
)
from tests.api.strict import StreamAnswer, read_strictly
from tests.translation.merging import join_texts

TESTS = Path(__file__).parent.parent
CAPTURES = {path.stem: path.read_bytes() for path in sorted((TESTS / "captures").glob("*.sse"))}
STREAMS = {name: body for name, body in CAPTURES.items() if b"data: " in body}
RESPONSES = {
    name: body for name, body in CAPTURES.items() if b'"message":' in body and b'"choices"' in body
}
KEYS = {
    entry["key"]: entry
    for entry in json.loads((TESTS / "live" / "tiny-model" / "keys.json").read_text())
    if entry["turn"] == 0
}
BACKENDS = (
    "llamacpp-tooltmpl",
    "vllm-hermes",
    "vllm-mlx",
    "llamacpp",
    "mlx",
    "transformers",
    "vllm",
)

# Maps the case in a capture's name to the key of the model's text.
TEXT_KEYS = {
    "json": "j-text",
    "json-tools": "j-text",
    "json-usage": "j-search",
    "line": "l-search",
    "line-tools": "l-text",
    "xml": "x-search",
    "xml-tools": "x-text",
    "two": "j-two",
    "think": "j-think",
    "unicode": "j-unicode",
    "plain": "p-hello",
    "required": "p-hello",
    "nostream": "j-text",
    "err-badrole": "default",
    "err-ctx-nostream": "default",
    "err-ctx-stream": "default",
}
# The content of a text without its calls.
CONTENT = {
    "j-text": "I will look that up.",
    "l-text": "I will look that up.",
    "x-text": "I will look that up.",
    "j-think": "<think>\nThe user wants weather.\n</think>",
    "p-hello": "Hello! How can I help you today?",
    "default": "OK.",
}
# Captures with another answer of the backend or the model: content, calls, finish reason.
SEARCH = ("search", {"query": "weather in Berlin tomorrow"})
OTHER_ANSWERS: dict[str, tuple[str, list[Any], str | None]] = {
    "llamacpp-err-badmodel": ("", [SEARCH], "tool_calls"),
    "llamacpp-err-max0": ("H", [], "length"),
    "llamacpp-err-parts": ("Hello! How c", [], "length"),
    "llamacpp-err-toolmsg": ("The tool answered. All done.", [], "stop"),
    "llamacpp-grammar": ("", [("search", {"query": "weather"})], "tool_calls"),
    "llamacpp-grammar-line": ("", [("search", {"query": "x"})], "tool_calls"),
    "llamacpp-json_schema": (
        '{"name": "search", "n":5666666666155161\n                   }',
        [],
        "stop",
    ),
    "llamacpp-length": ("word0 word1 word", [], "length"),
    "llamacpp-prefill": ("I I I ", [], "length"),
    "llamacpp-tooltmpl-length": ("word0 word1 word", [], "length"),
    "mlx-err-parts": ("Hello! How c", [], "length"),
    "mlx-err-toolmsg": ("The tool answered. All done.", [], "stop"),
    "mlx-length": ("word0 word1 word", [], "length"),
    "mlx-overflow-n": ("37700 word99", [], "length"),
    "mlx-overflow-s": ("37700 word99", [], "length"),
    "transformers-err-max0": ("", [], None),
    "transformers-err-parts": ("Hello! How c", [], "length"),
    "transformers-err-toolmsg": ("The tool answered. All done.", [], "stop"),
    "transformers-length": ("word0 word1 word", [], "length"),
    "transformers-think": (
        "",
        [("get_weather", {"city": "Paris", "unit": "celsius"})],
        "tool_calls",
    ),
    "vllm-err-parts": ("Hello! How c", [], "length"),
    "vllm-err-toolmsg": ("The tool answered. All done.", [], "stop"),
    "vllm-hermes-length": ("word0 word1 word", [], "length"),
    "vllm-hermes-required": (
        "",
        [("get_weather", {"path": "Paris", "unit": "celsius"})],
        "tool_calls",
    ),
    "vllm-hermes-xml-tools": ("I will look that up.\n\n", [], "stop"),  # the call vanished there
    "vllm-length": ("word0 word1 word", [], "length"),
    "vllm-mlx-err-parts": ("Hello! How c", [], "length"),
    "vllm-mlx-err-toolmsg": ("", [SEARCH], "tool_calls"),
    "vllm-mlx-length": ("word0 word1 word", [], "length"),
    "vllm-mlx-overflow-n": ("37700 word99", [], "length"),
    "vllm-mlx-overflow-s": ("37700 word99", [], "length"),
}
# Six hundred tokens of a confused model: only the start is checked.
CONFUSED = "llamacpp-tooltmpl-required"


def expected(name: str) -> tuple[str, list[Any], str | None]:
    """Return the content, the calls and the finish reason that the client should get."""
    if name in OTHER_ANSWERS:
        return OTHER_ANSWERS[name]
    backend = next(backend for backend in BACKENDS if name.startswith(backend + "-"))
    key = TEXT_KEYS[name.removeprefix(backend + "-")]
    calls = [(call["name"], call["arguments"]) for call in KEYS[key]["calls"]]
    return CONTENT.get(key, ""), calls, "tool_calls" if calls else "stop"


def translate_packets(*packets: bytes) -> bytes:
    """Return the client's stream for a capture that is received in these packets."""
    stream = translator()
    out = b"".join(stream.receive_data(packet) for packet in packets)
    return out + stream.end(is_truncated=False)


class StreamTests(SynchronousTestCase):
    """
    The captured streams.

    :cvar every: the distance of the splits that are tried, in bytes
    """

    every = 7

    def check(self, name: str, answer: StreamAnswer) -> None:
        choice = answer.choices[0]
        if name == CONFUSED:
            self.assertTrue(
                choice.content.startswith("Hello! How can I help you today?}}\n</tool_call>")
            )
            self.assertEqual(choice.finish_reason, "length")
            return
        content, calls, finish_reason = expected(name)
        self.assertEqual(choice.content, content, name)
        self.assertEqual(choice.pairs(), calls, name)
        self.assertEqual(choice.finish_reason, finish_reason, name)
        self.assertEqual(answer.error is not None, finish_reason is None, name)

    def test_strict_reader_accepts_each(self) -> None:
        for name, body in STREAMS.items():
            self.check(name, read_strictly(translate_packets(body)))

    def test_byte_by_byte(self) -> None:
        for name, body in STREAMS.items():
            by_bytes = translate_packets(*(body[i : i + 1] for i in range(len(body))))
            self.assertEqual(join_texts(by_bytes), join_texts(translate_packets(body)), name)

    def test_splits(self) -> None:
        """
        The end of a packet, at any byte, changes nothing.

        Until an event is complete, only the decoder has seen its bytes, and between two events a
        decoder has no state. So all splits of an event can be tried with one translator, if the
        rest of the event is read by its decoder directly. That proves the same as six hundred
        thousand replays, which `BLOCKOPS_EVERY_REPLAY=1` runs. Every seventh split of an event is
        tried here, with another offset for each event; tests/live/test_thorough.py tries all.
        """
        for name, body in STREAMS.items():
            stream = translator()
            joined = []
            for first, (start, end) in enumerate(itertools.pairwise(event_ends(body))):
                events = list(EventDecoder(MAX_EVENT).receive_data(body[start:end]))
                self.assertEqual(len(events), 1)
                for split in range(start + 1 + first % self.every, end, self.every):
                    early = stream.receive_data(body[start:split])
                    rest = list(stream._decoder._events.receive_data(body[split:end]))
                    if early or rest != events:
                        self.fail(f"{name} split at {split}: {early!r}, {rest!r}")
                joined.append(stream.receive_data(body[start:end]))
            joined.append(stream.end(is_truncated=False))
            self.assertEqual(
                join_texts(b"".join(joined)), join_texts(translate_packets(body)), name
            )

    def test_every_replay(self) -> None:
        if "BLOCKOPS_EVERY_REPLAY" not in os.environ:
            raise SkipTest("takes minutes; test_splits proves the same")
        for name, body in STREAMS.items():
            expected = join_texts(translate_packets(body))
            for split in range(1, len(body)):
                self.assertEqual(
                    join_texts(translate_packets(body[:split], body[split:])),
                    expected,
                    (name, split),
                )

    @given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 20_000), max_size=40))
    def test_many_packets(self, name: str, splits: list[int]) -> None:
        body = STREAMS[name]
        edges = [0, *sorted(splits), len(body)]
        packets = [body[a:b] for a, b in itertools.pairwise(edges)]
        self.assertEqual(
            join_texts(translate_packets(*packets)), join_texts(translate_packets(body))
        )

    @given(st.sampled_from(sorted(STREAMS)), st.integers(1, 20_000))
    def test_truncated(self, name: str, at: int) -> None:
        """A truncated stream ends with an error, and its content so far is sent."""
        body = STREAMS[name][:at]
        if event_ends(body)[-1] == event_ends(STREAMS[name])[-1]:
            return
        stream = translator()
        out = stream.receive_data(body) + stream.end(is_truncated=True)
        answer = read_strictly(out)
        if answer.error is not None:
            self.assertEqual(stream.report.error, answer.error["message"])
            self.assertTrue(all(s.finish_reason is None for s in answer.choices.values()))
        untranslated = read_strictly(translate(body, chat()))
        self.assertEqual(
            "".join(choice.content for choice in untranslated.choices.values()),
            "".join(
                choice["delta"].get("content") or ""
                for event in EventDecoder(MAX_EVENT).receive_data(body)
                if event.data.startswith(b'{"') and b'"choices"' in event.data
                for choice in json.loads(event.data)["choices"]
            ),
        )

    def test_usage_is_reported(self) -> None:
        for name in (
            "llamacpp-json-usage",
            "mlx-json-usage",
            "vllm-mlx-json-usage",
            "vllm-json-usage",
        ):
            stream = translator()
            answer = read_strictly(stream.receive_data(STREAMS[name]))
            self.assertEqual(stream.report.usage, answer.usage[-1])
            self.assertEqual(answer.usage[-1]["completion_tokens"], 26)

    def test_unchanged(self) -> None:
        """Without anything to translate, the client gets the backend's bytes."""
        for name, body in STREAMS.items():
            if body.startswith(b"data: ") and body.endswith(DONE) and b"\n:" not in body:
                # Its usage is sent twice.
                twice = name == "vllm-mlx-json-usage"
                once = b"\n\n".join([*body.split(b"\n\n")[:-3], DONE]) if twice else body
                self.assertEqual(translate(body, chat()), once, name)


def event_ends(body: bytes) -> list[int]:
    """Return 0 and the end of each event of a stream."""
    decoder = EventDecoder(MAX_EVENT)
    ends = (at + 1 for at in range(len(body)) if list(decoder.receive_data(body[at : at + 1])))
    return [0, *ends]


class ResponseTests(SynchronousTestCase):
    """The captured non-streaming responses."""

    def test_translated(self) -> None:
        for name, body in RESPONSES.items():
            content, calls, finish_reason = expected(name)
            out, report = translate_response(
                body, chat("search"), TranslationOptions(), new_id=counted_ids()
            )
            (choice,) = json.loads(out)["choices"]
            message = choice["message"]
            self.assertEqual(message["content"], content or None, name)
            self.assertEqual(call_pairs(message), calls, name)
            self.assertEqual(choice["finish_reason"], finish_reason, name)
            self.assertEqual(report.tool_names, [call for call, _ in calls])
            self.assertEqual(report.usage, json.loads(body)["usage"])
            if not calls:
                self.assertEqual(out, body)

    def test_as_stream(self) -> None:
        for name, body in RESPONSES.items():
            out, report = response_as_stream(
                body, chat("search"), TranslationOptions(), new_id=counted_ids()
            )
            choice = read_strictly(out).choice
            self.assertEqual(
                (choice.content, choice.pairs(), choice.finish_reason), expected(name), name
            )
            self.assertEqual(report.usage, json.loads(body)["usage"])

    def test_same_as_the_stream(self) -> None:
        """A text gives the same answer in a stream and in a non-streaming response."""
        for backend in ("llamacpp", "mlx", "vllm", "vllm-mlx"):
            choice = read_strictly(translate_packets(STREAMS[f"{backend}-json"])).choice
            out, _ = translate_response(
                RESPONSES[f"{backend}-nostream"], chat("search"), TranslationOptions()
            )
            message = json.loads(out)["choices"][0]["message"]
            self.assertEqual(
                (message["content"], call_pairs(message)), (choice.content, choice.pairs())
            )


def call_pairs(message: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


class ErrorTests(SynchronousTestCase):
    """The captured error responses."""

    def test_each_has_the_shape(self) -> None:
        for name, body in CAPTURES.items():
            if name in STREAMS or name in RESPONSES:
                continue
            status, out = to_error_response(400, body)
            error = json.loads(out)["error"]
            self.assertEqual(status, 400)
            self.assertTrue(error["message"], name)
            self.assertNotIn("<", error["message"].replace("<dict of", ""), name)
            self.assertNotIn('{"', error["message"], name)
            if b'"error":{' in body:
                self.assertEqual(out, body, name)

    def test_none_is_a_response(self) -> None:
        for name, body in CAPTURES.items():
            if name not in STREAMS and name not in RESPONSES:
                failure = self.assertRaises(
                    ApiError, translate_response, body, chat(), TranslationOptions()
                )
                # Its own code is the best, if it has one.
                own = json.loads(body).get("error") if body.startswith(b"{") else None
                code = own.get("code") if isinstance(own, dict) else None
                self.assertEqual(failure.status, code if isinstance(code, int) else 502)
                self.assertRaises(ApiError, response_as_stream, body, chat(), TranslationOptions())
