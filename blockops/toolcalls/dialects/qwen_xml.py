"""
Format 3: functions and parameters in tags, as Qwen3-Coder and Qwen 3.5 write them.

    call      = "<tool_call>" space function { space function } space "</tool_call>"
              | function [ space "</tool_call>" ]           at the start of a line, an offered name
    function  = "<function=" NAME ">" space { parameter space } "</function>"
    parameter = "<parameter=" KEY ">" VALUE "</parameter>"

`<function name="NAME">` and `<parameter name="KEY">` mean the same, and white space may stand
around `=`. White space between tags is at most `MAX_SPACE` characters.

- The call begins when the head of its first parameter, or its end, was read.
- A VALUE is verbatim. If it starts with a line end, LF or CRLF, then that one is framing, and so is
  one of its kind in front of the closing tag.
- A VALUE ends at `</parameter>` with a parameter's head or `</function>` behind it; in a
  `<tool_call>` that `</function>` must have `</tool_call>` or `<function` behind it (or, where
  `</tool_call>` was forgotten, `<tool_call>` and `<function`), or the end of the text. So these
  tags may stand in a value, where nothing else looks like its end.
- Where the model forgot `</parameter>`, the VALUE ends at a parameter's head at the start of a
  line, of a name that is declared and did not come yet, or at `</function>` with `</tool_call>`
  behind it.
- A value that can only be a string goes out as it comes. Any other is kept until it is whole or
  certain to be a string, and written as `schema.Kind` says; if it outgrows `max_hold`, it is a
  string. Where it is cut off, what was kept is shown as a string without an end.
- The model may end by itself anywhere in or behind a value: the call is complete, with what stands
  there. A closing tag that has begun is no part of the value: `</p` or `</f` and what follows of
  it; behind framing, `<` will do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json.encoder import encode_basestring

from blockops.toolcalls.dialects.prompts import CoderWording
from blockops.toolcalls.events import CallArguments, CallBegan, CallEnded, Delta
from blockops.toolcalls.grammar.json_stream import SPACE
from blockops.toolcalls.grammar.parameter_types import Kind, Parameters, Value
from blockops.toolcalls.reader import (
    CallReader,
    Ended,
    LeftOpen,
    Opener,
    Opening,
    Refused,
)
from blockops.toolcalls.verbatim import Verbatim, spelling

MAX_SPACE = 1_024
"""Characters of white space between two tags: more of it belongs to a value, or to no call."""

MAX_HEAD = 1_024
"""Characters of a `<function=NAME>` or `<parameter=KEY>` tag behind its first word."""

MIN_BEGUN = len("</x")
"""Characters of a closing tag, cut off by the end, that are no text any more."""

TAG = "<tool_call>"
END = "</tool_call>"
FUNCTION = "<function"

Verdict = Refused | Ended | None

_S = rf"[ \t\r\n]{{0,{MAX_SPACE}}}"


def _head(word: str, bare: str) -> str:
    """Return a pattern for the tag that opens a function or a parameter; `bare` is its name."""
    return (
        rf"<{word}(?=[ \t\r\n=][^<>]{{0,{MAX_HEAD}}}>)(?:{_S}name(?={_S}=))?{_S}={_S}"
        rf"(?:\"([^\"<>\n]+)\"|'([^'<>\n]+)'|({bare})){_S}>"
    )


def _begun(*parts: str) -> str:
    """Return a pattern for `parts` in a row, which the end of the text may cut anywhere."""
    pattern = ""
    for part in reversed(parts):
        pattern = rf"(?:\Z|{part}{pattern})"
    return pattern


def _head_begun(word: str, bare: str) -> str:
    """Return a pattern for what such a tag begins with; `bare` for what its name begins with."""
    quoted = rf"\"(?:\Z|[^\"<>\n]+(?:\Z|\"{_S}\Z))|'(?:\Z|[^'<>\n]+(?:\Z|'{_S}\Z))"
    value = rf"{_S}(?:\Z|{quoted}|{bare}{_S}\Z)"
    named = rf"{_begun(*'name')}{_S}{_begun('=')}"
    return (
        rf"{_begun(*f'<{word}')}(?:\Z|(?=[ \t\r\n=][^<>]{{0,{MAX_HEAD}}}\Z)"
        rf"{_S}(?:\Z|{named}{value}|={value}))"
    )


_FUNCTION = re.compile(_head("function", r"[^\s<>\"'=]+"))
_PARAMETER_HEAD = _head("parameter", r"[^<>\n\"' \t\r=](?:[^<>\n]*[^<>\n \t\r])?")
_PARAMETER = re.compile(_PARAMETER_HEAD)
_FUNCTION_BEGUN = re.compile(_head_begun("function", r"[^\s<>\"'=]+"))
_PARAMETER_HEAD_BEGUN = _head_begun("parameter", r"[^<>\n\"' \t\r=][^<>\n]*")
_PARAMETER_BEGUN = re.compile(_PARAMETER_HEAD_BEGUN)

_IN_TAG = re.compile(
    rf"</parameter>{_S}(?:{_PARAMETER_HEAD}"
    rf"|</function>{_S}(?:({END})|(?=(?:{TAG}{_S})?<function[ \t\r\n=])))"
)
_IN_TAG_BEGUN = re.compile(
    rf"{_begun(*'</parameter>')}{_S}(?:{_PARAMETER_HEAD_BEGUN}|{_begun(*'</function>')}{_S}"
    rf"(?:{_begun(*END)}|{_begun(*FUNCTION)}\Z|{_begun(*TAG)}{_S}{_begun(*FUNCTION)}\Z))"
)
_BARE = re.compile(rf"</parameter>{_S}(?:{_PARAMETER_HEAD}|</function>)")
_BARE_BEGUN = re.compile(
    rf"{_begun(*'</parameter>')}{_S}(?:{_PARAMETER_HEAD_BEGUN}|{_begun(*'</function>')}\Z)"
)
_FORGOTTEN = re.compile(rf"</function>{_S}{END}")
_FORGOTTEN_BEGUN = re.compile(rf"{_begun(*'</function>')}{_S}{_begun(*END)}\Z")
_BODY = re.compile(rf"{_S}(?:{_PARAMETER_HEAD}|(</function>)|({END}))")
_BODY_BEGUN = re.compile(
    rf"{_S}(?:{_PARAMETER_HEAD_BEGUN}|{_begun(*'</function>')}\Z|{_begun(*END)}\Z)"
)
_CANDIDATE = re.compile(r"<(?:/(?:[pf]|\Z)|p|\Z)")
# What is left behind a value when the model has ended by itself: closing tags, then anything.
_LAST = re.compile(rf"</parameter>{_S}(</function>{_S})?(.*)|</function>()()", re.DOTALL)
_STRING = Kind()
# What stands in a string and is the beginning of no tag, nor of the end of its last line.
_IN_STRING = r"[^<\x00-\x08\x0b-\x1f]"
_VERBATIM = Verbatim(
    re.compile(rf"{_IN_STRING}*(?:<(?![/p]){_IN_STRING}+)*(?<!\n)"),
    spelling(r'\\["\\nt]|<(?=[^</p])', without="<", end=r"(?<!\\n)"),
    quoted=True,
)


class TaggedXml:
    """The format: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function>...`."""

    name = "xml"
    openers = (Opener(TAG), Opener(FUNCTION, line_start=True))
    wording = CoderWording()

    def reader(self, opening: Opening) -> CallReader:
        """Return a reader for the text behind `<tool_call>`, or behind a bare `<function`."""
        return TaggedXmlReader(opening, in_tag=opening.literal == TAG)


class TaggedXmlReader:
    """
    Reads one function.

    :param in_tag: whether it stands in a `<tool_call>`; else its name must be one that is offered
    """

    def __init__(self, opening: Opening, *, in_tag: bool) -> None:
        self._opening = opening
        self._in_tag = in_tag
        self._closing = (_IN_TAG, _IN_TAG_BEGUN) if in_tag else (_BARE, _BARE_BEGUN)
        self._state: Callable[[str, int], int] = self._frame if in_tag else self._function
        # What was read and is not decided on, and where that begins in the text.
        self._seen = "" if in_tag else FUNCTION
        self._verdict: Verdict = None
        self._deltas: list[Delta] = []
        self._pieces: list[str] = []
        self._name = ""
        self._parameters = Parameters(None)
        self._keys: set[str] = set()
        self._kind = _STRING
        self._framing = ""
        self._line_start = False
        # A value that is not certain to be a string, as far as it came.
        self._kept = Value(_STRING)

    @property
    def verbatim(self) -> Verbatim | None:
        """See `Fluent`."""
        in_line = not self._seen and not self._line_start
        in_string = self._state == self._value and self._kind.is_string
        return _VERBATIM if in_line and in_string else None

    def feed(self, text: str, out: list[Delta]) -> Verdict:
        """Read on; see `CallReader`."""
        if self._seen:
            text = self._seen + text
            self._seen = ""
        self._deltas = out
        pos = 0
        size = len(text)
        while pos < size and self._verdict is None:
            pos = self._state(text, pos)
        self._give_out()
        return self._verdict

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused | Ended | LeftOpen:
        """Decide at the end of the text; see `CallReader`."""
        self._deltas = out
        verdict: Refused | Ended | LeftOpen = LeftOpen() if self._keys else Refused()
        if self._state == self._behind_empty:
            verdict = LeftOpen()
        if whole and self._state == self._body:
            verdict = self._finish_body()
        elif whole and self._state == self._behind_empty:
            verdict = self._end("")
        elif whole and self._state in (self._value_first, self._value):
            verdict = self._finish_value()
        if isinstance(verdict, LeftOpen) and not self._kind.is_string and self._kept.length:
            self._stream("")
        self._give_out()
        if isinstance(verdict, Ended):
            out.append(CallEnded())
        return verdict

    def _give_out(self) -> None:
        if self._pieces:
            self._deltas.append(CallArguments("".join(self._pieces)))
            self._pieces.clear()

    def _wait(self, text: str, pos: int) -> int:
        """Wait for more text, to look at what stands at `pos` again."""
        self._seen = text[pos:]
        return len(text)

    def _refuse(self, text: str) -> int:
        self._verdict = Refused()
        return len(text)

    def _end(self, rest: str, then: CallReader | None = None) -> Ended:
        self._pieces.append("}")
        return Ended(rest, then)

    def _end_call(self, text: str, pos: int, then: CallReader | None = None) -> int:
        self._verdict = self._end(text[pos:], then)
        self._give_out()
        self._deltas.append(CallEnded())
        return len(text)

    # In front of the parameters.

    def _frame(self, text: str, pos: int) -> int:
        pos = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        self._state = self._frame if pos == len(text) else self._function
        return pos

    def _function(self, text: str, pos: int) -> int:
        head = _FUNCTION.match(text, pos)
        if not head:
            begun = _FUNCTION_BEGUN.match(text, pos)
            return self._wait(text, pos) if begun else self._refuse(text)
        self._name = head[1] or head[2] or head[3]
        schemas = self._opening.offer.schemas
        if self._name not in schemas and not (self._in_tag and self._opening.admits(self._name)):
            return self._refuse(text)
        self._parameters = Parameters(schemas.get(self._name))
        self._state = self._body
        return head.end()

    def _body(self, text: str, pos: int) -> int:
        found = _BODY.match(text, pos)
        if not found:
            begun = _BODY_BEGUN.match(text, pos)
            return self._wait(text, pos) if begun else self._refuse(text)
        self._deltas.append(CallBegan(self._name))
        self._pieces.append("{")
        if found[5] or (found[4] and not self._in_tag):
            return self._end_call(text, found.end(), None if found[5] else AfterFunction())
        if found[4]:
            self._state = self._behind_empty
        else:
            self._begin_value(found)
        return found.end()

    def _behind_empty(self, text: str, pos: int) -> int:
        """Behind `</function>` in a tag: what follows proves that the call was not cut off."""
        here = SPACE.match(text, pos).end()  # type: ignore[union-attr]
        if here == len(text) and here - pos <= MAX_SPACE:
            return self._wait(text, pos)
        return self._end_call(text, pos, AfterFunction(self._opening))

    def _finish_body(self) -> Refused | Ended:
        tail = self._seen.lstrip()
        if tail and not tail.startswith("</"):
            return Refused()
        self._deltas.append(CallBegan(self._name))
        self._pieces.append("{")
        return self._end("")

    # In a value.

    def _begin_value(self, head: re.Match[str]) -> None:
        key = head[1] or head[2] or head[3]
        self._kind = self._parameters.kind(key)
        self._pieces.append(f"{', ' if self._keys else ''}{encode_basestring(key)}: ")
        if self._kind.is_string:
            self._pieces.append('"')
        self._keys.add(key)
        self._kept = Value(self._kind)
        self._state = self._value_first

    def _value_first(self, text: str, pos: int) -> int:
        """At the first character of a value, which may be framing."""
        if text.startswith("\r", pos) and pos + 1 == len(text):
            return self._wait(text, pos)
        self._framing = "\n" if text.startswith("\n", pos) else ""
        if text.startswith("\r\n", pos):
            self._framing = "\r\n"
        self._line_start = bool(self._framing)
        self._state = self._value
        return pos + len(self._framing)

    def _value(self, text: str, pos: int) -> int:
        at = pos
        while found := _CANDIDATE.search(text, at):
            at = found.start()
            head = self._forgotten_head(text, pos, at)
            end = self._closing[0].match(text, at) or _FORGOTTEN.match(text, at) or head
            if end:
                return self._end_value_at(text, pos, at, end)
            if self._closing_begun(text, pos, at):
                return self._hold(text, pos, self._framed(text, pos, at))
            at += 1
        return self._hold(text, pos, self._framed(text, pos, len(text)))

    def _forgotten_head(self, text: str, pos: int, at: int) -> re.Match[str] | None:
        """Return the head of a parameter in front of which `</parameter>` was forgotten."""
        head = _PARAMETER.match(text, at)
        if not head or not self._at_line_start(text, pos, at):
            return None
        key = head[1] or head[2] or head[3]
        return head if key in self._parameters.declared and key not in self._keys else None

    def _at_line_start(self, text: str, pos: int, at: int) -> bool:
        return text[at - 1] == "\n" if at > pos else self._line_start

    def _closing_begun(self, text: str, pos: int, at: int) -> bool:
        """Whether what stands at `at` may yet turn out to end the value."""
        if self._closing[1].match(text, at) or _FORGOTTEN_BEGUN.match(text, at):
            return True
        return bool(_PARAMETER_BEGUN.match(text, at)) and self._at_line_start(text, pos, at)

    def _framed(self, text: str, pos: int, at: int) -> int:
        """Return where in front of `at` the framing begins: a line end, or what may become one."""
        framing = self._framing
        if framing and text.endswith(framing, pos, at):
            return at - len(framing)
        begun = framing == "\r\n" and at == len(text) and text.endswith("\r", pos)
        return at - 1 if begun else at

    def _hold(self, text: str, pos: int, at: int) -> int:
        self._say(text, pos, at)
        return self._wait(text, at)

    def _say(self, text: str, pos: int, end: int) -> None:
        """Take a part of the value."""
        if end == pos:
            return
        piece = text[pos:end]
        self._line_start = piece[-1] == "\n"
        if self._kind.is_string:
            self._pieces.append(encode_basestring(piece)[1:-1])
            return
        room = self._opening.max_hold + 1 - self._kept.length
        self._kept.add(piece[:room])
        if self._kept.is_string:
            self._stream(piece[room:])
        elif self._kept.length > self._opening.max_hold:
            self._opening.tally["gave_up"] += 1
            self._stream(piece[room:])

    def _stream(self, rest: str) -> None:
        """Give out what was kept of a value that turned out to be a string, and `rest`."""
        self._kind = _STRING
        self._pieces.append(encode_basestring(self._kept.text() + rest)[:-1])

    def _end_value(self) -> None:
        written = '"' if self._kind.is_string else self._kept.written()
        self._pieces.append(written)

    def _end_value_at(self, text: str, pos: int, at: int, end: re.Match[str]) -> int:
        self._say(text, pos, self._framed(text, pos, at))
        self._end_value()
        if end.re is not _FORGOTTEN and (end[1] or end[2] or end[3]):
            self._begin_value(end)
            return end.end()
        if end.re is _BARE:
            return self._end_call(text, end.end(), AfterFunction())
        if end.re is _IN_TAG and not end[4]:
            return self._end_call(text, end.end(), AfterFunction(self._opening))
        return self._end_call(text, end.end())

    def _finish_value(self) -> Ended | LeftOpen:
        tail = self._seen
        if self._framing and tail.startswith(self._framing):
            tail = tail[len(self._framing) :]
        rest = ""
        if last := _LAST.match(tail):
            rest = last[2] or ""
            if rest.startswith("<p") and not last[1]:
                # More was to come: what has begun is shown, and the call is not whole.
                self._say(self._seen, 0, len(self._seen))
                return LeftOpen()
            rest = "" if rest.startswith("</") else rest
        elif not self._tag_has_begun(tail):
            self._say(self._seen, 0, len(self._seen))
        self._end_value()
        return self._end(rest)

    def _tag_has_begun(self, tail: str) -> bool:
        """Whether `tail`, behind which nothing comes, is nothing or the beginning of an end."""
        if not tail:
            return len(self._seen) == len(self._framing)
        framed = len(tail) < len(self._seen)
        return (framed or len(tail) >= MIN_BEGUN) and any(
            tag.startswith(tail) for tag in ("</parameter>", "</function>")
        )


class AfterFunction:
    """
    Reads what follows a function: `</tool_call>`, which is swallowed, or another function.

    :param opening: where the `<tool_call>` stands that the function was in; None for a bare one
    """

    def __init__(self, opening: Opening | None = None) -> None:
        self._next = TaggedXmlReader(opening, in_tag=True) if opening else None
        self._space = ""
        self._seen = ""

    @property
    def verbatim(self) -> None:
        """Nothing: there are no arguments here."""

    def feed(self, text: str, out: list[Delta]) -> Verdict:
        """Read on; see `CallReader`."""
        if not self._seen:
            here = SPACE.match(text).end()  # type: ignore[union-attr]
            self._space += text[:here]
            text = text[here:]
        self._seen = seen = self._seen + text
        if seen.startswith(END):
            return Ended(seen[len(END) :])
        if END.startswith(seen):
            return None
        if self._next and (FUNCTION.startswith(seen) or seen.startswith(FUNCTION)):
            return None if len(seen) < len(FUNCTION) else Ended(self._space + seen, self._next)
        return Refused()

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused | Ended | LeftOpen:
        """Decide at the end of the text; see `CallReader`."""
        return Ended("") if self._seen.startswith(END[:MIN_BEGUN]) else Refused()
