"""Bodies: where they end, and what is behind them."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.server.http1.body import MAX_SIZE_LINE, Body, Chunked, Sized
from blockops.server.limits import MAX_HEAD

BEHIND = b"GET / HTTP/1.1\r\n"

NO_CHUNKS = (
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


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def received(body: Body, pieces: Iterable[bytes]) -> bytes | None:
    """Give `body` the pieces, and return what is behind it, or None if it has no end."""
    behind: bytes | None = None
    for piece in pieces:
        behind = body.receive(piece) if behind is None else behind + piece
    return behind


class SizedBodies(SynchronousTestCase):
    @given(st.binary(min_size=1), st.integers(1, 9))
    def test_at_every_cut(self, data: bytes, size: int) -> None:
        taken: list[bytes] = []
        behind = received(Sized(len(data), taken.append), cut(data + BEHIND, size))
        self.assertEqual((b"".join(taken), behind), (data, BEHIND))

    def test_what_comes_at_once_is_not_copied(self) -> None:
        taken: list[bytes] = []
        data = b"x" * 100
        Sized(200, taken.append).receive(data)
        self.assertIs(taken[0], data)


class ChunkedBodies(SynchronousTestCase):
    @given(st.lists(st.binary(min_size=1), max_size=4), st.integers(1, 9))
    def test_at_every_cut(self, pieces: list[bytes], size: int) -> None:
        data = chunked(*pieces, extension=b';a="b"', trailers=b"X: y\r\nZ:\r\n")
        for pace in (size, len(data + BEHIND)):
            taken: list[bytes] = []
            behind = received(Chunked(taken.append), cut(data + BEHIND, pace))
            self.assertEqual((b"".join(taken), behind), (b"".join(pieces), BEHIND))

    def test_what_is_none(self) -> None:
        for data in NO_CHUNKS:
            for size in (1, len(data)):
                self.assertRaises(ApiError, received, Chunked(len), cut(data, size))

    def test_at_its_bounds(self) -> None:
        line = b"1;".ljust(MAX_SIZE_LINE, b"x")
        trailers = b"X: ".ljust(MAX_HEAD, b"x")
        data = b"%s\r\na\r\n0\r\n%s\r\n\r\n" % (line, trailers)
        for size in (1, len(data)):
            self.assertEqual(received(Chunked(len), cut(data, size)), b"")

    def test_many_small_ones_are_taken_together(self) -> None:
        taken: list[bytes] = []
        Chunked(taken.append).receive(chunked(*[b"ab"] * 1000))
        self.assertEqual(taken, [b"ab" * 1000])
