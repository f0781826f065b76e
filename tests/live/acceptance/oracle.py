"""
All memorized texts of the tiny model, through blockops, compared with answers written by hand.

A server that parses calls may change a text before blockops receives it. If an answer differs, the
same request is sent to the server without blockops. If the server's answer already lacks the
model's text, the text counts as lost by the server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.live.harness import open_stream, send_request
from tests.live.real_backends import PLAIN_TEMPLATE, RealBackend
from tests.live.tiny_model import TEXTS, TOOLS, KnownText, messages

if TYPE_CHECKING:
    from collections.abc import Callable

#: Calls as name and arguments; arguments that are not JSON stay a string.
Calls = list[tuple[str, Any]]


@dataclass(frozen=True)
class Answer:
    """
    The model's answer, from a stream or a non-streaming response.

    :param content: the visible text, including reasoning
    """

    content: str
    calls: Calls
    finish_reason: str


@dataclass(frozen=True)
class Verdict:
    """
    The result for one text.

    :param lost_ways: the ways, of "stream" and "non-streaming", in which the answer differs
    :param problem: a description if the difference is not caused by the server, or ""
    """

    text: KnownText
    lost_ways: tuple[str, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        return f"{self.text.key}#{self.text.turn}"


def expected_answer(text: KnownText) -> Answer:
    """Return the correct answer for `text`, including those that `keys.json` does not define."""
    if (text.key, text.turn) == ("j-bad", 0):
        # Only the closing bracket is missing: the call is complete.
        return Answer("", [("search", {"query": "weather"})], "tool_calls")
    if (text.key, text.turn) == ("j-open", 0):
        # It is truncated within a string, and must not look complete.
        return Answer("", [("search", '{"query": "wea')], "length")
    return Answer(text.content, list(text.calls), "tool_calls" if text.calls else "stop")


def request_json(url: str, text: KnownText) -> Answer:
    answer = send_request(url, _chat_body(text), timeout=60).json()
    if "choices" not in answer:
        raise AssertionError(answer)
    choice = answer["choices"][0]
    message = choice["message"]
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = [(each["name"], _parse_arguments(each["arguments"])) for each in functions]
    return Answer(_visible_text(message), calls, choice["finish_reason"])


def request_stream(url: str, text: KnownText) -> Answer:
    stream = open_stream(url, _chat_body(text) | {"stream": True}, timeout=60).read()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for choice in stream.choices:
        for part in choice["delta"].get("tool_calls") or ():
            index = part["index"]
            names[index] = names.get(index, "") + (part["function"].get("name") or "")
            arguments[index] = arguments.get(index, "") + (part["function"].get("arguments") or "")
    calls = [(names[index], _parse_arguments(arguments[index])) for index in sorted(names)]
    content = "".join(_visible_text(choice["delta"]) for choice in stream.choices)
    return Answer(content, calls, "+".join(stream.finish_reasons))


def _chat_body(text: KnownText) -> dict[str, Any]:
    history = messages(text.key)
    if text.turn:
        history += [
            {"role": "assistant", "content": "On it."},
            {"role": "user", "content": "Go on."},
        ]
    return {
        "model": "tiny",
        "messages": history,
        "tools": TOOLS,
        "temperature": 0,
        "max_tokens": 900,
    }


def _visible_text(answer: dict[str, Any]) -> str:
    reasoning = answer.get("reasoning_content") or answer.get("reasoning") or ""
    return f"{reasoning}{answer.get('content') or ''}"


def _parse_arguments(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


_WAYS = {"stream": request_stream, "non-streaming": request_json}


def judge(url: str, direct_url: str, text: KnownText) -> Verdict:
    """
    Request `text` through blockops at `url`, in both ways, and judge the answers.

    :param direct_url: the URL of the server
    """
    lost_ways: list[str] = []
    for way, request in _WAYS.items():
        answer = _request_answer(request, url, text)
        if _matches(answer, expected_answer(text)):
            continue
        direct = _request_answer(request, direct_url, text)
        if not is_lost_by_server(text, direct, answer):
            problem = f"{way}: {answer} is not {expected_answer(text)}; the server sent {direct}"
            return Verdict(text, (way,), problem)
        lost_ways.append(way)
    return Verdict(text, tuple(lost_ways))


def _request_answer(
    request: Callable[[str, KnownText], Answer], url: str, text: KnownText
) -> Answer:
    """Return the answer; an error becomes an answer with the finish reason "error"."""
    try:
        return request(url, text)
    except (AssertionError, LookupError, OSError, ValueError) as error:
        return Answer(f"{type(error).__name__}: {error}", [], "error")


def _matches(answer: Answer, expected: Answer) -> bool:
    # A server may drop the tags of a think block and the white space at its end.
    content = answer.content
    if "<think>" in expected.content and "<think>" not in content:
        content = f"<think>\n{content.strip()}\n</think>"
    return Answer(content, answer.calls, answer.finish_reason) == expected


def is_lost_by_server(text: KnownText, direct: Answer, answer: Answer) -> bool:
    """Return True if the server changed the text and all of its own calls are in `answer`."""
    call_count = len(direct.calls)
    return (
        direct.content != text.answer
        and answer.calls[len(answer.calls) - call_count :] == direct.calls
    )


def known_texts(backend: RealBackend) -> list[KnownText]:
    """Return the texts that the model has memorized for this server's template."""
    # With tools the template renders the complete history for a message without a key.
    return [text for text in TEXTS if text.key != "default" or backend.template == PLAIN_TEMPLATE]


def judge_all(backend: RealBackend, url: str, direct_url: str) -> list[Verdict]:
    return [judge(url, direct_url, text) for text in known_texts(backend)]
