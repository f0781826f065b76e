"""
One answer says the same in all ways: whole, as a stream, joined, and whole made a stream.

A backend's answer is made up, and written down as backends do: whole, and as a stream that is cut
into deltas and packets anywhere. Nothing that clients read may depend on which of them came.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest
from blockops.toolcalls.options import Rules
from blockops.translation.aggregate import StreamJoiner
from blockops.translation.notice_insertion import Aside, Place
from blockops.translation.stream import StreamTranscoder, whole, whole_as_stream
from tests.api.requests import CALL, DONE, chat, event

LINE = '\nTOOL_CALL: {"name": "get_weather", "arguments": {"city": "Z\\u00fcrich", "n": 2.50}}'
TAGS = "<tool_call><function=search><parameter=query>\nx\n</parameter></function></tool_call>"
SNIPPETS = [
    *("Hello", " ", "\n\n", "é😀", "\r\n", "\x00", '"', "\\", "`", "\n```\n", "{", "}", "<"),
    *("<think>", "</think>", "<tool", "<tool_call>", "</tool_call>", "TOOL_CALL:", "</parameter>"),
    *(CALL, LINE, TAGS, CALL.replace("search", "other"), CALL[:-20], LINE[:-5], TAGS[:-30]),
]
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=7).map("".join)
ARGUMENTS = TEXTS.map(lambda text: json.dumps({"a": text}))
ANSWERS = st.fixed_dictionaries(
    {
        "thoughts": st.none() | TEXTS,
        "content": TEXTS,
        "calls": st.lists(ARGUMENTS, max_size=2),
        "finish": st.sampled_from(["stop", "length", "tool_calls"]),
    }
)
RULES = [Rules(), Rules(reasoning="split"), Rules(think_calls=True), Rules(max_hold=40)]
RULES += [Rules(reasoning="split", think_prefilled=True), Rules(fenced_calls=True)]
ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "search"}}]}
ASKED = [
    chat("search", "get_weather"),
    chat("search", "get_weather", parallel_tool_calls=False),
    chat("search", "get_weather", tool_choice={"type": "allowed_tools", **ALLOWED}),
    chat("search", tool_choice={"type": "function", "function": {"name": "search"}}),
    chat(),
]
PLACES: list[Place | None] = [None, None, "opens", "closes", "thinks"]

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


def written_whole(answers: list[Answer]) -> bytes:
    choices = []
    for index, answer in enumerate(answers):
        message = {"role": "assistant", "content": answer["content"]}
        if answer["thoughts"] is not None:
            message["reasoning_content"] = answer["thoughts"]
        if answer["calls"]:
            message["tool_calls"] = calls_of(answer)
        choice = {"index": index, "message": message, "finish_reason": answer["finish"]}
        choices.append(choice)
    return json.dumps({"id": "c", "choices": choices}).encode()


def deltas_of(answer: Answer, size: int) -> list[tuple[dict[str, Any], str | None]]:
    """Return the deltas of an answer, its texts cut into pieces of `size`."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for field, text in (("reasoning_content", answer["thoughts"]), ("content", answer["content"])):
        deltas += [{field: text[at : at + size]} for at in range(0, len(text or ""), size)]
    for call in calls_of(answer):
        arguments = call["function"]["arguments"]
        call["function"]["arguments"] = ""
        deltas.append({"tool_calls": [call]})
        for at in range(0, len(arguments), size):
            part = {"index": call["index"], "function": {"arguments": arguments[at : at + size]}}
            deltas.append({"tool_calls": [part]})
    return [*((delta, None) for delta in deltas), ({}, answer["finish"])]


def written_as_stream(answers: list[Answer], size: int, order: list[int]) -> bytes:
    """Return the stream, whose choices take turns as `order` says."""
    left = {index: deltas_of(answer, size) for index, answer in enumerate(answers)}
    events: list[bytes] = []
    turns = iter(order)
    while left:
        index = list(left)[next(turns, 0) % len(left)]
        delta, finish = left[index].pop(0)
        events.append(
            event(
                {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}
            )
        )
        if not left[index]:
            del left[index]
    return b"".join([*events, DONE])


Seen = dict[int, tuple[str, str, list[tuple[str, str]], str | None]]


def seen_in_whole(body: bytes) -> Seen:
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


def seen_in_stream(stream: bytes) -> Seen:
    """Return what a stream said, of which arguments may be broken JSON, as models write it."""
    *events, done, rest = stream.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", ""), stream
    seen: Seen = {}
    for chunk in map(json.loads, (each.removeprefix("data: ") for each in events)):
        for choice in chunk["choices"]:
            index, delta = choice["index"], choice["delta"]
            assert ("role" in delta) == (index not in seen), stream
            content, thoughts, calls, finish = seen.get(index, ("", "", [], None))
            assert finish is None, stream
            for call in delta.get("tool_calls") or ():
                name, arguments = call["function"].get("name"), call["function"]["arguments"]
                if name is None:
                    calls[call["index"]] = (calls[call["index"]][0], calls[-1][1] + arguments)
                else:
                    assert call["index"] == len(calls), stream
                    calls.append((name, arguments))
            content += delta.get("content") or ""
            thoughts += delta.get("reasoning_content") or ""
            seen[index] = (content, thoughts, calls, choice["finish_reason"])
    return seen


class Ways(NamedTuple):
    """How an answer is asked for and told."""

    asked: ChatRequest
    rules: Rules
    place: Place | None
    size: int
    order: list[int]
    packet: int

    def aside(self) -> Aside | None:
        return None if self.place is None else Aside(self.place, "[aside]")


WAYS = st.builds(
    Ways,
    st.sampled_from(ASKED),
    st.sampled_from(RULES),
    st.sampled_from(PLACES),
    st.integers(1, 12),
    st.lists(st.integers(0, 1), max_size=60),
    st.integers(1, 400),
)


class SamenessTests(SynchronousTestCase):
    @given(st.lists(ANSWERS, min_size=1, max_size=2), WAYS)
    def test_told_in_four_ways(self, answers: list[Answer], ways: Ways) -> None:
        asked, rules = ways.asked, ways.rules
        body = written_whole(answers)
        stream = written_as_stream(answers, ways.size, ways.order)
        packets = [stream[at : at + ways.packet] for at in range(0, len(stream), ways.packet)]
        expected = seen_in_whole(whole(body, asked, rules, aside=ways.aside())[0])
        transcoder = StreamTranscoder(asked, rules, aside=ways.aside())
        said = b"".join(map(transcoder.receive_data, packets)) + transcoder.end(cut=False)
        self.assertEqual(seen_in_stream(said), expected)
        joiner = StreamJoiner(asked, rules, aside=ways.aside())
        for data in packets:
            joiner.receive_data(data)
        self.assertEqual(seen_in_whole(joiner.whole(cut=False)), expected)
        own, _ = whole_as_stream(body, asked, rules, aside=ways.aside())
        self.assertEqual(seen_in_stream(own), expected)
