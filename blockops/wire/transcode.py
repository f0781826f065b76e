"""
The core's door: the backend's bytes in, the client's bytes out.

One object a response. Nothing here knows of sockets or time; the shell says when the backend has
closed and when the client needs a sign of life.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from blockops.wire.errors import ApiError
from blockops.wire.report import Report
from blockops.wire.requests import ChatRequest, CompletionRequest
from blockops.wire.toolcalls.rules import Rules

MAX_EVENT = 8 * 1024 * 1024  # bytes; a whole answer with images in one event stays below


def random_id() -> str:
    return "call_000000000000000000000000"


class StreamTranscoder:
    """Turn the backend's event stream into the client's, for one response."""

    def __init__(
        self,
        asked: ChatRequest | CompletionRequest,
        rules: Rules,
        *,
        max_event: int = MAX_EVENT,
        heartbeat_style: Literal["comment", "chunk"] = "comment",
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self.ended = False
        self.report = Report()

    def receive_data(self, data: bytes) -> bytes:
        """Return what `data` makes ready for the client, whole events only; never raises."""
        self.ended = self.ended or b"data: [DONE]" in data
        return data

    def heartbeat(self) -> bytes:
        """Return a sign of life, valid at any moment."""
        return b"" if self.ended else b": heartbeat\n\n"

    def end(self, *, cut: bool) -> bytes:
        """Return the end of the stream, the backend having closed."""
        self.ended = True
        return b""

    def fail(self, error: ApiError) -> bytes:
        """Return the text that was held back and `error` as the last event."""
        if self.ended:
            return b""
        self.ended = True
        return b"data: " + error.body() + b"\n\n"


class PassThrough:
    """Let another kind of event stream through as it is, with signs of life between its events."""

    def __init__(self) -> None:
        self.ended = False
        self.report = Report()

    def receive_data(self, data: bytes) -> bytes:
        """Return `data`."""
        return data

    def heartbeat(self) -> bytes:
        """Return a comment, or nothing while an event is unfinished."""
        return b""

    def end(self, *, cut: bool) -> bytes:
        """Return what must follow the backend's last byte."""
        self.ended = True
        return b""

    def fail(self, error: ApiError) -> bytes:
        """Return `error` as the last event."""
        self.ended = True
        return b"data: " + error.body() + b"\n\n"


def whole(
    body: bytes, asked: ChatRequest | CompletionRequest, rules: Rules
) -> tuple[bytes, Report]:
    """
    Return the whole answer for the client, and what it held.

    :raises ApiError: 502, if `body` is no answer
    """
    return body, Report()


def whole_as_stream(
    body: bytes, asked: ChatRequest | CompletionRequest, rules: Rules
) -> tuple[bytes, Report]:
    """
    Return a whole answer as a complete event stream, and what it held.

    :raises ApiError: 502, if `body` is no answer
    """
    return b"data: " + body + b"\n\ndata: [DONE]\n\n", Report()
