"""Creates the choices of one answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from blockops.api.report import AnswerReport
from blockops.api.request import ChatRequest, GenerationRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choice import ChoiceTranslator
from blockops.translation.completion_choice import CompletionChoice
from blockops.translation.notice_insertion import NoticeInserter

#: A choice of an answer, with the methods that all three classes have.
AnswerChoice = ChoiceTranslator | NoticeInserter | CompletionChoice

# Upper bound of the choices of one answer. OpenAI allows 128 for each of a completion's prompts.
_MAX_CHOICES = 4096


def random_call_id() -> str:
    """Return a new id for a call: `call_` and 24 random hexadecimal digits."""
    return "call_" + secrets.token_hex(12)


class Choices(dict[int, AnswerChoice]):
    """
    The choices of one answer by their index: translated ones for a chat, else `CompletionChoice`.

    A choice is created at its first use.

    :param report: receives the calls, finish reasons and counters of all choices
    """

    def __init__(
        self,
        request: GenerationRequest,
        options: TranslationOptions,
        new_id: Callable[[], str],
        report: AnswerReport,
    ) -> None:
        super().__init__()
        self._tools = request.offered_tools(options) if isinstance(request, ChatRequest) else None
        self._options = options
        self._new_id = new_id
        self._report = report

    def __missing__(self, index: int) -> AnswerChoice:
        if len(self) == _MAX_CHOICES:
            message = f"The backend sent more than {_MAX_CHOICES} choices. Check its log."
            raise ApiError(502, message, type="server_error", code="backend_invalid_response")
        choice = self[index] = self.create(index)
        return choice

    def create(self, index: int) -> AnswerChoice:
        """Return a new choice that is not stored."""
        if self._tools is None:
            return CompletionChoice(index, self._report)
        return ChoiceTranslator(index, self._tools, self._options, self._new_id, self._report)
