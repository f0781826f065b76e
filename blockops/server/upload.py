"""A request body that is forwarded while it arrives from the client."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from blockops.errors import ApiError

#: Bytes of an upload that are buffered before the client is paused. While blockops reads, it
#: notices a disconnect at once. If more data is unread than the systems' buffers hold, the client's
#: FIN does not arrive, and only the deadlines end the wait.
UPLOAD_BUFFER = 512 * 1024


@implementer(IBodyProducer)
class StreamingUpload:
    """
    The body of one request, as a producer for the request to the backend.

    Data that arrives before `startProducing` is buffered; after `discard` it is ignored.

    :param length: of the body in bytes; None if it is unknown
    :param pause: is called to pause the client, because the consumer is slower
    :ivar is_complete: the whole body has arrived
    :ivar size: bytes that have arrived
    :ivar on_failure: is called with the error for the client if the body will not be complete
    """

    def __init__(
        self, length: int | None, pause: Callable[[], object], resume: Callable[[], object]
    ) -> None:
        self.length = UNKNOWN_LENGTH if length is None else length
        self.is_complete = False
        self.size = 0
        self.on_failure: Callable[[ApiError], object] = lambda _: None
        self._pause = pause
        self._resume = resume
        self._buffered: list[bytes] = []
        self._consumer: IConsumer | None = None
        self._consumed: Deferred[None] = Deferred()
        self._is_discarded = False
        self._is_paused = False
        self._captured = bytearray()
        self._capture_limit = 0

    def capture(self, size: int) -> None:
        """Keep the next `size` bytes for the traffic log."""
        self._capture_limit = size

    def captured_bytes(self) -> bytes:
        return bytes(self._captured)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if len(self._captured) < self._capture_limit:
            self._captured += data[: self._capture_limit - len(self._captured)]
        if self._is_discarded:
            return
        if self._consumer is not None:
            self._consumer.write(data)
            return
        self._buffered.append(data)
        if self.size > UPLOAD_BUFFER:
            self.pauseProducing()

    def finish(self) -> None:
        self.is_complete = True
        # Without a consumer yet, `startProducing` does this; a discarded body is never consumed.
        if self._consumer is not None and not self._is_discarded:
            self._consumed.callback(None)

    def fail(self, error: ApiError) -> None:
        """Discard the body and report `error`: the body will not be complete."""
        self.discard()
        self.on_failure(error)

    def discard(self) -> None:
        """Ignore the buffered data and everything that still arrives."""
        self._is_discarded = True
        self._buffered.clear()
        self.resumeProducing()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._consumer = consumer
        self._is_paused = False
        for piece in self._buffered:
            consumer.write(piece)
        self._buffered.clear()
        if self.is_complete:
            self._consumed.callback(None)
        elif not self._is_paused:
            self.resumeProducing()
        return self._consumed

    def pauseProducing(self) -> None:
        self._is_paused = True
        if not self.is_complete:
            self._pause()

    def resumeProducing(self) -> None:
        self._is_paused = False
        if not self.is_complete:
            self._resume()

    def stopProducing(self) -> None:
        self.discard()
