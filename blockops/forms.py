"""
The forms that an answer can take, and how each shows a sign of life and a failure.

An event stream has comments and error events; a whole JSON answer has the white space before it;
what is relayed untouched has neither, and can only break off.
"""

from __future__ import annotations

from typing import Protocol

from blockops.downstream import JSON_HEADERS, STREAM_HEADERS, Downstream
from blockops.wire.errors import ApiError
from blockops.wire.transcode import PassThrough, StreamTranscoder


class Form(Protocol):
    """How one answer lives and dies."""

    def heartbeat(self, client: Downstream) -> None:
        """Show `client` that its answer is still on its way, if there is a way to."""

    def fail(self, client: Downstream, error: ApiError) -> None:
        """End the answer with `error`: with its status, as long as none has left."""


class EventStream:
    """`text/event-stream`, by way of `transcoder`."""

    def __init__(self, transcoder: StreamTranscoder | PassThrough) -> None:
        self.transcoder = transcoder

    def begin(self, client: Downstream) -> None:
        """Send status and headers, unless a heartbeat has."""
        if not client.begun:
            client.begin(200, STREAM_HEADERS)

    def heartbeat(self, client: Downstream) -> None:
        beat = self.transcoder.heartbeat()
        if beat:
            self.begin(client)
            client.write(beat)

    def fail(self, client: Downstream, error: ApiError) -> None:
        if client.begun:
            client.finish(self.transcoder.fail(error))
        else:
            client.refuse(error)


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

    def fail(self, client: Downstream, error: ApiError) -> None:
        if client.begun:
            client.cut()
        else:
            client.refuse(error)

    def receive_data(self, data: bytes) -> bytes:
        return data
