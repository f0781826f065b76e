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

from collections.abc import Iterable

from blockops.api.answer import AnswerEvent, BackendCalls, CallStarted, ContentDelta, Finished
from blockops.api.chat.chunks import ChunkChoice
from blockops.api.notice import Notice
from blockops.translation.choice import ChoiceTranslator

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

    def __init__(self, *, is_inside: bool = False) -> None:
        self.is_inside = is_inside
        self.is_past = False
        self._has_block = is_inside
        self._held_text = ""

    def feed(self, text: str) -> tuple[str, str]:
        """
        Split `text` after the block and the white space that follows it.

        Before this position, the second part is empty, and some of the first may be held back.
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

    :param notice: a notice in the place "before" or "after"
    :param is_prefilled: True if the prompt has opened the model's think block
    """

    def __init__(self, choice: ChoiceTranslator, notice: Notice, *, is_prefilled: bool) -> None:
        self._choice = choice
        self._notice = notice
        self._block = ThinkBlockTracker(is_inside=is_prefilled)
        self._is_done = False  # True once the notice is inserted, or is not inserted any more

    @property
    def is_finished(self) -> bool:
        return self._choice.is_finished

    def start(self) -> list[AnswerEvent]:
        return self._choice.start()

    def receive(self, part: ChunkChoice) -> list[AnswerEvent] | None:
        events = self._choice.receive(part)
        if self._is_done:
            return events
        own = part.events() if events is None else events
        placed = self._place(own)
        return events if placed == own else placed

    def flush(self) -> list[AnswerEvent]:
        return [*self._cancel(), *self._choice.flush()]

    def finish(self) -> list[AnswerEvent]:
        return self._place(self._choice.finish())

    def _place(self, events: Iterable[AnswerEvent]) -> list[AnswerEvent]:
        """Return `events`, with the notice if they reach its place."""
        placed: list[AnswerEvent] = []
        for event in events:
            if self._is_done:
                placed.append(event)
            elif isinstance(event, CallStarted | BackendCalls):
                placed += [*self._cancel(), event]
            elif isinstance(event, ContentDelta):
                placed += self._read_content(event)
            elif isinstance(event, Finished):
                placed += [*self._end(event.reason), event]
            else:
                placed.append(event)
        return placed

    def _read_content(self, event: ContentDelta) -> list[AnswerEvent]:
        if self._notice.place == "after" or not event.text:
            if not self._block.is_past:
                self._block.feed(event.text)
            return [event]
        before, after = self._block.feed(event.text)
        text = before + self._deliver() + after if after else before
        return [ContentDelta(0, text)] if text else []

    def _end(self, reason: str) -> list[AnswerEvent]:
        if reason in _UNFINISHED_REASONS or self._block.is_inside:
            return self._cancel()
        return [ContentDelta(0, self._deliver()), *self._cancel()]

    def _deliver(self) -> str:
        self._is_done = self._notice.is_delivered = True
        return self._notice.text

    def _cancel(self) -> list[AnswerEvent]:
        self._is_done = True
        held_text = self._block.flush() if self._notice.place == "before" else ""
        return [ContentDelta(0, held_text)] if held_text else []
