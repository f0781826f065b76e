"""Creates the choices of one answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from blockops.api.chat.request import ChatRequest
from blockops.api.completions import CompletionRequest
from blockops.api.notice import Notice
from blockops.api.report import AnswerReport
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choice import ChoiceTranslator
from blockops.translation.completion_choice import CompletionChoice
from blockops.translation.notice_insertion import NoticeInserter

#: A choice of an answer, with the methods that all three classes have.
AnswerChoice = ChoiceTranslator | NoticeInserter | CompletionChoice


def random_call_id() -> str:
    """Return a new id for a call: `call_` and 24 random hexadecimal digits."""
    return "call_" + secrets.token_hex(12)


class ChoiceFactory:
    """
    Creates the choices of one answer: translated ones for a chat, else `CompletionChoice`.

    :param request: the client's request
    :param new_id: returns a new id for a call
    :param report: receives the calls, finish reasons and counters of all choices
    :param notice: inserted into the first choice (index 0) of a chat
    """

    __slots__ = ("_new_id", "_notice", "_options", "_report", "_tools")

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        options: TranslationOptions,
        new_id: Callable[[], str],
        report: AnswerReport,
        notice: Notice | None,
    ) -> None:
        self._tools = request.offered_tools(options) if isinstance(request, ChatRequest) else None
        self._options = options
        self._new_id = new_id
        self._report = report
        self._notice = notice

    def create(self, index: int) -> AnswerChoice:
        """Return the new choice `index`."""
        if self._tools is None:
            return CompletionChoice(index, self._report)
        choice = ChoiceTranslator(index, self._tools, self._options, self._new_id, self._report)
        if self._notice is None or index != 0:
            return choice
        return NoticeInserter(choice, self._notice, is_prefilled=self._options.think_prefilled)
