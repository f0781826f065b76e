r"""
Writes notices, which are text from blockops to the user in the model's answer, and removes them.

A notice is a marker line, one or more lines of text, and a blank line. At the beginning of an
answer it looks like

    [blockops notice]\nThe first line.\nAnother one.\n\n

and at the end of an answer it has `\n\n` and another marker line before it. Notices are removed
from the histories that clients send back: the model never sees a notice, it costs no tokens, and
the backend's prefix cache finds the answer as the model wrote it.

The removal must not take any text of the model, even if a client has changed white space or the
model itself writes about notices. Therefore a text is a notice only if

- it is at the beginning of a text, of its think block, or of the text after that, or at the end of
  a text, where notices are inserted; and
- each of its lines is a sentence of this module. This also decides where a notice ends that has
  lost its blank line. If you change a sentence, keep the old form in `FORMER_SENTENCES`: clients
  keep histories for a long time.

The removal works on the JSON text of a message, so that no other byte changes. Every JSON encoder
writes a newline as `\n`. Of the characters in the sentences and markers, some encoders escape `/`,
and none escapes another one, except in a model's name. Each byte is examined at most a fixed number
of times, because a model in a loop may repeat a marker without end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from blockops.api.lenient_json import DECODE_ERRORS

#: A message without this contains no notice.
MARKER_PREFIX = b"[blockops "
LEADING_MARKER = "[blockops notice]"
TRAILING_MARKER = "[blockops adds]"

#: Sentences that earlier versions inserted, which stored histories still contain.
FORMER_SENTENCES = (
    (
        "This conversation is long: about 1 tokens (notice at 2). At 3 the oldest part"
        " behind the first message is left out; /new begins anew."
    ),
)

#: Characters of the longest model name that a notice contains.
MAX_MODEL_NAME = 200

#: The kinds of notices that a session gets once each: its banner, a long context, and one for each
#: tier of the machine's memory (`notice` to `critical`).
NoticeKind = Literal["banner", "context", "notice", "warning", "high", "critical"]

_Span = tuple[int, int]

# A name with the end of a sentence in it could not be told from text of the model after it.
_FORBIDDEN_IN_NAME = re.compile(r"\[blockops |</think>|\. ")


def leading_block(texts: Sequence[str]) -> str:
    """Return the notice for the beginning of an answer; empty without `texts`."""
    return f"{LEADING_MARKER}\n{_without_blank_lines(texts)}\n\n" if texts else ""


def trailing_block(texts: Sequence[str]) -> str:
    """Return the notice for the end of an answer; empty without `texts`."""
    return f"\n\n{TRAILING_MARKER}\n{_without_blank_lines(texts)}\n\n" if texts else ""


def _without_blank_lines(texts: Sequence[str]) -> str:
    # A blank line would end the notice.
    lines = "\n".join(texts).splitlines()
    return "\n".join(line for line in lines if line.strip())


def session_banner(model: str) -> str:
    """Return the first notice of a session; a name that could not be removed is left out."""
    name = " ".join(model.split())
    is_removable = name and len(name) <= MAX_MODEL_NAME and not _FORBIDDEN_IN_NAME.search(name)
    return f"New session with {name}." if is_removable else "New session."


def context_notice(tokens: int, warn: int, hard: int) -> str:
    """Return the notice about a history of `tokens`, which is trimmed above `hard`."""
    return (
        f"This conversation is long: about {tokens:,} tokens (notice at {warn:,}). Above {hard:,} "
        "tokens, the oldest messages after the first are left out. Start over with /new."
    )


def memory_notice(kind: str, percent: float) -> str:
    """Return the notice about the machine's memory, of which `percent` are available."""
    return f"Memory is getting tight ({kind}): {percent:.0f} % of it is available."


def prefill_notice(seconds: float, tokens: int) -> str:
    """Return the notice about a wait for the first token; 0 `tokens` if their number is unknown."""
    prompt = f"a prompt of about {tokens:,} tokens" if tokens else "a long prompt"
    return f"The model is reading {prompt}: {seconds:.0f} seconds so far."


def _sentence_pattern(example: str) -> bytes:
    pattern = re.sub(rb"[0-9](?:[0-9,]*[0-9])?", rb"[0-9,]{1,24}", re.escape(example.encode()))
    return pattern.replace(b"/", rb"\\?/")


# All patterns match the inside of a JSON string after `_mask_backslashes`, so that a backslash
# always begins an escape. A character of a name has up to 12 bytes: \ud83d\ude00.
_LT, _GT = rb"(?:<|\\u003[cC])", rb"(?:>|\\u003[eE])"
_THINK_END_TAG = _LT + rb"\\?/think" + _GT
_NAME = rb"(?:(?!\[blockops |%b|\.(?:[ ]|\\t))(?:[^\\]|\\[^nr])){1,%d}" % (
    _THINK_END_TAG,
    12 * MAX_MODEL_NAME,
)
_SENTENCES = [
    *map(_sentence_pattern, (session_banner(""), context_notice(1, 2, 3), *FORMER_SENTENCES)),
    _sentence_pattern(session_banner("NAME")).replace(b"NAME", _NAME),
    *(
        _sentence_pattern(memory_notice(kind, 1))
        for kind in ("notice", "warning", "high", "critical")
    ),
    *(_sentence_pattern(prefill_notice(1, tokens)) for tokens in (0, 1)),
]
# Some clients store text with CRLF; then every line of the notice has a CR.
_EOL = rb"(?P<eol>(?:\\r)?\\n)"
_BLANK = rb"(?:[ ]|\\t)*+"
_SPACE = rb"(?:[ ]|\\[nrtf])*+"
_LINE = rb"(?:" + b"|".join(_SENTENCES) + rb")" + _BLANK + rb"(?=(?P=eol)|\Z)"
# The repetition is not possessive: before Python 3.11.5 a possessive quantifier fails on a group
# with alternatives of its own (python/cpython#106052). It still never matches a line twice, because
# each line is followed by its end.
_LINES = _BLANK + _EOL + _LINE + rb"(?:(?P=eol)" + _LINE + rb"){0,7}"
# After the last line: the blank line, or the part of it that a client has left.
_END = rb"(?:(?P=eol)" + _BLANK + rb"(?P=eol)|(?P=eol)|\Z)"
_LEADING_BLOCK = re.compile(
    _SPACE + rb"(?P<notice>" + re.escape(LEADING_MARKER.encode()) + _LINES + _END + rb")"
)
_TRAILING_BLOCK = re.compile(re.escape(TRAILING_MARKER.encode()) + _LINES + _SPACE)

_THINK_START = re.compile(_SPACE + _LT + b"think" + _GT)
_THINK_END = re.compile(_THINK_END_TAG)

_ASSISTANT = re.compile(rb'"role"\s*:\s*"assistant"')
# A string (group 1) and the colon after it if it is a key (group 2), or a bracket.
_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?(\s*+:)?|[\[{\]}]', re.DOTALL)
#: The fields of an assistant message that clients send back and that contain its text or calls.
_CONTENT_FIELDS = (
    *("content", "reasoning_content", "reasoning", "reasoning_details", "thinking"),
    *("refusal", "audio", "tool_calls", "function_call"),
)


def remove_notices(raw: bytes) -> bytes | None:
    """Return the JSON without notices: `raw` if it has none, None if it has nothing else."""
    if not _ASSISTANT.search(raw):
        return raw
    pieces, position = [], 0
    for start, end in _string_spans(raw):
        if raw.find(MARKER_PREFIX, start, end) >= 0:
            for notice_start, notice_end in _notice_spans(_mask_backslashes(raw[start:end])):
                pieces.append(raw[position : start + notice_start])
                position = start + notice_end
    if not pieces:
        return raw
    cleaned = b"".join([*pieces, raw[position:]])
    return None if _is_empty(cleaned) else cleaned


def _string_spans(raw: bytes) -> Iterator[_Span]:
    """Yield the spans of a message's string values, without quotes; not those of tool calls."""
    depth, field = 0, b""
    for token in _TOKEN.finditer(raw):
        if token.start(1) < 0:
            depth += 1 if token[0] in b"[{" else -1
        elif token.start(2) < 0:
            if field not in {b"tool_calls", b"function_call"}:
                yield token.span(1)
        elif depth == 1:
            field = token[1]


def _mask_backslashes(text: bytes) -> bytes:
    """Return `text` with other bytes for escaped backslashes; its length stays."""
    return text.replace(rb"\\", b"\0\0")


def _notice_spans(text: bytes) -> list[_Span]:
    """Return the spans of the notices in a masked text, in ascending order."""
    found: list[_Span] = []
    position = _match_leading(text, 0, found)
    think_start = _THINK_START.match(text, position)
    if think_start is not None:
        position = _match_leading(text, think_start.end(), found)
    # If the prompt has opened the think block, only its end tag is in the text.
    think_end = _THINK_END.search(text, position)
    if think_end is not None:
        _match_leading(text, think_end.end(), found)
    return found + _trailing_spans(text, found[-1][1] if found else 0)


def _match_leading(text: bytes, position: int, found: list[_Span]) -> int:
    """Append the spans of the notices at `position` to `found`; return the position after them."""
    while (notice := _LEADING_BLOCK.match(text, position)) is not None:
        found.append(notice.span("notice"))
        position = notice.end()
    return position


def _trailing_spans(text: bytes, start: int) -> list[_Span]:
    """Return the spans of the notices at the end of `text[start:]`, in ascending order."""
    found: list[_Span] = []
    end = len(text)
    while (marker := text.rfind(TRAILING_MARKER.encode(), start, end)) >= 0:
        notice = _TRAILING_BLOCK.fullmatch(text, marker, end)
        if notice is None:
            break
        notice_start = _blank_line_before(text, start, marker, notice["eol"])
        if notice_start < 0:
            break
        found.append((notice_start, end))
        end = notice_start
    return found[::-1]


def _blank_line_before(text: bytes, start: int, marker: int, eol: bytes) -> int:
    """Return the start of the blank line, or the line end, before `marker`; -1 inside a line."""
    if not text.endswith(eol, start, marker):
        return marker if marker == start else -1
    line_end = blank = marker - len(eol)
    while text.endswith((b" ", rb"\t"), start, blank):
        blank -= 1 if text[blank - 1 : blank] == b" " else 2
    return blank - len(eol) if text.endswith(eol, start, blank) else line_end


def _is_empty(raw: bytes) -> bool:
    try:
        message: dict[str, Any] = msgspec.json.decode(raw)
    except DECODE_ERRORS:
        return False
    return not any(_field_text(message.get(name)) for name in _CONTENT_FIELDS)


def _field_text(content: Any) -> str:
    if isinstance(content, list):
        texts = (part.get("text", part) for part in content if isinstance(part, dict))
        return "".join(map(str, texts)).strip()
    return str(content or "").strip()
