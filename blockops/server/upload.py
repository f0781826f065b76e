"""A request's body on its way from the client to whoever takes it, as it comes."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from blockops.errors import ApiError

#: Bytes of an upload that wait in memory before the client is asked to pause. What is read to its
#: end shows at once when the client leaves; behind more than the systems' buffers hold, a FIN does
#: not come through, and only the deadlines end the wait.
UPLOAD_BUFFER = 512 * 1024


@implementer(IBodyProducer)
class Upload:
    """
    The body of one request.

    :param length: bytes of the whole; None if the client did not say
    :param client: whom to pause when more comes than is taken
    :ivar complete: the client has sent all of it
    :ivar size: bytes that have come
    :ivar on_failure: called when it is not going to be whole, with what the client is to be told
    """

    def __init__(self, length: int | None, client: IPushProducer) -> None:
        self.length = UNKNOWN_LENGTH if length is None else length
        self.complete = False
        self.size = 0
        self.on_failure: Callable[[ApiError], object] = _ignore
        self._client = client
        self._early: list[bytes] = []
        self._take: Callable[[bytes], None] = self._keep
        self._taken: Deferred[None] = Deferred()
        self._paused = False
        self._seen: list[bytes] = []
        self._room = 0

    def remember(self, size: int) -> None:
        """Keep the first `size` bytes of what comes, for the log."""
        self._room = size

    def beginning(self) -> bytes:
        """Return what was kept."""
        return b"".join(self._seen)

    def received(self, data: bytes) -> None:
        """Take the next piece from the client."""
        self.size += len(data)
        if self._room > 0:
            self._seen.append(data[: self._room])
            self._room -= len(data)
        self._take(data)

    def completed(self) -> None:
        """Note that the client has sent all of it."""
        self.complete = True
        if self._take not in {self._keep, discard}:
            self._taken.callback(None)

    def failed(self, error: ApiError) -> None:
        """Note that it is not going to be whole."""
        self.drop()
        self.on_failure(error)

    def drop(self) -> None:
        """Let nobody have what comes from now on."""
        self._take = discard
        self._early.clear()
        self.resumeProducing()

    def _keep(self, data: bytes) -> None:
        self._early.append(data)
        if self.size > UPLOAD_BUFFER:
            self.pauseProducing()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._take = consumer.write
        self._paused = False
        for piece in self._early:
            consumer.write(piece)
        self._early.clear()
        if self.complete:
            self._taken.callback(None)
        elif not self._paused:
            self.resumeProducing()
        return self._taken

    def pauseProducing(self) -> None:
        self._paused = True
        if not self.complete:
            self._client.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if not self.complete:
            self._client.resumeProducing()

    def stopProducing(self) -> None:
        self.drop()


def _ignore(error: ApiError) -> None:
    """Tell nobody."""


def discard(data: bytes) -> None:
    """Take what nobody wants."""
