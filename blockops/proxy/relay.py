"""One answer of the backend, on its way into one answer to a client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ITransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from blockops.server.response import Downstream


class Transcoder(Protocol):
    """What stands between the two: see `blockops.translation.stream`."""

    @property
    def ended(self) -> bool: ...
    def receive_data(self, data: bytes) -> bytes: ...


class TooLarge(Exception):
    """A body outgrew its bound."""


class _Body(TwistedProtocol):
    """
    Receives the body of one response, and tells how it ended.

    :ivar ended: fires with True if the body may be whole, and with False if the connection broke
        before its announced end. Cancelling it drops the connection.
    """

    def __init__(self) -> None:
        self.ended: Deferred[bool] = Deferred(self._unwanted)

    def _unwanted(self, _: object) -> None:
        self.drop()

    def drop(self) -> None:
        """Close the connection to the backend. Nothing more is received."""
        cast("ITransport", self.transport).loseConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        if not self.ended.called:
            # PotentialDataLoss: the body ends where the connection does (HTTP/1.0, as mlx-lm
            # speaks it). Whether it is whole only its text can tell.
            self.ended.callback(reason.check(ResponseDone, PotentialDataLoss) is not None)


class _Piping(_Body):
    """Writes what the backend says to the client, piece by piece."""

    def __init__(self, client: Downstream, transcoder: Transcoder, heard: Heard) -> None:
        super().__init__()
        self._client = client
        self._transcoder = transcoder
        self._heard = heard

    def connectionMade(self) -> None:
        self._client.feed_from(cast("IPushProducer", self.transport))

    def dataReceived(self, data: bytes) -> None:
        if self.ended.called:
            return
        self._heard(data)
        try:
            out = self._transcoder.receive_data(data)
        except Exception:  # noqa: BLE001 - Twisted would take it for the backend's end
            self.ended.errback(Failure())
            self.drop()
            return
        self._client.write(out)
        if self._client.stalled_since is not None:
            # Again: a pause from before the body's first byte is undone by deliverBody
            # (twisted#9623).
            cast("IPushProducer", self.transport).pauseProducing()
        if self._transcoder.ended and not self.ended.called:
            # Some servers keep the connection open behind `[DONE]`: nothing of it is wanted.
            self.ended.callback(True)  # noqa: FBT003 - it is what the Deferred says
            self.drop()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._client.feed_from(None)
        super().connectionLost(reason)


class _Collecting(_Body):
    """Keeps what the backend says, up to a bound."""

    def __init__(self, limit: int, heard: Heard) -> None:
        super().__init__()
        self._left = limit
        self._heard = heard
        self.pieces: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        if self.ended.called:
            return
        self._heard(data)
        self._left -= len(data)
        if self._left < 0:
            self.ended.errback(TooLarge())
            self.drop()
        else:
            self.pieces.append(data)


class _Unwanted(_Body):
    def connectionMade(self) -> None:
        self.drop()


#: Is told of each piece of the backend's body as it comes.
Heard = Callable[[bytes], None]


def relay(
    response: IResponse, client: Downstream, transcoder: Transcoder, heard: Heard
) -> Deferred[bool]:
    """
    Send the body of `response` to `client` by way of `transcoder`, at the client's speed.

    Fires once the backend has said its last word: with False if it broke off. Cancel it to drop
    the backend's connection.
    """
    body = _Piping(client, transcoder, heard)
    response.deliverBody(body)
    return body.ended


async def collect(response: IResponse, limit: int, heard: Heard) -> tuple[bytes, bool]:
    """
    Return the body of `response`, and whether it may be whole.

    :raises TooLarge: it has more than `limit` bytes
    """
    body = _Collecting(limit, heard)
    response.deliverBody(body)
    whole = await body.ended
    return b"".join(body.pieces), whole


def drop(response: IResponse) -> None:
    """Close the connection of a response whose body nobody has taken, if nobody has."""
    with suppress(RuntimeError):  # somebody has
        response.deliverBody(_Unwanted())
