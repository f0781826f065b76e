"""
Real answers of real backends, through the transcoder, at every cut.

The captures hold what llama.cpp's server, mlx-lm, vLLM, vllm-mlx and transformers sent for texts
that are known (`keys.json`), some with calls that the backend had structured itself.
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

from blockops.api.sse import EventDecoder
from blockops.errors import ApiError, from_backend
from blockops.toolcalls.options import Rules
from blockops.translation.stream import MAX_EVENT, whole, whole_as_stream
from tests.api.requests import DONE, chat, counted_ids, transcode, transcoder
from tests.api.strict import Answer, read_strictly
from tests.translation.merging import merged

TESTS = Path(__file__).parent.parent
CAPTURES = {path.stem: path.read_bytes() for path in sorted((TESTS / "captures").glob("*.sse"))}
STREAMS = {name: body for name, body in CAPTURES.items() if b"data: " in body}
WHOLE = {
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

# case of a capture's name -> the text that the model said
SAID = {
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
# What stays of a text as content when its calls are taken out.
CONTENT = {
    "j-text": "I will look that up.",
    "l-text": "I will look that up.",
    "x-text": "I will look that up.",
    "j-think": "<think>\nThe user wants weather.\n</think>",
    "p-hello": "Hello! How can I help you today?",
    "default": "OK.",
}
# The captures whose backend or model said something else: content, calls, finish reason.
SEARCH = ("search", {"query": "weather in Berlin tomorrow"})
ODD: dict[str, tuple[str, list[Any], str | None]] = {
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
# Six hundred tokens of a model without its bearings; only its beginning is of interest.
RAMBLING = "llamacpp-tooltmpl-required"


def expected(name: str) -> tuple[str, list[Any], str | None]:
    """Return the content, the calls and the finish reason that the client should see."""
    if name in ODD:
        return ODD[name]
    backend = next(backend for backend in BACKENDS if name.startswith(backend + "-"))
    key = SAID[name.removeprefix(backend + "-")]
    calls = [(call["name"], call["arguments"]) for call in KEYS[key]["calls"]]
    return CONTENT.get(key, ""), calls, "tool_calls" if calls else "stop"


def through(*packets: bytes) -> bytes:
    """Return what the client gets of a capture that arrives in these packets."""
    stream = transcoder()
    out = b"".join(stream.receive_data(packet) for packet in packets)
    return out + stream.end(cut=False)


class StreamTests(SynchronousTestCase):
    """
    The captured streams.

    :cvar every: at which bytes they are cut; 1: at each
    """

    every = 7

    def check(self, name: str, answer: Answer) -> None:
        said = answer.choices[0]
        if name == RAMBLING:
            self.assertTrue(
                said.content.startswith("Hello! How can I help you today?}}\n</tool_call>")
            )
            self.assertEqual(said.finish_reason, "length")
            return
        content, calls, finish_reason = expected(name)
        self.assertEqual(said.content, content, name)
        self.assertEqual(said.pairs(), calls, name)
        self.assertEqual(said.finish_reason, finish_reason, name)
        self.assertEqual(answer.error is not None, finish_reason is None, name)

    def test_strict_reader_accepts_each(self) -> None:
        for name, body in STREAMS.items():
            self.check(name, read_strictly(through(body)))

    def test_byte_by_byte(self) -> None:
        for name, body in STREAMS.items():
            by_bytes = through(*(body[i : i + 1] for i in range(len(body))))
            self.assertEqual(merged(by_bytes), merged(through(body)), name)

    def test_cuts(self) -> None:
        """
        A packet's end, at any byte, changes nothing.

        Until an event is whole only the decoder notices a packet, and between two events every
        decoder is like new. So within each event all cuts can be tried on one transcoder, the rest
        of the event being taken off its decoder: that proves what six hundred thousand replays
        would, which `BLOCKOPS_EVERY_REPLAY=1` really makes. Of each event every seventh cut is
        tried here, of the next event others; tests/live/test_thorough.py tries all.
        """
        for name, body in STREAMS.items():
            stream = transcoder()
            joined = []
            for first, (start, end) in enumerate(itertools.pairwise(event_ends(body))):
                events = list(EventDecoder(MAX_EVENT).receive_data(body[start:end]))
                self.assertEqual(len(events), 1)
                for cut in range(start + 1 + first % self.every, end, self.every):
                    early = stream.receive_data(body[start:cut])
                    rest = list(stream._decoder.receive_data(body[cut:end]))
                    if early or rest != events:
                        self.fail(f"{name} cut at {cut}: {early!r}, {rest!r}")
                joined.append(stream.receive_data(body[start:end]))
            joined.append(stream.end(cut=False))
            self.assertEqual(merged(b"".join(joined)), merged(through(body)), name)

    def test_every_replay(self) -> None:
        if "BLOCKOPS_EVERY_REPLAY" not in os.environ:
            raise SkipTest("takes minutes; test_cuts proves the same")
        for name, body in STREAMS.items():
            expected = merged(through(body))
            for cut in range(1, len(body)):
                self.assertEqual(merged(through(body[:cut], body[cut:])), expected, (name, cut))

    @given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 20_000), max_size=40))
    def test_many_packets(self, name: str, cuts: list[int]) -> None:
        body = STREAMS[name]
        edges = [0, *sorted(cuts), len(body)]
        packets = [body[a:b] for a, b in itertools.pairwise(edges)]
        self.assertEqual(merged(through(*packets)), merged(through(body)))

    @given(st.sampled_from(sorted(STREAMS)), st.integers(1, 20_000))
    def test_cut_off(self, name: str, at: int) -> None:
        """A stream that breaks off is told of, and what had come of it is not lost."""
        body = STREAMS[name][:at]
        if event_ends(body)[-1] == event_ends(STREAMS[name])[-1]:
            return
        stream = transcoder()
        out = stream.receive_data(body) + stream.end(cut=True)
        answer = read_strictly(out)
        if answer.error is not None:
            self.assertEqual(stream.report.error, answer.error["message"])
            self.assertTrue(all(s.finish_reason is None for s in answer.choices.values()))
        untranslated = read_strictly(transcode(body, chat()))
        self.assertEqual(
            "".join(said.content for said in untranslated.choices.values()),
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
            stream = transcoder()
            answer = read_strictly(stream.receive_data(STREAMS[name]))
            self.assertEqual(stream.report.usage, answer.usage[-1])
            self.assertEqual(answer.usage[-1]["completion_tokens"], 26)

    def test_untouched(self) -> None:
        """Where nothing is to be done, the client gets the backend's bytes."""
        for name, body in STREAMS.items():
            if body.startswith(b"data: ") and body.endswith(DONE) and b"\n:" not in body:
                # Usage stands there twice.
                twice = name == "vllm-mlx-json-usage"
                once = b"\n\n".join([*body.split(b"\n\n")[:-3], DONE]) if twice else body
                self.assertEqual(transcode(body, chat()), once, name)


def event_ends(body: bytes) -> list[int]:
    """Return 0 and where each event of a stream ends."""
    decoder = EventDecoder(MAX_EVENT)
    ends = (at + 1 for at in range(len(body)) if list(decoder.receive_data(body[at : at + 1])))
    return [0, *ends]


class WholeTests(SynchronousTestCase):
    """The captured answers that are no streams."""

    def test_whole(self) -> None:
        for name, body in WHOLE.items():
            content, calls, finish_reason = expected(name)
            out, report = whole(body, chat("search"), Rules(), new_id=counted_ids())
            (choice,) = json.loads(out)["choices"]
            message = choice["message"]
            self.assertEqual(message["content"], content or None, name)
            self.assertEqual(pairs(message), calls, name)
            self.assertEqual(choice["finish_reason"], finish_reason, name)
            self.assertEqual(report.names, [call for call, _ in calls])
            self.assertEqual(report.usage, json.loads(body)["usage"])
            if not calls:
                self.assertEqual(out, body)

    def test_as_stream(self) -> None:
        for name, body in WHOLE.items():
            out, report = whole_as_stream(body, chat("search"), Rules(), new_id=counted_ids())
            said = read_strictly(out).said
            self.assertEqual((said.content, said.pairs(), said.finish_reason), expected(name), name)
            self.assertEqual(report.usage, json.loads(body)["usage"])

    def test_same_as_the_stream(self) -> None:
        """A text says the same in a stream and as a whole."""
        for backend in ("llamacpp", "mlx", "vllm", "vllm-mlx"):
            said = read_strictly(through(STREAMS[f"{backend}-json"])).said
            out, _ = whole(WHOLE[f"{backend}-nostream"], chat("search"), Rules())
            message = json.loads(out)["choices"][0]["message"]
            self.assertEqual((message["content"], pairs(message)), (said.content, said.pairs()))


def pairs(message: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


class ErrorTests(SynchronousTestCase):
    """The captured error answers."""

    def test_each_has_the_shape(self) -> None:
        for name, body in CAPTURES.items():
            if name in STREAMS or name in WHOLE:
                continue
            status, out = from_backend(400, body)
            error = json.loads(out)["error"]
            self.assertEqual(status, 400)
            self.assertTrue(error["message"], name)
            self.assertNotIn("<", error["message"].replace("<dict of", ""), name)
            self.assertNotIn('{"', error["message"], name)
            if b'"error":{' in body:
                self.assertEqual(out, body, name)

    def test_none_is_an_answer(self) -> None:
        for name, body in CAPTURES.items():
            if name not in STREAMS and name not in WHOLE:
                failure = self.assertRaises(ApiError, whole, body, chat(), Rules())
                # Its own code says it best, where it has one.
                own = json.loads(body).get("error") if body.startswith(b"{") else None
                code = own.get("code") if isinstance(own, dict) else None
                self.assertEqual(failure.status, code if isinstance(code, int) else 502)
                self.assertRaises(ApiError, whole_as_stream, body, chat(), Rules())
