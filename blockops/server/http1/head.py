"""
The head of a client's request: request line and headers, read whole, and strictly.

What a server in front of another one reads differently from it is a hole in the wall, so whatever
is not plain RFC 9112 is refused: no bare LF, no folded headers, no space before a colon, no control
characters, one Content-Length of digits or one `Transfer-Encoding: chunked`, and never both.

One regular expression over the whole head takes as long as llhttp with its callbacks, and leaves
no doubt about where a message ends: llhttp cannot be stopped there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.server.limits import MAX_DIGITS, MAX_HEAD, MAX_LINE, MAX_NAME, too_large

_LETTER = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TOKEN = _LETTER + b"+"
_REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) (HTTP/1\.[01])" % _TOKEN)
#: At the start of a line only: to try a line that is none from each of its bytes takes seconds.
_HEADER = re.compile(
    rb"^(%s{1,%d}):([\t\x20-\x7e\x80-\xff]*)\r\n" % (_LETTER, MAX_NAME), re.MULTILINE
)
#: What a request line begins with while it is not whole, or an empty line before it.
_BEGINNING = re.compile(rb"%s|\r?\Z" % _TOKEN)
#: A header's colon and the end of its line.
_AROUND = len(b":\r\n")
_END = b"\r\n\r\n"


class Head(NamedTuple):
    """
    A request line, and what headers followed it.

    :ivar method: a token, such as `b"GET"`
    :ivar target: visible ASCII
    :ivar version: `b"HTTP/1.0"` or `b"HTTP/1.1"`
    """

    method: bytes
    target: bytes
    version: bytes
    headers: Headers


def end_of_head(data: bytes, searched: int = 0) -> int:
    """
    Return where the head ends that `data` begins with; 0 while it is not whole.

    :param searched: bytes of `data` for which this was 0 before
    :raises ApiError: 400, 414 or 431, whatever follows
    """
    at = data.find(_END, max(searched - len(_END) + 1, 0))
    if at < 0:
        _check_beginning(data)
        return 0
    end = at + len(_END)
    if end > MAX_LINE:
        _check_size(data[:end])
    return end


def read_head(data: bytes) -> Head:
    """
    Return what a whole head says.

    :param data: up to where `end_of_head` says that it ends
    :raises ApiError: 400, it is none
    """
    line, _, rest = _from_its_line(data).partition(b"\r\n")
    said = _REQUEST_LINE.fullmatch(line)
    if said is None:
        raise _not_http("its first line is no request line")
    headers = _HEADER.findall(rest)
    # What is skipped in the search for headers is none.
    if sum([len(name) + len(value) + _AROUND for name, value in headers]) != len(rest) - 2:
        raise _not_http(f"one of its headers is none, or has a name of more than {MAX_NAME} bytes")
    read = Headers()
    for name, value in headers:
        read.addRawHeader(name, value.strip(b" \t"))
    return Head(said[1], said[2], said[3], read)


def body_length(head: Head, limit: int) -> int | None:
    """
    Return the bytes of the body behind `head`; None if it comes in chunks.

    :param limit: those that are taken
    :raises ApiError: 400, nobody can say; 413, it is no number that anybody could send
    """
    codings = head.headers.getRawHeaders(b"Transfer-Encoding", ())
    lengths = head.headers.getRawHeaders(b"Content-Length", ())
    if not codings and not lengths:
        return 0
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise _not_http("its Transfer-Encoding is not chunked alone")
        if head.version == b"HTTP/1.0":
            raise _not_http("HTTP/1.0 has no Transfer-Encoding")
        return None
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise _not_http("its Content-Length is no number")
    if len(lengths[0]) > MAX_DIGITS:
        raise too_large(limit)
    return int(lengths[0])


def request_line(data: bytes) -> tuple[bytes, bytes]:
    """Return method and target of the request that `data` begins with; empty ones if it is none."""
    said = _REQUEST_LINE.match(_from_its_line(data))
    return (said[1], said[2]) if said else (b"", b"")


def _from_its_line(data: bytes) -> bytes:
    # One empty line before a request is to be ignored (RFC 9112, section 2.2).
    return data.removeprefix(b"\r\n")


def _check_beginning(data: bytes) -> None:
    """
    Look at a head of which the end is missing.

    :raises ApiError: it does not begin as one, or is already too long
    """
    line, found, _ = _from_its_line(data).partition(b"\r\n")
    whole_line = _REQUEST_LINE.fullmatch if found else _BEGINNING.match
    if not whole_line(line):
        # Somebody speaks another protocol, such as TLS: nothing like an end will ever come.
        _check_size(data)
        raise _not_http("its first line is no request line")
    last = data.rfind(b"\r\n") + 2
    if len(data) > MAX_HEAD or len(data) - last > MAX_LINE:
        _check_size(data)


def _check_size(data: bytes) -> None:
    lines = _from_its_line(data).split(b"\r\n")
    if not data.endswith(b"\r\n"):
        # The first half of its end.
        lines[-1] = lines[-1].removesuffix(b"\r")
    if len(lines[0]) > MAX_LINE:
        what = f"The request line is longer than {MAX_LINE} bytes."
        raise ApiError(414, what, code="request_too_large")
    if max(map(len, lines)) > MAX_LINE:
        raise _too_long("A header of the request is", MAX_LINE)
    if len(data) > MAX_HEAD:
        raise _too_long("The headers of the request are together", MAX_HEAD)


def _too_long(what: str, limit: int) -> ApiError:
    return ApiError(431, f"{what} longer than {limit} bytes.", code="request_too_large")


def _not_http(why: str) -> ApiError:
    return ApiError(400, f"This is not a valid HTTP/1.1 request: {why}.")
