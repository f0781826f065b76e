"""The framing of request bodies: where they end, and the bytes after the end."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.server.http1.body import MAX_SIZE_LINE, ChunkedBody, FixedLengthBody
from blockops.server.limits import MAX_HEAD

NEXT_REQUEST = b"GET / HTTP/1.1\r\n"

INVALID_CHUNKS = (
    b"\r\n",
    b"x\r\n",
    b" 1\r\na\r\n",
    b"1 \r\na\r\n",
    b"+1\r\na\r\n",
    b"-1\r\na\r\n",
    b"0x1\r\na\r\n",
    b"1_0\r\n",
    b";x\r\na\r\n",
    b"1;\x00\r\na\r\n",
    b"1;\n\r\na\r\n",
    b"1\na\n0\n\n\r\n",
    b"1\r\nab\r\n",
    b"1\r\na\n0\r\n\r\n",
    b"1\r\na\rb",
    b"1\r\na0\r\n\r\n",
    b"1234567890abcdef\r\n",
    b"0\r\nno colon\r\n\r\n",
    b"0\r\n folded\r\n\r\n",
    b"0\r\nX: \x00\r\n\r\n",
    b"0\r\nX: y\nZ: z\r\n\r\n",
    b"1;" + b"x" * MAX_SIZE_LINE,
    b"0" * (MAX_SIZE_LINE + 2),
    b"0\r\nX: " + b"x" * MAX_HEAD,
    b"0\r\n" + b"X: y\r\n" * MAX_HEAD,
)


def chunked(*pieces: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    sizes = [b"%x%s\r\n%s\r\n" % (len(each), extension, each) for each in pieces]
    return b"".join([*sizes, b"0\r\n", trailers, b"\r\n"])


def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def feed(
    body: FixedLengthBody | ChunkedBody, pieces: Iterable[bytes]
) -> tuple[bytes, bytes | None]:
    """Feed `body` with the pieces; return its data and the bytes after its end."""
    received: list[bytes] = []
    rest: bytes | None = None
    for piece in pieces:
        if rest is None:
            data, rest = body.receive(piece)
            received.append(data)
        else:
            rest += piece
    return b"".join(received), rest


class FixedLengthBodies(SynchronousTestCase):
    @given(st.binary(min_size=1), st.integers(1, 9))
    def test_split_at_every_size(self, data: bytes, size: int) -> None:
        body = FixedLengthBody(len(data))
        self.assertEqual(feed(body, split(data + NEXT_REQUEST, size)), (data, NEXT_REQUEST))

    def test_a_single_piece_is_not_copied(self) -> None:
        data = b"x" * 100
        self.assertIs(FixedLengthBody(200).receive(data)[0], data)


class ChunkedBodies(SynchronousTestCase):
    @given(st.lists(st.binary(min_size=1), max_size=4), st.integers(1, 9))
    def test_split_at_every_size(self, pieces: list[bytes], size: int) -> None:
        data = chunked(*pieces, extension=b';a="b"', trailers=b"X: y\r\nZ:\r\n") + NEXT_REQUEST
        for piece_size in (size, len(data)):
            received = feed(ChunkedBody(), split(data, piece_size))
            self.assertEqual(received, (b"".join(pieces), NEXT_REQUEST))

    def test_invalid_chunks(self) -> None:
        for data in INVALID_CHUNKS:
            for size in (1, len(data)):
                self.assertRaises(ApiError, feed, ChunkedBody(), split(data, size))

    def test_at_the_limits(self) -> None:
        line = b"1;".ljust(MAX_SIZE_LINE, b"x")
        trailers = b"X: ".ljust(MAX_HEAD, b"x")
        data = b"%s\r\na\r\n0\r\n%s\r\n\r\n" % (line, trailers)
        for size in (1, len(data)):
            self.assertEqual(feed(ChunkedBody(), split(data, size)), (b"a", b""))

    def test_small_chunks_are_joined(self) -> None:
        data, _ = ChunkedBody().receive(chunked(*[b"ab"] * 1000))
        self.assertEqual(data, b"ab" * 1000)
