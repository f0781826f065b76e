"""
Bodies that come compressed although nobody asked for it: undone on the way, a step at a time.

A backend that does so is rare, and one that lies about it is rarer; neither may cost memory, or
pass for an answer.
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

#: What can be undone.
CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})
#: Bytes that one step makes at most: zeros shrink by a factor of 1,000.
STEP = 64 * 1024

_GZIP = zlib.MAX_WBITS | 16
_GZIP_BEGINS = b"\x1f\x8b"
_METHOD = 0x0F  # where the first byte of zlib's format names deflate


class BadCoding(Exception):
    """A body is not compressed as its headers say, or ends in the middle."""


class Inflater:
    """
    Undoes one coding.

    :param coding: one of `CODINGS`
    """

    def __init__(self, coding: bytes) -> None:
        self._coding = coding
        self._left = b""
        self._member: Any = None  # zlib's object, while a member of the file is under way
        self._members = 0

    def feed(self, data: bytes) -> None:
        """Take what comes next, to be worked off by `step`."""
        self._left += data

    def step(self) -> bytes:
        """
        Return the next piece, of `STEP` bytes at most; empty if that takes more to be fed.

        :raises BadCoding: this is not what the coding looks like
        """
        while True:
            if self._member is None and not self._begin():
                return b""
            try:
                piece: bytes = self._member.decompress(self._left, STEP)
            except zlib.error as error:
                raise BadCoding(str(error)) from None
            self._left = self._member.unconsumed_tail
            if self._member.eof:
                self._left = self._member.unused_data
                self._member = None
            if piece or not self._left:
                return piece

    def check_whole(self) -> None:
        """
        Agree that this is the end.

        :raises BadCoding: it is not
        """
        if self._member is not None:
            raise BadCoding("it ends in the middle")

    def _begin(self) -> bool:
        """Begin with what is left, if that is something."""
        if self._members and not self._goes_on():
            return False
        if not self._left:
            return False
        self._members += 1
        self._member = zlib.decompressobj(self._window())
        return True

    def _goes_on(self) -> bool:
        """Say whether what stands behind a member is another one, as far as it has come."""
        if self._coding == b"deflate" or not self._left.startswith(_GZIP_BEGINS[:1]):
            self._left = b""  # padding
        return self._left.startswith(_GZIP_BEGINS)

    def _window(self) -> int:
        if self._coding != b"deflate":
            return _GZIP
        # The name stands for zlib's format; some take it for what is inside of that.
        wrapped = self._left[0] & _METHOD == zlib.DEFLATED
        return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


@implementer(IPushProducer)
class Inflating(Protocol):
    """
    Stands between a compressed body and `reader`, which receives it as it was meant.

    :param coding: one of `CODINGS`
    """

    def __init__(self, reader: IProtocol, coding: bytes) -> None:
        self._reader = reader
        self._inflater: Inflater | None = Inflater(coding)
        self._paused = False
        self._end: Failure | None = None

    def connectionMade(self) -> None:
        self._reader.makeConnection(cast("ITCPTransport", self))

    def dataReceived(self, data: bytes) -> None:
        if self._inflater is not None:
            self._inflater.feed(data)
            self._go_on()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason
        self._go_on()

    def _go_on(self) -> None:
        """Hand on what there is, until the reader asks for a pause; the end comes behind it."""
        try:
            while not self._paused and self._inflater is not None:
                piece = self._inflater.step()
                if piece:
                    self._reader.dataReceived(piece)
                elif self._end is None:
                    return
                else:
                    if self._end.check(ResponseDone, PotentialDataLoss):
                        self._inflater.check_whole()
                    self._finish(self._end)
        except BadCoding:
            self._finish(Failure(ResponseFailed([Failure()])))
            self.abortConnection()

    def _finish(self, reason: Failure) -> None:
        self._inflater = None
        self._reader.connectionLost(reason)

    def pauseProducing(self) -> None:
        self._paused = True
        self._source.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()
        if not self._paused:
            self._source.resumeProducing()

    @property
    def _source(self) -> Any:
        return self.transport

    def abortConnection(self) -> None:
        """Close the connection at once."""
        self._source.abortConnection()

    stopProducing = loseConnection = abortConnection
