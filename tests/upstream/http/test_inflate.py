"""Bodies that come compressed."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss

from blockops.upstream.http.inflate import STEP, BadCoding, Inflating

TEXT = b"data: {}\n\n" * 50


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": (b"gzip", gzip.compress(TEXT)),
    "x-gzip": (b"x-gzip", gzip.compress(TEXT)),
    "two members and padding": (
        b"gzip",
        gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]) + b"\0\0",
    ),
    "deflate": (b"deflate", zlib.compress(TEXT)),
    "deflate, and something behind it": (b"deflate", zlib.compress(TEXT) + b"x"),
    "deflate as some understand it": (b"deflate", raw_deflate(TEXT)),
}


class Reader(Protocol):
    """Keeps what it receives, and pauses behind each piece if told to."""

    def __init__(self, *, pauses: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.end: Failure | None = None
        self._pauses = pauses

    @property
    def source(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)
        if self._pauses:
            self.source.pauseProducing()

    def connectionLost(self, reason: Any = None) -> None:
        assert self.end is None
        self.end = reason


class Transport(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Inflation(SynchronousTestCase):
    def begin(self, coding: bytes, *, pauses: bool = False) -> None:
        self.reader = Reader(pauses=pauses)
        self.body = Inflating(self.reader, coding)
        self.wire = Transport()
        self.body.makeConnection(self.wire)

    def finish(self, reason: type[Exception] = ResponseDone) -> None:
        self.body.connectionLost(Failure(reason()))

    def received(self) -> bytes:
        return b"".join(self.reader.pieces)

    def end(self) -> Failure:
        assert self.reader.end is not None
        return self.reader.end

    def assert_refused(self) -> None:
        """Assert that the body is taken for a broken one."""
        failure = self.end()
        failure.trap(ResponseFailed)
        self.assertIsInstance(cast("Any", failure.value).reasons[0].value, BadCoding)

    def test_each_coding(self) -> None:
        for name, (coding, packed) in PACKED.items():
            for reason in (ResponseDone, PotentialDataLoss):
                self.begin(coding)
                self.body.dataReceived(packed)
                self.finish(reason)
                self.assertEqual(self.received(), TEXT, name)
                self.end().trap(reason)

    @given(st.sampled_from(list(PACKED)), st.lists(st.integers(0, 120), max_size=9))
    def test_any_cut(self, name: str, cuts: list[int]) -> None:
        coding, packed = PACKED[name]
        self.begin(coding)
        ends = sorted({min(cut, len(packed)) for cut in cuts} | {0, len(packed)})
        for start, end in pairwise(ends):
            self.body.dataReceived(packed[start:end])
        self.finish()
        self.assertEqual(self.received(), TEXT)
        self.end().trap(ResponseDone)

    def test_what_has_come_is_handed_on_at_once(self) -> None:
        self.begin(b"gzip")
        packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        self.body.dataReceived(packer.compress(TEXT) + packer.flush(zlib.Z_SYNC_FLUSH))
        self.assertEqual(self.received(), TEXT)

    def test_a_lie(self) -> None:
        self.begin(b"gzip")
        self.body.dataReceived(b'{"choices": []}')
        self.assert_refused()
        self.assertTrue(self.wire.aborted)
        self.body.dataReceived(b"more")
        self.finish()
        self.assertEqual(self.received(), b"")

    def test_a_lie_that_only_its_end_shows(self) -> None:
        self.begin(b"deflate")
        self.body.dataReceived(b'{"choices": []}')
        self.finish()
        self.assert_refused()

    def test_a_body_that_ends_in_the_middle(self) -> None:
        for coding, packed in PACKED.values():
            for reason in (ResponseDone, PotentialDataLoss):
                self.begin(coding)
                self.body.dataReceived(packed[:12])
                self.finish(reason)
                self.assert_refused()

    def test_a_checksum_that_is_wrong(self) -> None:
        self.begin(b"gzip")
        packed = bytearray(gzip.compress(TEXT))
        packed[-6] ^= 1
        self.body.dataReceived(bytes(packed))
        self.assert_refused()

    def test_nothing_at_all(self) -> None:
        self.begin(b"gzip")
        self.finish()
        self.end().trap(ResponseDone)

    def test_a_connection_that_breaks(self) -> None:
        self.begin(b"gzip")
        self.body.dataReceived(PACKED["gzip"][1])
        failed = ResponseFailed([])
        self.body.connectionLost(Failure(failed))
        self.assertIs(self.end().value, failed)

    def test_a_bomb_goes_off_a_step_at_a_time(self) -> None:
        size = 100 * STEP
        self.begin(b"gzip", pauses=True)
        self.body.dataReceived(gzip.compress(bytes(size)))
        self.finish()
        self.assertEqual(self.wire.producerState, "paused")
        for steps in range(1, 101):
            self.assertEqual(len(self.reader.pieces), steps)
            self.assertIsNone(self.reader.end)
            self.reader.source.resumeProducing()
        self.assertLessEqual(max(map(len, self.reader.pieces)), STEP)
        self.assertEqual(len(self.received()), size)

    def test_a_reader_that_has_enough(self) -> None:
        self.begin(b"gzip")
        self.reader.source.loseConnection()
        self.assertTrue(self.wire.aborted)

    def test_the_wire_goes_on_when_all_is_handed_on(self) -> None:
        self.begin(b"gzip", pauses=True)
        self.body.dataReceived(PACKED["gzip"][1][:-1])
        self.assertEqual(self.wire.producerState, "paused")
        self.reader.source.resumeProducing()
        self.assertEqual(self.wire.producerState, "producing")
