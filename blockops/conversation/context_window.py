"""
The guard: a history that is too long loses its middle, and never its sense.

A history is made of *steps*: a message of a user, or one of an assistant together with the results
of its calls. System messages and the first message of a user are outside of them: they stay. When
the prompt reaches the hard threshold, the oldest steps are dropped until it fits the target; the
newest step always stays. A marker tells the model how many are missing.

    system  user  | 1  2  3  4  5  6  7  8  9            hard threshold reached
    system  user  | marker              7  8  9          cut down to the target
    system  user  | marker              7  8  9 10 11    the cut stays where it is
    system  user  | marker                        11 12  ... until the threshold is reached again

Between two cuts each prompt begins with the whole prompt before it, so the backend's prefix cache
keeps hitting. A cut holds for every history that begins with what it drops, whatever stands behind
that: clients edit their last message, ask something else beside, move marks along with the end.

Where the cut lies is found by walking over the steps in the order in which they came: it depends on
the history and on the counts of its messages alone, not on which requests were seen. So a lost
`Cut` (a restart, a session that expired) is found again where it was.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockops.conversation.messages import Facts, Line, digest, first_user
from blockops.errors import ApiError

#: Tokens of a marker, and of whatever else is put into a prompt.
MARKER_TOKENS = 40
#: Characters of a tool's result that make it a long one.
LONG_RESULT = 8_000
#: Characters that a shortened result keeps: of its beginning and of its end.
KEPT_OF_RESULT = (3_000, 1_000)


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Tokens that decide.

    :param warn: from here on the person is told
    :param hard: no prompt has more
    :param target: what a cut makes of a prompt
    """

    warn: int
    hard: int
    target: int


@dataclass(frozen=True, slots=True)
class Cut:
    """
    Where a history was cut.

    :param dropped: steps that are left out, from the first one on
    :param walked: steps that this was decided from
    :param behind: stands for those that are left out, so that another history is told from this one
    :param shortened: digests of the results that were shortened
    """

    dropped: int = 0
    walked: int = 0
    behind: bytes = b""
    shortened: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """
    What is kept or dropped as one.

    :param places: of its messages in the history
    :param sound: each call has its result, and each result its call
    """

    places: tuple[int, ...]
    sound: bool = True


@dataclass(frozen=True, slots=True)
class Fitted:
    """
    A history that fits.

    :param lines: what is left of it
    :param cut: where it was cut, to be given back with its next request
    :param before: what was counted of it as it came
    :param after: what is counted of what is left
    :param dropped: steps that are missing
    :param shortened: results that are shorter than they were
    """

    lines: list[Line]
    cut: Cut
    before: int
    after: int
    dropped: int = 0
    shortened: int = 0


class Guard:
    """
    Keeps prompts below a hard threshold.

    :param read: the JSON of a message of ours -> what is known of it
    """

    def __init__(self, limits: Limits, read: Callable[[Sequence[bytes]], list[Line]]) -> None:
        self.limits = limits
        self._read = read

    def fit(
        self,
        lines: list[Line],
        cut: Cut,
        count: Callable[[Facts], int],
        *,
        beside: int = 0,
    ) -> Fitted:
        """
        Return `lines`, or what of them fits.

        :param cut: the one that the request before ended with; `Cut()` if there was none
        :param count: what is counted for a message
        :param beside: tokens besides those of the messages: of the tools, or known to be missed
        :raises ApiError: 400, nothing of it fits, or what came last is no whole step
        """
        sizes = [count(line.facts) for line in lines]
        before = beside + sum(sizes)
        fits = before <= self.limits.hard
        if fits and cut == Cut():
            return Fitted(lines, cut, before, before)
        history = _History(lines, sizes)
        known = history.goes_on_from(cut)
        if fits and not known:
            # Something short beside the history that was cut, which will come again.
            return Fitted(lines, cut, before, before)
        if fits and 2 * (len(history.steps) - cut.dropped) < cut.walked - cut.dropped:
            # It was taken back, far behind its end, to where nothing has to be left out yet.
            return Fitted(lines, Cut(), before, before)
        walk = _Walk(history, self.limits, beside, self._short, count)
        walk.go_on_from(cut if known else Cut())
        if walk.total > self.limits.hard:
            raise _too_long(walk.total, self.limits.hard)
        if not walk.dropped and not walk.short:
            return Fitted(lines, walk.cut, before, before)
        gone = self._gone(history, walk.dropped)
        left = list(self._left(history, gone, walk.short))
        return Fitted(left, walk.cut, before, walk.total, sum(gone), len(walk.short))

    def _gone(self, history: _History, dropped: int) -> list[bool]:
        """Return of each step whether it is left out: those that are torn go with the oldest."""
        last = history.steps[-1]
        if not last.sound:
            raise _torn(history.lines[last.places[0]].facts)
        return [at < dropped or not step.sound for at, step in enumerate(history.steps)]

    def _left(
        self, history: _History, gone: Sequence[bool], short: Mapping[bytes, Line]
    ) -> Iterator[Line]:
        """Yield what is left of a history, and a marker where something is missing."""
        steps = history.steps
        missing = {place for at, step in enumerate(steps) if gone[at] for place in step.places}
        markers = _markers(steps, gone)
        for place, line in enumerate(history.lines):
            if place in markers:
                yield from self._read([marker(markers[place])])
            if place not in missing:
                yield short.get(line.facts.digest, line)

    def _short(self, line: Line) -> Line | None:
        """Return a long result shortened; None if it is none."""
        if line.facts.role != "result" or line.facts.size < LONG_RESULT:
            return None
        short = shortened(line.raw)
        return None if short is None else self._read([short])[0]


class _History:
    """A history as steps, and how many tokens they have."""

    def __init__(self, lines: list[Line], sizes: list[int]) -> None:
        self.lines = lines
        self.steps = steps_of([line.facts for line in lines])
        of_steps = [sum(sizes[place] for place in step.places) for step in self.steps]
        #: Tokens of the messages that are in no step: before each step, and behind the last one.
        self.fixed = [0] * (len(self.steps) + 1)
        within = {place for step in self.steps for place in step.places}
        begins = [step.places[0] for step in self.steps]
        for place, size in enumerate(sizes):
            if place not in within:
                self.fixed[bisect(begins, place)] += size
        #: Tokens of each step. A torn one may have to give way to a marker, which has its own.
        self.sizes = [
            size if step.sound else max(size, MARKER_TOKENS)
            for step, size in zip(self.steps, of_steps, strict=True)
        ]

    def behind(self, dropped: int) -> bytes:
        """Return what stands for the first message of a user and the first `dropped` steps."""
        digests = [
            self.lines[place].facts.digest for step in self.steps[:dropped] for place in step.places
        ]
        return digest(b"".join([first_user(self.lines), *digests]))

    def goes_on_from(self, cut: Cut) -> bool:
        """Tell whether this history begins with what `cut` leaves out, and has more than that."""
        if cut.dropped >= len(self.steps) or not (cut.dropped or cut.shortened):
            return False
        return self.behind(cut.dropped) == cut.behind

    def results_in(self, at: int) -> list[Line]:
        return [self.lines[place] for place in self.steps[at].places]


@dataclass
class _Walk:
    """
    One walk over the steps, in the order in which they came.

    :ivar dropped: steps that are left out
    :ivar short: the digest of each result that is shortened -> what it becomes
    :ivar total: tokens of the prompt that remains
    """

    history: _History
    limits: Limits
    beside: int
    shorten: Callable[[Line], Line | None]
    count: Callable[[Facts], int]
    dropped: int = 0
    short: dict[bytes, Line] = field(default_factory=dict)
    kept: int = 0
    fixed: int = 0

    @property
    def total(self) -> int:
        marker = MARKER_TOKENS if self.dropped else 0
        return self.fixed + self.beside + self.kept + marker

    @property
    def cut(self) -> Cut:
        history = self.history
        behind = history.behind(self.dropped)
        return Cut(self.dropped, len(history.steps), behind, frozenset(self.short))

    def go_on_from(self, cut: Cut) -> None:
        """Walk to the end, from where `cut` was made; from the beginning if it is none."""
        history = self.history
        start = min(cut.walked, len(history.steps))
        self.dropped = cut.dropped
        self.fixed = sum(history.fixed[:start])
        for at in range(cut.dropped, start):
            self._keep(at, cut.shortened)
        for at in range(start, len(history.steps)):
            self.fixed += history.fixed[at]
            if at:
                self._bring_below(at - 1)
            self._keep(at, frozenset())
            self._bring_below(at)
        self.fixed += history.fixed[-1]
        # A prompt may have grown elsewhere: its tools, its system prompt, what the backend reports.
        if history.steps:
            self._bring_below(len(history.steps) - 1)

    def _keep(self, at: int, shortened: frozenset[bytes]) -> None:
        self.kept += self.history.sizes[at]
        for line in self.history.results_in(at) if shortened else ():
            if line.facts.digest in shortened:
                self._shorten(line)

    def _bring_below(self, newest: int) -> None:
        """Drop and shorten until the prompt is below the hard threshold, if it can be."""
        if self.total <= self.limits.hard:
            return
        while self.total > self.limits.target and self.dropped < newest:
            self._drop()
        for line in self.history.results_in(newest):
            if self.total <= self.limits.hard:
                break
            self._shorten(line)

    def _drop(self) -> None:
        for line in self.history.results_in(self.dropped):
            if (short := self.short.pop(line.facts.digest, None)) is not None:
                self.kept += self.count(line.facts) - self.count(short.facts)
        self.kept -= self.history.sizes[self.dropped]
        self.dropped += 1

    def _shorten(self, line: Line) -> None:
        if line.facts.digest in self.short:
            return
        short = self.shorten(line)
        if short is not None:
            self.short[line.facts.digest] = short
            self.kept += self.count(short.facts) - self.count(line.facts)


def steps_of(messages: Sequence[Facts]) -> list[Step]:
    """Return the steps of a history: every message that is not one of those that always stay."""
    steps: list[Step] = []
    begun: list[int] = []  # the message with calls whose results are being gathered, and these
    asked = False

    def close() -> None:
        if begun:
            steps.append(Step(tuple(begun), _is_answered([messages[at] for at in begun])))
            begun.clear()

    for place, facts in enumerate(messages):
        if facts.role == "system":
            continue
        if facts.role == "result" and begun and _expects(messages, begun, facts):
            begun.append(place)
        elif facts.role == "result":
            # It has no call. The step that it stands in may go on behind it.
            steps.append(Step((place,), sound=False))
        elif facts.role == "user" and not asked:
            close()
            asked = True
        else:
            close()
            begun.append(place)
    close()
    return sorted(steps, key=lambda step: step.places[0])


def _expects(messages: Sequence[Facts], begun: Sequence[int], result: Facts) -> bool:
    """Tell whether a result belongs to one of the calls that have none yet."""
    first, *before = (messages[at] for at in begun)
    left = list(first.calls)
    for facts in before:
        left.remove(_taken(left, facts.answers))
    return bool(left) and _taken(left, result.answers) in left


def _taken(left: Sequence[str], answers: str) -> str:
    """Return which of the calls that are left a result answers: some know no ids, only an order."""
    if not answers:
        return left[0]
    return answers if answers in left else ""


def _is_answered(messages: Sequence[Facts]) -> bool:
    first, *results = messages
    return first.readable and len(results) == len(first.calls)


def _markers(steps: Sequence[Step], gone: Sequence[bool]) -> dict[int, int]:
    """Return where a marker goes -> how many steps are missing there."""
    markers: dict[int, int] = {}
    first = -1
    for at, step in enumerate(steps):
        if not gone[at]:
            first = -1
            continue
        if first < 0:
            first = step.places[0]
        markers[first] = markers.get(first, 0) + 1
    return markers


def marker(steps: int) -> bytes:
    """Return the message that stands where `steps` steps are missing."""
    what = (
        "1 step of this conversation is"
        if steps == 1
        else (f"{steps} steps of this conversation are")
    )
    text = f"[{what} left out here, to make room: messages, calls of tools and their results.]"
    return json.dumps({"role": "user", "content": text}).encode()


def shortened(raw: bytes) -> bytes | None:
    """
    Return the JSON of a tool's result with the middle of its long texts left out.

    The same result always becomes the same.

    :returns: None if none of them is long
    """
    try:
        message: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    content = message.get("content")
    if isinstance(content, str):
        short: Any = _shortened_text(content)
    elif isinstance(content, list):
        short = [_shortened_part(part) for part in content]
    else:
        return None
    return None if short == content else json.dumps({**message, "content": short}).encode()


def _shortened_part(part: Any) -> Any:
    text = part.get("text") if isinstance(part, dict) else None
    return {**part, "text": _shortened_text(text)} if isinstance(text, str) else part


def _shortened_text(text: str) -> str:
    if len(text) < LONG_RESULT:
        return text
    head, tail = KEPT_OF_RESULT
    left_out = len(text) - head - tail
    return f"{text[:head]}\n[{left_out} characters are left out here]\n{text[-tail:]}"


def _too_long(tokens: int, hard: int) -> ApiError:
    return ApiError(
        400,
        f"This conversation has about {tokens:,} tokens even without its middle; {hard:,} are "
        "allowed (TOKEN_HARD_THRESHOLD). Send a shorter last message, system prompt or list of "
        "tools, or begin anew with /new.",
        code="context_length_exceeded",
        param="messages",
    )


def _torn(facts: Facts) -> ApiError:
    if not facts.readable:
        what = "is no message that the API knows"
    elif facts.role == "result":
        what = "is the result of a call that no message before it makes"
    else:
        what = "makes calls that are not all answered"
    return ApiError(
        400,
        "This conversation is too long to be sent whole, and it cannot be cut: at its end, a "
        f"message {what}.",
        code="invalid_messages",
        param="messages",
    )
