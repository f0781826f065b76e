"""HTTP headers: which of them are forwarded, and the values of single ones."""

from __future__ import annotations

from twisted.web.http_headers import Headers

#: Headers of one connection, not of the message (RFC 9110, section 7.6.1).
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade".split()
)
#: Request headers that are not forwarded to the backend. `blockops.upstream` sets its own, or they
#: are for blockops only, such as a client's credentials: the backend has its own key.
_FOR_BLOCKOPS = frozenset(
    b"host content-length accept-encoding expect authorization x-api-key api-key cookie".split()
)
#: blockops decides which web pages are allowed. A backend that also checks them would expect the
#: origin of another page.
_OF_WEB_PAGES = frozenset(
    b"origin referer access-control-request-headers access-control-request-method"
    b" access-control-request-private-network".split()
)
#: A backend that trusts its reverse proxy would take the address that a client claims here for the
#: client's.
_OF_PROXIES = frozenset(
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-prefix"
    b" x-forwarded-proto x-forwarded-scheme x-forwarded-server x-real-ip".split()
)
DROPPED_FROM_REQUESTS = HOP_BY_HOP | _FOR_BLOCKOPS | _OF_WEB_PAGES | _OF_PROXIES
#: Response headers that are not forwarded to the client: `blockops.server` sets its own.
DROPPED_FROM_RESPONSES = HOP_BY_HOP | frozenset(
    b"content-length server date set-cookie x-request-id access-control-allow-credentials"
    b" access-control-allow-headers access-control-allow-methods access-control-allow-origin"
    b" access-control-allow-private-network access-control-expose-headers"
    b" access-control-max-age".split()
)
#: The headers of a backend's error response that a client needs besides the body.
ERROR_HEADERS = (b"Retry-After", b"WWW-Authenticate")
#: Characters of a header's value that an error message quotes.
MAX_EXCERPT = 100


def forwarded_request_headers(
    headers: Headers, *, allow: frozenset[bytes] = frozenset()
) -> Headers:
    """Return the headers without `DROPPED_FROM_REQUESTS`, except the lower-case names `allow`."""
    dropped = DROPPED_FROM_REQUESTS - allow if allow else DROPPED_FROM_REQUESTS
    forwarded = headers.copy()
    for name in _dropped(headers, dropped):
        forwarded.removeHeader(name)
    return forwarded


def forwarded_response_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a backend's response that are forwarded to the client."""
    dropped = _dropped(headers, DROPPED_FROM_RESPONSES)
    return [
        (name, value)
        for name, values in headers.getAllRawHeaders()
        if name not in dropped
        for value in values
        # Empty where an encoding was decoded on the way.
        if value
    ]


def forwarded_error_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a backend's error response that are forwarded to the client."""
    return [(name, value) for name in ERROR_HEADERS for value in headers.getRawHeaders(name, [])]


def header_value(headers: Headers, name: bytes) -> bytes:
    """Return the values of a header, joined by commas, or b"" if there are none."""
    return b",".join(headers.getRawHeaders(name, [])).strip()


def header_excerpt(value: bytes) -> str:
    """Return the start of a header's value, for an error message."""
    return value.decode("latin-1")[:MAX_EXCERPT]


def media_type(headers: Headers) -> str:
    """Return the body's media type in lower case and without parameters, or "" without one."""
    content_type: bytes = headers.getRawHeaders(b"Content-Type", [b""])[0]
    return content_type.partition(b";")[0].strip().lower().decode("latin-1")


def content_encoding(headers: Headers) -> str:
    """Return the body's content coding in lower case, or "" if the body is not encoded."""
    header: bytes = headers.getRawHeaders(b"Content-Encoding", [b""])[0]
    coding = header.strip().lower().decode("latin-1")
    return "" if coding == "identity" else coding


def _dropped(headers: Headers, names: frozenset[bytes]) -> list[bytes]:
    """
    Return the names in `headers`, as they are spelled there, that are not forwarded.

    :param names: lower-case names that are not forwarded, besides those that `Connection` lists
    """
    connection = headers.getRawHeaders(b"Connection")
    if connection:
        names |= {token.strip().lower() for value in connection for token in value.split(b",")}
    # WSGI and CGI servers cannot tell an underscore from a dash.
    return [
        name
        for name, _ in headers.getAllRawHeaders()
        if (lowered := name.lower()) in names or lowered.replace(b"_", b"-") in names
    ]
