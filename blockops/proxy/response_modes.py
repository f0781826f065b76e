"""
How a response sends heartbeats and failures.

| mode | heartbeat | failure after the response has begun |
| --- | --- | --- |
| `StreamMode` | a comment, or an empty chunk | an error event |
| `JsonMode` | a newline before the document, if enabled | the error as the document |
| `PassthroughMode` | impossible | the connection is aborted |

Before the response has begun, each mode sends a failure as an error response with its own status.
After that the status can no longer change: it is 200, or the backend's for a response that is
passed through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

from blockops.api.passthrough import PassThrough
from blockops.conversation.feedback import PrefillNotice
from blockops.errors import ApiError
from blockops.server.response import JSON_HEADERS, STREAM_HEADERS, ClientResponse
from blockops.translation.stream import StreamTranslator


class ResponseMode(Protocol):
    """The heartbeats and the failure of one response."""

    def send_heartbeat(self, client: ClientResponse) -> None:
        """Send a heartbeat, if this mode has one."""

    def send_prefill_notice(self, client: ClientResponse, seconds: float) -> None:
        """
        Send a notice about a long prefill, if this mode has one and it is due.

        :param seconds: the time since the request was sent to the backend
        """

    def fail(self, client: ClientResponse, error: ApiError) -> None:
        """End the response with `error`; its status is sent only if the response has not begun."""


TranslatorT = TypeVar("TranslatorT", StreamTranslator, PassThrough)


class StreamMode(Generic[TranslatorT]):
    """
    A response of the type `text/event-stream`.

    :param make_translator: is called once, when the translator is first needed, and then released
    """

    __slots__ = ("_make_translator", "_translator")

    def __init__(self, make_translator: Callable[[], TranslatorT]) -> None:
        self._make_translator: Callable[[], TranslatorT] | None = make_translator
        self._translator: TranslatorT | None = None

    @property
    def translator(self) -> TranslatorT:
        """The translator of the backend's stream; the first access makes it."""
        if self._make_translator is not None:
            self._translator, self._make_translator = self._make_translator(), None
        return cast("TranslatorT", self._translator)

    def begin(self, client: ClientResponse) -> None:
        """Send status and headers, unless a heartbeat has sent them."""
        if not client.has_begun:
            client.begin(200, STREAM_HEADERS)

    def send_heartbeat(self, client: ClientResponse) -> None:
        data = self.translator.heartbeat()
        if data:
            self.begin(client)
            client.write(data)

    def end(self, client: ClientResponse, *, is_truncated: bool) -> None:
        """
        Send the end of the stream after the backend has closed.

        :param is_truncated: the transport reports that bytes are missing
        """
        client.finish(self.translator.end(is_truncated=is_truncated))

    def send_prefill_notice(self, client: ClientResponse, seconds: float) -> None:
        """Send nothing: heartbeats are enough."""

    def fail(self, client: ClientResponse, error: ApiError) -> None:
        if client.has_begun:
            client.finish(self.translator.fail(error))
        else:
            client.send_error(error)


class ChatStreamMode(StreamMode[StreamTranslator]):
    """
    The stream of a chat, in which a notice reports a long prefill.

    :param prefill_notice: sent once; None for none
    """

    __slots__ = ("_prefill_notice",)

    def __init__(
        self,
        make_translator: Callable[[], StreamTranslator],
        prefill_notice: PrefillNotice | None,
    ) -> None:
        super().__init__(make_translator)
        self._prefill_notice = prefill_notice

    def send_prefill_notice(self, client: ClientResponse, seconds: float) -> None:
        if self._prefill_notice is None or seconds < self._prefill_notice.after:
            return
        data = self.translator.prefill_notice(self._prefill_notice.text(seconds))
        self._prefill_notice = None
        if data:
            self.begin(client)
            client.write(data)


class JsonMode:
    """
    A response that is one JSON document.

    :param has_heartbeats: send newlines before the document; the status is then 200 even if the
        request fails later
    """

    def __init__(self, *, has_heartbeats: bool) -> None:
        self._has_heartbeats = has_heartbeats

    def send_heartbeat(self, client: ClientResponse) -> None:
        if self._has_heartbeats:
            if not client.has_begun:
                client.begin(200, JSON_HEADERS)
            client.write(b"\n")

    def send_prefill_notice(self, client: ClientResponse, seconds: float) -> None:
        """Send nothing: a document has no room for a notice."""

    def end(self, client: ClientResponse, body: bytes) -> None:
        """Send the document."""
        if client.has_begun:
            client.finish(body)
        else:
            client.send(200, body)

    def fail(self, client: ClientResponse, error: ApiError) -> None:
        if client.has_begun:
            client.finish(error.body())
        else:
            client.send_error(error)


class PassthroughMode:
    """Any body, unchanged. It is its own translator."""

    has_ended = False

    def send_heartbeat(self, client: ClientResponse) -> None:
        """Send nothing: the body's format is unknown."""

    def send_prefill_notice(self, client: ClientResponse, seconds: float) -> None:
        """Send nothing: the body's format is unknown."""

    def fail(self, client: ClientResponse, error: ApiError) -> None:
        if client.has_begun:
            client.abort()
        else:
            client.send_error(error)

    def receive_data(self, data: bytes) -> bytes:
        return data
