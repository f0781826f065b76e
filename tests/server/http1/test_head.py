"""Request heads: parsing, rejection, and where they end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.server.http1.head import (
    _HEADER,
    body_length,
    find_head_end,
    find_request_line,
    parse_head,
)
from blockops.server.limits import MAX_HEAD, MAX_LENGTH_DIGITS, MAX_LINE, MAX_NAME

LIMIT = 1000

INVALID_REQUEST_LINES = (
    b"",
    b" ",
    b"GET",
    b"GET /",
    b"GET  / HTTP/1.1",
    b" GET / HTTP/1.1",
    b"GET / HTTP/1.1 ",
    b"GET\t/\tHTTP/1.1",
    b"GET / HTTP/0.9",
    b"GET / HTTP/1.2",
    b"GET / HTTP/2.0",
    b"GET / http/1.1",
    b"GET / HTTP/1.1\rX: y",
    b"GET / HTTP/1.1\nX: y",
    b"GET /\x00 HTTP/1.1",
    b"GET /\x7f HTTP/1.1",
    b"GET /\xc3\xa9 HTTP/1.1",
    b"G(T / HTTP/1.1",
    b"G\xe9T / HTTP/1.1",
)
INVALID_HEADERS = (
    b"no colon",
    b": no name",
    b"Space : x",
    b" Space: x",
    b"\tFolded: x",
    b"X: y\r\n folded",
    b"X: y\nZ: bare",
    b"X: y\rZ: bare",
    b"X: y\r",
    b"X: \x00",
    b"X: \x0b",
    b"X: \x7f",
    b"N\xe9: x",
    b"N\x00: x",
    b"(X): y",
    b"X: y\r\nno colon\r\nX: y",
)


def head(*lines: bytes, line: bytes = b"POST /a?b=c HTTP/1.1") -> bytes:
    return b"".join(each + b"\r\n" for each in (line, *lines, b""))


class Case(SynchronousTestCase):
    def assert_rejected(self, status: int, data: bytes) -> ApiError:
        """Parse `data`, a complete head, and return the error."""

        def parse() -> None:
            end = find_head_end(data)
            self.assertEqual(end, len(data), data)
            body_length(parse_head(data), LIMIT)

        error: ApiError = self.assertRaises(ApiError, parse)
        self.assertEqual(error.status, status, data)
        return error


class Parsing(Case):
    def test_request_line_and_headers(self) -> None:
        parsed = parse_head(head(b"Host:b", b"x-Y:  1 2\t ", b"X-y: \xc3\xa9", b"Empty:"))
        self.assertEqual(
            (parsed.method, parsed.target, parsed.version), (b"POST", b"/a?b=c", b"HTTP/1.1")
        )
        self.assertEqual(
            dict(parsed.headers.getAllRawHeaders()),
            {b"Host": [b"b"], b"X-Y": [b"1 2", b"\xc3\xa9"], b"Empty": [b""]},
        )

    def test_without_headers(self) -> None:
        self.assertEqual(list(parse_head(head()).headers.getAllRawHeaders()), [])

    def test_after_one_empty_line(self) -> None:
        data = b"\r\n" + head()
        self.assertEqual(find_head_end(data), len(data))
        self.assertEqual(parse_head(data).method, b"POST")
        self.assertRaises(ApiError, parse_head, b"\r\n" + data)

    def test_invalid_request_lines(self) -> None:
        for line in INVALID_REQUEST_LINES:
            error = self.assertRaises(ApiError, parse_head, head(line=line))
            self.assertIn("first line", error.message, line)

    def test_invalid_headers(self) -> None:
        for line in INVALID_HEADERS:
            error = self.assertRaises(ApiError, parse_head, head(b"A: b", line, b"C: d"))
            self.assertIn("headers", error.message, line)

    def test_a_long_header_name(self) -> None:
        # Twisted caches the names.
        longest = b"N" * MAX_NAME
        self.assertTrue(parse_head(head(longest + b": x")).headers.hasHeader(longest))
        error = self.assertRaises(ApiError, parse_head, head(longest + b"N: x"))
        self.assertIn(str(MAX_NAME), error.message)

    def test_invalid_headers_are_searched_once(self) -> None:
        # 32 KB of these took two seconds when the search began at each byte.
        lines = b"no name: x\r\n no: x\r\nName: x\r\n"
        self.assertEqual(_HEADER.findall(lines), [(b"Name", b" x")])

    def test_request_line(self) -> None:
        self.assertEqual(find_request_line(b"GET /x HTTP/1.1\r\nbad"), (b"GET", b"/x"))
        self.assertEqual(find_request_line(b"\r\nGET /x HTTP/1.1"), (b"GET", b"/x"))
        self.assertEqual(find_request_line(b"GET /x"), (b"", b""))


class Lengths(Case):
    def length(self, *lines: bytes, line: bytes = b"POST / HTTP/1.1") -> int | None:
        return body_length(parse_head(head(*lines, line=line)), LIMIT)

    def test_valid_lengths(self) -> None:
        self.assertEqual(self.length(), 0)
        self.assertEqual(self.length(b"Content-Length: 0"), 0)
        self.assertEqual(self.length(b"content-length:  00012 "), 12)
        self.assertIsNone(self.length(b"Transfer-Encoding: Chunked"))
        # A length above the limit is returned: the caller rejects it.
        self.assertEqual(self.length(b"Content-Length: 99999"), 99999)

    def test_ambiguous_lengths(self) -> None:
        for lines in (
            (b"Content-Length: 1", b"Content-Length: 1"),
            (b"Content-Length: 1", b"Content-Length: 2"),
            (b"Content-Length: 1, 1",),
            (b"Content-Length: +1",),
            (b"Content-Length: -1",),
            (b"Content-Length: 0x1",),
            (b"Content-Length: 1_0",),
            (b"Content-Length: 1.0",),
            (b"Content-Length: \xb2",),
            (b"Content-Length:",),
            (b"Content-Length: 1", b"Transfer-Encoding: chunked"),
            (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
            (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
            (b"Transfer-Encoding: chunked, chunked",),
            (b"Transfer-Encoding: identity",),
            (b"Transfer-Encoding: gzip, chunked",),
            (b"Transfer-Encoding: xchunked",),
            (b"Transfer-Encoding:",),
        ):
            self.assert_rejected(400, head(*lines))
        self.assert_rejected(400, head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"))

    def test_a_length_with_too_many_digits(self) -> None:
        self.assert_rejected(413, head(b"Content-Length: " + b"9" * (MAX_LENGTH_DIGITS + 1)))


def head_of_size(line: int, header: int, count: int = 1) -> bytes:
    """Return a head with a request line and `count` headers of these lengths."""
    target = b"/" * (line - len(b"GET  HTTP/1.1"))
    headers = [b"X: ".ljust(header, b"x")] * count
    return head(*headers, line=b"GET %s HTTP/1.1" % target)


class Sizes(Case):
    def test_at_the_limits(self) -> None:
        for data in (head_of_size(MAX_LINE, 10), head_of_size(100, MAX_LINE)):
            self.assertEqual(find_head_end(data), len(data))
        self.assertIn(
            "request line", self.assert_rejected(414, head_of_size(MAX_LINE + 1, 10)).message
        )
        self.assertIn(
            "A header", self.assert_rejected(431, head_of_size(100, MAX_LINE + 1)).message
        )

    def test_all_headers_together(self) -> None:
        room = MAX_HEAD - len(head(line=b"GET / HTTP/1.1"))
        lines = [b"X: ".ljust(room // 8 - 2, b"x")] * 8
        lines[0] += b"x" * (room - room // 8 * 8)
        data = head(*lines, line=b"GET / HTTP/1.1")
        self.assertEqual((find_head_end(data), len(data)), (MAX_HEAD, MAX_HEAD))
        lines[0] += b"x"
        error = self.assert_rejected(431, head(*lines, line=b"GET / HTTP/1.1"))
        self.assertIn("together", error.message)

    def test_incomplete_heads_are_rejected(self) -> None:
        for status, data in (
            (400, b"GET /\r\n"),
            (400, b"\x16\x03\x01\x02\x00\x01\r\n"),
            (400, b"\x16\x03\x01\x02\x00\x01"),
            (400, b" "),
            (400, b"\rG"),
            (414, b"GET /".ljust(MAX_LINE + 2, b"x")),
            (414, b"x" * (MAX_LINE + 1) + b"\r\n"),
            (431, b"GET / HTTP/1.1\r\nX: ".ljust(MAX_LINE + 20, b"x")),
            (431, (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD)[: MAX_HEAD + 1]),
        ):
            error = self.assertRaises(ApiError, find_head_end, data)
            self.assertEqual(error.status, status, data[:20])

    def test_incomplete_heads_within_the_limits(self) -> None:
        for beginning in (b"\r", b"\r\n", b"\r\n\r", b"G", b"\r\nGET", b"GET "):
            self.assertEqual(find_head_end(beginning), 0, beginning)
        whole = head_of_size(MAX_LINE, MAX_LINE)
        for cut in (1, 2, MAX_LINE, MAX_LINE + 1, MAX_LINE + 2, len(whole) - 4, len(whole) - 1):
            self.assertEqual(find_head_end(whole[:cut]), 0, cut)

    @given(
        st.integers(MAX_LINE - 3, MAX_LINE + 3),
        st.integers(MAX_LINE - 3, MAX_LINE + 3),
        st.integers(1, 5),
        st.integers(0, 50_000),
    )
    def test_limits_do_not_depend_on_the_split(
        self, line: int, header: int, count: int, cut: int
    ) -> None:
        data = head_of_size(line, header, count) + b"next"

        def find(*cuts: int) -> int:
            try:
                searched = 0
                for size in cuts:
                    if end := find_head_end(data[:size], searched):
                        return end
                    searched = size
            except ApiError:
                return -1
            return 0

        self.assertEqual(find(len(data)), find(min(cut, len(data)), len(data)))
