"""Chunks are decoded strictly or leniently, and only the fields that blockops decides on."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.decoder import decode_chunk, decode_chunk_leniently, envelope
from blockops.api.lenient_json import DECODE_ERRORS


class DecodeTests(SynchronousTestCase):
    def test_invalid_utf8(self) -> None:
        """Bytes that are not UTF-8 are rejected, also in a field that is not decoded."""
        good = b'{"choices":[{"delta":{"content":"\xc3\xa9"}}],"x":"\xc3\xa9"}'
        self.assertIsNotNone(decode_chunk(good).choices)
        for part in (b'"content":"\xc3\xa9"', b'"x":"\xc3\xa9"'):
            bad = good.replace(part, part.replace(b"\xa9", b""))
            self.assertRaises(DECODE_ERRORS, decode_chunk, bad)

    def test_lenient(self) -> None:
        """A field of another type counts as missing; the others are kept."""
        data = {
            "choices": [
                {"index": 1, "delta": {"role": "r", "content": 5}, "finish_reason": "stop"},
                {"index": "2", "message": {"content": "c"}, "text": "t"},
            ],
            "usage": {"a": 1},
            "error": 5,
        }
        chunk = decode_chunk_leniently(json.dumps(data).encode())
        self.assertEqual(
            [
                (
                    choice.index,
                    choice.delta and choice.delta.role,
                    choice.delta and choice.delta.content,
                    choice.message and choice.message.content,
                    choice.text,
                    choice.finish_reason,
                )
                for choice in chunk.choices or ()
            ],
            [
                (1, "r", None, None, None, "stop"),
                (None, None, None, "c", "t", None),
            ],
        )
        self.assertEqual((chunk.usage_counts(), chunk.error), ({"a": 1}, 5))

    def test_not_a_chunk(self) -> None:
        for data in (b"[]", b"5", b'{"choices":[5]}', b'{"choices":[{},null]}'):
            self.assertRaises(ValueError, decode_chunk_leniently, data)
        self.assertIsNone(decode_chunk_leniently(b'{"choices":5}').choices)

    def test_envelope(self) -> None:
        data = b'{"id":"i","x":1,"created":1.0,"choices":[],"usage":null,"model":null}'
        self.assertEqual(
            {key: bytes(raw) for key, raw in envelope(data).items()},
            {"id": b'"i"', "created": b"1.0", "model": b"null"},
        )
