"""`ResponseParser`: framings, errors, bounds, and any split into reads."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.http.response_parser import (
    MAX_FRAMING,
    MAX_HEAD,
    MAX_HEADERS,
    ResponseParser,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def parse(*pieces: bytes, method: bytes = b"GET") -> tuple[ResponseParser, bytes]:
    parser = ResponseParser(method)
    return parser, b"".join([parser.receive_data(piece) for piece in pieces])


class ParserTestCase(SynchronousTestCase):
    def parse_complete(self, data: bytes, method: bytes = b"GET") -> tuple[ResponseParser, bytes]:
        """Parse `data`, which is a complete response."""
        parser, content = parse(data, method=method)
        self.assertIsNone(parser.error)
        self.assertTrue(parser.complete)
        return parser, content

    def parse_error(self, *pieces: bytes) -> str:
        """Return the error's message for the invalid `pieces`; data after it is ignored."""
        parser, _ = parse(*pieces)
        assert parser.error is not None
        self.assertEqual(parser.receive_data(b"x" * 9), b"")
        return str(parser.error)


class FramingTests(ParserTestCase):
    def test_a_length(self) -> None:
        parser, content = self.parse_complete(
            b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nA: b\r\n\r\nhello"
        )
        self.assertEqual(content, b"hello")
        self.assertEqual((parser.version, parser.code), ((b"HTTP", 1, 1), 200))
        self.assertEqual(parser.phrase, b"Fine")
        self.assertEqual(parser.headers, [(b"Content-Length", b"5"), (b"A", b"b")])
        self.assertEqual((parser.ends_at_close, parser.length), (False, 5))

    def test_chunks(self) -> None:
        parser, content = self.parse_complete(
            CHUNKED + b"5;name=value\r\nhello\r\n3 \r\n...\r\n0\r\nTrailer: x\r\n\r\n"
        )
        self.assertEqual(content, b"hello...")
        self.assertEqual((parser.ends_at_close, parser.length), (False, None))
        self.assertEqual(len(parser.headers), 1)

    def test_the_end_of_the_connection(self) -> None:
        parser, content = parse(b"HTTP/1.0 200\r\n\r\nhel", b"lo")
        self.assertEqual(content, b"hello")
        self.assertEqual((parser.version, parser.phrase), ((b"HTTP", 1, 0), b""))
        self.assertEqual((parser.ends_at_close, parser.complete), (True, False))

    def test_no_body(self) -> None:
        for status in (204, 304):
            _, content = self.parse_complete(
                b"HTTP/1.1 %d -\r\nContent-Length: 4\r\n\r\nbody" % status
            )
            self.assertEqual(content, b"")
        self.parse_complete(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        parser, content = self.parse_complete(
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", method=b"HEAD"
        )
        self.assertEqual((parser.length, content), (4, b""))

    def test_data_after_the_end_is_ignored(self) -> None:
        for response in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        ):
            for trailing in (b"junk", b"\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\nx"):
                parser, content = self.parse_complete(response + trailing)
                self.assertEqual((parser.code, parser.phrase), (200, b"OK"))
                self.assertEqual(content, b"hello")
                self.assertEqual(parser.receive_data(trailing), b"")

    def test_interim_responses_are_skipped(self) -> None:
        parser, content = self.parse_complete(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
        )
        self.assertEqual((parser.code, parser.phrase, content), (200, b"OK", b"x"))
        self.assertEqual(len(parser.headers), 1)

    def test_lines_that_end_with_lf(self) -> None:
        _, content = self.parse_complete(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi")
        self.assertEqual(content, b"hi")


class ErrorTests(ParserTestCase):
    def test_contradictory_framing(self) -> None:
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
            self.parse_error(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n\r\n")

    def test_invalid_responses(self) -> None:
        for data in (
            b"SSH-2.0-OpenSSH_9\r\n",
            b"\x15\x03\x01\x00\x02\x02F",
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nName: a\0b\r\n\r\n",
        ):
            self.parse_error(data)

    def test_switching_protocols(self) -> None:
        for headers in (b"", b"Connection: upgrade\r\nUpgrade: h2c\r\n"):
            message = self.parse_error(b"HTTP/1.1 101 Switching\r\n" + headers + b"\r\n")
            self.assertIn("another protocol", message)

    def test_content_before_an_error(self) -> None:
        for cut in range(len(CHUNKED), len(CHUNKED) + 12):
            data = CHUNKED + b"2\r\nhi\r\nzz\r\n"
            parser, content = parse(data[:cut], data[cut:])
            self.assertEqual(content, b"hi")
            self.assertIsNotNone(parser.error)


class BoundTests(ParserTestCase):
    def test_the_number_of_headers(self) -> None:
        head = b"HTTP/1.1 200 OK\r\n"
        longest = b"a: b\r\n" * MAX_HEADERS
        self.parse_complete(head + longest[6:] + b"Content-Length: 0\r\n\r\n")
        self.assertIn("more than 500 headers", self.parse_error(head + longest + b"c: d\r\n\r\n"))

    def test_the_size_of_the_head(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nLong: "
        self.parse_complete(head + b"x" * (MAX_HEAD - len(head)) + b"\r\n\r\n")
        self.parse_error(head + b"x" * MAX_HEAD + b"\r\n\r\n")

    def test_a_head_without_end(self) -> None:
        for endless in (b"x" * 1000, b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"):
            pieces = [b"HTTP/1.1 200 " if endless[:1] == b"x" else b""]
            pieces += [endless] * (2 * MAX_HEAD // len(endless))
            self.parse_error(*pieces)

    def test_framing_without_content(self) -> None:
        for endless in (b"5;" + b"x" * 100, b"0\r\nTrailer: " + b"x" * 100):
            piece = b"x" * 1000
            message = self.parse_error(CHUNKED + endless, *[piece] * (2 * MAX_FRAMING // 1000))
            self.assertIn("no content of the body", message)

    def test_the_framing_bound_restarts_with_content(self) -> None:
        chunk = b"1;" + b"x" * (MAX_FRAMING // 2) + b"\r\ny\r\n"
        pieces = [chunk[at : at + 1000] for at in range(0, len(chunk), 1000)]
        parser, content = parse(CHUNKED, *(pieces * 5))
        self.assertIsNone(parser.error)
        self.assertEqual(content, b"yyyyy")


class SplitTests(SynchronousTestCase):
    RESPONSES = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\nhello and junk",
        CHUNKED + b"5;a=b\r\nhello\r\n3\r\n...\r\n0\r\nTrailer: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 200\r\nServer: BaseHTTP/0.6\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\nfive\r\n",
        # Content that looks like a chunk.
        CHUNKED + b"2\r\nx1\r\n6\r\n1\r\n2\r\n\r\n0\r\n\r\n",
    )

    @given(st.sampled_from(RESPONSES), st.lists(st.integers(0, 120), max_size=20))
    def test_the_split_makes_no_difference(self, data: bytes, cuts: list[int]) -> None:
        ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        pieces = [data[start:end] for start, end in pairwise(ends)]
        self.assertEqual(self.outcome(*pieces), self.outcome(data))

    def outcome(self, *pieces: bytes) -> tuple[object, ...]:
        parser, content = parse(*pieces)
        is_error = parser.error is not None
        return (parser.code, parser.phrase, parser.headers, content, parser.complete, is_error)

    def test_at_every_cut(self) -> None:
        content = b"data: {}\n\n"
        wire = CHUNKED + b"%x\r\n%s\r\n" % (len(content), content) * 3 + b"0\r\n\r\n"
        for first in range(len(CHUNKED), len(wire)):
            for second in range(first, len(wire)):
                parser, received = parse(wire[:first], wire[first:second], wire[second:])
                self.assertEqual((received, parser.complete), (content * 3, True))
