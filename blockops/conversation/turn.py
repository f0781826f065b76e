"""
A chat request as one turn of a conversation.

The caller, which sends requests to the backend, its tokenizer and its cache, makes these calls:

| call | effect |
| --- | --- |
| `Conversations.begin` | returns a request's turn, and resets the session if it requires that |
| `ChatTurn.reset_answer` | only if `is_reset_only`: returns the answer; nothing is sent |
| `ChatTurn.uncounted_items` | decides whether the history may be long; returns what to count |
| `ChatTurn.learn_count` | stores a count; for each of these items that the tokenizer counted |
| `ChatTurn.prepare_body` | trims the history, adds notices, and returns the body for the backend |
| `ChatTurn.retry_body` | after an error: returns the body without a feature that was rejected |
| `AnswerFeedback.learn` | after the end of the answer, or its failure |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from blockops.api.notice import Notice, Place
from blockops.api.report import AnswerReport, token_count
from blockops.api.request import ChatRequest
from blockops.conversation import notices
from blockops.conversation.context_window import ContextTrimmer
from blockops.conversation.messages import (
    Message,
    MessageInfo,
    MessageParser,
    first_user_digest,
    message_text,
)
from blockops.conversation.notices import NoticeKind
from blockops.conversation.options import Compatibility, ConversationOptions
from blockops.conversation.sessions import (
    ClientIdentity,
    HistoryState,
    Session,
    Sessions,
    session_id,
)
from blockops.conversation.token_counts import (
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    ModelCounts,
    TokenCounts,
    raw_estimate,
)
from blockops.conversation.tools_in_prompt import TOOL_FIELDS, ToolsInPrompt
from blockops.errors import ApiError


class Conversations:
    """Makes a `ChatTurn` of each chat request, and holds the state that outlives requests."""

    def __init__(self, options: ConversationOptions, compatibility: Compatibility) -> None:
        self.options = options
        self.compatibility = compatibility
        self.tokens = TokenCounts()
        self.sessions = Sessions(options.max_sessions, options.session_idle)
        self.parser = MessageParser(options.reset_pattern)
        self.trimmer = ContextTrimmer(options.limits, self.parser.parse)
        self.trimmed_prompts = 0

    def status(self) -> dict[str, object]:
        """Return the conversations' fields of `/health`."""
        error = self.tokens.estimate_error
        return {
            "sessions": len(self.sessions),
            "prompts_cut": self.trimmed_prompts,
            "token_estimate_error_percent": None if error is None else round(100 * error, 1),
        }

    def begin(self, request: ChatRequest, client: ClientIdentity, now: float) -> ChatTurn:
        """
        Return the turn of `request`, and reset its session if the request requires that.

        :param now: seconds of a monotonic clock
        :raises ApiError: 400, the tools are nested too deeply to be written into the prompt
        """
        received = request.messages()
        history = self.parser.parse(received)
        first_user = first_user_digest(history)
        session = self.sessions.get_or_create(session_id(request, client, first_user), now)
        is_reset = (
            bool(history and history[-1].info.is_reset)
            or client.is_reset_requested
            or (self.options.reset_on_shrink and len(received) < session.message_count)
        )
        session.message_count = len(received)
        if is_reset:
            session.reset()
        is_reset_only = False
        if any(message.info.is_reset for message in history):
            history = self.parser.after_reset(history)
            first_user = first_user_digest(history)
            is_reset_only = all(message.info.role == "system" for message in history)
        return ChatTurn(
            self,
            request,
            session,
            received=received,
            history=history,
            history_state=session.history_state(first_user),
            is_reset=is_reset,
            is_reset_only=is_reset_only,
        )


class UncountedItem(NamedTuple):
    """A message, or a request's tools, whose tokens were never counted, with its JSON or text."""

    info: MessageInfo
    raw: bytes
    is_message: bool

    def text(self) -> str:
        """Return the text for the tokenizer."""
        return message_text(self.raw) if self.is_message else self.raw.decode("utf-8", "replace")


def _nested_too_deeply(name: str) -> ApiError:
    return ApiError(
        400,
        f"The request's {name} are nested too deeply to be written into the prompt. Send flatter "
        "ones.",
        param=name,
    )


def upper_bound(messages: Sequence[MessageInfo]) -> int:
    """Return the most tokens that `messages` can have with any model."""
    return sum(
        [2 * MESSAGE_TOKENS + 4 * IMAGE_TOKENS * info.images + info.text_bytes for info in messages]
    )


@dataclass(eq=False)
class AnswerFeedback:
    """
    What a turn keeps while its answer streams, which may take hours, and what the answer teaches.

    :param notice: of the answer, with the texts of `pending_notices`; None for an answer that has
        no room for one
    :ivar sent_items: the messages and the tools that were sent
    :ivar pending_notices: the notices that count as given only if the answer delivers them
    :ivar tools_error: the error that made blockops write the tools into the prompt
    """

    conversations: Conversations
    model: str | None
    session: Session
    history_state: HistoryState
    notice: Notice | None
    sent_items: list[MessageInfo] = field(default_factory=list)
    pending_notices: list[NoticeKind] = field(default_factory=list)
    tools_error: ApiError | None = None

    def prefill_notice(self, seconds: float) -> str:
        """Return the notice about a prefill that has taken `seconds` so far."""
        counts = self.conversations.tokens.for_model(self.model)
        tokens = sum(map(counts.estimate, self.sent_items))
        return notices.leading_block([notices.prefill_notice(seconds, tokens)])

    def learn(self, report: AnswerReport | None) -> None:
        """Learn from an answer that has ended or failed; `report` is None if there was none."""
        if self.notice is None or not self.notice.is_delivered:
            for kind in self.pending_notices:
                self.session.unmark(kind)
        was_answered = report is not None and report.chunks > 0 and report.error is None
        if self.tools_error is not None and was_answered:
            self.conversations.compatibility.record_tools_rejected(self.model, self.tools_error)
        reported = token_count(report.usage, "prompt_tokens") if report is not None else 0
        if reported and self.sent_items:
            tokens = self.conversations.tokens
            tokens.learn(self.model, raw_estimate(self.sent_items), reported)
            self.history_state.learn(self.sent_items, tokens.for_model(self.model), reported)


class ChatTurn:
    """
    One chat request and its history. The table at the head of this module has the order of calls.

    :param received: the JSON of the messages, as they were received
    :param history: the same messages after the newest reset, parsed, without notices
    :param is_reset_only: the request only resets its session, so that there is nothing to send
    :ivar header_notice: for the response's header `X-Blockops-Notice`, set by `prepare_body`
    """

    _counts: ModelCounts  # of the model; set by `uncounted_items`, unless the prompt is short

    def __init__(
        self,
        conversations: Conversations,
        request: ChatRequest,
        session: Session,
        *,
        received: list[bytes],
        history: list[Message],
        history_state: HistoryState,
        is_reset: bool,
        is_reset_only: bool,
    ) -> None:
        options, model = conversations.options, request.backend_model
        self.session = session
        self.is_reset = is_reset
        self.is_reset_only = is_reset_only
        self.message_count = len(received)
        self.tool_count = len(request.items("tools"))
        self.header_notice = ""
        self._conversations = conversations
        self._request = request
        self._received = received
        self._history = self._sent_messages = history
        self._history_state = history_state
        self._has_offered_tools = bool(self.tool_count or request.items("functions"))
        self._is_usage_added = False
        self._is_trimmer_needed = False
        notice = None
        if options.notices in {"content", "reasoning"} and not request.is_constrained:
            in_content: Place = "after" if self._has_offered_tools else "before"
            notice = Notice("reasoning" if options.notices == "reasoning" else in_content)
        self._tools_in_prompt: ToolsInPrompt | None = None
        if options.tools == "prompt" or (
            options.tools == "auto" and conversations.compatibility.rejects_tools(model)
        ):
            self._move_tools_into_prompt()
        else:
            self._tools = conversations.parser.tools_info(request.tools_json())
        self.feedback = AnswerFeedback(conversations, model, session, history_state, notice)

    def _tools_text(self) -> bytes:
        # An agent's list of tools is long, and is not copied.
        if self._tools_in_prompt is None:
            return self._request.tools_json()
        return self._tools_in_prompt.system_text.encode("utf-8", "replace")

    def reset_answer(self) -> str:
        """Return the answer if `is_reset_only`."""
        if self._request.is_constrained:
            return "{}"
        self.session.mark("banner")
        banner = notices.session_banner(self._conversations.options.model_name)
        return notices.leading_block([banner])

    def uncounted_items(self) -> list[UncountedItem]:
        """
        Return the messages, and the tools, that the backend's tokenizer should count.

        None of them if the prompt is certainly short. This call also decides whether `prepare_body`
        has to count and trim the history.
        """
        limits, state = self._conversations.options.limits, self._history_state
        items = [*(message.info for message in self._history), self._tools]
        room = min(limits.warn, limits.hard) - upper_bound(items)
        is_trimmed = bool(state.trim_point.dropped_steps)
        is_short = 0 <= room >= state.rest
        if is_trimmed or not is_short:
            # `undercount` goes over all messages: it is called only if its bound does not decide.
            self._counts = self._conversations.tokens.for_model(self._request.backend_model)
            is_short = room >= 0 and state.undercount(items, self._counts) <= room
        self._is_trimmer_needed = is_trimmed or not is_short
        if not self._is_trimmer_needed:
            return []
        raw = {message.info.digest: message.raw for message in self._history}
        return [
            UncountedItem(info, raw[info.digest], is_message=True)
            if info.digest in raw
            else UncountedItem(info, self._tools_text(), is_message=False)
            for info in self._counts.uncounted(items)
        ]

    def learn_count(self, item: UncountedItem, tokens: int) -> None:
        """Store the tokenizer's count of an item's text."""
        self._counts.set_count(item.info, tokens)

    def prepare_body(self, memory_notice_kind: NoticeKind | None, memory_percent: float) -> bytes:
        """
        Trim the history, set the answer's notices, and return the body for the backend.

        The notice about a long history is given once a session, and again after one of its long
        histories has become shorter. A history that was never long, such as a request for a title,
        changes nothing.

        :param memory_notice_kind: None if the machine has enough memory
        :param memory_percent: the share of the machine's memory that is available, in per cent
        :raises ApiError: 400, the history cannot be made to fit
        """
        options, state = self._conversations.options, self._history_state
        tokens = self._trim() if self._is_trimmer_needed else 0
        sent = self._sent_messages
        self.feedback.sent_items = [*(message.info for message in sent), self._tools]
        due: list[tuple[NoticeKind, str]] = []
        warn, last_tokens, state.last_tokens = options.limits.warn, state.last_tokens, tokens
        if tokens >= warn:
            due.append(("context", notices.context_notice(tokens, warn, options.limits.hard)))
        elif last_tokens >= warn:
            self.session.unmark("context")
        if options.model_name:
            due.append(("banner", notices.session_banner(options.model_name)))
        if memory_notice_kind is not None:
            text = notices.memory_notice(memory_notice_kind, memory_percent)
            due.append((memory_notice_kind, text))
        given = {kind: text for kind, text in due if self.session.mark(kind)}
        self.feedback.pending_notices = list(given)
        notice, texts = self.feedback.notice, list(given.values())
        if texts and notice is not None:
            make = notices.trailing_block if notice.place == "after" else notices.leading_block
            notice.text = make(texts)
        elif options.notices == "header":
            self.header_notice = " ".join(texts)
        self._is_usage_added = (
            self._request.stream
            and not self._request.include_usage
            and self._conversations.compatibility.supports_usage
        )
        return self._body()

    def _trim(self) -> int:
        """Set the part of the history that is sent; return the tokens of the whole one."""
        state, counts, history = self._history_state, self._counts, self._history
        items = [*(message.info for message in history), self._tools]
        overhead = counts.count(self._tools) + state.undercount(items, counts)
        result = self._conversations.trimmer.trim(
            history, state.trim_point, counts.count, overhead=overhead
        )
        state.trim_point = result.trim_point
        if result.dropped_steps or result.shortened_results:
            self._conversations.trimmed_prompts += 1
        self._sent_messages = result.messages
        return result.tokens_before

    def retry_body(self, error: ApiError) -> bytes | None:
        """Return a body without the sent feature that `error` rejects; None if it rejects none."""
        compatibility = self._conversations.compatibility
        if self._is_usage_added and compatibility.detect_usage_error(error):
            self._is_usage_added = False
            return self._body()
        has_results = any(message.info.role == "tool" for message in self._sent_messages)
        may_write_tools = (
            self._tools_in_prompt is None
            and self._conversations.options.tools == "auto"
            and (self._has_offered_tools or has_results)
        )
        if may_write_tools and compatibility.detect_tools_error(
            error, self._request.backend_model, with_results=has_results
        ):
            self.feedback.tools_error = error
            self._move_tools_into_prompt()
            self.feedback.sent_items[-1:] = [self._tools]
            return self._body()
        return None

    def _move_tools_into_prompt(self) -> None:
        try:
            prompt = self._conversations.options.tool_prompt
            self._tools_in_prompt = ToolsInPrompt(self._request, prompt)
        except RecursionError:
            raise _nested_too_deeply("tools") from None
        self._tools = self._conversations.parser.tools_info(self._tools_text())

    def _body(self) -> bytes:
        tools = self._tools_in_prompt
        raw = [message.raw for message in self._sent_messages]
        try:
            messages = raw if tools is None else tools.rewrite_messages(self._sent_messages)
        except RecursionError:
            raise _nested_too_deeply("messages") from None
        changes: dict[str, Any] = {}
        if messages != self._received:
            changes["messages"] = [msgspec.Raw(message) for message in messages]
        if self._is_usage_added:
            options = self._request.field("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        return self._request.body(changes, () if tools is None else TOOL_FIELDS)
