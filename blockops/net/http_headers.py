"""Which headers pass from one side to the other."""

from __future__ import annotations

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
    b"x-api-key",
    b"api-key",
    b"cookie",
    # Which pages may ask is decided here: a backend that has an opinion would ask for another page.
    b"origin",
    b"referer",
    b"access-control-request-headers",
    b"access-control-request-method",
    b"access-control-request-private-network",
    # What a client says of its own address is believed by backends that take us for a gate.
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
    b"x-forwarded-scheme",
    b"x-forwarded-server",
    b"x-real-ip",
}
#: Said anew by the server's side.
NOT_TO_CLIENT = HOP_BY_HOP | {
    b"content-length",
    b"server",
    b"date",
    b"set-cookie",
    b"x-request-id",
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-allow-private-network",
    b"access-control-expose-headers",
    b"access-control-max-age",
}
#: What a client has to know of a refusal, besides its body.
OF_REFUSALS = (b"Retry-After", b"WWW-Authenticate")


def to_backend(headers: Headers, *, besides: frozenset[bytes] = frozenset()) -> Headers:
    """
    Return what of a client's request headers the backend is told.

    :param besides: names, in small letters, of what is told although others keep it to themselves
    """
    held = NOT_TO_BACKEND - besides if besides else NOT_TO_BACKEND
    passed = headers.copy()
    for name in _staying(headers, held):
        passed.removeHeader(name)
    return passed


def to_client(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return what of a backend's response headers the client is told."""
    # An encoding that was undone on the way leaves an empty header behind.
    staying = _staying(headers, NOT_TO_CLIENT)
    return [
        (name, value)
        for name, values in headers.getAllRawHeaders()
        if name not in staying
        for value in values
        if value
    ]


def of_refusal(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return what of the headers of a backend's refusal the client is told."""
    return [(name, value) for name in OF_REFUSALS for value in headers.getRawHeaders(name, [])]


def media_type(headers: Headers) -> str:
    """Return the media type of a body, in lower case and without parameters; empty if unsaid."""
    said: bytes = headers.getRawHeaders(b"Content-Type", [b""])[0]
    return said.partition(b";")[0].strip().lower().decode("latin-1")


def coding(headers: Headers) -> str:
    """Return what a body was compressed with that nobody has undone; empty if it was not."""
    said: bytes = headers.getRawHeaders(b"Content-Encoding", [b""])[0]
    name = said.strip().lower().decode("latin-1")
    return "" if name == "identity" else name


def _staying(headers: Headers, held: frozenset[bytes]) -> list[bytes]:
    """Return the names, as they are spelled in `headers`, of what does not pass."""
    named = headers.getRawHeaders(b"Connection")
    if named:
        held |= {token.strip().lower() for value in named for token in value.split(b",")}
    # Behind WSGI and CGI there is no telling an underscore from a dash.
    return [
        name
        for name, _ in headers.getAllRawHeaders()
        if (lowered := name.lower()) in held or lowered.replace(b"_", b"-") in held
    ]
