"""
Splits a history into steps, the units in which it is trimmed.

A step is a user message, or an assistant message together with the results of its tool calls.
System messages and the first user message belong to no step. A step is complete if each of its
calls has a result: backends reject a history with a call without a result, or a result without a
call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockops.conversation.messages import MessageInfo


@dataclass(frozen=True, slots=True)
class Step:
    """
    Messages that are kept or dropped together.

    :param indexes: the positions of its messages in the history, ascending; others may lie between
        them
    :param is_complete: its messages are valid, each call has its result, and each result its call
    """

    indexes: tuple[int, ...]
    is_complete: bool = True


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
