"""What one response says, read from bytes that were cut anywhere."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.http.response_parser import (
    MAX_FRAMING,
    MAX_HEAD,
    MAX_HEADERS,
    Framing,
    ResponseReader,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*pieces: bytes, method: bytes = b"GET") -> tuple[ResponseReader, bytes]:
    reader = ResponseReader(method)
    return reader, b"".join([reader.receive_data(piece) for piece in pieces])


class Reading(SynchronousTestCase):
    def whole(self, data: bytes, method: bytes = b"GET") -> tuple[ResponseReader, bytes]:
        """Read `data`, which is a response to its end."""
        reader, content = read(data, method=method)
        self.assertIsNone(reader.fault)
        self.assertTrue(reader.ended)
        return reader, content

    def refused(self, *pieces: bytes) -> str:
        """Return what is said of `pieces`, which are none; nothing is read behind them."""
        reader, _ = read(*pieces)
        assert reader.fault is not None
        self.assertEqual(reader.receive_data(b"x" * 9), b"")
        return str(reader.fault)


class Framings(Reading):
    def test_a_length(self) -> None:
        reader, content = self.whole(b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nA: b\r\n\r\nhello")
        self.assertEqual(content, b"hello")
        self.assertEqual((reader.version, reader.code), ((b"HTTP", 1, 1), 200))
        self.assertEqual(reader.phrase, b"Fine")
        self.assertEqual(reader.headers, [(b"Content-Length", b"5"), (b"A", b"b")])
        self.assertEqual((reader.framing, reader.length), (Framing.LENGTH, 5))

    def test_chunks(self) -> None:
        reader, content = self.whole(
            CHUNKED + b"5;name=value\r\nhello\r\n3 \r\n...\r\n0\r\nTrailer: x\r\n\r\n"
        )
        self.assertEqual(content, b"hello...")
        self.assertEqual((reader.framing, reader.length), (Framing.CHUNKS, None))
        self.assertEqual(len(reader.headers), 1)

    def test_the_connections_end(self) -> None:
        reader, content = read(b"HTTP/1.0 200\r\n\r\nhel", b"lo")
        self.assertEqual(content, b"hello")
        self.assertEqual((reader.version, reader.phrase), ((b"HTTP", 1, 0), b""))
        self.assertEqual((reader.framing, reader.ended), (Framing.CLOSE, False))

    def test_no_body_at_all(self) -> None:
        for status in (204, 304):
            _, content = self.whole(b"HTTP/1.1 %d -\r\nContent-Length: 4\r\n\r\nbody" % status)
            self.assertEqual(content, b"")
        self.whole(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        reader, content = self.whole(
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", method=b"HEAD"
        )
        self.assertEqual((reader.length, content), (4, b""))

    def test_what_stands_behind_the_end_is_nobodys(self) -> None:
        for whole in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        ):
            for behind in (b"junk", b"\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\nx"):
                reader, content = self.whole(whole + behind)
                self.assertEqual((reader.code, reader.phrase), (200, b"OK"))
                self.assertEqual(content, b"hello")
                self.assertEqual(reader.receive_data(behind), b"")

    def test_interim_responses_are_passed_over(self) -> None:
        reader, content = self.whole(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
        )
        self.assertEqual((reader.code, reader.phrase, content), (200, b"OK", b"x"))
        self.assertEqual(len(reader.headers), 1)

    def test_lines_that_end_with_a_line_feed_alone(self) -> None:
        _, content = self.whole(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi")
        self.assertEqual(content, b"hi")


class Refusals(Reading):
    def test_a_length_beside_chunks(self) -> None:
        for headers in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: five",
            b"Content-Length: -1",
            b"Content-Length: 99999999999999999999999999",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ):
            self.refused(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n\r\n")

    def test_what_is_no_response(self) -> None:
        for data in (
            b"SSH-2.0-OpenSSH_9\r\n",
            b"\x15\x03\x01\x00\x02\x02F",
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nName: a\0b\r\n\r\n",
        ):
            self.refused(data)

    def test_another_protocol(self) -> None:
        for headers in (b"", b"Connection: upgrade\r\nUpgrade: h2c\r\n"):
            why = self.refused(b"HTTP/1.1 101 Switching\r\n" + headers + b"\r\n")
            self.assertIn("another protocol", why)

    def test_content_in_front_of_a_fault(self) -> None:
        for cut in range(len(CHUNKED), len(CHUNKED) + 12):
            data = CHUNKED + b"2\r\nhi\r\nzz\r\n"
            reader, content = read(data[:cut], data[cut:])
            self.assertEqual(content, b"hi")
            self.assertIsNotNone(reader.fault)


class Bounds(Reading):
    def test_headers_have_a_most(self) -> None:
        head = b"HTTP/1.1 200 OK\r\n"
        just = b"a: b\r\n" * MAX_HEADERS
        self.whole(head + just[6:] + b"Content-Length: 0\r\n\r\n")
        self.assertIn("more than 500 headers", self.refused(head + just + b"c: d\r\n\r\n"))

    def test_a_head_has_a_most(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nLong: "
        self.whole(head + b"x" * (MAX_HEAD - len(head)) + b"\r\n\r\n")
        self.refused(head + b"x" * MAX_HEAD + b"\r\n\r\n")

    def test_a_head_without_an_end(self) -> None:
        for endless in (b"x" * 1000, b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"):
            pieces = [b"HTTP/1.1 200 " if endless[:1] == b"x" else b""]
            pieces += [endless] * (2 * MAX_HEAD // len(endless))
            self.refused(*pieces)

    def test_chunks_that_say_much_and_hold_nothing(self) -> None:
        for endless in (b"5;" + b"x" * 100, b"0\r\nTrailer: " + b"x" * 100):
            piece = b"x" * 1000
            why = self.refused(CHUNKED + endless, *[piece] * (2 * MAX_FRAMING // 1000))
            self.assertIn("nothing of its body", why)

    def test_the_bound_is_for_each_piece(self) -> None:
        chunk = b"1;" + b"x" * (MAX_FRAMING // 2) + b"\r\ny\r\n"
        pieces = [chunk[at : at + 1000] for at in range(0, len(chunk), 1000)]
        reader, content = read(CHUNKED, *(pieces * 5))
        self.assertIsNone(reader.fault)
        self.assertEqual(content, b"yyyyy")


class AnyCut(SynchronousTestCase):
    RESPONSES = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\nhello and junk",
        CHUNKED + b"5;a=b\r\nhello\r\n3\r\n...\r\n0\r\nTrailer: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 200\r\nServer: BaseHTTP/0.6\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\nfive\r\n",
    )

    @given(st.sampled_from(RESPONSES), st.lists(st.integers(0, 120), max_size=20))
    def test_it_makes_no_difference(self, data: bytes, cuts: list[int]) -> None:
        ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        pieces = [data[start:end] for start, end in pairwise(ends)]
        self.assertEqual(self.said(*pieces), self.said(data))

    def said(self, *pieces: bytes) -> tuple[object, ...]:
        reader, content = read(*pieces)
        fault = reader.fault is not None
        return (reader.code, reader.phrase, reader.headers, content, reader.ended, fault)


class ByLlhttp(ResponseReader):
    """The plain way: llhttp sees every byte."""

    __slots__ = ("seen",)

    def __init__(self, method: bytes) -> None:
        super().__init__(method)
        self.seen = 0

    def receive_data(self, data: bytes) -> bytes:
        return self._read(data)


class Watched(ResponseReader):
    """Counts the reads that llhttp sees."""

    __slots__ = ("seen",)

    def __init__(self, method: bytes) -> None:
        super().__init__(method)
        self.seen = 0

    def _read(self, data: bytes) -> bytes:
        self.seen += 1
        return super()._read(data)


def framed(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


class Straight(SynchronousTestCase):
    """What llhttp does not see is read as it would be."""

    #: Contents that look like framing, too.
    contents = st.one_of(
        st.binary(min_size=1, max_size=40),
        st.sampled_from([b"d", b"1", b"\r\n", b"1\r\n1", b"1\r\n1\r\n1", b"0\r\n\r\n"]),
        st.integers(1, 40).map(lambda size: (b"%x\r\n" % size * 40)[:size]),
        st.integers(1, 40).map(lambda size: b"x" * size),
    )
    #: What is a chunk, or nearly one, or in another spelling.
    parts = st.one_of(
        contents.map(framed),
        contents.map(framed),
        contents.map(framed),
        contents.map(lambda content: b"0%X;a=b\r\n%s\r\n" % (len(content), content)),
        contents.map(lambda content: b"%x\n%s\r\n" % (len(content), content)),
        contents.map(lambda content: b"%x\r\n%s" % (len(content), content)),
        contents.map(lambda content: b"%x\r\n%s\n\n" % (len(content), content)),
        contents.map(lambda content: b"%x\r\n%s\r\n" % (len(content) + 1, content)),
        contents,
        st.sampled_from(
            [b"0\r\n\r\n", b"-2\r\n", b"0\r\n", b"5", b"5;", b"5;a=", b"1\r\n", b"\r\n"]
        ),
    )

    @given(st.lists(parts, max_size=8), st.lists(st.integers(0, 200), max_size=4))
    def test_chunks(self, parts: list[bytes], more_cuts: list[int]) -> None:
        self.assert_alike(CHUNKED, parts, more_cuts)

    @given(st.lists(parts, max_size=4), st.lists(st.integers(0, 200), max_size=4))
    def test_other_framings(self, parts: list[bytes], more_cuts: list[int]) -> None:
        for head in (
            b"HTTP/1.0 200\r\n\r\n",
            b"HTTP/1.1 204 No\r\n\r\n",
            b"HTTP/1.1 200\r\nContent-Length: 30\r\n\r\n",
        ):
            self.assert_alike(head, parts, more_cuts)

    def assert_alike(self, head: bytes, parts: list[bytes], more_cuts: list[int]) -> None:
        """Compare after every read: each part is one, unless it is cut in more."""
        wire = head + b"".join(parts)
        ends = {0, len(wire), *accumulate(map(len, parts), initial=len(head))}
        ends |= {cut for cut in more_cuts if cut < len(wire)}
        reads = [wire[begin:end] for begin, end in pairwise(sorted(ends))]
        for method in (b"GET", b"HEAD"):
            ours, plain = ResponseReader(method), ByLlhttp(method)
            for data in reads:
                self.assertEqual(ours.receive_data(data), plain.receive_data(data), reads)
                self.assertEqual(ours.ended, plain.ended)
                self.assertEqual(str(ours.fault), str(plain.fault))

    def test_at_every_cut(self) -> None:
        content = b"data: {}\n\n"
        wire = CHUNKED + framed(content) * 3 + b"0\r\n\r\n"
        for first in range(len(CHUNKED), len(wire)):
            for second in range(first, len(wire)):
                reader, read_ = read(wire[:first], wire[first:second], wire[second:])
                self.assertEqual((read_, reader.ended), (content * 3, True))

    def test_content_that_looks_like_a_chunk(self) -> None:
        # One byte of a chunk is missing: what comes then is not the chunk that it looks like.
        self.assert_alike(CHUNKED, [b"2\r\nx", b"1\r\n1\r\n", b"1\r\n2\r\n"], [])

    def test_chunks_without_an_end(self) -> None:
        event = framed(b"data: {}\n\n")
        for wrong in (b"4\r\nfour\n\n", b"4\r\nfourfour", b"\n\n4\r\nfour\r\n", b"-2\r\n"):
            self.assert_alike(CHUNKED, [event, wrong, event], [])

    def test_llhttp_sees_what_it_has_to(self) -> None:
        event = framed(b"data: {}\n\n")
        for head, reads, seen in (
            # The head, and the first chunk, by which it is known where llhttp stands.
            (CHUNKED, [event] * 9, 2),
            (CHUNKED, [event * 2, *[event] * 9], 3),
            (CHUNKED, [event, event[:4], event[4:], event, event], 5),
            (CHUNKED, [event, b"0\r\n\r\n"], 3),
            # Where a content begins as its size does, that is not known, but the next one tells.
            (CHUNKED, [framed(b"5five"), framed(b"four"), framed(b"5five")], 3),
            (b"HTTP/1.0 200\r\n\r\n", [b"anything"] * 9, 1),
            (b"HTTP/1.1 200\r\nContent-Length: 90\r\n\r\n", [event] * 3, 4),
        ):
            reader = Watched(b"GET")
            for data in (head, *reads):
                self.assertTrue(reader.receive_data(data) or data in {head, event[:4], reads[-1]})
            self.assertEqual(reader.seen, seen, (head, reads))
            self.assertIsNone(reader.fault)
