"""Decompression of response bodies."""

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

from blockops.upstream.http.inflate import MAX_STEP, BadCoding, InflatingProtocol

TEXT = b"data: {}\n\n" * 50


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


COMPRESSED = {
    "gzip": (b"gzip", gzip.compress(TEXT)),
    "x-gzip": (b"x-gzip", gzip.compress(TEXT)),
    "two members and padding": (
        b"gzip",
        gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]) + b"\0\0",
    ),
    "deflate": (b"deflate", zlib.compress(TEXT)),
    "deflate with trailing data": (b"deflate", zlib.compress(TEXT) + b"x"),
    "raw deflate": (b"deflate", raw_deflate(TEXT)),
}


class Receiver(Protocol):
    """Records a body and its end; optionally pauses after each piece."""

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


class InflatingProtocolTests(SynchronousTestCase):
    def begin(self, coding: bytes, *, pauses: bool = False) -> None:
        self.receiver = Receiver(pauses=pauses)
        self.body = InflatingProtocol(self.receiver, coding)
        self.wire = Transport()
        self.body.makeConnection(self.wire)

    def finish(self, reason: type[Exception] = ResponseDone) -> None:
        self.body.connectionLost(Failure(reason()))

    def received(self) -> bytes:
        return b"".join(self.receiver.pieces)

    def end(self) -> Failure:
        assert self.receiver.end is not None
        return self.receiver.end

    def assert_failed(self) -> None:
        """Assert that the body failed with `BadCoding`."""
        failure = self.end()
        failure.trap(ResponseFailed)
        self.assertIsInstance(cast("Any", failure.value).reasons[0].value, BadCoding)

    def test_each_coding(self) -> None:
        for name, (coding, compressed) in COMPRESSED.items():
            for reason in (ResponseDone, PotentialDataLoss):
                self.begin(coding)
                self.body.dataReceived(compressed)
                self.finish(reason)
                self.assertEqual(self.received(), TEXT, name)
                self.end().trap(reason)

    @given(st.sampled_from(list(COMPRESSED)), st.lists(st.integers(0, 120), max_size=9))
    def test_any_cut(self, name: str, cuts: list[int]) -> None:
        coding, compressed = COMPRESSED[name]
        self.begin(coding)
        ends = sorted({min(cut, len(compressed)) for cut in cuts} | {0, len(compressed)})
        for start, end in pairwise(ends):
            self.body.dataReceived(compressed[start:end])
        self.finish()
        self.assertEqual(self.received(), TEXT)
        self.end().trap(ResponseDone)

    def test_flushed_data_is_delivered_at_once(self) -> None:
        self.begin(b"gzip")
        compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        self.body.dataReceived(compressor.compress(TEXT) + compressor.flush(zlib.Z_SYNC_FLUSH))
        self.assertEqual(self.received(), TEXT)

    def test_a_wrong_coding(self) -> None:
        self.begin(b"gzip")
        self.body.dataReceived(b'{"choices": []}')
        self.assert_failed()
        self.assertTrue(self.wire.aborted)
        self.body.dataReceived(b"more")
        self.finish()
        self.assertEqual(self.received(), b"")

    def test_a_wrong_coding_that_only_the_end_shows(self) -> None:
        self.begin(b"deflate")
        self.body.dataReceived(b'{"choices": []}')
        self.finish()
        self.assert_failed()

    def test_truncated(self) -> None:
        for coding, compressed in COMPRESSED.values():
            for reason in (ResponseDone, PotentialDataLoss):
                self.begin(coding)
                self.body.dataReceived(compressed[:12])
                self.finish(reason)
                self.assert_failed()

    def test_a_wrong_checksum(self) -> None:
        self.begin(b"gzip")
        compressed = bytearray(gzip.compress(TEXT))
        compressed[-6] ^= 1
        self.body.dataReceived(bytes(compressed))
        self.assert_failed()

    def test_empty(self) -> None:
        self.begin(b"gzip")
        self.finish()
        self.end().trap(ResponseDone)

    def test_connection_lost(self) -> None:
        self.begin(b"gzip")
        self.body.dataReceived(COMPRESSED["gzip"][1])
        error = ResponseFailed([])
        self.body.connectionLost(Failure(error))
        self.assertIs(self.end().value, error)

    def test_a_compression_bomb_is_delivered_in_steps(self) -> None:
        size = 100 * MAX_STEP
        self.begin(b"gzip", pauses=True)
        self.body.dataReceived(gzip.compress(bytes(size)))
        self.finish()
        self.assertEqual(self.wire.producerState, "paused")
        for steps in range(1, 101):
            self.assertEqual(len(self.receiver.pieces), steps)
            self.assertIsNone(self.receiver.end)
            self.receiver.source.resumeProducing()
        self.assertLessEqual(max(map(len, self.receiver.pieces)), MAX_STEP)
        self.assertEqual(len(self.received()), size)

    def test_the_receiver_can_close_the_connection(self) -> None:
        self.begin(b"gzip")
        self.receiver.source.loseConnection()
        self.assertTrue(self.wire.aborted)

    def test_the_transport_resumes_when_all_is_delivered(self) -> None:
        self.begin(b"gzip", pauses=True)
        self.body.dataReceived(COMPRESSED["gzip"][1][:-1])
        self.assertEqual(self.wire.producerState, "paused")
        self.receiver.source.resumeProducing()
        self.assertEqual(self.wire.producerState, "producing")
