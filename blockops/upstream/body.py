"""The body of a backend's response: collected up to a limit, rejected, or discarded."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from blockops.errors import ApiError
from blockops.net.http_headers import content_encoding


class BodyTooLarge(Exception):
    """The body of a response has more bytes than its limit."""


class ResponseBody(TwistedProtocol):
    """
    Receives the body of one response.

    :ivar ended: fires at the end of the body: with True if the body may be complete, with False if
        the connection was closed before the announced end. Cancelling it closes the connection.
    """

    def __init__(self) -> None:
        self.ended: Deferred[bool] = Deferred(lambda _: self.close())

    def close(self) -> None:
        """Close the connection to the backend. Nothing more is received."""
        cast("ITransport", self.transport).loseConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        if not self.ended.called:
            # PotentialDataLoss: the end of the connection ends the body (HTTP/1.0, as mlx-lm
            # sends it). Only the text of such a body can show whether it is complete.
            self.ended.callback(reason.check(ResponseDone, PotentialDataLoss) is not None)


class _BodyCollector(ResponseBody):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self._remaining = limit
        self.pieces: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        if self.ended.called:
            return
        self._remaining -= len(data)
        if self._remaining < 0:
            self.ended.errback(BodyTooLarge())
            self.close()
        else:
            self.pieces.append(data)


async def collect(response: IResponse, limit: int) -> tuple[bytes, bool]:
    """
    Return the body of `response`, and whether it may be complete.

    :raises BodyTooLarge: it has more than `limit` bytes
    :raises ApiError: 502, it is compressed
    """
    check_encoding(response)
    body = _BodyCollector(limit)
    response.deliverBody(body)
    may_be_complete = await body.ended
    return b"".join(body.pieces), may_be_complete


def check_encoding(response: IResponse) -> None:
    """
    Reject a response whose body cannot be read, and close its connection.

    :raises ApiError: 502, it is compressed although no compression was accepted
    """
    encoding = content_encoding(response.headers)
    if encoding:
        discard(response)
        raise ApiError(
            502,
            f"The backend compressed its response ({encoding}) although the request does not "
            "accept that. Turn compression off in the backend or in its reverse proxy.",
            type="server_error",
            code="backend_response_compressed",
        )


def discard(response: IResponse) -> None:
    """Close the connection of a response, unless its body is read: the reader closes it then."""
    body = ResponseBody()
    with suppress(RuntimeError):  # `deliverBody` was called before
        response.deliverBody(body)
        body.close()
