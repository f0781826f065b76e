"""What the formats share whose calls are JSON objects: one object, and what may go wrong in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from blockops.toolcalls.events import CallArguments, CallEnded, Delta
from blockops.toolcalls.grammar.json_call import CallObject
from blockops.toolcalls.grammar.json_stream import Standing
from blockops.toolcalls.partial_match import begun_at_the_end
from blockops.toolcalls.reader import Ended, LeftOpen, Opening, Refused
from blockops.toolcalls.verbatim import Verbatim

MAX_LOOSE = 1_024
"""Characters behind complete arguments that are kept, to be shown if they are no JSON."""

_MAX_KEPT = MAX_LOOSE + 16
"""One more, and what a comment may have swallowed of a closing tag."""

Verdict = Refused | Ended | None


class ObjectReader(ABC):
    """
    Reads one JSON object and, where its arguments break, raw text up to `end_of_raw`.

    A subclass says what stands in front of the object, what happens behind a whole one, where
    arguments end that broke, and what no comment may swallow.
    """

    end_of_raw = ""
    end_of_comment = ""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._object = CallObject(opening, self.end_of_comment)
        self._state: Callable[[str, list[Delta]], Verdict] = self._first
        # What was read and is not decided on.
        self._seen = ""
        # What was read behind the last member of an object whose arguments are complete.
        self._loose = ""

    @property
    def verbatim(self) -> Verbatim | None:
        """See `Fluent`."""
        return self._object.verbatim if self._state == self._in_object else None

    def feed(self, text: str, out: list[Delta]) -> Verdict:
        """Read on; see `CallReader`."""
        return self._state(text, out)

    def finish(self, *, whole: bool, out: list[Delta]) -> Refused | Ended | LeftOpen:
        """Decide at the end of the text; see `CallReader`."""
        if whole and self._state == self._in_raw:
            return self._end_raw(self._seen, "", out)
        if whole and self._object.complete(out):
            return self._ended("")
        if not self._object.began:
            return Refused()
        in_arguments = self._state == self._in_object and not self._object.has_arguments
        if in_arguments and (raw := self._object.raw()):
            # The beginning of a word or an escape: it came, so it is shown.
            out.append(CallArguments(raw))
        return LeftOpen()

    @abstractmethod
    def _first(self, text: str, out: list[Delta]) -> Verdict:
        """Read on in front of the object."""
        ...

    @abstractmethod
    def _whole_at(self, text: str, out: list[Delta]) -> Verdict:
        """Decide what happens behind a whole object."""
        ...

    def _broken_at(self, text: str, out: list[Delta]) -> Verdict:
        """Decide on what the object cannot hold."""
        call = self._object
        if not call.began:
            return Refused()
        self._opening.tally["malformed"] += 1
        if call.has_arguments:
            call.end(out)
            loose = self._loose if len(self._loose) <= MAX_LOOSE else ""
            return self._behind_broken(loose + text)
        self._state = self._in_raw
        self._seen = ""
        return self._in_raw(call.raw() + text, out)

    def _behind_broken(self, rest: str) -> Ended:
        return Ended(rest)

    def _ended(self, rest: str) -> Ended:
        if self._object.flaws:
            self._opening.tally["malformed"] += 1
        return Ended(rest)

    def _object_at(self, text: str, pos: int, out: list[Delta]) -> Verdict:
        self._state = self._in_object
        return self._read(text, pos, out)

    def _in_object(self, text: str, out: list[Delta]) -> Verdict:
        return self._read(text, 0, out)

    def _read(self, text: str, start: int, out: list[Delta]) -> Verdict:
        call = self._object
        pos = call.feed(text, start, out)
        if call.standing is Standing.WHOLE:
            return self._whole_at(text[pos:], out)
        if call.has_arguments:
            self._keep(text[:pos])
        if call.standing is Standing.OPEN:
            return None
        self._loose = self._loose.removesuffix(call.stopped)
        return self._broken_at(call.stopped + text[pos:], out)

    def _keep(self, text: str) -> None:
        settled = self._object.settled
        if settled >= 0:
            self._loose = text[settled:][:_MAX_KEPT]
        else:
            self._loose += text[: _MAX_KEPT - len(self._loose)]

    def _in_raw(self, text: str, out: list[Delta]) -> Verdict:
        """Pass broken arguments as they are, up to where they end."""
        text = self._seen + text
        end = text.find(self.end_of_raw)
        if end >= 0:
            return self._end_raw(text[:end], text[end:], out)
        held = begun_at_the_end(text, self.end_of_raw)
        self._seen = text[held:]
        if held:
            out.append(CallArguments(text[:held]))
        return None

    def _end_raw(self, raw: str, rest: str, out: list[Delta]) -> Ended:
        if raw:
            out.append(CallArguments(raw))
        out.append(CallEnded())
        return Ended(rest)
