"""Event streams in an unknown format, passed through."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.passthrough import PassThrough
from blockops.errors import ApiError


class PassThroughTests(SynchronousTestCase):
    """Streams in other formats."""

    def test_bytes_are_unchanged(self) -> None:
        stream = PassThrough()
        for data in (b": c\r\n", b"event: x\rdata: {}\n\n", b"\xff", b"data: [DONE]\n\n"):
            self.assertEqual(stream.receive_data(data), data)
        self.assertFalse(stream.has_ended)
        self.assertEqual(stream.end(is_truncated=False), b"")
        self.assertTrue(stream.has_ended)
        self.assertEqual(stream.receive_data(b"late"), b"")
        self.assertEqual(stream.heartbeat(), b"")
        self.assertEqual(stream.fail(ApiError(500, "x")), b"")

    def test_heartbeat_between_events_only(self) -> None:
        stream = PassThrough()
        heartbeat = b": heartbeat\n\n"
        self.assertEqual(stream.heartbeat(), heartbeat)
        for data, expected in {
            b"data: 1": b"",
            b"\n": b"",
            b"\r": b"",
            b"data: 1\n\n": heartbeat,
            b"data: 1\r\n": b"",
            b"\r\n": heartbeat,
            b"data: 1\r\r": heartbeat,
            b"data: 1\r\n\r": b"",
        }.items():
            stream.receive_data(data)
            self.assertEqual(stream.heartbeat(), expected, data)

    def test_error(self) -> None:
        for data, between in ((b"data: 1\n\n", b""), (b"data: 1", b"\n\n"), (b"", b"")):
            stream = PassThrough()
            stream.receive_data(data)
            out = stream.fail(ApiError(504, "slow", type="t", code="c"))
            self.assertTrue(out.startswith(between + b"event: error\ndata: {"))
            value = json.loads(out.split(b"data: ")[1])
            self.assertEqual(value["type"], "error")
            self.assertEqual(value["error"]["message"], "slow")
            self.assertEqual((stream.report.error, stream.has_ended), ("slow", True))

    def test_truncated(self) -> None:
        stream = PassThrough()
        self.assertIn(b"event: error", stream.end(is_truncated=True))
        self.assertEqual(stream.end(is_truncated=True), b"")
