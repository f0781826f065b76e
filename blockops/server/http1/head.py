"""
The head of a client's request: request line and headers, parsed strictly and only when complete.

Two servers that read the same bytes differently enable request smuggling, so everything that is not
plain RFC 9112 is rejected: bare LF, folded headers, a space before a colon, control characters. A
body has one Content-Length of digits or one `Transfer-Encoding: chunked`, and never both.

One regular expression over the whole head takes as long as llhttp with its callbacks. llhttp cannot
be stopped at the end of a message, so it is not always clear which bytes belong to the next one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.server.limits import MAX_HEAD, MAX_LENGTH_DIGITS, MAX_LINE, MAX_NAME, body_too_large

_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TOKEN = _TCHAR + b"+"
_REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) (HTTP/1\.[01])" % _TOKEN)
#: Anchored to the start of a line: a search from each byte of an invalid line takes seconds.
_HEADER = re.compile(
    rb"^(%s{1,%d}):([\t\x20-\x7e\x80-\xff]*)\r\n" % (_TCHAR, MAX_NAME), re.MULTILINE
)
#: The start of a request line that is not complete, or of an empty line before it.
_PARTIAL_REQUEST_LINE = re.compile(rb"%s|\r?\Z" % _TOKEN)
#: Bytes of a header besides its name and its value.
_HEADER_OVERHEAD = len(b":\r\n")
_END = b"\r\n\r\n"
#: It ends a head. A server should ignore one before a request (RFC 9112, section 2.2).
_EMPTY_LINE = b"\r\n"


class RequestHead(NamedTuple):
    """A request line and its headers."""

    method: bytes
    target: bytes  # visible ASCII
    version: bytes  # `b"HTTP/1.0"` or `b"HTTP/1.1"`
    headers: Headers


def find_head_end(data: bytes, start: int = 0) -> int:
    """
    Return the length of the head at the start of `data`, or 0 if it is not complete.

    :param start: the length of a prefix of `data` for which the result was 0
    :raises ApiError: 400, 414 or 431 if `data` cannot become a valid head
    """
    index = data.find(_END, max(start - len(_END) + 1, 0))
    if index < 0:
        _check_partial_head(data)
        return 0
    end = index + len(_END)
    if end > MAX_LINE:
        _check_size(data[:end])
    return end


def parse_head(data: bytes) -> RequestHead:
    """Parse a complete head, as long as `find_head_end` returns; 400 if it is not valid."""
    line, _, lines = data.removeprefix(_EMPTY_LINE).partition(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(line)
    if request_line is None:
        raise _bad_request("its first line is not a request line")
    headers = Headers()
    size = len(_EMPTY_LINE)
    for name, value in _HEADER.findall(lines):
        size += len(name) + len(value) + _HEADER_OVERHEAD
        headers.addRawHeader(name, value.strip(b" \t"))
    # `findall` skips what does not match, so compare the lengths.
    if size != len(lines):
        raise _bad_request(
            f"one of its headers is not valid, or has a name of more than {MAX_NAME} bytes"
        )
    return RequestHead(request_line[1], request_line[2], request_line[3], headers)


def body_length(head: RequestHead, limit: int) -> int | None:
    """
    Return the length of the body in bytes, or None if it is chunked.

    A length above `limit` is returned too: the caller knows whether the body is wanted.

    :param limit: the largest body that is accepted, for the error message
    :raises ApiError: 400 if the length is ambiguous; 413 if it has too many digits
    """
    codings = head.headers.getRawHeaders(b"Transfer-Encoding", ())
    lengths = head.headers.getRawHeaders(b"Content-Length", ())
    if not codings and not lengths:
        return 0
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise _bad_request(
                "its Transfer-Encoding is not just 'chunked', or it also has a Content-Length"
            )
        if head.version == b"HTTP/1.0":
            raise _bad_request("HTTP/1.0 has no Transfer-Encoding")
        return None
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise _bad_request("its Content-Length is not a number")
    if len(lengths[0]) > MAX_LENGTH_DIGITS:
        raise body_too_large(limit)
    return int(lengths[0])


def wants_keep_alive(head: RequestHead) -> bool:
    """Return True if the client may send another request on the connection."""
    values = head.headers.getRawHeaders(b"Connection", ())
    tokens = b",".join(values).lower().replace(b",", b" ").split()
    return head.version == b"HTTP/1.1" and b"close" not in tokens


def expects_continue(head: RequestHead) -> bool:
    """Return True if the client waits for a `100 Continue` before it sends the body."""
    values = head.headers.getRawHeaders(b"Expect", (b"",))
    return head.version == b"HTTP/1.1" and values[0].lower() == b"100-continue"


def find_request_line(data: bytes) -> tuple[bytes, bytes]:
    """Return method and target of the request at the start of `data`, or two empty strings."""
    match = _REQUEST_LINE.match(data.removeprefix(_EMPTY_LINE))
    return (match[1], match[2]) if match else (b"", b"")


def _check_partial_head(data: bytes) -> None:
    """Raise 400, 414 or 431 if the incomplete head `data` cannot become a valid one."""
    line, line_end, _ = data.removeprefix(_EMPTY_LINE).partition(b"\r\n")
    matches = _REQUEST_LINE.fullmatch if line_end else _PARTIAL_REQUEST_LINE.match
    if not matches(line):
        # Another protocol, such as TLS, may never send the end of a head, so do not wait for it.
        _check_size(data)
        raise _bad_request("its first line is not a request line")
    last_line = data.rfind(b"\r\n") + 2
    if len(data) > MAX_HEAD or len(data) - last_line > MAX_LINE:
        _check_size(data)


def _check_size(data: bytes) -> None:
    """Raise 414 or 431 if a line of `data` is too long, or all of them together are."""
    lines = data.removeprefix(_EMPTY_LINE).split(b"\r\n")
    if not data.endswith(b"\r\n"):
        # The last line may end with the CR of its line end.
        lines[-1] = lines[-1].removesuffix(b"\r")
    if len(lines[0]) > MAX_LINE:
        message = f"The request line is longer than {MAX_LINE} bytes. Send a shorter URL."
        raise ApiError(414, message, code="request_too_large")
    if max(map(len, lines)) > MAX_LINE:
        raise _too_long("A header of the request is", MAX_LINE)
    if len(data) > MAX_HEAD:
        raise _too_long("All headers of the request together are", MAX_HEAD)


def _too_long(subject: str, limit: int) -> ApiError:
    return ApiError(
        431,
        f"{subject} longer than {limit} bytes. Send fewer or shorter headers, such as cookies.",
        code="request_too_large",
    )


def _bad_request(reason: str) -> ApiError:
    return ApiError(400, f"This is not a valid HTTP/1.1 request: {reason}.")
