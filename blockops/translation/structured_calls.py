"""Tool calls that the backend sends structured, as the API has them."""

from __future__ import annotations

import json

from blockops.api.chat.chunks import Delta, Function, ToolCall

# Upper bound, in characters, of the arguments that are stored to check whether they are complete.
_MAX_ARGUMENTS = 1024 * 1024


class StructuredCalls:
    """
    Records the backend's own calls in one choice.

    The names are for the report. The arguments of the last call show whether it is complete if the
    backend sends no finish reason: a truncated call must not look complete.
    """

    __slots__ = ("_arguments", "_last_index", "_length", "has_started")

    def __init__(self) -> None:
        self.has_started = False
        self._last_index = -1
        self._arguments: list[str] = []  # of the last call
        self._length = 0  # of these arguments, in characters

    @property
    def is_complete(self) -> bool:
        """True if there is no call, or if the last one's arguments, if stored, are an object."""
        if not self.has_started:
            return True
        try:
            return isinstance(json.loads("".join(self._arguments)), dict)
        except (ValueError, RecursionError):
            return False

    def record(self, delta: Delta) -> list[str]:
        """Record the calls in `delta`; return the names of those that start in it."""
        calls = list(delta.tool_calls or ())
        if delta.function_call:
            calls.append(ToolCall(0, delta.function_call))
        names = []
        for call in calls:
            function = call.function or Function()
            if self._is_new(call):
                self.has_started = True
                self._last_index = self._last_index + 1 if call.index is None else call.index
                self._arguments = []
                self._length = 0
                if function.name:
                    names.append(function.name)
            arguments = function.arguments or ""
            self._length += len(arguments)
            if self._length <= _MAX_ARGUMENTS:
                self._arguments.append(arguments)
        return names

    def _is_new(self, call: ToolCall) -> bool:
        if call.index is not None:
            return call.index > self._last_index
        # Backends without indexes send a complete call at once, or its name first.
        return call.function is not None and bool(call.function.name)
