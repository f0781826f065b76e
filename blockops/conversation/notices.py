r"""
Notices: what blockops itself says to the person at the other end, within the model's answer.

A notice is text between a marker line and a blank line. One that opens an answer looks like

    [blockops notice]\nThe first line.\nAnother one.\n\n

and one that closes an answer has `\n\n` and another marker line before it. Histories that come back
lose exactly what was put in: the model never sees it, it costs no tokens, and the backend's prefix
cache finds what the model has said.

Nothing of the model's may go with it, also where a client has changed white space or the model
writes of notices itself. So a notice is only what stands where one is put, at the beginning of a
text, of its think block, or of what is behind that, or at its end, and whose lines are sentences of
this module. That is also what tells where a notice ends that has lost its blank line. Who changes a
sentence has to keep its old shape in `_SENTENCES`: histories hold it for long.

The removal works on the JSON text of a message. It does not parse the message and write it anew,
so not one byte beside the notice changes. A newline is `\n` there in every JSON writer; of what is
in the sentences and the markers, some escape `/`, none anything else but the name of a model.
It looks at each byte a fixed number of times at most: a model in a loop may repeat a marker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from blockops.api.lenient_json import UNREADABLE

OPENS = "[blockops notice]"
CLOSES = "[blockops adds]"

#: Characters of the longest name of a model that is said.
MAX_NAME = 200

#: What a session is told once, in the order in which it is told.
Kind = Literal["banner", "context", "notice", "warning", "high", "critical"]

_Span = tuple[int, int]

# What ends a sentence is in no name: the model may go on behind it.
_UNSAYABLE = re.compile(r"\[blockops |</think>|\. ")


def opening(texts: Sequence[str]) -> str:
    """Return `texts`, each one or more lines, as the notice that opens an answer."""
    return f"{OPENS}\n{_lines(texts)}\n\n" if texts else ""


def closing(texts: Sequence[str]) -> str:
    """Return `texts`, each one or more lines, as the notice that closes an answer."""
    return f"\n\n{CLOSES}\n{_lines(texts)}\n\n" if texts else ""


def _lines(texts: Sequence[str]) -> str:
    """Return all lines of `texts` that are not blank: a blank one would end the notice."""
    lines = "\n".join(texts).splitlines()
    return "\n".join(line for line in lines if line.strip())


def session_banner(model: str) -> str:
    """Return what a session begins with; a name that could not be found again is left out."""
    name = " ".join(model.split())
    sayable = name and len(name) <= MAX_NAME and not _UNSAYABLE.search(name)
    return f"New session with {name}." if sayable else "New session."


def context_notice(tokens: int, warn: int, hard: int) -> str:
    """Return what is said of a history of `tokens` tokens."""
    return (
        f"This conversation is long: about {tokens:,} tokens (notice at {warn:,}). At {hard:,} the "
        "oldest part behind the first message is left out; /new begins anew."
    )


def memory_notice(kind: str, percent: float) -> str:
    """Return what is said of the machine's memory, of which `percent` are available."""
    return f"Memory is getting tight ({kind}): {percent:.0f} % of it is available."


def cold_start_notice(seconds: float, tokens: int) -> str:
    """Return what is said of a backend that has read for `seconds` without a word."""
    prompt = f"a prompt of about {tokens:,} tokens" if tokens else "a long prompt"
    return f"The model is reading {prompt}: {seconds:.0f} seconds so far."


def _shape(example: str) -> bytes:
    """Return the pattern of the sentence that `example` is one of, with any numbers."""
    pattern = re.sub(rb"[0-9](?:[0-9,]*[0-9])?", rb"[0-9,]{1,24}", re.escape(example.encode()))
    return pattern.replace(b"/", rb"\\?/")


# All patterns are for the inside of a JSON string that `_flat` was applied to: what follows a
# backslash there is what it escapes. A character of a name has up to 12 bytes: \ud83d\ude00.
_LT, _GT = rb"(?:<|\\u003[cC])", rb"(?:>|\\u003[eE])"
_OVER = _LT + rb"\\?/think" + _GT
_NAME = rb"(?:(?!\[blockops |%b|\.(?:[ ]|\\t))(?:[^\\]|\\[^nr])){1,%d}" % (_OVER, 12 * MAX_NAME)
_SENTENCES = [
    *map(_shape, (session_banner(""), context_notice(1, 2, 3))),
    _shape(session_banner("NAME")).replace(b"NAME", _NAME),
    *(_shape(memory_notice(kind, 1)) for kind in ("notice", "warning", "high", "critical")),
    *(_shape(cold_start_notice(1, tokens)) for tokens in (0, 1)),
]
# CR is for clients that keep text with it: it is in every line then.
_EOL = rb"(?P<eol>(?:\\r)?\\n)"
_BLANK = rb"(?:[ ]|\\t)*+"
_SPACE = rb"(?:[ ]|\\[nrtf])*+"
_LINE = rb"(?:" + b"|".join(_SENTENCES) + rb")" + _BLANK + rb"(?=(?P=eol)|\Z)"
# Not possessive: before Python 3.11.5 that fails with what may itself be tried in several ways
# (python/cpython#106052). Nothing is tried twice all the same: behind a line there is an end.
_LINES = _BLANK + _EOL + _LINE + rb"(?:(?P=eol)" + _LINE + rb"){0,7}"
# Behind the last line: the blank line, or what is left of it.
_END = rb"(?:(?P=eol)" + _BLANK + rb"(?P=eol)|(?P=eol)|\Z)"
_OPENING = re.compile(_SPACE + rb"(?P<notice>" + re.escape(OPENS.encode()) + _LINES + _END + rb")")
_CLOSING = re.compile(re.escape(CLOSES.encode()) + _LINES + _SPACE)

_THINK = re.compile(_SPACE + _LT + b"think" + _GT)
_THOUGHT = re.compile(_OVER)

_MARK = b"[blockops "
_ASSISTANT = re.compile(rb'"role"\s*:\s*"assistant"')
# A string and whether it is a key, or what a list or an object begins or ends with.
_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?(\s*+:)?|[\[{\]}]', re.DOTALL)
_CALLS = (b"tool_calls", b"function_call")
#: What an assistant's message says or does, in all the fields that clients send back.
_SPEECH = (
    *("content", "reasoning_content", "reasoning", "reasoning_details", "thinking"),
    *("refusal", "audio", "tool_calls", "function_call"),
)


def without_notices(raw: bytes) -> bytes | None:
    """
    Return the JSON of a message without the notices in it: `raw` itself if there are none.

    :returns: None if the message was nothing but notices
    """
    if _MARK not in raw or not _ASSISTANT.search(raw):
        return raw
    kept, at = [], 0
    for start, end in _strings(raw):
        if raw.find(_MARK, start, end) >= 0:
            for begins, ends in _notices(_flat(raw[start:end])):
                kept.append(raw[at : start + begins])
                at = start + ends
    if not kept:
        return raw
    cleaned = b"".join([*kept, raw[at:]])
    return None if _is_empty(cleaned) else cleaned


def _strings(raw: bytes) -> Iterator[_Span]:
    """Find the insides of a message's strings that are no part of a call."""
    depth, field = 0, b""
    for token in _TOKEN.finditer(raw):
        if token.start(1) < 0:
            depth += 1 if token[0] in b"[{" else -1
        elif token.start(2) < 0:
            if field not in _CALLS:
                yield token.span(1)
        elif depth == 1:
            field = token[1]


def _flat(text: bytes) -> bytes:
    """Return `text`, as long as it is, with other bytes for backslashes that are escaped."""
    return text.replace(rb"\\", b"\0\0")


def _notices(text: bytes) -> list[_Span]:
    """Find the notices in a text, in their order."""
    found: list[_Span] = []
    at = _open(text, 0, found)
    think = _THINK.match(text, at)
    if think is not None:
        at = _open(text, think.end(), found)
    # Where the prompt has opened the think block, only its end is in the text.
    thought = _THOUGHT.search(text, at)
    if thought is not None:
        _open(text, thought.end(), found)
    beginning = found[-1][1] if found else 0
    return found + _close(text, beginning)


def _open(text: bytes, at: int, found: list[_Span]) -> int:
    """Add the notices that open what is behind `at` to `found`; return where they end."""
    while (notice := _OPENING.match(text, at)) is not None:
        found.append(notice.span("notice"))
        at = notice.end()
    return at


def _close(text: bytes, beginning: int) -> list[_Span]:
    """Return the notices that close what is behind `beginning`, in their order."""
    found: list[_Span] = []
    end = len(text)
    while (at := text.rfind(CLOSES.encode(), beginning, end)) >= 0:
        notice = _CLOSING.fullmatch(text, at, end)
        start = -1 if notice is None else _above(text, beginning, at, notice["eol"])
        if start < 0:
            break
        found.append((start, end))
        end = start
    return found[::-1]


def _above(text: bytes, beginning: int, at: int, eol: bytes) -> int:
    """
    Return where the blank line above the marker at `at` begins, or what is left of it.

    :returns: -1 if the marker does not begin a line
    """
    if not text.endswith(eol, beginning, at):
        return at if at == beginning else -1
    start = blank = at - len(eol)
    while text.endswith((b" ", rb"\t"), beginning, blank):
        blank -= 1 if text[blank - 1 : blank] == b" " else 2
    return blank - len(eol) if text.endswith(eol, beginning, blank) else start


def _is_empty(raw: bytes) -> bool:
    """Tell whether an assistant's message says and calls nothing."""
    try:
        message: dict[str, Any] = msgspec.json.decode(raw)
    except UNREADABLE:
        return False
    return not any(_text(message.get(key)) for key in _SPEECH)


def _text(content: Any) -> str:
    """Return the text of a field, without white space around it."""
    if isinstance(content, list):
        texts = (part.get("text", part) for part in content if isinstance(part, dict))
        return "".join(map(str, texts)).strip()
    return str(content or "").strip()
