"""
All texts that the tiny model knows, through blockops: what has to come out is written down by hand.

A server that parses calls itself may have them before blockops sees them. Where what comes out is
not what the model said, the server is asked without blockops: what it answers then is all there
was to get, and the text counts as lost by the server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.live.harness import ask, open_stream
from tests.live.real_backends import WITHOUT_TOOLS, RealBackend
from tests.live.tools import TEXTS, TOOLS, Text, messages

if TYPE_CHECKING:
    from collections.abc import Callable

#: Calls as name and arguments; arguments that are not JSON stay a string.
Calls = list[tuple[str, Any]]


@dataclass(frozen=True)
class Said:
    """
    An answer, in a stream or whole.

    :param content: what is shown, reasoning included
    """

    content: str
    calls: Calls
    reason: str


@dataclass(frozen=True)
class Judged:
    """
    What became of one text.

    :param ways: in which of "stream" and "whole" it is not what the model said
    :param trouble: why that is no fault of the server's
    """

    text: Text
    ways: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def name(self) -> str:
        return f"{self.text.key}#{self.text.turn}"


def expected(text: Text) -> Said:
    """Return what the text means by the contract, where `keys.json` alone does not say it."""
    if (text.key, text.turn) == ("j-bad", 0):
        # Only a closing bracket lacks: it is complete.
        return Said("", [("search", {"query": "weather"})], "tool_calls")
    if (text.key, text.turn) == ("j-open", 0):
        # It was cut off within a string, and must never look whole.
        return Said("", [("search", '{"query": "wea')], "length")
    return Said(text.content, list(text.calls), "tool_calls" if text.calls else "stop")


def heard_whole(url: str, text: Text) -> Said:
    answer = ask(url, _question(text), within=60).json()
    if "choices" not in answer:
        raise AssertionError(answer)
    choice = answer["choices"][0]
    message = choice["message"]
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = [(one["name"], _read(one["arguments"])) for one in functions]
    return Said(_shown(message), calls, choice["finish_reason"])


def heard_in_stream(url: str, text: Text) -> Said:
    stream = open_stream(url, _question(text) | {"stream": True}, within=60).read()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for choice in stream.choices:
        for part in choice["delta"].get("tool_calls") or ():
            at = part["index"]
            names[at] = names.get(at, "") + (part["function"].get("name") or "")
            arguments[at] = arguments.get(at, "") + (part["function"].get("arguments") or "")
    calls = [(names[at], _read(arguments[at])) for at in sorted(names)]
    content = "".join(_shown(choice["delta"]) for choice in stream.choices)
    return Said(content, calls, "+".join(stream.finish_reasons))


def _question(text: Text) -> dict[str, Any]:
    asked = messages(text.key)
    if text.turn:
        asked += [
            {"role": "assistant", "content": "On it."},
            {"role": "user", "content": "Go on."},
        ]
    return {"model": "tiny", "messages": asked, "tools": TOOLS, "temperature": 0, "max_tokens": 900}


def _shown(said: dict[str, Any]) -> str:
    reasoning = said.get("reasoning_content") or said.get("reasoning") or ""
    return f"{reasoning}{said.get('content') or ''}"


def _read(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


_WAYS = {"stream": heard_in_stream, "whole": heard_whole}


def judge(url: str, direct_url: str, text: Text) -> Judged:
    """
    Ask for `text` through blockops at `url`, in both ways.

    :param direct_url: the server itself
    """
    off: list[str] = []
    for way, heard in _WAYS.items():
        said = _hear(heard, url, text)
        if _same(said, expected(text)):
            continue
        direct = _hear(heard, direct_url, text)
        if not lost_by_server(text, direct, said):
            trouble = f"{way}: {said} is not {expected(text)}; the server said {direct}"
            return Judged(text, (way,), trouble)
        off.append(way)
    return Judged(text, tuple(off))


def _hear(heard: Callable[[str, Text], Said], url: str, text: Text) -> Said:
    """Return what came, an error too."""
    try:
        return heard(url, text)
    except (AssertionError, LookupError, OSError, ValueError) as error:
        return Said(f"{type(error).__name__}: {error}", [], "error")


def _same(said: Said, wanted: Said) -> bool:
    # A think block's tags and the white space at its end are the server's to keep or not.
    content = said.content
    if "<think>" in wanted.content and "<think>" not in content:
        content = f"<think>\n{content.strip()}\n</think>"
    return Said(content, said.calls, said.reason) == wanted


def lost_by_server(text: Text, direct: Said, said: Said) -> bool:
    """Say whether the server kept the text from blockops, and all its own calls came through."""
    own = len(direct.calls)
    return direct.content != text.reply and said.calls[len(said.calls) - own :] == direct.calls


def known_texts(backend: RealBackend) -> list[Text]:
    """Return the texts that the model says by heart with this server's template."""
    # Told of tools, the template shows the model all of a conversation without a key.
    return [text for text in TEXTS if text.key != "default" or backend.template == WITHOUT_TOOLS]


def judge_all(backend: RealBackend, url: str, direct_url: str) -> list[Judged]:
    return [judge(url, direct_url, text) for text in known_texts(backend)]
