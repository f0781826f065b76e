"""The body of a backend's response: relayed to the client, and captured for the log."""

from __future__ import annotations

from typing import Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from blockops.server.response import ClientResponse
from blockops.upstream.body import OnData, ResponseBody


class BackendCapture:
    """
    The beginning, the size and the times of a backend's body.

    :param max_body: the number of bytes that are kept for the traffic log
    :ivar first_byte_at: seconds of the reactor's clock; None before the first byte of the body
    :ivar last_byte_at: seconds of the reactor's clock
    """

    __slots__ = ("_body", "_clock", "_remaining", "first_byte_at", "last_byte_at", "size")

    def __init__(self, clock: IReactorTime, max_body: int) -> None:
        self._clock = clock
        self._remaining = max_body
        self._body = bytearray()
        self.size = 0
        self.first_byte_at: float | None = None
        self.last_byte_at = 0.0

    def __call__(self, data: bytes) -> None:
        self.last_byte_at = self._clock.seconds()
        if self.first_byte_at is None:
            self.first_byte_at = self.last_byte_at
        self.size += len(data)
        if self._remaining > 0:
            self._body += data[: self._remaining]
            self._remaining -= len(data)

    def body(self) -> bytes:
        """Return the beginning of the body."""
        return bytes(self._body)


class Translator(Protocol):
    """
    Turns the backend's bytes into the client's; see `blockops.translation.stream`.

    :ivar has_ended: nothing may follow the bytes that were returned last
    """

    @property
    def has_ended(self) -> bool: ...
    def receive_data(self, data: bytes) -> bytes: ...


class _StreamRelay(ResponseBody):
    """Sends the body on as it arrives; the client's backpressure pauses the backend."""

    def __init__(self, client: ClientResponse, translator: Translator, on_data: OnData) -> None:
        super().__init__()
        self._client = client
        self._translator = translator
        self._on_data = on_data

    def connectionMade(self) -> None:
        self._client.set_source(cast("IPushProducer", self.transport))

    def dataReceived(self, data: bytes) -> None:
        if self.ended.called:
            return
        self._on_data(data)
        try:
            out = self._translator.receive_data(data)
        except Exception:  # noqa: BLE001 - Twisted would report it as a lost connection
            self.ended.errback(Failure())
            self.close()
            return
        self._client.write(out)
        if self._client.stalled_since is not None:
            # Pause again: deliverBody undoes a pause from before the first byte of the body
            # (twisted#9623).
            cast("IPushProducer", self.transport).pauseProducing()
        if self._translator.has_ended and not self.ended.called:
            # Some servers keep the connection open after `[DONE]`: ignore the rest.
            self.ended.callback(True)  # noqa: FBT003 - the result of the Deferred
            self.close()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._client.set_source(None)
        super().connectionLost(reason)


def relay(
    response: IResponse, client: ClientResponse, translator: Translator, on_data: OnData
) -> Deferred[bool]:
    """
    Send the body of `response` through `translator` to `client`, with backpressure.

    Fires at the end of the body: with True if it may be complete, with False if the connection was
    closed too early. Cancelling closes the backend's connection.

    :param on_data: called with each piece of the backend's body
    """
    body = _StreamRelay(client, translator, on_data)
    response.deliverBody(body)
    return body.ended
