"""
Format 1: JSON objects in `<tool_call>` tags, as Hermes, Qwen-Agent, Qwen 2.5 and Qwen 3 write them.

    call    = "<tool_call>" space ( objects | "[" objects "]" ) space "</tool_call>"
    objects = object { space [","] space object }

An object is read by `CallObject`; each is a call of its own, all of them share the tag.

- What follows the tag behind white space decides: a brace or a bracket, else it is no call.
- An object's last brace is given out when something behind it shows that the model went on, or when
  the model has ended by itself: a call that was cut off never looks whole.
- `</tool_call>` in front of the last brackets ends the call, and completes it; in a comment too.
- At other broken JSON in the arguments the text passes raw up to `</tool_call>`. Where the
  arguments were complete, the call ends there, and what follows up to `</tool_call>` is text; so
  are brackets and other marks too many between an object and `</tool_call>`. The tag is swallowed
  still.
- Without `</tool_call>`, whatever follows the object is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from blockops.toolcalls.dialects.prompts import HermesWording
from blockops.toolcalls.events import Delta
from blockops.toolcalls.grammar.json_reader import ObjectReader, Verdict
from blockops.toolcalls.grammar.json_stream import MAX_GAP, SPACE
from blockops.toolcalls.reader import (
    CallReader,
    Ended,
    LeftOpen,
    Opener,
    Opening,
    Refused,
)
from blockops.toolcalls.verbatim import Verbatim

TAG = "<tool_call>"
END = "</tool_call>"

MIN_BEGUN = len("</x")
"""Characters of a closing tag, cut off by the end, that are no text any more."""

_BETWEEN = re.compile(r"[ \t\r\n,]*")
_SPARE_MARKS = re.compile(r"[\]})>,;.\"'` \t\r\n]{1,64}")
_SPARE_TEXT = re.compile(r"[^<]{1,1024}")


class TaggedJson:
    """The format: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

    name = "json"
    openers = (Opener(TAG),)
    wording = HermesWording()

    def reader(self, opening: Opening) -> CallReader:
        """Return a reader for the text behind the tag."""
        return TaggedJsonReader(opening)


class TaggedJsonReader(ObjectReader):
    """
    Reads one call in a tag.

    :param in_list: whether the object stands in a list, whose bracket was read
    """

    end_of_raw = END
    end_of_comment = END

    def __init__(self, opening: Opening, *, in_list: bool = False) -> None:
        super().__init__(opening)
        self._in_list = in_list

    def _first(self, text: str, out: list[Delta]) -> Verdict:
        pos = SPACE.match(text).end()  # type: ignore[union-attr]
        if pos == len(text):
            return None
        if text[pos] == "{":
            return self._object_at(text, pos, out)
        if text[pos] != "[" or self._in_list:
            return Refused()
        self._in_list = True
        return self._first(text[pos + 1 :], out)

    def _whole_at(self, text: str, out: list[Delta]) -> Verdict:
        """Behind the object: the first character that is no white space proves its end."""
        self._state = self._whole_at
        pos = SPACE.match(text).end()  # type: ignore[union-attr]
        self._seen += text[:pos]
        if pos == len(text) and len(self._seen) <= MAX_GAP:
            return None
        self._object.end(out)
        self._ended("")
        return Ended(self._seen + text[pos:], AfterObject(self._opening, in_list=self._in_list))

    def _broken_at(self, text: str, out: list[Delta]) -> Verdict:
        """The closing tag may stand where only brackets are missing."""
        self._seen += text
        if 0 < len(self._seen) < len(END) and END.startswith(self._seen):
            self._state = self._broken_at
            return None
        if self._seen.startswith(END) and self._object.complete(out):
            return self._ended(self._seen[len(END) :])
        return super()._broken_at(self._seen, out)

    def _behind_broken(self, rest: str) -> Ended:
        return Ended(rest, AfterObject(self._opening, spare=_SPARE_TEXT))

    def _end_raw(self, raw: str, rest: str, out: list[Delta]) -> Ended:
        return super()._end_raw(raw, rest[len(END) :], out)


class AfterObject:
    """
    Reads what follows an object in its tag: another one, the end of the list, the closing tag.

    :param spare: what may stand in front of the closing tag, and is text
    """

    def __init__(
        self, opening: Opening, *, in_list: bool = False, spare: re.Pattern[str] = _SPARE_MARKS
    ) -> None:
        self._opening = opening
        self._in_list = in_list
        self._spare = spare
        self._next = TaggedJsonReader(opening, in_list=True)
        self._state: Callable[[str, list[Delta]], Verdict] = (
            self._between if spare is _SPARE_MARKS else self._in_front_of_end
        )
        # White space and commas in front of what may be the closing tag.
        self._gap = ""
        self._seen = ""

    @property
    def verbatim(self) -> Verbatim | None:
        """See `Fluent`."""
        return self._next.verbatim if self._state == self._in_next else None

    def feed(self, text: str, out: list[Delta]) -> Verdict:
        """Read on; see `CallReader`."""
        return self._state(text, out)

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused | Ended | LeftOpen:
        """Decide at the end of the text; see `CallReader`."""
        if self._state == self._in_next:
            return self._next.finish(whole=whole, out=out)
        if len(self._seen) >= MIN_BEGUN and END.startswith(self._seen):
            return Ended("")
        return Refused()

    def _between(self, text: str, out: list[Delta]) -> Verdict:
        pos = _BETWEEN.match(text).end()  # type: ignore[union-attr]
        self._gap += text[:pos]
        if pos == len(text):
            return None
        if text[pos] == "{":
            self._next = TaggedJsonReader(self._opening, in_list=self._in_list)
            self._state = self._in_next
            return self._next.feed(text[pos:], out)
        if text[pos] == "]" and self._in_list:
            return Ended(text[pos + 1 :], AfterObject(self._opening))
        self._state = self._in_front_of_end
        return self._in_front_of_end(text[pos:], out)

    def _in_next(self, text: str, out: list[Delta]) -> Verdict:
        return self._next.feed(text, out)

    def _in_front_of_end(self, text: str, out: list[Delta]) -> Verdict:
        self._seen += text
        spare = self._spare.match(self._seen)
        end = spare.end() if spare else 0
        if self._seen.startswith(END, end):
            marks = self._seen[:end].rstrip()
            rest = self._seen[end + len(END) :]
            return Ended(rest, spare=self._gap + marks if marks else "")
        return None if END.startswith(self._seen[end:]) else Refused()
