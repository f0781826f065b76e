"""
Inserts a notice of blockops into one choice of an answer, where clients accept it.

A notice must not look like a part of a call, and only in the place "reasoning" may it look like the
model's reasoning. The places are:

- "before": before the content, but after the think block that may begin the content;
- "after": after the content, before the finish reason, and only if the choice has no calls;
- "reasoning": before everything else but the role, as `reasoning_content`.

A notice is not inserted if the answer has no such place: calls come first, the answer is truncated
before, or it ends within a think block.
"""

from __future__ import annotations

from typing import Any

from blockops.api.chat.chunks import ChoiceRewrite, ChunkChoice, OutgoingDelta
from blockops.api.notice import Notice
from blockops.translation.choice import ChoiceTranslator, to_deltas

_THINK_START = "<think>"
_THINK_END = "</think>"
# Upper bound, in characters, of the white space held back because a think block may follow it.
_MAX_SPACE = 64
# With these finish reasons the answer is incomplete, or not written for a person.
_UNFINISHED_REASONS = frozenset({"length", "content_filter", "tool_calls", "function_call"})


class ThinkBlockTracker:
    """
    Finds the end of the think block that a text may begin with.

        state      receives                       holds back                          next state
        ---------  -----------------------------  ----------------------------------  ----------
        at start   a beginning of white space     all of it                           at start
                   and `<think>`, with less
                   than `_MAX_SPACE` of it
                   white space and `<think>`      as inside                           is_inside
                   any other text                 nothing                             is_past
        is_inside  text without `</think>`        what may be the start of that tag   is_inside
                   `</think>`                     nothing                             at end
        at end     white space                    nothing                             at end
                   any other text                 nothing                             is_past

    :param is_inside: True if the text begins within the block, because the prompt has opened it
    :ivar is_inside: True between the start and the end of the block
    :ivar is_past: True once there was text after the block, or text without a block
    """

    __slots__ = ("_has_block", "_held_text", "is_inside", "is_past")

    def __init__(self, *, is_inside: bool = False) -> None:
        self.is_inside = is_inside
        self.is_past = False
        self._has_block = is_inside
        self._held_text = ""

    def feed(self, text: str) -> tuple[str, str]:
        """
        Split `text` after the block and the white space that follows it.

        :return: the text before that position, and the text after it. Until the position is
            reached, the second is empty, and some of the first may be held back.
        """
        text, self._held_text = self._held_text + text, ""
        if self._has_block:
            return self._find_end(text) if self.is_inside else self._split_after("", text)
        stripped = text.lstrip()
        if len(text) - len(stripped) < _MAX_SPACE:
            if stripped.startswith(_THINK_START):
                self._has_block = self.is_inside = True
                return self._find_end(text)
            if _THINK_START.startswith(stripped):
                self._held_text = text
                return "", ""
        self.is_past = True
        return "", text

    def flush(self) -> str:
        """Return the text held back."""
        text, self._held_text = self._held_text, ""
        return text

    def _find_end(self, text: str) -> tuple[str, str]:
        end = text.find(_THINK_END)
        if end >= 0:
            self.is_inside = False
            end += len(_THINK_END)
            return self._split_after(text[:end], text[end:])
        # Hold back what may be the start of the end tag.
        lengths = range(len(_THINK_END) - 1, -1, -1)
        split = len(text) - next(n for n in lengths if text.endswith(_THINK_END[:n]))
        self._held_text = text[split:]
        return text[:split], ""

    def _split_after(self, block: str, text: str) -> tuple[str, str]:
        rest = text.lstrip()
        self.is_past = bool(rest)
        return block + text[: len(text) - len(rest)], rest


class NoticeInserter:
    """
    A choice into which a notice is inserted. Otherwise it behaves like the choice that it wraps.

    :param is_prefilled: True if the prompt has opened the model's think block
    """

    __slots__ = ("_block", "_choice", "_is_done", "_notice")

    def __init__(self, choice: ChoiceTranslator, notice: Notice, *, is_prefilled: bool) -> None:
        self._choice = choice
        self._notice = notice
        self._block = ThinkBlockTracker(is_inside=is_prefilled)
        self._is_done = False  # True once the notice is inserted, or is not inserted any more

    @property
    def is_finished(self) -> bool:
        """True once the choice has had its finish reason, or was truncated."""
        return self._choice.is_finished

    def start(self) -> list[OutgoingDelta]:
        """Return the delta with the role; an empty list if the role has been sent."""
        return self._choice.start()

    def receive(self, choice: ChunkChoice) -> ChoiceRewrite | None:
        """Return the rewrite of this part of the choice, or None if it passes unchanged."""
        rewrite = self._choice.receive(choice)
        if not self._notice.text:
            self._is_done = True
        if self._is_done:
            return rewrite
        deltas = _to_deltas_with_role(choice) if rewrite is None else rewrite.deltas
        if self._notice.place == "reasoning":
            before, deltas = self._insert_reasoning(deltas)
            offset = 0 if rewrite is None else rewrite.index_offset
            return ChoiceRewrite(deltas, index_offset=offset, before=before)
        placed = self._place(deltas, has_calls=_has_calls(choice))
        if placed == deltas:
            return rewrite
        if rewrite is None:
            return ChoiceRewrite(placed)
        rewrite.deltas = placed
        return rewrite

    def flush(self) -> list[OutgoingDelta]:
        """End a truncated answer: return the text held back, without a finish reason."""
        return [*self._flush(), *self._choice.flush()]

    def finish(self) -> list[OutgoingDelta]:
        """End a choice for which the backend sent no finish reason; return its last deltas."""
        deltas = self._choice.finish()
        if self._is_done or not self._notice.text:
            return deltas
        return self._place(deltas, has_calls=False)

    def make_choice(self, delta: OutgoingDelta) -> dict[str, Any]:
        """Return the `choices` entry of a chunk for `delta`."""
        return self._choice.make_choice(delta)

    def _place(self, deltas: list[OutgoingDelta], *, has_calls: bool) -> list[OutgoingDelta]:
        """
        Return `deltas`, with the notice inserted if they reach its place.

        :param has_calls: True if the same part of the choice has calls of the backend
        """
        if self._notice.place == "reasoning":
            before, deltas = self._insert_reasoning(deltas)
            return [*before, *deltas]
        # The calls precede the finish reason of their part, so the notice would follow a call.
        end = next((delta.finish_reason for delta in deltas if delta.finish_reason), None)
        if has_calls and end:
            deltas = [OutgoingDelta(delta.fields) for delta in deltas]
        placed = [item for delta in deltas for item in self._place_around(delta)]
        if not has_calls:
            return placed
        if not self._is_done:
            placed += self._cancel()
        if not end:
            return placed
        *others, last = placed or [OutgoingDelta({})]
        return [*others, OutgoingDelta(last.fields, end)]

    def _place_around(self, delta: OutgoingDelta) -> list[OutgoingDelta]:
        """Return `delta`, with the notice if this is its place, or the text held back for it."""
        flushed = self._cancel() if "tool_calls" in delta.fields and not self._is_done else []
        if self._is_done:
            return [*flushed, delta]
        if self._notice.place == "before":
            return self._insert_before(delta)
        return self._insert_after(delta)

    def _deliver(self) -> str:
        self._is_done = self._notice.is_delivered = True
        return self._notice.text

    def _cancel(self) -> list[OutgoingDelta]:
        """Give up inserting the notice; return the text held back for it."""
        self._is_done = True
        return self._flush()

    def _flush(self) -> list[OutgoingDelta]:
        held_text = self._block.flush() if self._notice.place == "before" else ""
        return [OutgoingDelta({"content": held_text})] if held_text else []

    def _insert_reasoning(
        self, deltas: list[OutgoingDelta]
    ) -> tuple[list[OutgoingDelta], list[OutgoingDelta]]:
        """Return the notice, after the role if `deltas` begin with it, and the other deltas."""
        notice = OutgoingDelta({"reasoning_content": self._deliver()})
        if not deltas or "role" not in deltas[0].fields:
            return [notice], deltas
        first, *rest = deltas
        fields = {key: value for key, value in first.fields.items() if key != "role"}
        if fields or first.finish_reason:
            rest = [OutgoingDelta(fields, first.finish_reason), *rest]
        return [OutgoingDelta({"role": first.fields["role"]}), notice], rest

    def _insert_before(self, delta: OutgoingDelta) -> list[OutgoingDelta]:
        text = delta.fields.get("content")
        if text:
            before, after = self._block.feed(text)
            content = before + self._deliver() + after if after else before
            delta = OutgoingDelta({**delta.fields, "content": content}, delta.finish_reason)
        if delta.finish_reason is None or self._is_done:
            return [delta]
        held_text = self._block.flush()
        is_complete = delta.finish_reason not in _UNFINISHED_REASONS and not self._block.is_inside
        return _add_content(delta, self._deliver() + held_text if is_complete else held_text)

    def _insert_after(self, delta: OutgoingDelta) -> list[OutgoingDelta]:
        text = delta.fields.get("content")
        if text and not self._block.is_past:
            self._block.feed(text)
        reason = delta.finish_reason
        if reason is None or reason in _UNFINISHED_REASONS or self._block.is_inside:
            return [delta]
        return _add_content(delta, self._deliver())


def _add_content(last: OutgoingDelta, text: str) -> list[OutgoingDelta]:
    """Return the last deltas of a choice, with `text` before the finish reason."""
    before = [OutgoingDelta(last.fields)] if last.fields else []
    content = [OutgoingDelta({"content": text})] if text else []
    return [*before, *content, OutgoingDelta({}, last.finish_reason)]


def _to_deltas_with_role(choice: ChunkChoice) -> list[OutgoingDelta]:
    deltas = to_deltas(choice)
    role = choice.delta.role if choice.delta is not None else None
    if role:
        deltas[0].fields = {"role": role, **deltas[0].fields}
    return deltas


def _has_calls(choice: ChunkChoice) -> bool:
    delta = choice.delta
    return delta is not None and (bool(delta.tool_calls) or delta.function_call is not None)
