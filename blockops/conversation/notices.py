r"""
Notices: what blockops itself says to the person at the other end, within the model's answer.

A notice is text between a marker line and a blank line. One that opens an answer looks like

    [blockops notice]\nThe first line.\nAnother one.\n\n

and one that closes an answer has `\n\n` and another marker line before it. So it is known where
each begins and ends, and histories that come back lose exactly what was put in: the model never
sees it, it costs no tokens, and the backend's prefix cache finds what the model has said.

The removal works on the JSON text of a message. It does not parse the message and write it anew,
so not one byte beside the notice changes. A newline is `\n` there in every JSON writer; the marker
lines hold no character that any writer escapes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from blockops.wire.mend import UNREADABLE

OPENS = "[blockops notice]"
CLOSES = "[blockops adds]"

#: What a session is told once, in the order in which it is told.
Kind = Literal["banner", "context", "notice", "warning", "high", "critical"]

# Within a JSON string: a line of text, and what ends it. CR is for clients that keep text with it.
_EOL = rb"(?:\\r)?\\n"
_LINE = rb'(?:[^"\\]|\\[^nr])+'
_LINES = rb"(?:" + _EOL + _LINE + rb")+"
# Behind the last line: the blank line, or the end of the text where a client has stripped it.
_END = rb"(?:" + _EOL + _EOL + rb"|(?:" + _EOL + rb')?(?="))'
_NOTICE = re.compile(
    rb"(?:"
    + re.escape(OPENS.encode())
    + rb"|(?:"
    + _EOL
    + _EOL
    + rb")?"
    + re.escape(CLOSES.encode())
    + rb")"
    + _LINES
    + _END
)
_MARK = b"[blockops "
_ASSISTANT = re.compile(rb'"role"\s*:\s*"assistant"')


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


def without_notices(raw: bytes) -> bytes | None:
    """
    Return the JSON of a message without the notices in it: `raw` itself if there are none.

    :returns: None if the message was nothing but notices
    """
    if _MARK not in raw or not _ASSISTANT.search(raw):
        return raw
    cleaned = _NOTICE.sub(b"", raw)
    return None if cleaned != raw and _is_empty(cleaned) else cleaned


def _is_empty(raw: bytes) -> bool:
    """Tell whether an assistant's message says and calls nothing."""
    try:
        message: dict[str, Any] = msgspec.json.decode(raw)
    except UNREADABLE:
        return False
    said = [_text(message.get(key)) for key in ("content", "reasoning_content", "reasoning")]
    return not any(said) and not message.get("tool_calls") and not message.get("function_call")


def _text(content: Any) -> str:
    """Return the text of a field, without white space around it."""
    if isinstance(content, list):
        texts = (part.get("text", part) for part in content if isinstance(part, dict))
        return "".join(map(str, texts)).strip()
    return str(content or "").strip()


def session_banner(model: str) -> str:
    """Return what a session begins with."""
    return f"New session with {model}." if model else "New session."


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
