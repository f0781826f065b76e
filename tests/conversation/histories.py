"""Histories for tests: built by hand, and hypothesis strategies."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from blockops.conversation.messages import Message

JsonMessage = dict[str, Any]


def user(text: str = "Please") -> JsonMessage:
    return {"role": "user", "content": text}


def system(text: str = "You help.") -> JsonMessage:
    return {"role": "system", "content": text}


def assistant(text: str | None = "Well", *calls: str) -> JsonMessage:
    message: JsonMessage = {"role": "assistant", "content": text}
    if calls:
        function = {"name": "read", "arguments": "{}"}
        message["tool_calls"] = [
            {"id": call, "type": "function", "function": function} for call in calls
        ]
    return message


def tool_result(call: str, text: str = "done") -> JsonMessage:
    return {"role": "tool", "tool_call_id": call, "content": text}


def to_json(*messages: Any) -> list[bytes]:
    return [json.dumps(message).encode() for message in messages]


def decoded(messages: list[Message]) -> list[Any]:
    """Return the messages as Python values."""
    return [json.loads(message.raw) for message in messages]


texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["word " * 40, "word " * 300, "0123456789" * 400, "x" * 9_000, "漢字" * 900]),
)


@st.composite
def steps(draw: st.DrawFn, number: int) -> list[JsonMessage]:
    """Return a complete step: a user message, an answer, or calls with their results."""
    kind = draw(st.sampled_from(["user", "answer", "calls", "calls", "calls", "system"]))
    if kind in {"user", "system"}:
        return [{"role": kind, "content": draw(texts)}]
    if kind == "answer":
        return [assistant(draw(texts))]
    calls = [f"c{number}-{index}" for index in range(draw(st.integers(1, 3)))]
    ordered = draw(st.permutations(calls))
    return [assistant(draw(texts), *calls), *(tool_result(call, draw(texts)) for call in ordered)]


@st.composite
def valid_histories(draw: st.DrawFn, max_steps: int = 14) -> list[list[JsonMessage]]:
    """Return a history that every backend accepts: its head, then its steps."""
    head = [system(draw(texts)), user(draw(texts))]
    count = draw(st.integers(0, max_steps))
    return [head, *(draw(steps(number)) for number in range(count))]


ids = st.sampled_from(["a", "b", "c", ""])
odd_messages = st.one_of(
    st.builds(user, texts),
    st.builds(system, texts),
    st.builds(assistant, texts),
    st.builds(lambda calls: assistant("x", *calls), st.lists(ids, min_size=1, max_size=3)),
    st.builds(tool_result, ids, texts),
    st.builds(lambda text: {"role": "function", "name": "f", "content": text}, texts),
    st.builds(lambda text: {"role": "assistant", "function_call": {"name": text}}, texts),
    st.sampled_from(
        [
            {},
            {"role": 7},
            {"role": "critic", "content": "no"},
            {"role": "assistant", "tool_calls": "none"},
            {"role": "assistant", "tool_calls": [{}]},
            {"role": "assistant", "tool_calls": [None]},
            {"role": "tool", "content": "no call"},
            {"role": "tool", "tool_call_id": 5, "content": "a number"},
            {"role": "user", "content": {"text": "an object"}},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            {"role": "user", "content": ["text"]},
            {"role": "user", "content": "half a pair: \ud83d"},
        ]
    ),
)
malformed_histories = st.lists(odd_messages, min_size=1, max_size=16)
