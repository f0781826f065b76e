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

from typing import Any, NamedTuple

import msgspec

from blockops.api.chat.request import ChatRequest
from blockops.api.notice import Notice
from blockops.conversation import notices
from blockops.conversation.context_window import ContextTrimmer
from blockops.conversation.feedback import AnswerFeedback, PrefillNotice
from blockops.conversation.messages import (
    Message,
    MessageInfo,
    MessageParser,
    first_user_digest,
    message_text,
)
from blockops.conversation.notices import NoticeKind
from blockops.conversation.options import Compatibility, ConversationOptions
from blockops.conversation.sessions import ClientIdentity, Session, Sessions, session_id
from blockops.conversation.token_counts import TokenCounts, upper_bound
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

    def writes_tools_into_prompt(self, model: str | None) -> bool:
        """Return True if the tools of requests for `model` are written into the prompt."""
        mode = self.options.tools
        return mode == "prompt" or (mode == "auto" and self.compatibility.rejects_tools(model))

    def begin(self, request: ChatRequest, client: ClientIdentity, now: float) -> ChatTurn:
        """
        Return the turn of `request`, and reset its session if the request requires that.

        :param now: seconds of a monotonic clock
        :raises ApiError: 400, the tools are nested too deeply to be written into the prompt
        """
        messages = request.messages()
        history = self.parser.parse(messages)
        session = self.sessions.get_or_create(session_id(request, client, history), now)
        is_reset = (
            bool(history and history[-1].info.is_reset)
            or client.is_reset_requested
            or (self.options.reset_on_shrink and len(messages) < session.message_count)
        )
        session.message_count = len(messages)
        if is_reset:
            session.reset()
        return ChatTurn(self, request, session, messages, history, is_reset=is_reset)


class UncountedItem(NamedTuple):
    """
    A message, or a request's tools, whose tokens were never counted.

    :param raw: the message's JSON, or the text of the tools
    """

    info: MessageInfo
    raw: bytes
    is_message: bool

    def text(self) -> str:
        """Return the text for the tokenizer."""
        return message_text(self.raw) if self.is_message else self.raw.decode("utf-8", "replace")


def _nested_too_deeply(field: str) -> ApiError:
    return ApiError(
        400,
        f"The request's {field} are nested too deeply to be written into the prompt. Send flatter "
        "ones.",
        param=field,
    )


class ChatTurn:
    """
    One chat request and the history that it carries.

    The table at the head of this module has the order of the calls.

    :param messages: the JSON of the messages, as they were received
    :param history: the same messages, parsed, without notices
    :param is_reset: the request resets its session
    :ivar message_count: the number of messages in the request
    :ivar notice: the notice of its answer; None for an answer that has no room for one
    :ivar header_notice: the notices for the response's header `X-Blockops-Notice`, set by
        `prepare_body`
    :ivar feedback: learns from its answer
    """

    def __init__(
        self,
        conversations: Conversations,
        request: ChatRequest,
        session: Session,
        messages: list[bytes],
        history: list[Message],
        *,
        is_reset: bool,
    ) -> None:
        self.session = session
        self.is_reset = is_reset
        self.message_count = len(messages)
        self.header_notice = ""
        self._conversations = conversations
        self._request = request
        self._raw_messages = messages
        self._history = conversations.parser.after_reset(history)
        self._has_reset_message = any(message.info.is_reset for message in history)
        self._tools_in_prompt: ToolsInPrompt | None = None
        if conversations.writes_tools_into_prompt(request.backend_model):
            self._move_tools_into_prompt()
        self._tools = conversations.parser.tools_info(self._tools_text)
        self._has_offered_tools = any(map(request.item_count, ("tools", "functions")))
        self._counts = conversations.tokens.for_model(request.backend_model)
        self._history_state = session.history_state(first_user_digest(self._history))
        self._notice_texts: list[str] = []
        self._is_usage_added = False
        self._is_trimmer_needed = False
        self._sent_messages = history
        self.notice = self._make_notice()
        self.feedback = AnswerFeedback(
            conversations.tokens,
            conversations.compatibility,
            request.backend_model,
            self._history_state,
            notice=self.notice,
            session=session,
        )

    @property
    def is_reset_only(self) -> bool:
        """True if the request only resets the session, so that there is nothing to send."""
        return self._has_reset_message and all(
            message.info.role == "system" for message in self._history
        )

    @property
    def prefill_notice(self) -> PrefillNotice | None:
        """The notice about a long prefill; None if it is off, or the answer has no room for it."""
        after = self._conversations.options.prefill_notice_after
        return PrefillNotice(self.feedback, after) if after and self.notice is not None else None

    @property
    def _tools_text(self) -> bytes:
        """The tools as the prompt has them. An agent's list is long, so no copy of it is kept."""
        if self._tools_in_prompt is None:
            return self._request.tools_json()
        return self._tools_in_prompt.system_text.encode("utf-8", "replace")

    def _make_notice(self) -> Notice | None:
        mode = self._conversations.options.notices
        if mode in {"header", "off"} or self._request.is_constrained:
            return None
        if mode == "reasoning":
            return Notice("reasoning")
        return Notice("after" if self._has_offered_tools else "before")

    def reset_answer(self) -> str:
        """Return the answer to a request that only resets the session."""
        if self._request.is_constrained:
            return "{}"
        self.session.mark("banner")
        return notices.leading_block(
            [notices.session_banner(self._conversations.options.model_name)]
        )

    def uncounted_items(self) -> list[UncountedItem]:
        """
        Return the messages, and the tools, that the backend's tokenizer should count.

        Empty if the prompt is certainly short, or if all of them were counted before. This call
        also decides whether `prepare_body` has to count and trim the history.
        """
        limits, state = self._conversations.trimmer.limits, self._history_state
        items = [*(message.info for message in self._history), self._tools]
        room = min(limits.warn, limits.hard) - upper_bound(items)
        # `undercount` goes over all messages, so it is called only if its bound does not decide.
        is_short = room >= 0 and (
            state.max_undercount <= room or state.undercount(items, self._counts) <= room
        )
        self._is_trimmer_needed = not is_short or bool(state.trim_point.dropped_steps)
        if not self._is_trimmer_needed:
            return []
        raw = {message.info.digest: message.raw for message in self._history}
        return [
            UncountedItem(info, raw[info.digest], is_message=True)
            if info.digest in raw
            else UncountedItem(info, self._tools_text, is_message=False)
            for info in self._counts.uncounted(items)
        ]

    def learn_count(self, item: UncountedItem, tokens: int) -> None:
        """Store the tokenizer's count of an item's text."""
        self._counts.set_count(item.info, tokens)

    def prepare_body(
        self, *, memory_notice_kind: NoticeKind | None, memory_percent: float, may_add_header: bool
    ) -> bytes:
        """
        Trim the history, set the answer's notices, and return the body for the backend.

        :param memory_notice_kind: the notice for the machine's memory; None if there is enough
        :param memory_percent: the share of the machine's memory that is available, in per cent
        :param may_add_header: the response has not begun: `header_notice` can still be sent
        :raises ApiError: 400, the history cannot be made to fit
        """
        self._sent_messages = self._trim()
        self._queue_notices(memory_notice_kind, memory_percent, may_add_header=may_add_header)
        self._is_usage_added = (
            self._request.stream
            and not self._request.include_usage
            and self._conversations.compatibility.supports_usage
        )
        return self._body()

    def retry_body(self, error: ApiError) -> bytes | None:
        """
        Return the body without the feature that the backend rejected with `error`, or None.

        None if `error` is about something else, or if the feature was left out before.
        """
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
            self._tools = self._conversations.parser.tools_info(self._tools_text)
            self.feedback.sent_items[-1:] = [self._tools]
            return self._body()
        return None

    def _move_tools_into_prompt(self) -> None:
        try:
            self._tools_in_prompt = ToolsInPrompt(
                self._request, self._conversations.options.tool_prompt
            )
        except RecursionError:
            raise _nested_too_deeply("tools") from None

    def _body(self) -> bytes:
        """Return the request's body with the messages that are sent."""
        tools = self._tools_in_prompt
        raw = [message.raw for message in self._sent_messages]
        try:
            messages = raw if tools is None else tools.rewrite_messages(self._sent_messages)
        except RecursionError:
            raise _nested_too_deeply("messages") from None
        changes: dict[str, Any] = {}
        if messages != self._raw_messages:
            changes["messages"] = [msgspec.Raw(message) for message in messages]
        if self._is_usage_added:
            options = self._request.field("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        return self._request.body(changes, () if tools is None else TOOL_FIELDS)

    def _trim(self) -> list[Message]:
        """Return the part of the history that is sent, and queue a notice if it is long."""
        state, counts = self._history_state, self._counts
        history, untrimmed_tokens = self._history, 0
        items = [*(message.info for message in history), self._tools]
        if self._is_trimmer_needed:
            overhead = counts.count(self._tools) + state.undercount(items, counts)
            result = self._conversations.trimmer.trim(
                history, state.trim_point, counts.count, overhead=overhead
            )
            state.trim_point = result.trim_point
            history, untrimmed_tokens = result.messages, result.tokens_before
            items = [*(message.info for message in history), self._tools]
            if result.dropped_steps or result.shortened_results:
                self._conversations.trimmed_prompts += 1
        self.feedback.sent_items = items
        self._update_context_notice(untrimmed_tokens)
        return history

    def _update_context_notice(self, tokens: int) -> None:
        """
        Queue the notice about a long history if the untrimmed history has too many `tokens`.

        The notice is given once a session, and again after one of the session's long histories has
        become shorter. A history that was never long, such as a request for a title, changes
        nothing.

        :param tokens: 0 for a history that is certainly short
        """
        limits = self._conversations.trimmer.limits
        last_tokens, self._history_state.last_tokens = self._history_state.last_tokens, tokens
        if tokens >= limits.warn:
            text = notices.context_notice(tokens, limits.warn, limits.hard)
            self._queue_notice("context", text)
        elif last_tokens >= limits.warn:
            self.session.unmark("context")

    def _queue_notice(self, kind: NoticeKind, text: str) -> None:
        """Add a notice to this answer unless the session had it."""
        if self.session.mark(kind):
            self.feedback.pending_notices.append(kind)
            self._notice_texts.append(text)

    def _queue_notices(
        self, memory_notice_kind: NoticeKind | None, memory_percent: float, *, may_add_header: bool
    ) -> None:
        options = self._conversations.options
        if options.model_name:
            self._queue_notice("banner", notices.session_banner(options.model_name))
        if memory_notice_kind is not None:
            text = notices.memory_notice(memory_notice_kind, memory_percent)
            self._queue_notice(memory_notice_kind, text)
        if self.notice is not None:
            make = notices.trailing_block if self.notice.place == "after" else notices.leading_block
            self.notice.text = make(self._notice_texts)
        elif options.notices == "header" and self._notice_texts and may_add_header:
            self.header_notice = " ".join(self._notice_texts)
            self.feedback.pending_notices.clear()  # the header delivers them, whatever the answer
