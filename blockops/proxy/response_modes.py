"""
The forms that an answer can take, and how each shows a sign of life and a failure.

An event stream has comments and error events; a whole JSON answer has the white space before it;
what is relayed untouched has neither, and can only break off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

from blockops.errors import ApiError
from blockops.server.response import JSON_HEADERS, STREAM_HEADERS, Downstream
from blockops.translation.stream import PassThrough, StreamTranscoder


class Form(Protocol):
    """How one answer lives and dies."""

    def heartbeat(self, client: Downstream) -> None:
        """Show `client` that its answer is still on its way, if there is a way to."""

    def waiting(self, client: Downstream, seconds: float) -> None:
        """Tell `client` for how long the backend has had its prompt, if there is a way to."""

    def fail(self, client: Downstream, error: ApiError) -> None:
        """End the answer with `error`: with its status, as long as none has left."""


class ColdStart(Protocol):
    """
    What a client is told once of a backend that reads for long.

    :ivar patience: seconds of reading after which it is told
    """

    @property
    def patience(self) -> float: ...

    def cold_start(self, seconds: float) -> str:
        """Return the line that tells for how long it has read."""


T = TypeVar("T", StreamTranscoder, PassThrough)


class EventStream(Generic[T]):
    """
    `text/event-stream`, by way of a transcoder.

    :param make: makes the transcoder; called when it is needed for the first time, and kept no
        longer
    """

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._made: T | None = None

    @property
    def transcoder(self) -> T:
        """What makes the client's stream of the backend's."""
        if self._make is not None:
            self._made, self._make = self._make(), None
        return cast("T", self._made)

    def begin(self, client: Downstream) -> None:
        """Send status and headers, unless a heartbeat has."""
        if not client.begun:
            client.begin(200, STREAM_HEADERS)

    def heartbeat(self, client: Downstream) -> None:
        beat = self.transcoder.heartbeat()
        if beat:
            self.begin(client)
            client.write(beat)

    def end(self, client: Downstream, *, whole: bool) -> None:
        """
        Send the end, the backend having closed.

        :param whole: nothing is missing, as far as the transport knows
        """
        client.finish(self.transcoder.end(cut=not whole))

    def waiting(self, client: Downstream, seconds: float) -> None:
        """Say nothing: the signs of life are enough."""

    def fail(self, client: Downstream, error: ApiError) -> None:
        if client.begun:
            client.finish(self.transcoder.fail(error))
        else:
            client.refuse(error)


class ChatStream(EventStream[StreamTranscoder]):
    """
    A chat's stream, in which a line tells of a long wait.

    :param cold_start: what is told of it, and when; None for nothing
    """

    __slots__ = ("_cold_start",)

    def __init__(self, make: Callable[[], StreamTranscoder], cold_start: ColdStart | None) -> None:
        super().__init__(make)
        self._cold_start = cold_start

    def waiting(self, client: Downstream, seconds: float) -> None:
        if self._cold_start is None or seconds < self._cold_start.patience:
            return
        line = self.transcoder.remark(self._cold_start.cold_start(seconds))
        self._cold_start = None
        if line:
            self.begin(client)
            client.write(line)


class WholeJson:
    """
    One JSON document.

    :param white_space: whether it may be kept alive by white space before it; its status is then
        200, whatever comes
    """

    def __init__(self, *, white_space: bool) -> None:
        self._white_space = white_space

    def heartbeat(self, client: Downstream) -> None:
        if self._white_space:
            if not client.begun:
                client.begin(200, JSON_HEADERS)
            client.write(b"\n")

    def waiting(self, client: Downstream, seconds: float) -> None:
        """There is no room for a line."""

    def end(self, client: Downstream, body: bytes) -> None:
        """Send the document."""
        if client.begun:
            client.finish(body)
        else:
            client.answer(200, body)

    def fail(self, client: Downstream, error: ApiError) -> None:
        if client.begun:
            client.finish(error.body())
        else:
            client.refuse(error)


class Untouched:
    """Any body, as the backend wrote it."""

    ended = False

    def heartbeat(self, client: Downstream) -> None:
        """There is no room for one."""

    def waiting(self, client: Downstream, seconds: float) -> None:
        """There is no room for a line."""

    def fail(self, client: Downstream, error: ApiError) -> None:
        if client.begun:
            client.cut()
        else:
            client.refuse(error)

    def receive_data(self, data: bytes) -> bytes:
        return data
