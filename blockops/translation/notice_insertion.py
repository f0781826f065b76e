"""
What blockops itself says within an answer, and where in it that may stand.

An aside belongs to one choice. It stands in the choice's content, where a client cannot take it for
the model's thoughts or for a part of a call:

- "opens": in front of the content, behind the think block that the content may begin with;
- "closes": behind the content, in front of the finish reason, and only where no call was made;
- "thinks": in front of everything, as `reasoning_content`.

Where none of these places comes up, it is not said.
"""

from __future__ import annotations

from typing import Any, Literal

from blockops.api.chat.chunks import Choice, Piece, Rewritten
from blockops.translation.choice import Rewriter, as_it_came

Place = Literal["opens", "closes", "thinks"]

_THINK = "<think>"
_THOUGHT = "</think>"
# White space that may stand in front of a think block: it is held back until that is known.
_MOST_SPACE = 64
# Finish reasons behind which the answer is not at its end, or not for a person.
_NO_END = frozenset({"length", "content_filter", "tool_calls", "function_call"})


class Aside:
    """
    Something to be said once, in one answer.

    :ivar text: what; may be set until the answer begins
    :ivar said: whether there was a place for it
    """

    __slots__ = ("place", "said", "text")

    def __init__(self, place: Place = "opens", text: str = "") -> None:
        self.place = place
        self.text = text
        self.said = False


class ThinkBlock:
    """
    Follows the think block that a text may begin with.

    :param inside: the text begins within it: the prompt has opened it
    :ivar inside: it has begun and not ended
    :ivar passed: the text is beyond it, or has none
    """

    __slots__ = ("_held", "_thought", "inside", "passed")

    def __init__(self, *, inside: bool = False) -> None:
        self.inside = inside
        self.passed = False
        self._thought = inside
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """
        Cut the text that has come where the block lies behind, and the white space behind it.

        :returns: what is in front of that place, and what is behind it; the second is empty, and
            some of the first may be held back, as long as the place was not reached
        """
        text, self._held = self._held + text, ""
        if not self._thought:
            return self._begin(text)
        return self._think(text) if self.inside else self._go_beyond("", text)

    def release(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held

    def _begin(self, text: str) -> tuple[str, str]:
        said = text.lstrip()
        if len(text) - len(said) < _MOST_SPACE:
            if said.startswith(_THINK):
                self._thought = self.inside = True
                return self._think(text)
            if _THINK.startswith(said):
                self._held = text
                return "", ""
        self.passed = True
        return "", text

    def _think(self, text: str) -> tuple[str, str]:
        end = text.find(_THOUGHT)
        if end >= 0:
            self.inside = False
            return self._go_beyond(text[: end + len(_THOUGHT)], text[end + len(_THOUGHT) :])
        # What may be the beginning of the end waits for the rest of it.
        keep = next(n for n in range(len(_THOUGHT) - 1, -1, -1) if text.endswith(_THOUGHT[:n]))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def _go_beyond(self, before: str, text: str) -> tuple[str, str]:
        rest = text.lstrip()
        self.passed = bool(rest)
        return before + text[: len(text) - len(rest)], rest


class AsideChoice:
    """
    A choice in which an aside is to be said; for all else it is the choice that it wraps.

    :param prefilled: the prompt has opened the model's think block
    """

    __slots__ = ("_aside", "_block", "_choice", "_over")

    def __init__(self, choice: Rewriter, aside: Aside, *, prefilled: bool) -> None:
        self._choice = choice
        self._aside = aside
        self._block = ThinkBlock(inside=prefilled)
        self._over = False

    @property
    def finished(self) -> bool:
        """Whether the choice has had its finish reason, or its cut."""
        return self._choice.finished

    @property
    def plainly(self) -> Rewriter | None:
        """What stands for the choice from here on, if that is only text to it; else None."""
        return self._choice.plainly if self._over else None

    def begin(self) -> list[Piece]:
        """Return the delta with the role, if none has left yet."""
        return self._choice.begin()

    def take(self, choice: Choice) -> Rewritten | None:
        """Return what this part of the choice becomes; None if it may go as it came."""
        becomes = self._choice.take(choice)
        if not self._aside.text:
            self._over = True
        if self._over:
            return becomes
        pieces = _as_it_came(choice) if becomes is None else becomes.pieces
        if self._aside.place == "thinks":
            lead, pieces = self._think(pieces)
            return Rewritten(pieces, shift=0 if becomes is None else becomes.shift, lead=lead)
        placed = self._placed(pieces, calls=_has_calls(choice))
        if placed == pieces:
            return becomes
        if becomes is None:
            return Rewritten(placed)
        becomes.pieces = placed
        return becomes

    def release(self) -> list[Piece]:
        """Return what was held back, the answer being cut here."""
        return [*self._held(), *self._choice.release()]

    def complete(self) -> list[Piece]:
        """Return the end of a choice to which the backend gave no finish reason."""
        pieces = self._choice.complete()
        over = self._over or not self._aside.text
        return pieces if over else self._placed(pieces, calls=False)

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        """Return the `choices` entry of a chunk of ours."""
        return self._choice.chunk_choice(piece)

    def _placed(self, pieces: list[Piece], *, calls: bool) -> list[Piece]:
        """
        Return `pieces`, with the aside among them if this is its place.

        :param calls: the backend's own calls come with them
        """
        if self._aside.place == "thinks":
            lead, pieces = self._think(pieces)
            return [*lead, *pieces]
        # Where calls come with the answer's end, that is no place: they stand in front of it.
        end = next((piece.finish_reason for piece in pieces if piece.finish_reason), None)
        if calls and end:
            pieces = [Piece(piece.delta) for piece in pieces]
        placed = [each for piece in pieces for each in self._beside(piece)]
        if not calls:
            return placed
        placed += [] if self._over else self._give_up()
        return _with_end(placed, end) if end else placed

    def _beside(self, piece: Piece) -> list[Piece]:
        """Return a piece, with the aside beside it if this is its place."""
        given = self._give_up() if "tool_calls" in piece.delta and not self._over else []
        if self._over:
            return [*given, piece]
        return self._open(piece) if self._aside.place == "opens" else self._close(piece)

    def _say(self) -> str:
        self._over = self._aside.said = True
        return self._aside.text

    def _give_up(self) -> list[Piece]:
        """Let the aside be; return what was held back for it."""
        self._over = True
        return self._held()

    def _held(self) -> list[Piece]:
        held = self._block.release() if self._aside.place == "opens" else ""
        return [Piece({"content": held})] if held else []

    def _think(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Return the aside, behind the role if that is there, and the pieces without it."""
        thought = Piece({"reasoning_content": self._say()})
        if not pieces or "role" not in pieces[0].delta:
            return [thought], pieces
        role, *rest = pieces
        said = {key: value for key, value in role.delta.items() if key != "role"}
        first = [Piece(said, role.finish_reason)] if said or role.finish_reason else []
        return [Piece({"role": role.delta["role"]}), thought], [*first, *rest]

    def _open(self, piece: Piece) -> list[Piece]:
        text = piece.delta.get("content")
        if text:
            before, behind = self._block.feed(text)
            said = before + self._say() + behind if behind else before
            piece = Piece({**piece.delta, "content": said}, piece.finish_reason)
        if piece.finish_reason is None or self._over:
            return [piece]
        held = self._block.release()
        at_its_end = piece.finish_reason not in _NO_END and not self._block.inside
        said = self._say() + held if at_its_end else held
        return _with_content(piece, said)

    def _close(self, piece: Piece) -> list[Piece]:
        text = piece.delta.get("content")
        if text and not self._block.passed:
            self._block.feed(text)
        if piece.finish_reason is None or piece.finish_reason in _NO_END or self._block.inside:
            return [piece]
        return _with_content(piece, self._say())


def _with_end(pieces: list[Piece], finish_reason: str) -> list[Piece]:
    *before, last = pieces or [Piece({})]
    return [*before, Piece(last.delta, finish_reason)]


def _with_content(terminal: Piece, text: str) -> list[Piece]:
    """Return the pieces of a choice's end, with `text` in front of the finish reason."""
    before = [Piece(terminal.delta)] if terminal.delta else []
    said = [Piece({"content": text})] if text else []
    return [*before, *said, Piece({}, terminal.finish_reason)]


def _as_it_came(choice: Choice) -> list[Piece]:
    """Return the piece that says what this part of a choice says, its role too."""
    pieces = as_it_came(choice)
    role = choice.delta.role if choice.delta is not None else None
    if role:
        pieces[0].delta = {"role": role, **pieces[0].delta}
    return pieces


def _has_calls(choice: Choice) -> bool:
    delta = choice.delta
    return delta is not None and (bool(delta.tool_calls) or delta.function_call is not None)
