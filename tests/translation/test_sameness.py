"""
The same answer in all forms: as a response, a stream, an aggregated stream, a response as a stream.

Hypothesis makes an answer and encodes it as backends do: as a non-streaming response, and as a
stream split into deltas and packets anywhere. The client's contents must not depend on the form.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.notice import Notice, Place
from blockops.api.request import ChatRequest
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
from blockops.translation.stream import StreamTranslator
from tests.api.requests import CALL, DONE, chat, event, response_as_stream, translate_response

LINE_CALL = '\nTOOL_CALL: {"name": "get_weather", "arguments": {"city": "Z\\u00fcrich", "n": 2.50}}'
XML_CALL = "<tool_call><function=search><parameter=query>\nx\n</parameter></function></tool_call>"
SNIPPETS = [
    *("Hello", " ", "\n\n", "é😀", "\r\n", "\x00", '"', "\\", "`", "\n```\n", "{", "}", "<"),
    *("<think>", "</think>", "<tool", "<tool_call>", "</tool_call>", "TOOL_CALL:", "</parameter>"),
    *(
        CALL,
        LINE_CALL,
        XML_CALL,
        CALL.replace("search", "other"),
        CALL[:-20],
        LINE_CALL[:-5],
        XML_CALL[:-30],
    ),
]
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=7).map("".join)
ARGUMENTS = TEXTS.map(lambda text: json.dumps({"a": text}))
ANSWERS = st.fixed_dictionaries(
    {
        "reasoning": st.none() | TEXTS,
        "content": TEXTS,
        "calls": st.lists(ARGUMENTS, max_size=2),
        "finish": st.sampled_from(["stop", "length", "tool_calls"]),
    }
)
OPTIONS = [
    TranslationOptions(),
    TranslationOptions(reasoning="split"),
    TranslationOptions(think_calls=True),
    TranslationOptions(max_hold=40),
]
OPTIONS += [
    TranslationOptions(reasoning="split", think_prefilled=True),
    TranslationOptions(fenced_calls=True),
]
ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "search"}}]}
REQUESTS = [
    chat("search", "get_weather"),
    chat("search", "get_weather", parallel_tool_calls=False),
    chat("search", "get_weather", tool_choice={"type": "allowed_tools", **ALLOWED}),
    chat("search", tool_choice={"type": "function", "function": {"name": "search"}}),
    chat(),
]
PLACES: list[Place | None] = [None, None, "before", "after", "reasoning"]

Answer = dict[str, Any]


def calls_of(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "index": place,
            "id": f"c{place}",
            "type": "function",
            "function": {"name": "f", "arguments": arguments},
        }
        for place, arguments in enumerate(answer["calls"])
    ]


def encode_response(answers: list[Answer]) -> bytes:
    choices = []
    for index, answer in enumerate(answers):
        message = {"role": "assistant", "content": answer["content"]}
        if answer["reasoning"] is not None:
            message["reasoning_content"] = answer["reasoning"]
        if answer["calls"]:
            message["tool_calls"] = calls_of(answer)
        choice = {"index": index, "message": message, "finish_reason": answer["finish"]}
        choices.append(choice)
    return json.dumps({"id": "c", "choices": choices}).encode()


def deltas_of(answer: Answer, size: int) -> list[tuple[dict[str, Any], str | None]]:
    """Return the deltas of an answer, its texts split into pieces of `size` characters."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for field, text in (("reasoning_content", answer["reasoning"]), ("content", answer["content"])):
        deltas += [{field: text[at : at + size]} for at in range(0, len(text or ""), size)]
    for call in calls_of(answer):
        arguments = call["function"]["arguments"]
        call["function"]["arguments"] = ""
        deltas.append({"tool_calls": [call]})
        for at in range(0, len(arguments), size):
            part = {"index": call["index"], "function": {"arguments": arguments[at : at + size]}}
            deltas.append({"tool_calls": [part]})
    return [*((delta, None) for delta in deltas), ({}, answer["finish"])]


def encode_stream(answers: list[Answer], size: int, order: list[int]) -> bytes:
    """Return a stream whose choices alternate in this `order`."""
    remaining = {index: deltas_of(answer, size) for index, answer in enumerate(answers)}
    events: list[bytes] = []
    turns = iter(order)
    while remaining:
        index = list(remaining)[next(turns, 0) % len(remaining)]
        delta, finish = remaining[index].pop(0)
        events.append(
            event(
                {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}
            )
        )
        if not remaining[index]:
            del remaining[index]
    return b"".join([*events, DONE])


Parsed = dict[int, tuple[str, str, list[tuple[str, str]], str | None]]


def parse_response(body: bytes) -> Parsed:
    return {
        choice["index"]: (
            message["content"] or "",
            message.get("reasoning_content") or "",
            [
                (call["function"]["name"], call["function"]["arguments"])
                for call in message.get("tool_calls") or ()
            ],
            choice["finish_reason"],
        )
        for choice in json.loads(body)["choices"]
        for message in [choice["message"]]
    }


def parse_stream(stream: bytes) -> Parsed:
    """Return the contents of a stream. Arguments may be invalid JSON, as models write it."""
    *events, done, rest = stream.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", ""), stream
    parsed: Parsed = {}
    for chunk in map(json.loads, (each.removeprefix("data: ") for each in events)):
        for choice in chunk["choices"]:
            index, delta = choice["index"], choice["delta"]
            assert ("role" in delta) == (index not in parsed), stream
            content, reasoning, calls, finish = parsed.get(index, ("", "", [], None))
            assert finish is None, stream
            for call in delta.get("tool_calls") or ():
                name, arguments = call["function"].get("name"), call["function"]["arguments"]
                if name is None:
                    calls[call["index"]] = (calls[call["index"]][0], calls[-1][1] + arguments)
                else:
                    assert call["index"] == len(calls), stream
                    calls.append((name, arguments))
            content += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
            parsed[index] = (content, reasoning, calls, choice["finish_reason"])
    return parsed


class Variant(NamedTuple):
    """A request, the options, and the shape of the backend's stream."""

    request: ChatRequest
    options: TranslationOptions
    place: Place | None
    size: int
    order: list[int]
    packet: int

    def notice(self) -> Notice | None:
        return None if self.place is None else Notice(self.place, "[notice]")


VARIANTS = st.builds(
    Variant,
    st.sampled_from(REQUESTS),
    st.sampled_from(OPTIONS),
    st.sampled_from(PLACES),
    st.integers(1, 12),
    st.lists(st.integers(0, 1), max_size=60),
    st.integers(1, 400),
)


class SamenessTests(SynchronousTestCase):
    @given(st.lists(ANSWERS, min_size=1, max_size=2), VARIANTS)
    def test_four_forms(self, answers: list[Answer], variant: Variant) -> None:
        request, options = variant.request, variant.options
        body = encode_response(answers)
        stream = encode_stream(answers, variant.size, variant.order)
        packets = [stream[at : at + variant.packet] for at in range(0, len(stream), variant.packet)]
        expected = parse_response(
            translate_response(body, request, options, notice=variant.notice())[0]
        )
        translator = StreamTranslator(request, options, notice=variant.notice())
        out = b"".join(map(translator.receive_data, packets)) + translator.end(is_truncated=False)
        self.assertEqual(parse_stream(out), expected)
        aggregator = ResponseTranslator(request, options, notice=variant.notice())
        for data in packets:
            aggregator.receive_data(data)
        self.assertEqual(parse_response(aggregator.end(is_truncated=False)), expected)
        out, _ = response_as_stream(body, request, options, notice=variant.notice())
        self.assertEqual(parse_stream(out), expected)
