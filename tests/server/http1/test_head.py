"""The heads of requests: what is read, what is refused, and where they end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.server.http1.head import _HEADER, body_length, end_of_head, read_head, request_line
from blockops.server.limits import MAX_DIGITS, MAX_HEAD, MAX_LINE, MAX_NAME

LIMIT = 1000

NO_REQUEST_LINES = (
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
NO_HEADERS = (
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


class Refusals(SynchronousTestCase):
    def refuses(self, status: int, data: bytes) -> ApiError:
        """Read `data` as a whole head."""

        def read() -> None:
            end = end_of_head(data)
            self.assertEqual(end, len(data), data)
            body_length(read_head(data), LIMIT)

        error: ApiError = self.assertRaises(ApiError, read)
        self.assertEqual(error.status, status, data)
        return error


class Reading(Refusals):
    def test_what_it_says(self) -> None:
        read = read_head(head(b"Host:b", b"x-Y:  1 2\t ", b"X-y: \xc3\xa9", b"Empty:"))
        self.assertEqual(
            (read.method, read.target, read.version), (b"POST", b"/a?b=c", b"HTTP/1.1")
        )
        self.assertEqual(
            dict(read.headers.getAllRawHeaders()),
            {b"Host": [b"b"], b"X-Y": [b"1 2", b"\xc3\xa9"], b"Empty": [b""]},
        )

    def test_without_headers(self) -> None:
        self.assertEqual(list(read_head(head()).headers.getAllRawHeaders()), [])

    def test_behind_one_empty_line(self) -> None:
        data = b"\r\n" + head()
        self.assertEqual(end_of_head(data), len(data))
        self.assertEqual(read_head(data).method, b"POST")
        self.assertRaises(ApiError, read_head, b"\r\n" + data)

    def test_lines_that_are_none(self) -> None:
        for line in NO_REQUEST_LINES:
            error = self.assertRaises(ApiError, read_head, head(line=line))
            self.assertIn("first line", error.message, line)

    def test_headers_that_are_none(self) -> None:
        for line in NO_HEADERS:
            error = self.assertRaises(ApiError, read_head, head(b"A: b", line, b"C: d"))
            self.assertIn("headers", error.message, line)

    def test_a_name_that_nobody_would_give(self) -> None:
        # Twisted keeps the names that it has seen.
        longest = b"N" * MAX_NAME
        self.assertTrue(read_head(head(longest + b": x")).headers.hasHeader(longest))
        error = self.assertRaises(ApiError, read_head, head(longest + b"N: x"))
        self.assertIn(str(MAX_NAME), error.message)

    def test_what_is_no_header_is_looked_at_once(self) -> None:
        # 32 KB of it took two seconds when each of its bytes could begin a header.
        lines = b"no name: x\r\n no: x\r\nName: x\r\n"
        self.assertEqual(_HEADER.findall(lines), [(b"Name", b" x")])

    def test_its_line_as_far_as_it_is_known(self) -> None:
        self.assertEqual(request_line(b"GET /x HTTP/1.1\r\nbad"), (b"GET", b"/x"))
        self.assertEqual(request_line(b"\r\nGET /x HTTP/1.1"), (b"GET", b"/x"))
        self.assertEqual(request_line(b"GET /x"), (b"", b""))


class Lengths(Refusals):
    def length(self, *lines: bytes, line: bytes = b"POST / HTTP/1.1") -> int | None:
        return body_length(read_head(head(*lines, line=line)), LIMIT)

    def test_said(self) -> None:
        self.assertEqual(self.length(), 0)
        self.assertEqual(self.length(b"Content-Length: 0"), 0)
        self.assertEqual(self.length(b"content-length:  00012 "), 12)
        self.assertIsNone(self.length(b"Transfer-Encoding: Chunked"))
        # More than is taken is for others to refuse: they know more of the request.
        self.assertEqual(self.length(b"Content-Length: 99999"), 99999)

    def test_of_which_nobody_can_be_sure(self) -> None:
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
            self.refuses(400, head(*lines))
        self.refuses(400, head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"))

    def test_that_nobody_can_send(self) -> None:
        self.refuses(413, head(b"Content-Length: " + b"9" * (MAX_DIGITS + 1)))


def of_size(line: int, header: int, count: int = 1) -> bytes:
    """Return a head whose line and headers are so many bytes long."""
    target = b"/" * (line - len(b"GET  HTTP/1.1"))
    headers = [b"X: ".ljust(header, b"x")] * count
    return head(*headers, line=b"GET %s HTTP/1.1" % target)


class Sizes(Refusals):
    def test_at_their_bounds(self) -> None:
        for data in (of_size(MAX_LINE, 10), of_size(100, MAX_LINE)):
            self.assertEqual(end_of_head(data), len(data))
        self.assertIn("request line", self.refuses(414, of_size(MAX_LINE + 1, 10)).message)
        self.assertIn("A header", self.refuses(431, of_size(100, MAX_LINE + 1)).message)

    def test_together(self) -> None:
        room = MAX_HEAD - len(head(line=b"GET / HTTP/1.1"))
        lines = [b"X: ".ljust(room // 8 - 2, b"x")] * 8
        lines[0] += b"x" * (room - room // 8 * 8)
        data = head(*lines, line=b"GET / HTTP/1.1")
        self.assertEqual((end_of_head(data), len(data)), (MAX_HEAD, MAX_HEAD))
        lines[0] += b"x"
        error = self.refuses(431, head(*lines, line=b"GET / HTTP/1.1"))
        self.assertIn("together", error.message)

    def test_before_they_are_whole(self) -> None:
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
            error = self.assertRaises(ApiError, end_of_head, data)
            self.assertEqual(error.status, status, data[:20])

    def test_that_may_still_fit(self) -> None:
        for beginning in (b"\r", b"\r\n", b"\r\n\r", b"G", b"\r\nGET", b"GET "):
            self.assertEqual(end_of_head(beginning), 0, beginning)
        whole = of_size(MAX_LINE, MAX_LINE)
        for cut in (1, 2, MAX_LINE, MAX_LINE + 1, MAX_LINE + 2, len(whole) - 4, len(whole) - 1):
            self.assertEqual(end_of_head(whole[:cut]), 0, cut)

    @given(
        st.integers(MAX_LINE - 3, MAX_LINE + 3),
        st.integers(MAX_LINE - 3, MAX_LINE + 3),
        st.integers(1, 5),
        st.integers(0, 50_000),
    )
    def test_are_the_same_at_every_cut(self, line: int, header: int, count: int, cut: int) -> None:
        data = of_size(line, header, count) + b"behind"

        def ends(*cuts: int) -> int:
            try:
                searched = 0
                for upto in cuts:
                    if end := end_of_head(data[:upto], searched):
                        return end
                    searched = upto
            except ApiError:
                return -1
            return 0

        self.assertEqual(ends(len(data)), ends(min(cut, len(data)), len(data)))
