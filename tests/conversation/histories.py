"""Histories to test with: made by hand, and by hypothesis."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from blockops.conversation.messages import Line

Message = dict[str, Any]


def user(text: str = "Please") -> Message:
    return {"role": "user", "content": text}


def system(text: str = "You help.") -> Message:
    return {"role": "system", "content": text}


def assistant(text: str | None = "Well", *calls: str) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if calls:
        function = {"name": "read", "arguments": "{}"}
        message["tool_calls"] = [
            {"id": call, "type": "function", "function": function} for call in calls
        ]
    return message


def result(call: str, text: str = "done") -> Message:
    return {"role": "tool", "tool_call_id": call, "content": text}


def raw(*messages: Any) -> list[bytes]:
    return [json.dumps(message).encode() for message in messages]


def said(lines: list[Line]) -> list[Any]:
    """Return the messages as values."""
    return [json.loads(line.raw) for line in lines]


texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["word " * 40, "word " * 300, "0123456789" * 400, "x" * 9_000, "漢字" * 900]),
)


@st.composite
def steps(draw: st.DrawFn, number: int) -> list[Message]:
    """One whole step: a user's message, an answer, or calls with their results."""
    kind = draw(st.sampled_from(["user", "answer", "calls", "calls", "calls", "system"]))
    if kind in {"user", "system"}:
        return [{"role": kind, "content": draw(texts)}]
    if kind == "answer":
        return [assistant(draw(texts))]
    calls = [f"c{number}-{at}" for at in range(draw(st.integers(1, 3)))]
    ordered = draw(st.permutations(calls))
    return [assistant(draw(texts), *calls), *(result(call, draw(texts)) for call in ordered)]


@st.composite
def sound(draw: st.DrawFn, longest: int = 14) -> list[list[Message]]:
    """A history that any backend takes, as steps behind its head."""
    head = [system(draw(texts)), user(draw(texts))]
    number = draw(st.integers(0, longest))
    return [head, *(draw(steps(at)) for at in range(number))]


ids = st.sampled_from(["a", "b", "c", ""])
odd = st.one_of(
    st.builds(user, texts),
    st.builds(system, texts),
    st.builds(assistant, texts),
    st.builds(lambda calls: assistant("x", *calls), st.lists(ids, min_size=1, max_size=3)),
    st.builds(result, ids, texts),
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
            {"role": "tool", "content": "nobody asked"},
            {"role": "tool", "tool_call_id": 5, "content": "a number"},
            {"role": "user", "content": {"text": "an object"}},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            {"role": "user", "content": ["text"]},
            {"role": "user", "content": "half a pair: \ud83d"},
        ]
    ),
)
malformed = st.lists(odd, min_size=1, max_size=16)
