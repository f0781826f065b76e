"""
Keeps prompts below a hard threshold: trims the middle of a long history, in whole steps.

**Steps.** A step is a user message, or an assistant message with the results of its tool calls. The
system messages and the first user message belong to no step and always stay, as does the newest
step. A marker, a user message, tells the model how many steps are missing. Backends reject a call
without a result, and a result without a call: a complete step has neither.

    system  user  | 1  2  3  4  5  6  7  8  9            above the hard threshold
    system  user  | marker              7  8  9          trimmed to the target
    system  user  | marker              7  8  9 10 11    the trim point stays
    system  user  | marker                        11 12  ... until the threshold is exceeded again

While the trim point stays, each prompt begins with the whole prompt before it, so that the
backend's prefix cache keeps hitting.

**Order of trimming.** The trimmer adds the steps to an empty prompt, from the oldest to the newest.
Before and after each step, and once more after the last one, it checks whether the prompt has more
tokens than the hard threshold. If so:

1. The oldest steps are dropped until the prompt has at most the target's tokens, or until only the
   newest step is left.
2. If the prompt is still above the hard threshold, the long tool results of the newest step are
   shortened to their head and tail, from the first one on, until it is not.

So the trim point depends only on the history and on the token counts of its messages, not on the
requests before: if it is lost, in a restart or with an expired session, the same one is found.

After that, the first line that applies decides the result:

    above the hard threshold            400 `context_length_exceeded`
    nothing was dropped or shortened    the history as it was received
    the last step is incomplete         400 `invalid_messages`
    otherwise                           the trimmed history; markers also replace incomplete steps

**Trim points.** The next request of a history passes its `TrimPoint` in again, and resumes after
the steps that were examined. It holds for every history that begins with the dropped steps: clients
edit their last message, ask a side question at the end, or move their `cache_control` marks.

    the request                                    messages       new trim point
    ---------------------------------------------  -------------  ------------------------------
    fits, and nothing was trimmed so far           all            none
    fits, and does not begin with the dropped      all            unchanged: a short side request,
    steps                                                         the long history will come back
    fits, begins with the dropped steps, and has   all            none: the client has taken back
    fewer than half of the steps after them                       most of the history
    begins with the dropped steps, otherwise       trimmed        resumed from the old one
    does not fit, otherwise                        trimmed        found from the first step on
"""

from __future__ import annotations

import json
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blockops.conversation.messages import Message, MessageInfo, digest, first_user_digest
from blockops.errors import ApiError

#: An upper bound of a marker's tokens, with the chat template's tokens around it.
MARKER_TOKENS = 40
#: A tool result with fewer bytes, and a text with fewer characters, is not shortened.
LONG_RESULT = 8_000
#: Characters that remain of a shortened text: of its beginning and of its end.
RESULT_HEAD_AND_TAIL = (3_000, 1_000)


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """In tokens: a notice is given at `warn`; a prompt above `hard` is trimmed to `target`."""

    warn: int
    hard: int
    target: int


@dataclass(frozen=True, slots=True)
class Step:
    """Messages that are kept or dropped together."""

    indexes: tuple[int, ...]  # in the history, ascending; other messages may lie between them
    is_complete: bool = True  # its messages are valid, no call and no result is missing


def split_steps(messages: Sequence[MessageInfo]) -> list[Step]:
    """Return the steps of a history, in the order of their first messages."""
    steps: list[Step] = []
    open_step: list[int] = []  # a message, and the results of its calls that were found so far
    open_calls: list[str] = []  # the ids of its other calls
    has_first_user = False

    def close() -> None:
        if open_step:
            is_complete = messages[open_step[0]].is_valid and not open_calls
            steps.append(Step(tuple(open_step), is_complete))
            open_step.clear()

    for index, info in enumerate(messages):
        if info.role == "system":
            continue
        if info.role == "tool":
            call = _matching_call(open_calls, info.tool_call_id)
            if call is None:
                # A result without a call. More results of the open step may follow it.
                steps.append(Step((index,), is_complete=False))
            else:
                open_calls.remove(call)
                open_step.append(index)
            continue
        close()
        open_calls = list(info.call_ids)
        if info.role == "user" and not has_first_user:
            has_first_user = True
        else:
            open_step.append(index)
    close()
    return sorted(steps, key=lambda step: step.indexes[0])


def _matching_call(open_calls: Sequence[str], tool_call_id: str) -> str | None:
    """
    Return the id of the open call that a result answers, or None.

    Clients without ids send results in the order of the calls, and calls without ids match any
    result; the legacy `function_call` has neither.
    """
    candidates = (tool_call_id, "") if tool_call_id else open_calls
    return next((call for call in candidates if call in open_calls), None)


@dataclass(frozen=True, slots=True)
class TrimPoint:
    """
    The place where a history was trimmed. `TrimPoint()` stands for an untrimmed history.

    :param examined_steps: the number of steps that the history had when it was trimmed
    :param prefix_digest: the digest of the first user message and the dropped steps, which
        identifies the history
    """

    dropped_steps: int = 0
    examined_steps: int = 0
    prefix_digest: bytes = b""
    shortened_digests: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class TrimResult:
    """A history that fits, with markers, and the tokens of its prompt before and after trimming."""

    messages: list[Message]
    trim_point: TrimPoint
    tokens_before: int
    tokens_after: int
    dropped_steps: int = 0  # incomplete ones included
    shortened_results: int = 0


@dataclass(frozen=True, slots=True)
class ContextTrimmer:
    """Trims histories to the limits; `parse` parses the messages that the trimmer itself makes."""

    limits: ContextLimits
    parse: Callable[[Sequence[bytes]], list[Message]]

    def trim(
        self,
        messages: list[Message],
        trim_point: TrimPoint,
        count: Callable[[MessageInfo], int],
        *,
        overhead: int = 0,
    ) -> TrimResult:
        """
        Return `messages`, or the part of them that fits.

        :param trim_point: of the history's previous request; `TrimPoint()` for a first request
        :param overhead: tokens of the prompt that no message counts: those of the tools, and those
            by which the messages are known to be undercounted
        :raises ApiError: 400, the history cannot be made to fit, or its last step is incomplete
        """
        sizes = [count(message.info) for message in messages]
        before = overhead + sum(sizes)
        fits = before <= self.limits.hard
        if fits and trim_point == TrimPoint():
            return TrimResult(messages, trim_point, before, before)
        trimming = _Trimming(self, count, messages, sizes, overhead)
        continues = trimming.continues(trim_point)
        if fits and not continues:
            return TrimResult(messages, trim_point, before, before)
        dropped = trim_point.dropped_steps
        if fits and 2 * (len(trimming.steps) - dropped) < trim_point.examined_steps - dropped:
            return TrimResult(messages, TrimPoint(), before, before)
        trimming.run(trim_point if continues else TrimPoint())
        if trimming.total > self.limits.hard:
            raise _too_long(trimming.total, self.limits.hard)
        if not trimming.dropped_steps and not trimming.shortened:
            return TrimResult(messages, trimming.trim_point, before, before)
        if not trimming.steps[-1].is_complete:
            raise _incomplete_last_step(trimming.messages_of(-1)[0].info)
        is_dropped = [
            index < trimming.dropped_steps or not step.is_complete
            for index, step in enumerate(trimming.steps)
        ]
        return TrimResult(
            messages=list(trimming.remaining(is_dropped)),
            trim_point=trimming.trim_point,
            tokens_before=before,
            tokens_after=trimming.total,
            dropped_steps=sum(is_dropped),
            shortened_results=len(trimming.shortened),
        )


class _Trimming:
    """A history as steps, and one pass over them: see "Order of trimming" above."""

    def __init__(
        self,
        trimmer: ContextTrimmer,
        count: Callable[[MessageInfo], int],
        messages: list[Message],
        sizes: list[int],
        overhead: int,
    ) -> None:
        self._limits = trimmer.limits
        self._parse = trimmer.parse
        self._count = count
        self._messages = messages
        self.steps = split_steps([message.info for message in messages])
        self.dropped_steps = 0
        self.shortened: dict[bytes, Message] = {}  # by the digest of the tool result
        # An incomplete step may be replaced by a marker, which may have more tokens.
        self._step_tokens = [
            max(sum(sizes[i] for i in step.indexes), 0 if step.is_complete else MARKER_TOKENS)
            for step in self.steps
        ]
        # Tokens of the messages that belong to no step: before each step, and after the last one.
        self._tokens_between_steps = [0] * (len(self.steps) + 1)
        in_steps = {index for step in self.steps for index in step.indexes}
        starts = [step.indexes[0] for step in self.steps]
        for index, size in enumerate(sizes):
            if index not in in_steps:
                self._tokens_between_steps[bisect(starts, index)] += size
        # Tokens of the prompt so far, without a marker for the dropped steps.
        self._added_tokens = overhead

    @property
    def total(self) -> int:
        return self._added_tokens + (MARKER_TOKENS if self.dropped_steps else 0)

    @property
    def trim_point(self) -> TrimPoint:
        return TrimPoint(
            dropped_steps=self.dropped_steps,
            examined_steps=len(self.steps),
            prefix_digest=self._prefix_digest(self.dropped_steps),
            shortened_digests=frozenset(self.shortened),
        )

    def _prefix_digest(self, dropped_steps: int) -> bytes:
        """Return the digest of the first user message and the first `dropped_steps` steps."""
        digests = [
            self._messages[index].info.digest
            for step in self.steps[:dropped_steps]
            for index in step.indexes
        ]
        return digest(b"".join([first_user_digest(self._messages), *digests]))

    def continues(self, point: TrimPoint) -> bool:
        """Return True if the history begins with the steps that `point` drops, and has more."""
        if point.dropped_steps >= len(self.steps):
            return False
        if not point.dropped_steps and not point.shortened_digests:
            return False
        return self._prefix_digest(point.dropped_steps) == point.prefix_digest

    def messages_of(self, step: int) -> list[Message]:
        return [self._messages[index] for index in self.steps[step].indexes]

    def run(self, start: TrimPoint) -> None:
        """Add the steps that `start` keeps, then the later ones, and trim the prompt meanwhile."""
        resumed = min(start.examined_steps, len(self.steps))
        self.dropped_steps = start.dropped_steps
        self._added_tokens += sum(self._tokens_between_steps[:resumed])
        for step in range(start.dropped_steps, resumed):
            self._added_tokens += self._step_tokens[step]
            for message in self.messages_of(step):
                if message.info.digest in start.shortened_digests:
                    self._shorten(message)
        for step in range(resumed, len(self.steps)):
            self._added_tokens += self._tokens_between_steps[step]
            if step:
                self._trim_to_limit(step - 1)
            self._added_tokens += self._step_tokens[step]
            self._trim_to_limit(step)
        self._added_tokens += self._tokens_between_steps[-1]
        # The prompt may have grown outside the steps since `start`: by its tools, its system
        # prompt, or the usage that the backend reported.
        if self.steps:
            self._trim_to_limit(len(self.steps) - 1)

    def _trim_to_limit(self, newest: int) -> None:
        """Bring the prompt below the hard threshold if possible, and keep the step `newest`."""
        if self.total <= self._limits.hard:
            return
        while self.total > self._limits.target and self.dropped_steps < newest:
            self._drop_oldest()
        for message in self.messages_of(newest):
            if self.total <= self._limits.hard:
                break
            self._shorten(message)

    def _drop_oldest(self) -> None:
        for message in self.messages_of(self.dropped_steps):
            short = self.shortened.pop(message.info.digest, None)
            if short is not None:
                self._added_tokens += self._count(message.info) - self._count(short.info)
        self._added_tokens -= self._step_tokens[self.dropped_steps]
        self.dropped_steps += 1

    def _shorten(self, message: Message) -> None:
        """Replace a long tool result by its shortened form; leave other messages."""
        info = message.info
        if info.digest in self.shortened or info.role != "tool" or info.text_bytes < LONG_RESULT:
            return
        raw = shorten_result(message.raw)
        if raw is not None:
            (short,) = self._parse([raw])
            self.shortened[info.digest] = short
            self._added_tokens += self._count(short.info) - self._count(info)

    def remaining(self, is_dropped: Sequence[bool]) -> Iterator[Message]:
        """Yield the remaining messages, and a marker before each gap."""
        missing: set[int] = set()
        markers: Counter[int] = Counter()  # the first message of a gap -> the steps missing there
        gap_start = None
        for step, dropped in zip(self.steps, is_dropped, strict=True):
            if not dropped:
                gap_start = None
                continue
            missing.update(step.indexes)
            gap_start = step.indexes[0] if gap_start is None else gap_start
            markers[gap_start] += 1
        for index, message in enumerate(self._messages):
            if index in markers:
                yield from self._parse([make_marker(markers[index])])
            if index not in missing:
                yield self.shortened.get(message.info.digest, message)


def make_marker(steps: int) -> bytes:
    """Return the JSON of the message that stands for `steps` missing steps."""
    subject = "1 step of this conversation is"
    if steps != 1:
        subject = f"{steps} steps of this conversation are"
    text = f"[{subject} left out here, to make room: messages, calls of tools and their results.]"
    return json.dumps({"role": "user", "content": text}).encode()


def shorten_result(raw: bytes) -> bytes | None:
    """Return the JSON of a tool result without the middle of its long texts, None without any."""
    try:
        message: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    content = message.get("content")
    if isinstance(content, str):
        short: Any = _shorten_text(content)
    elif isinstance(content, list):
        short = [
            {**part, "text": _shorten_text(part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
    else:
        return None
    return None if short == content else json.dumps({**message, "content": short}).encode()


def _shorten_text(text: str) -> str:
    if len(text) < LONG_RESULT:
        return text
    head, tail = RESULT_HEAD_AND_TAIL
    missing = len(text) - head - tail
    return f"{text[:head]}\n[{missing} characters are left out here]\n{text[-tail:]}"


def _too_long(tokens: int, hard: int) -> ApiError:
    return ApiError(
        400,
        f"This conversation has about {tokens:,} tokens even after trimming; at most {hard:,} are "
        "allowed (--token-hard-threshold). Send a shorter last message, system prompt or list of "
        "tools, or start over with /new.",
        code="context_length_exceeded",
        param="messages",
    )


def _incomplete_last_step(first: MessageInfo) -> ApiError:
    if not first.is_valid:
        problem = "does not have the role and fields of a chat message"
    elif first.role == "tool":
        problem = "is the result of a tool call that no earlier message makes"
    else:
        problem = "makes tool calls that do not all have a result"
    return ApiError(
        400,
        "This conversation is too long and cannot be trimmed: a message at its end "
        f"{problem}. Send complete messages, or start over with /new.",
        code="invalid_messages",
        param="messages",
    )
