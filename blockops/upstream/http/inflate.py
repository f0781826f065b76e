"""
Decompresses bodies that a backend compresses although `Accept-Encoding: identity` was sent.

Output is produced in bounded steps, so that a compression bomb costs no memory. A body that is
invalid or truncated fails.
"""

from __future__ import annotations

import zlib
from typing import Any, cast

from twisted.internet.interfaces import IProtocol, IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

#: The supported codings.
CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})
#: Bound of the output of one step in bytes: zeros are compressed by a factor of 1,000.
MAX_STEP = 64 * 1024

_GZIP_WBITS = zlib.MAX_WBITS | 16
_GZIP_MAGIC = b"\x1f\x8b"
_METHOD_MASK = 0x0F  # of the first byte of the zlib format: the compression method


class BadCoding(Exception):
    """A body is not compressed as its Content-Encoding states, or is truncated."""


class Inflater:
    """
    Decodes one coding, step by step.

    :param coding: one of `CODINGS`
    """

    def __init__(self, coding: bytes) -> None:
        self._coding = coding
        self._input = b""
        self._member: Any = None  # the decompressor of the current member of the file
        self._members = 0

    def feed(self, data: bytes) -> None:
        """Append input for `step`."""
        self._input += data

    def step(self) -> bytes:
        """
        Return the next piece, at most `MAX_STEP` bytes, or empty if more input is needed.

        :raises BadCoding: the input is invalid
        """
        while True:
            if self._member is None and not self._begin_member():
                return b""
            try:
                piece: bytes = self._member.decompress(self._input, MAX_STEP)
            except zlib.error as error:
                raise BadCoding(str(error)) from None
            self._input = self._member.unconsumed_tail
            if self._member.eof:
                self._input = self._member.unused_data
                self._member = None
            if piece or not self._input:
                return piece

    def check_complete(self) -> None:
        """
        Check that the input ends here.

        :raises BadCoding: the input is truncated
        """
        if self._member is not None:
            raise BadCoding("it is truncated")

    def _begin_member(self) -> bool:
        if self._members and not self._has_next_member():
            return False
        if not self._input:
            return False
        self._members += 1
        self._member = zlib.decompressobj(self._window())
        return True

    def _has_next_member(self) -> bool:
        """Return True if the input after a member begins another one; padding is dropped."""
        if self._coding == b"deflate" or not self._input.startswith(_GZIP_MAGIC[:1]):
            self._input = b""  # padding
        return self._input.startswith(_GZIP_MAGIC)

    def _window(self) -> int:
        if self._coding != b"deflate":
            return _GZIP_WBITS
        # "deflate" means the zlib format (RFC 9110, 8.4.1.2); some servers send raw deflate.
        is_zlib = self._input[0] & _METHOD_MASK == zlib.DEFLATED
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


@implementer(IPushProducer)
class InflatingProtocol(Protocol):
    """
    Receives a compressed body and delivers the decompressed body to `receiver`.

    :param coding: one of `CODINGS`
    """

    def __init__(self, receiver: IProtocol, coding: bytes) -> None:
        self._receiver = receiver
        self._inflater: Inflater | None = Inflater(coding)
        self._paused = False
        self._end_reason: Failure | None = None

    def connectionMade(self) -> None:
        self._receiver.makeConnection(cast("ITCPTransport", self))

    def dataReceived(self, data: bytes) -> None:
        if self._inflater is not None:
            self._inflater.feed(data)
            self._deliver()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end_reason = reason
        self._deliver()

    def _deliver(self) -> None:
        """Deliver the output until the receiver pauses; after the last piece, the end."""
        try:
            while not self._paused and self._inflater is not None:
                piece = self._inflater.step()
                if piece:
                    self._receiver.dataReceived(piece)
                elif self._end_reason is None:
                    return
                else:
                    if self._end_reason.check(ResponseDone, PotentialDataLoss):
                        self._inflater.check_complete()
                    self._finish(self._end_reason)
        except BadCoding:
            self._finish(Failure(ResponseFailed([Failure()])))
            self.abortConnection()

    def _finish(self, reason: Failure) -> None:
        self._inflater = None
        self._receiver.connectionLost(reason)

    def pauseProducing(self) -> None:
        self._paused = True
        self._source.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._deliver()
        if not self._paused:
            self._source.resumeProducing()

    @property
    def _source(self) -> Any:
        return self.transport

    def abortConnection(self) -> None:
        """Close the connection immediately."""
        self._source.abortConnection()

    stopProducing = loseConnection = abortConnection
