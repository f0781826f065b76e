"""
A chat request as one turn of a conversation.

Whose it is, whether it begins anew, which of its messages are sent on, and what its answer tells
besides; and what is learnt from the answer when it has ended.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime

from blockops.api.chat.request import ChatRequest
from blockops.api.report import Report, tokens_in
from blockops.conversation import notices
from blockops.conversation.context_window import Guard, Limits
from blockops.conversation.messages import Facts, Line, Reader, Recent, digest, first_user, text_in
from blockops.conversation.notices import Kind
from blockops.conversation.sessions import Identity, Session, Sessions, Thread, Told
from blockops.conversation.token_counts import Tokens, most_of, of_tools, weight_of
from blockops.conversation.tools_in_prompt import FIELDS, Prompting
from blockops.errors import ApiError
from blockops.operations.memory import MemoryGauge, Tier
from blockops.plugins import wording_of
from blockops.proxy.response_modes import ColdStart
from blockops.server.request import IncomingRequest
from blockops.settings.table import Settings
from blockops.translation.notice_insertion import Aside
from blockops.upstream.cache_purge import Purge
from blockops.upstream.compatibility import Refusals
from blockops.upstream.probe import Tokenizer

#: Seconds that a request which begins a session anew waits for the backend to be idle.
PURGE_WITHIN = 5.0
#: Lists of tools of which the weight is kept, twice: agents send theirs with each request.
MAX_TOOLS = 100
#: Messages that are counted by the backend at once.
COUNTED_AT_ONCE = 8

_TIERS: dict[Tier, Kind] = {
    Tier.NOTICE: "notice",
    Tier.WARNING: "warning",
    Tier.HIGH: "high",
    Tier.CRITICAL: "critical",
}


class Turns:
    """
    Makes turns of requests.

    :ivar tokens: counts and estimates, by model
    :ivar sessions: those that are known
    :ivar refusals: what the backend does not take
    :ivar cut: how many prompts were sent on shorter than they came
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: Settings,
        *,
        tokenizer: Tokenizer,
        purge: Purge,
        memory: MemoryGauge,
    ) -> None:
        self.clock = clock
        self.settings = settings
        self.tokenizer = tokenizer
        self.purge = purge
        self.memory = memory
        self.tokens = Tokens()
        self.sessions = Sessions(settings.max_sessions, settings.session_idle)
        self.reader = Reader(settings.reset_pattern)
        limits = Limits(
            settings.token_warn_threshold, settings.token_hard_threshold, settings.target
        )
        self.guard = Guard(limits, self.reader.read)
        self._tools: Recent[bytes, Facts] = Recent(MAX_TOOLS)
        self.wording = wording_of(settings.tool_format)
        self.refusals = Refusals()
        self.cut = 0

    def vitals(self) -> dict[str, object]:
        """Return what `/health` tells."""
        error = self.tokens.error
        return {
            "sessions": len(self.sessions),
            "prompts_cut": self.cut,
            "token_estimate_error_percent": None if error is None else round(100 * error, 1),
        }

    def facts_of_tools(self, text: bytes) -> Facts:
        """Return a request's tools as something to be counted."""
        key = digest(text)
        facts = self._tools.get(key)
        if facts is None:
            facts = of_tools(text)
            self._tools.put(key, facts)
        return facts

    def writes_tools(self, asked: ChatRequest) -> bool:
        """Say whether the tools of a request are written into its prompt."""
        way = self.settings.tools
        return way == "prompt" or (way == "auto" and self.refusals.takes_no_tools(asked.real_model))

    def begin(self, asked: ChatRequest, request: IncomingRequest) -> Turn:
        """Return the turn that `asked` is."""
        messages = asked.messages()
        lines = self.reader.read(messages)
        identity = identify(asked, request, lines)
        session = self.sessions.of(identity.name(), self.clock.seconds())
        anew = (
            bool(lines and lines[-1].facts.reset)
            or _header(request, b"X-Session-Reset") == "1"
            or (self.settings.reset_on_shrink and len(messages) < session.length)
        )
        session.length = len(messages)
        if anew:
            session.begin_anew()
        return Turn(self, asked, session, messages, lines, anew=anew)


def identify(asked: ChatRequest, request: IncomingRequest, lines: Sequence[Line]) -> Identity:
    """Return what a request says of whose it is."""
    metadata = asked.field("metadata")
    return Identity(
        header=_header(request, b"X-Session-Id"),
        metadata=_said(metadata.get("session_id") if isinstance(metadata, dict) else None),
        cache_key=_said(asked.field("prompt_cache_key")),
        user=_said(asked.field("user")),
        address=str(getattr(request.getClientAddress(), "host", "")),
        key=request.caller or _header(request, b"Authorization"),
        model=asked.model or "",
        first_user=first_user(lines),
    )


def _too_deep(field: str) -> ApiError:
    return ApiError(
        400,
        f"The request's {field} are nested too deeply to be written into the prompt. Send flatter "
        "ones.",
        param=field,
    )


def _header(request: IncomingRequest, name: bytes) -> str:
    """Return what a header says, in whatever encoding; empty if it is missing."""
    values = request.requestHeaders.getRawHeaders(name, [b""])
    return values[0].decode("utf-8", "replace").strip()


def _said(value: Any) -> str:
    """Return a name that a client gives, without white space around it; empty if it is none."""
    return str(value).strip() if isinstance(value, str | int) else ""


class Turn:
    """
    One turn.

    :param messages: as they came
    :param lines: the same, without notices
    :param anew: its session begins anew
    :ivar aside: what is said in its answer; None for an answer that has no room for it
    :ivar lesson: what is learnt from its answer
    """

    def __init__(
        self,
        turns: Turns,
        asked: ChatRequest,
        session: Session,
        messages: list[bytes],
        lines: list[Line],
        *,
        anew: bool,
    ) -> None:
        self.session = session
        self.messages = len(messages)
        self._turns = turns
        self._asked = asked
        self._came = messages
        self._lines = turns.reader.since_reset(lines)
        self._marked = any(line.facts.reset for line in lines)
        self._anew = anew
        self._prompting: Prompting | None = None
        if turns.writes_tools(asked):
            self._write_tools()
        self._tools = turns.facts_of_tools(self._tools_text)
        self._offers_tools = bool(asked.number_of("tools") or asked.number_of("functions"))
        self._tally = turns.tokens.of(asked.real_model)
        self._thread = session.thread(first_user(self._lines))
        self._texts: list[str] = []
        self._wished = False
        self._left = lines
        self.aside = self._make_aside()
        self.lesson = Lesson(turns, asked.real_model, self._thread, self.aside)

    @property
    def asks_nothing(self) -> bool:
        """Whether there is nothing to send on: the session was begun anew, and that was all."""
        return self._marked and all(line.facts.role == "system" for line in self._lines)

    @property
    def _tools_text(self) -> bytes:
        """What the prompt says of tools. An agent's are many: no copy of it is kept."""
        if self._prompting is None:
            return self._asked.tools()
        return self._prompting.told.encode("utf-8", "replace")

    def _make_aside(self) -> Aside | None:
        mode = self._turns.settings.notices
        if mode == "reasoning":
            place = Aside("thinks")
        elif mode == "content":
            place = Aside("closes" if self._offers_tools else "opens")
        else:
            return None
        return None if self._asked.wants_json else place

    @property
    def cold_start(self) -> ColdStart | None:
        """What the answer tells of a long wait."""
        told = self.lesson.patience and self.aside is not None
        return self.lesson if told else None

    def banner(self) -> str:
        """Return the answer to a turn that asks nothing."""
        self._turns.purge.later(self.session.name)
        if self._asked.wants_json:
            return "{}"
        self.session.say("banner")
        return notices.opening([notices.session_banner(self._turns.settings.model_name)])

    async def prompt(self, tell: Callable[[str], bool]) -> bytes:
        """
        Return the body for the backend.

        :param tell: puts notices into a header; False if it is too late for one
        :raises ApiError: 400, the history cannot be made to fit
        """
        self._turns.purge.never_mind(self.session.name)
        if self._anew:
            await self._turns.purge.within(PURGE_WITHIN)
        self._left = await self._fitted()
        self._give_notices(tell)
        asked = self._asked
        self._wished = asked.stream and not asked.include_usage and self._turns.refusals.asks_usage
        return self._body()

    def prompt_again(self, refused: ApiError) -> bytes | None:
        """Return the body without what was refused; None if `refused` is about something else."""
        refusals = self._turns.refusals
        if self._wished and refusals.of_usage(refused):
            self._wished = False
            return self._body()
        if self._may_write_tools and refusals.of_tools(
            refused, self._asked.real_model, with_results=self._has_results
        ):
            self.lesson.refused = refused
            self._write_tools()
            self._tools = self._turns.facts_of_tools(self._tools_text)
            self.lesson.sent[-1:] = [self._tools]
            return self._body()
        return None

    @property
    def _may_write_tools(self) -> bool:
        """Whether there are tools that were sent as they came, and need not be."""
        passed = self._prompting is None and self._turns.settings.tools == "auto"
        return passed and (self._offers_tools or self._has_results)

    @property
    def _has_results(self) -> bool:
        return any(line.facts.role == "result" for line in self._left)

    def _write_tools(self) -> None:
        """Let the tools stand in the prompt."""
        try:
            self._prompting = Prompting(self._asked, self._turns.wording)
        except RecursionError:
            raise _too_deep("tools") from None

    def _body(self) -> bytes:
        """Return the body for the backend, with what of the history is sent on."""
        prompting = self._prompting
        raw = [line.raw for line in self._left]
        try:
            messages = raw if prompting is None else prompting.messages(self._left)
        except RecursionError:
            raise _too_deep("messages") from None
        changes: dict[str, Any] = {}
        if messages != self._came:
            changes["messages"] = [msgspec.Raw(message) for message in messages]
        if self._wished:
            options = self._asked.field("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        return self._asked.body(changes, () if prompting is None else FIELDS)

    async def _fitted(self) -> list[Line]:
        """Return what of the history is sent on, and note what it has."""
        guard, thread = self._turns.guard, self._thread
        lines, asked = self._lines, [*(line.facts for line in self._lines), self._tools]
        before, sent = 0, asked
        room = min(guard.limits.warn, guard.limits.hard) - most_of(asked)
        # What was missed is looked up only where it may decide something: it goes over all of them.
        short = room >= 0 and (
            thread.most_missed <= room or thread.missed(asked, self._tally) <= room
        )
        if not short or thread.cut.dropped:
            await self._count(asked)
            beside = self._tally.count(self._tools) + thread.missed(asked, self._tally)
            fitted = guard.fit(lines, thread.cut, self._tally.count, beside=beside)
            thread.cut, lines, before = fitted.cut, fitted.lines, fitted.before
            sent = [*(line.facts for line in lines), self._tools]
            if fitted.dropped or fitted.shortened:
                self._turns.cut += 1
        self.lesson.sent = sent
        self._note_length(before)
        return lines

    def _note_length(self, tokens: int) -> None:
        """
        Let a notice be due when the history as it came has `tokens` tokens.

        It is the session that is told, once, and again when one of its long histories has become
        shorter. That others are short, such as the question for a title, changes nothing.
        """
        limits = self._turns.guard.limits
        before, self._thread.length = self._thread.length, tokens
        if tokens >= limits.warn:
            notice = notices.context_notice(tokens, limits.warn, limits.hard)
            self._be_due(self.session, "context", notice)
        elif before >= limits.warn:
            self.session.unsay("context")

    async def _count(self, messages: Sequence[Facts]) -> None:
        """Let the backend count what was never counted, as far as it can."""
        new = self._tally.unknown(messages)
        raw = {line.facts.digest: line.raw for line in self._lines}
        for at in range(0, len(new), COUNTED_AT_ONCE):
            # The first one alone: most backends cannot.
            batch = new[at : at + COUNTED_AT_ONCE]
            done = [await self._count_one(facts, raw) for facts in batch[: 1 if at == 0 else 0]]
            rest = batch[len(done) :]
            if all(done):
                counting = [Deferred.fromCoroutine(self._count_one(one, raw)) for one in rest]
                done += await gatherResults(counting, consumeErrors=True)
            if not all(done):
                return

    async def _count_one(self, facts: Facts, raw: dict[bytes, bytes]) -> bool:
        """Say whether the backend has counted a message."""
        is_message = facts.digest in raw
        text = (
            text_in(raw[facts.digest])
            if is_message
            else self._tools_text.decode("utf-8", "replace")
        )
        counted = await self._turns.tokenizer.count(text, self._asked.real_model)
        if counted is not None:
            self._tally.note(facts, counted)
        return counted is not None

    def _be_due(self, told: Told, kind: Kind, text: str) -> None:
        """Let this answer say a notice that `told` was not given yet."""
        if told.say(kind):
            self.lesson.due[kind] = told
            self._texts.append(text)

    def _give_notices(self, tell: Callable[[str], bool]) -> None:
        """Let this answer say what is due."""
        settings, memory = self._turns.settings, self._turns.memory
        if settings.model_name:
            banner = notices.session_banner(settings.model_name)
            self._be_due(self.session, "banner", banner)
        tier = _TIERS.get(memory.tier)
        if tier is not None:
            self._be_due(self.session, tier, notices.memory_notice(tier, memory.percent))
        if self.aside is not None:
            closes = self.aside.place == "closes"
            said = notices.closing(self._texts) if closes else notices.opening(self._texts)
            self.aside.text = said
        elif settings.notices == "header" and self._texts and tell(" ".join(self._texts)):
            self.lesson.due.clear()


class Lesson:
    """
    What is learnt from a turn's answer.

    It is all that stays of the turn while the answer comes, which may take hours.

    :param model: the backend's name for the one that is asked
    :param thread: the history that is sent
    :ivar sent: its messages and its tools, once they are sent
    :ivar due: the notices that the answer gives, and who is told
    :ivar refused: why its tools are in its prompt
    """

    __slots__ = ("_aside", "_model", "_thread", "_turns", "due", "refused", "sent")

    def __init__(
        self, turns: Turns, model: str | None, thread: Thread, aside: Aside | None
    ) -> None:
        self._turns = turns
        self._model = model
        self._thread = thread
        self._aside = aside
        self.sent: list[Facts] = []
        self.due: dict[Kind, Told] = {}
        self.refused: ApiError | None = None

    @property
    def patience(self) -> float:
        """Seconds that the backend may read before the client is told so; 0: it never is."""
        return self._turns.settings.cold_start_notice

    def cold_start(self, seconds: float) -> str:
        """Return what is told of a backend that has read for so long."""
        tally = self._turns.tokens.of(self._model)
        tokens = sum(map(tally.guess, self.sent))
        return notices.opening([notices.cold_start_notice(seconds, tokens)])

    def learn(self, report: Report | None) -> None:
        """Learn from the answer, which has ended or failed; None if there was none."""
        if self._aside is None or not self._aside.said:
            for kind, told in self.due.items():
                told.unsay(kind)
        answered = report is not None and report.chunks > 0 and report.error is None
        if self.refused is not None and answered:
            self._turns.refusals.learn(self._model, self.refused)
        reported = tokens_in(report.usage, "prompt_tokens") if report is not None else 0
        if reported and self.sent:
            tokens = self._turns.tokens
            tokens.learn(self._model, weight_of(self.sent), reported)
            self._thread.learn(self.sent, tokens.of(self._model), reported)
