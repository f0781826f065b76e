"""What a turn keeps while its answer streams: the prefill notice, and what the answer teaches."""

from __future__ import annotations

from blockops.api.notice import Notice
from blockops.api.report import AnswerReport, token_count
from blockops.conversation import notices
from blockops.conversation.messages import MessageInfo
from blockops.conversation.notices import NoticeKind
from blockops.conversation.options import Compatibility
from blockops.conversation.sessions import HistoryState, Session
from blockops.conversation.token_counts import TokenCounts, raw_estimate
from blockops.errors import ApiError


class AnswerFeedback:
    """
    Learns from the answer to a turn: token counts, rejected tools, notices that were not delivered.

    The turn itself is released while the answer streams, which may take hours; this object stays.

    :param model: the backend's name of the requested model
    :param history_state: of the history that is sent
    :param notice: the notice of the answer, with the texts of `pending_notices`
    :param session: records `pending_notices` as given
    :ivar sent_items: the messages and the tools that were sent
    :ivar pending_notices: the notices that count as given only if the answer delivers them
    :ivar tools_error: the error that made blockops write the tools into the prompt
    """

    def __init__(
        self,
        tokens: TokenCounts,
        compatibility: Compatibility,
        model: str | None,
        history_state: HistoryState,
        *,
        notice: Notice | None,
        session: Session,
    ) -> None:
        self._tokens = tokens
        self._compatibility = compatibility
        self._model = model
        self._history_state = history_state
        self._notice = notice
        self._session = session
        self.sent_items: list[MessageInfo] = []
        self.pending_notices: list[NoticeKind] = []
        self.tools_error: ApiError | None = None

    def estimate_prompt(self) -> int:
        """Return the tokens of the prompt that was sent; counts that are missing are estimated."""
        counts = self._tokens.for_model(self._model)
        return sum(map(counts.estimate, self.sent_items))

    def learn(self, report: AnswerReport | None) -> None:
        """
        Learn from an answer that has ended or failed.

        :param report: the contents of the answer; None if there was none
        """
        if self._notice is None or not self._notice.is_delivered:
            for kind in self.pending_notices:
                self._session.unmark(kind)
        was_answered = report is not None and report.chunks > 0 and report.error is None
        if self.tools_error is not None and was_answered:
            self._compatibility.record_tools_rejected(self._model, self.tools_error)
        reported = token_count(report.usage, "prompt_tokens") if report is not None else 0
        if reported and self.sent_items:
            self._tokens.learn(self._model, raw_estimate(self.sent_items), reported)
            counts = self._tokens.for_model(self._model)
            self._history_state.learn(self.sent_items, counts, reported)


class PrefillNotice:
    """
    The notice about a backend that needs long to read the prompt.

    :ivar after: seconds without a first token after which it is sent
    """

    def __init__(self, feedback: AnswerFeedback, after: float) -> None:
        self._feedback = feedback
        self.after = after

    def text(self, seconds: float) -> str:
        """Return the notice's text, for a prefill that has taken `seconds` so far."""
        tokens = self._feedback.estimate_prompt()
        return notices.leading_block([notices.prefill_notice(seconds, tokens)])
