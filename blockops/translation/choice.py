"""
One choice of an answer: what its parser finds becomes deltas, calls get ids and indexes.

A choice goes through these states, each a method that takes the next part of it:

    _open_up -> _speak -> _pass_calls -> _say_no_more
                    |______________________^

`_open_up` sees to the role, `_speak` translates, `_pass_calls` lets the backend's own structured
calls through, and behind the finish reason nothing counts any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from blockops.api.chat.chunks import Choice, Delta, Fragment, Function, Piece, Rewritten, ToolCall
from blockops.api.report import STRUCTURED, Report
from blockops.toolcalls import events as found
from blockops.toolcalls.options import Rules
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import Offer
from blockops.toolcalls.verbatim import Verbatim

# Finish reasons by which a backend says that the model came to its end.
_AT_ITS_END = frozenset({"stop", "tool_calls", "function_call", "eos", "eos_token", "end_turn"})
# Finish reasons that mean something to the parser; any other is as good as none.
_MEANT = _AT_ITS_END | {"length", "content_filter"}
# A backend that parses calls itself may let the beginning of a tag slip into the content.
_LEAKED_TAG = "<tool_call>"
_LEAKED_AT_LEAST = "<tool"
# Characters of a structured call's arguments that are kept to see whether it is whole.
_MAX_ARGUMENTS = 1024 * 1024

_NO_DELTA = Delta()


class Rewriter:
    """
    Rewrite one choice.

    :param index: the choice's
    :param new_id: makes the ids of calls
    :param report: is told of calls, finish reasons and what the parser counts
    """

    __slots__ = (
        "_calls",
        "_forced",
        "_index",
        "_new_id",
        "_open_calls",
        "_parser",
        "_report",
        "_shift",
        "_state",
        "_structured",
    )

    def __init__(
        self, index: int, offer: Offer, rules: Rules, new_id: Callable[[], str], report: Report
    ) -> None:
        self._index = index
        self._parser = ToolCallParser(offer, rules)
        self._forced = offer.forced is not None
        self._new_id = new_id
        self._report = report
        self._calls = 0
        self._open_calls = 0
        self._structured = StructuredCalls()
        self._shift = 0
        self._state = Rewriter._open_up

    @property
    def finished(self) -> bool:
        """Whether the choice has had its finish reason, or its cut."""
        return self._state is Rewriter._say_no_more

    def begin(self) -> list[Piece]:
        """Return the delta with the role, if none has left yet."""
        if self._state is not Rewriter._open_up:
            return []
        self._state = Rewriter._speak
        return [Piece({"role": "assistant"})]

    def take(self, choice: Choice) -> Rewritten | None:
        """Return what this part of the choice becomes; None if it may go as it came."""
        again = self._state is not Rewriter._open_up and _says_role(choice)
        becomes = self._state(self, choice)
        if becomes is None and (again or choice.delta is None or choice.index is None):
            return Rewritten(as_it_came(choice))
        return becomes

    @property
    def plainly(self) -> Rewriter | None:
        """The choice, while `say` may be asked; None where more than text counts."""
        return self if self._state is Rewriter._speak else None

    def say(self, text: str) -> list[Piece] | Fragment | None:
        """Return what a delta becomes that is only `text`; None if it may go as it came."""
        deltas = self._parser.feed(text)
        if len(deltas) == 1:
            delta = deltas[0]
            if isinstance(delta, found.CallArguments):
                return Fragment(delta.text, self._calls - 1)
            if isinstance(delta, found.Text):
                return None if delta.text is text else Fragment(delta.text)
        return self._pieces(deltas) if text else None

    @property
    def in_call(self) -> bool:
        """Whether it is a call's arguments that come next, as far as one knows."""
        return self._parser.in_call

    @property
    def verbatim(self) -> tuple[Verbatim | None, int | None]:
        """Text that `say` would only hand on, and into which call's arguments, if any."""
        parser = self._parser
        return parser.verbatim, self._calls - 1 if parser.in_call else None

    def release(self) -> list[Piece]:
        """Return what was held back, the answer being cut here; no finish reason is made up."""
        if self.finished:
            return []
        pieces = self._with_role(self._unheld())
        self._close()
        return pieces

    def complete(self) -> list[Piece]:
        """Return the end of a choice to which the backend gave no finish reason."""
        if self.finished:
            return []
        pieces = [*self.begin(), *self._unheld()]
        if self._open_calls or not self._structured.whole:
            reason = "length"
        elif self._calls or self._structured.begun:
            reason = self._told("tool_calls")
        else:
            reason = "stop"
        return [*pieces, self._terminal(reason)]

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        """Return the `choices` entry of a chunk of ours."""
        return {"index": self._index, "delta": piece.delta, "finish_reason": piece.finish_reason}

    def _with_role(self, pieces: list[Piece]) -> list[Piece]:
        return [*self.begin(), *pieces] if pieces else []

    def _unheld(self) -> list[Piece]:
        if self._state is Rewriter._pass_calls:
            return []
        return self._pieces(self._parser.finish(None))

    def _open_up(self, choice: Choice) -> Rewritten | None:
        self._state = Rewriter._speak
        becomes = self._speak(choice)
        role = choice.delta.role if choice.delta is not None else None
        if becomes is None:
            if role and choice.index is not None:
                return None
            becomes = Rewritten(as_it_came(choice))
        first = becomes.pieces[0] if becomes.pieces else Piece({})
        first.delta = {"role": role or "assistant", **first.delta}
        becomes.pieces[:1] = [first]
        return becomes

    def _speak(self, choice: Choice) -> Rewritten | None:
        delta = choice.delta or _NO_DELTA
        if delta.tool_calls or delta.function_call is not None:
            return self._begin_calls(choice, delta)
        text = delta.content
        if choice.finish_reason:
            return self._finish(text, choice.finish_reason)
        said = self.say(text) if text else None
        if said is None:
            return None
        return Rewritten([said.piece()] if isinstance(said, Fragment) else said)

    def _finish(self, text: str | None, reason: str) -> Rewritten | None:
        deltas = self._parser.feed(text) if text else []
        same = _is_just(deltas, text)
        closing = self._parser.finish(reason if reason in _MEANT else None)
        pieces = self._pieces([*deltas, *closing])
        told = self._told(reason)
        terminal = self._terminal(told)
        if same and not closing and told == reason:
            return None
        return Rewritten([*pieces, terminal])

    def _begin_calls(self, choice: Choice, delta: Delta) -> Rewritten | None:
        deltas = self._parser.feed(delta.content) if delta.content else []
        same = _is_just(deltas, delta.content)
        held = self._parser.finish(None)
        if _may_vanish(held):
            held = []
        pieces = self._pieces([*deltas, *held])
        self._shift = self._calls
        self._state = Rewriter._pass_calls
        return self._rewrite_calls(choice, pieces, same=same and not held)

    def _pass_calls(self, choice: Choice) -> Rewritten | None:
        content = choice.delta.content if choice.delta is not None else None
        pieces = [Piece({"content": content})] if content else []
        return self._rewrite_calls(choice, pieces, same=True)

    def _rewrite_calls(
        self, choice: Choice, content: list[Piece], *, same: bool
    ) -> Rewritten | None:
        """
        Note the backend's own calls, and return what this part of the choice becomes.

        :param content: the pieces that its content becomes
        :param same: whether they are just what came
        """
        for name in self._structured.note(choice.delta or _NO_DELTA):
            self._report.call_began(name, STRUCTURED)
        told = self._told(choice.finish_reason) if choice.finish_reason else None
        end = [self._terminal(told)] if told else []
        if same and not self._shift and told == (choice.finish_reason or None):
            return None
        return Rewritten([*content, *end], shift=self._shift)

    def _say_no_more(self, choice: Choice) -> Rewritten:
        if choice.delta is not None and choice.delta.content:
            self._report.tally["after_finish"] += 1
        return Rewritten([], "nowhere")

    def _told(self, reason: str) -> str:
        """Return the finish reason that the client is told, for the one of the backend."""
        if reason not in _AT_ITS_END:
            return reason
        if self._open_calls:
            return "length"  # cut, whatever the backend says
        if not self._calls:
            unseen = reason == "tool_calls" and not self._structured.begun
            return "stop" if unseen else reason  # mlx-lm says so of calls that it has swallowed
        return "stop" if self._forced else "tool_calls"

    def _terminal(self, reason: str) -> Piece:
        self._report.finish_reasons[self._index] = reason
        self._close()
        return Piece({}, reason)

    def _close(self) -> None:
        self._report.tally.update(self._parser.tally)
        self._state = Rewriter._say_no_more

    def _pieces(self, deltas: Sequence[found.Delta]) -> list[Piece]:
        pieces: list[Piece] = []
        for delta in deltas:
            if isinstance(delta, found.CallArguments):
                pieces.append(Fragment(delta.text, self._calls - 1).piece())
            elif isinstance(delta, found.Text):
                _append_text(pieces, "content", delta.text)
            elif isinstance(delta, found.CallBegan):
                pieces.append(self._call_began(delta))
            elif isinstance(delta, found.CallEnded):
                self._open_calls -= 1
            else:
                _append_text(pieces, "reasoning_content", delta.text)
        return pieces

    def _call_began(self, call: found.CallBegan) -> Piece:
        index = self._calls
        self._calls += 1
        self._open_calls += 1
        self._report.call_began(call.name, call.format)
        return _call_piece(
            {
                "index": index,
                "id": self._new_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
        )


class StructuredCalls:
    """
    The calls that the backend itself sends, as far as a report and a missing end need them.

    :ivar begun: whether there was one
    """

    __slots__ = ("_arguments", "_kept", "_last", "begun")

    def __init__(self) -> None:
        self.begun = False
        self._last = -1  # the index of the call that began last
        self._arguments: list[str] = []  # of the call that began last
        self._kept = 0

    @property
    def whole(self) -> bool:
        """Whether the arguments of the last call are a whole JSON object, as far as one knows."""
        if not self.begun:
            return True
        try:
            return isinstance(json.loads("".join(self._arguments)), dict)
        except (ValueError, RecursionError):
            return False

    def note(self, delta: Delta) -> list[str]:
        """Return the names of the calls that begin in `delta`."""
        names = [self._note(call) for call in delta.tool_calls or ()]
        if delta.function_call is not None:
            names.append(self._note(ToolCall(0, delta.function_call)))
        return [name for name in names if name]

    def _note(self, call: ToolCall) -> str | None:
        """Return the name of the call if it begins here."""
        function = call.function or Function()
        begins = bool(function.name) if call.index is None else call.index > self._last
        if begins:
            self.begun = True
            self._last = self._last + 1 if call.index is None else call.index
            self._arguments = []
            self._kept = 0
        arguments = function.arguments or ""
        self._kept += len(arguments)
        if self._kept <= _MAX_ARGUMENTS:
            self._arguments.append(arguments)
        return function.name if begins else None


def as_it_came(choice: Choice) -> list[Piece]:
    """Return the piece that says what this part of a choice says."""
    content = choice.delta.content if choice.delta is not None else None
    delta = {} if content is None else {"content": content}
    return [Piece(delta, choice.finish_reason or None)]


def _says_role(choice: Choice) -> bool:
    # openai for Python joins roles as it joins text: "assistantassistant".
    return choice.delta is not None and choice.delta.role is not None


def _is_just(deltas: Sequence[found.Delta], text: str | None) -> bool:
    """Tell whether the parser made nothing of `text` but that very text."""
    if not text:
        return True
    return len(deltas) == 1 and isinstance(deltas[0], found.Text) and deltas[0].text is text


def _may_vanish(held: Sequence[found.Delta]) -> bool:
    """Tell whether what was held in front of the backend's own call is white space or its tag."""
    if len(held) != 1 or not isinstance(held[0], found.Text):
        return False
    text = held[0].text.strip()
    return not text or (text.startswith(_LEAKED_AT_LEAST) and _LEAKED_TAG.startswith(text))


def _append_text(pieces: list[Piece], field: str, text: str) -> None:
    if pieces and field in pieces[-1].delta:
        pieces[-1].delta[field] += text
    else:
        pieces.append(Piece({field: text}))


def _call_piece(call: dict[str, Any]) -> Piece:
    return Piece({"tool_calls": [call]})
