"""Which headers pass from one side to the other."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.web.http_headers import Headers

#: They speak of one connection, not of the message (RFC 9110, section 7.6.1).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
#: Said anew by the client's side of blockops, or nobody's business behind it: a client's
#: credentials are for blockops; the backend has a key of its own.
NOT_TO_BACKEND = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"accept-encoding",
    b"expect",
    b"authorization",
    b"cookie",
}
#: Said anew by the server's side. Bodies are decoded on their way, so their encoding is gone too.
NOT_TO_CLIENT = HOP_BY_HOP | {
    b"content-length",
    b"content-encoding",
    b"server",
    b"date",
    b"set-cookie",
}


def to_backend(headers: Headers) -> Headers:
    """Return what of a client's request headers the backend is told."""
    passed = Headers()
    for name, values in _passing(headers, NOT_TO_BACKEND):
        passed.setRawHeaders(name, values)
    return passed


def to_client(headers: Headers) -> list[tuple[str, str]]:
    """Return what of a backend's response headers the client is told."""
    return [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, values in _passing(headers, NOT_TO_CLIENT)
        for value in values
    ]


def media_type(headers: Headers) -> str:
    """Return the media type of a body, in lower case and without parameters; empty if unsaid."""
    said = headers.getRawHeaders("Content-Type", [""])[0]
    return said.partition(";")[0].strip().lower()


def _passing(headers: Headers, held: frozenset[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    named = headers.getRawHeaders(b"Connection", [])
    of_this_hop = {token.strip().lower() for value in named for token in value.split(b",")}
    for name, values in headers.getAllRawHeaders():
        if name.lower() not in held and name.lower() not in of_this_hop:
            yield name, list(values)
