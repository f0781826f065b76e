"""
The text of one choice, cut anywhere, to text, reasoning and calls.

Four things may be going on, each a state:

- *searching*: the scanner reads text, up to an opener;
- *trying*: a format's reader reads on behind the opener, and everything it reads is kept. If it
  refuses, the next format with that opener is asked; if all refuse, or the text kept outgrows
  `max_hold`, the opener is text, and the search goes on right behind it;
- *streaming*: the call began, and its reader's deltas go out as they come;
- *dropping*: the same for a call that must not go out (`parallel_tool_calls: false`).

Behind a call a reader may name another one, for what may follow in the same frame: trying again,
this time with no opener to give back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from blockops.toolcalls.events import (
    CallArguments,
    CallBegan,
    CallEnded,
    Delta,
    Text,
)
from blockops.toolcalls.opener_counter import OpenerCount
from blockops.toolcalls.options import Rules
from blockops.toolcalls.reader import (
    CallReader,
    Ended,
    Fluent,
    LeftOpen,
    Opening,
    Refused,
    ToolCallFormat,
)
from blockops.toolcalls.scanner import Opened, TextScanner, literals_of
from blockops.toolcalls.tools import Offer
from blockops.toolcalls.verbatim import Verbatim

_WHOLE = frozenset({"stop", "tool_calls", "function_call", "eos", "eos_token", "end_turn"})
"""The finish reasons that say that the model ended by itself."""

MAX_PIECE = 8_192
"""Characters that are read at once: behind an opener that opens nothing, all of them are copied."""


class ToolCallParser:
    """
    Read the text of one choice as it arrives.

    What comes out, joined, is a function of what went in, joined: the cuts do not matter.

    :param offer: what the request offers
    :param rules: what the operator has set
    :ivar tally: how often something worth counting was met: "calls", "unknown_name", "malformed",
        "unclosed" (calls that were cut off), "dropped_parallel", "gave_up" (more than `max_hold`
        was held back), "untranslated" (openers where nothing is translated), "think_calls"
    :ivar verbatim: text that need not be fed: it would only be handed on; None where a closer
        look is needed
    :ivar in_call: whether it would be handed on as a piece of a call's arguments
    """

    __slots__ = (
        "_count",
        "_drafts",
        "_fluent",
        "_format",
        "_glides",
        "_kept",
        "_literals",
        "_offer",
        "_opening",
        "_read",
        "_reader",
        "_room",
        "_rules",
        "_scanner",
        "_searches",
        "_untried",
        "in_call",
        "tally",
        "verbatim",
    )

    def __init__(self, offer: Offer, rules: Rules = Rules()) -> None:  # noqa: B008 (frozen)
        self._offer = offer
        self._rules = rules
        self.tally: Counter[str] = Counter()
        translate = offer.translate or rules.translate == "always"
        split = rules.reasoning == "split"
        self._drafts = Drafts(offer, rules) if translate and rules.think_calls else None
        self._count = None if translate else OpenerCount(rules.formats)
        self._literals = literals_of(rules.formats if translate else ())
        self._scanner = TextScanner(
            self._literals,
            fenced_calls=rules.fenced_calls,
            split=split,
            prefilled=rules.think_prefilled,
            # Where nothing is translated, nothing waits for a call.
            max_hold=rules.max_hold if translate else 0,
            thoughts=self._drafts.hear if self._drafts else str,
        )
        self._searches = translate or split
        self._read: Callable[[str, list[Delta]], str] = self._search
        self._reader: CallReader
        self._fluent: Fluent | None = None
        self._opening: Opening
        self._format = ""
        self._untried: Sequence[ToolCallFormat] = ()
        # What was read since the attempt began, behind its opener, and what may still be read.
        self._kept: list[str] = []
        self._room = 0
        self.in_call = False
        self.verbatim: Verbatim | None = None
        # Says of other text that it would come back but for spaces at its end.
        self._glides: Callable[[str], object] = _never
        self._look_ahead()

    def feed(self, text: str) -> list[Delta]:
        """
        Return what `text` makes certain; text is merged, so that no two `Text` are neighbours.

        Text that nothing has to be decided on comes back as exactly `[Text(text)]`.
        """
        if self._count and (seen := self._count.feed(text)):
            self.tally["untranslated"] += seen
        if not text:
            return []
        if not self._searches:
            return [Text(text)]
        verbatim = self.verbatim
        if verbatim is not None and verbatim.text.fullmatch(text):
            return [CallArguments(verbatim.handed_on(text)) if self.in_call else Text(text)]
        if self._glides(text):
            said = self._scanner.glide(text)
            self._look_ahead_in_line()
            return [Text(said)]
        out: list[Delta] = []
        self._read_all(text, out)
        self._scanner.flush(out)
        self._look_ahead()
        return out

    def _look_ahead(self) -> None:
        """Note which text that comes next has not to be looked at any closer."""
        self._glides = _never
        self.verbatim = None
        self.in_call = self._read == self._stream
        if self.in_call:
            self.verbatim = self._fluent.verbatim if self._fluent is not None else None
        elif self._read == self._search and self._scanner.gliding:
            self._glides = self._literals.is_spaced
            self._look_ahead_in_line()

    def _look_ahead_in_line(self) -> None:
        # Where openers are counted, all text is looked at.
        plain = self._scanner.ready and self._count is None
        self.verbatim = self._literals.plain if plain else None

    def finish(self, reason: str | None) -> list[Delta]:
        """
        Return what the end makes certain.

        :param reason: the backend's finish reason; None when it ended without one
        """
        whole = reason in _WHOLE
        out: list[Delta] = []
        while self._read != self._search:
            self._read_all(self._end_reader(out, whole=whole), out)
        self._scanner.finish(out)
        if self._drafts and whole and not self.tally["calls"]:
            self._add_draft(self._drafts, out)
        return out

    def _read_all(self, text: str, out: list[Delta]) -> None:
        """Read `text`, and what is given back of it, in pieces."""
        if 0 < len(text) <= MAX_PIECE:
            text = self._read(text, out)
        waiting = _pieces(text)
        while waiting:
            if rest := self._read(waiting.pop(), out):
                waiting += _pieces(rest)

    # Searching.

    def _search(self, text: str, out: list[Delta]) -> str:
        opened = self._scanner.feed(text, out)
        if opened is None:
            return ""
        self._try_formats(opened)
        return opened.rest

    def _try_formats(self, opened: Opened) -> None:
        self._opening = Opening(
            literal=opened.literal,
            offer=self._offer,
            offered_only=opened.in_code,
            max_hold=self._rules.max_hold,
            tally=self.tally,
        )
        self._untried = opened.formats
        self._try(self._next_reader(), opened.literal)

    def _next_reader(self) -> CallReader:
        """Return the reader of the format that is asked next."""
        asked, *self._untried = self._untried
        self._format = asked.name
        return asked.reader(self._opening)

    def _try(self, reader: CallReader, literal: str) -> None:
        self._reader = reader
        self._kept = [literal]
        self._room = self._rules.max_hold - len(literal)
        self._read = self._attempt

    # Trying.

    def _attempt(self, text: str, out: list[Delta]) -> str:
        if self._room <= 0:
            self.tally["gave_up"] += 1
            return self._give_back() + text
        piece = text if len(text) <= self._room else text[: self._room]
        rest = text[len(piece) :]
        self._kept.append(piece)
        self._room -= len(piece)
        deltas: list[Delta] = []
        verdict = self._reader.feed(piece, deltas)
        while isinstance(verdict, Refused) and self._next_format():
            verdict = self._reader.feed("".join(self._kept[1:]), deltas)
        if isinstance(verdict, Refused):
            return self._give_back() + rest
        if deltas:
            self._begin_call(deltas, out)
        return rest if verdict is None else self._end_call(verdict, out) + rest

    def _next_format(self) -> bool:
        if self._untried:
            self._reader = self._next_reader()
            return True
        return False

    def _give_back(self) -> str:
        """Give up the attempt: its opener is text, and what stands behind it is read again."""
        literal, *kept = self._kept
        self._stop_trying()
        if literal:
            self._scanner.take_for_text(literal)
        return "".join(kept)

    def _stop_trying(self) -> None:
        self._untried = ()
        self._kept = []
        self._read = self._search

    # Streaming and dropping.

    def _begin_call(self, deltas: list[Delta], out: list[Delta]) -> None:
        began = deltas[0]
        assert isinstance(began, CallBegan)
        self._kept = []
        self._scanner.call_began()
        if began.name not in self._offer.schemas:
            self.tally["unknown_name"] += 1
        if self.tally["calls"] and not self._offer.parallel:
            self.tally["dropped_parallel"] += 1
            self._read = self._drop
        else:
            self.tally["calls"] += 1
            self._read = self._stream
            self._fluent = self._reader if isinstance(self._reader, Fluent) else None
            self._scanner.flush(out)
            out.append(CallBegan(began.name, self._format))
            out.extend(deltas[1:])

    def _stream(self, text: str, out: list[Delta]) -> str:
        verdict = self._reader.feed(text, out)
        return "" if verdict is None else self._end_call(verdict, out)

    def _drop(self, text: str, out: list[Delta]) -> str:
        return (
            "" if (verdict := self._reader.feed(text, [])) is None else self._end_call(verdict, out)
        )

    def _end_call(self, verdict: Refused | Ended, out: list[Delta]) -> str:
        assert isinstance(verdict, Ended)
        self._stop_trying()
        self._scanner.call_passed()
        if verdict.spare:
            self._scanner.take_for_text(verdict.spare)
        if verdict.then:
            self._try(verdict.then, "")
        return verdict.rest

    # The end.

    def _end_reader(self, out: list[Delta], *, whole: bool) -> str:
        """Let the reader decide; return the text that is to be read again."""
        deltas: list[Delta] = []
        verdict = self._reader.finish(whole=whole, out=deltas)
        if isinstance(verdict, Refused):
            if self._next_format():
                kept = "".join(self._kept[1:])
                self._kept = self._kept[:1]
                self._room = self._rules.max_hold - len(self._kept[0])
                return kept
            return self._give_back()
        if self._read == self._attempt and deltas:
            self._begin_call(deltas, out)
        elif self._read == self._stream:
            out.extend(deltas)
        if isinstance(verdict, LeftOpen):
            self.tally["unclosed"] += 1
            self._stop_trying()
            return ""
        return self._end_call(verdict, out)

    def _add_draft(self, drafts: Drafts, out: list[Delta]) -> None:
        drafts.hear(None)
        if drafts.call:
            self.tally["calls"] += 1
            self.tally["think_calls"] += 1
            out.extend(drafts.call)


class Drafts:
    """
    The calls that stand in think blocks: the last one that is complete and offered is kept.

    :param offer: what the request offers
    :param rules: what the operator has set
    :ivar call: the deltas of that call; empty as long as there is none
    """

    def __init__(self, offer: Offer, rules: Rules) -> None:
        self._offer = offer
        self._rules = replace(rules, think_calls=False, think_prefilled=False, reasoning="keep")
        self._parser: ToolCallParser | None = None
        self._began = CallBegan("")
        self._pieces: list[str] = []
        self._length = 0
        self.call: list[Delta] = []

    def hear(self, text: str | None) -> None:
        """Read on in a think block; None ends the block."""
        if self._parser is None:
            self._parser = ToolCallParser(self._offer, self._rules)
        if text is None:
            deltas = self._parser.finish("stop")
            self._parser = None
        else:
            deltas = self._parser.feed(text)
        for delta in deltas:
            self._note(delta)

    def _note(self, delta: Delta) -> None:
        if isinstance(delta, CallBegan):
            self._began = delta
            self._pieces = []
            self._length = 0
        elif isinstance(delta, CallArguments):
            self._length += len(delta.text)
            if self._length <= self._rules.max_hold:
                self._pieces.append(delta.text)
        elif isinstance(delta, CallEnded) and self._began.name in self._offer.schemas:
            arguments = "".join(self._pieces)
            if self._length <= self._rules.max_hold and _is_json(arguments):
                self.call = [self._began, CallArguments(arguments), CallEnded()]


def _never(_: str) -> None:
    """Agree to nothing."""


def _pieces(text: str) -> list[str]:
    """Cut `text` into pieces of at most `MAX_PIECE` characters, the first one last."""
    if len(text) <= MAX_PIECE:
        return [text] if text else []
    starts = range(0, len(text), MAX_PIECE)
    return [text[start : start + MAX_PIECE] for start in reversed(starts)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
