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
    has_first_user = False

    def close() -> None:
        if open_step:
            first, *results = (messages[index] for index in open_step)
            is_complete = first.is_valid and len(results) == len(first.call_ids)
            steps.append(Step(tuple(open_step), is_complete))
            open_step.clear()

    for index, info in enumerate(messages):
        if info.role == "system":
            continue
        if info.role == "tool" and open_step and _answers_open_call(messages, open_step, info):
            open_step.append(index)
        elif info.role == "tool":
            # A result without a call. More results of the open step may follow it.
            steps.append(Step((index,), is_complete=False))
        elif info.role == "user" and not has_first_user:
            close()
            has_first_user = True
        else:
            close()
            open_step.append(index)
    close()
    return sorted(steps, key=lambda step: step.indexes[0])


def _answers_open_call(
    messages: Sequence[MessageInfo], open_step: Sequence[int], result: MessageInfo
) -> bool:
    """Return True if `result` belongs to a call of the open step that has no result yet."""
    first, *earlier_results = (messages[index] for index in open_step)
    open_calls = list(first.call_ids)
    for earlier in earlier_results:
        open_calls.remove(_matching_call(open_calls, earlier.tool_call_id))
    return bool(open_calls) and _matching_call(open_calls, result.tool_call_id) in open_calls


def _matching_call(open_calls: Sequence[str], tool_call_id: str) -> str:
    """
    Return the id of the call that a result answers.

    Clients without ids send results in the order of the calls, and calls without ids match any
    result; the legacy `function_call` has neither.
    """
    if not tool_call_id:
        return open_calls[0]
    return tool_call_id if tool_call_id in open_calls else ""
