"""
Which web pages may ask: CORS, and what keeps other pages away.

Browsers let any page send requests to any address, also to this machine's own. What they withhold,
unless the answer names the page's origin, is the answer (https://fetch.spec.whatwg.org, "CORS
protocol"); but the work would be done by then. A page may also be at a name that its owner lets
point to 127.0.0.1 ("DNS rebinding"): to the browser it then asks itself, and may read the answer.
So where no key tells a friend, a request of a page is refused unless its origin is allowed, and one
for a name that this machine does not have is refused too. Programs that are no browsers send no
`Origin`, and the name that they were given.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address

from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.proxy.exchange import Exchange, Logged
from blockops.server.listener import is_loopback
from blockops.server.request import IncomingRequest

#: What pages may read of answers besides what every page may.
EXPOSED = b"X-Request-Id, X-Blockops-Notice, Retry-After"
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
#: Seconds for which a browser need not ask again; Chrome takes no more.
PREFLIGHT_AGE = b"7200"

#: The headers that a page announces, as far as they can be repeated.
_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")
#: The schemes of pages that come from anywhere; those of programs and extensions are installed.
_OF_PAGES = (b"http://", b"https://")
#: Top-level names that nobody can register: RFC 6761, RFC 6762, ICANN's of 2024.
_OWN_DOMAINS = (".localhost", ".local", ".internal")
_LONGEST_SHOWN = 100


class Origins:
    """
    Knows which pages may ask.

    :param allowed: their origins, such as `https://chat.example`; `*` for all
    :param names: names of this machine besides those that nobody else can have; `*` for all
    """

    def __init__(self, allowed: Collection[str] = (), names: Collection[str] = ()) -> None:
        self._all = "*" in allowed
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self._names = frozenset({"localhost", socket.gethostname().lower(), *names})

    def mark(self, request: IncomingRequest) -> None:
        """Let the answer say to the browser whether the page may read it."""
        if not self._allowed:
            return
        answer = request.responseHeaders
        origin = _said(request.requestHeaders, b"Origin")
        if self._all:
            answer.setRawHeaders(b"Access-Control-Allow-Origin", [b"*"])
        else:
            answer.setRawHeaders(b"Vary", [b"Origin"])
            if origin not in self._allowed:
                return
            answer.setRawHeaders(b"Access-Control-Allow-Origin", [origin])
        answer.setRawHeaders(b"Access-Control-Expose-Headers", [EXPOSED])

    def is_preflight(self, request: IncomingRequest) -> bool:
        """Say whether a browser asks by `request` what an allowed page may send."""
        headers = request.requestHeaders
        return (
            request.method == b"OPTIONS"
            and headers.hasHeader(b"Access-Control-Request-Method")
            and self._allows(_said(headers, b"Origin"))
        )

    def refused(self, request: IncomingRequest) -> ApiError | None:
        """Return what is said to a page that may not ask; None to all others."""
        headers = request.requestHeaders
        origin = _said(headers, b"Origin")
        host = _said(headers, b"Host")
        if not self._knows(host, request):
            name = _shown(host)
            return ApiError(
                403,
                f"This machine does not know itself as {name!r}. If that is a name of it, start"
                f" blockops with --allowed-host {name}.",
                type="permission_error",
                code="host_not_allowed",
            )
        if self._allows(origin) or _same(origin, host) or not _of_a_page(origin, headers):
            return None
        return ApiError(
            403,
            f"Pages of {_shown(origin) or 'other sites'} may not ask. If they should, start"
            " blockops with --cors-origin, or with --api-keys-file and give them a key.",
            type="permission_error",
            code="origin_not_allowed",
        )

    def _allows(self, origin: bytes) -> bool:
        return bool(origin) and (self._all or origin in self._allowed)

    def _knows(self, host: bytes, request: IncomingRequest) -> bool:
        """Say whether `host` cannot be somebody else's name for this machine."""
        # No page gets at a Unix socket, and no name leads to one.
        return _is_own(host, self._names) or not is_loopback(request.getHost())


async def preflight(exchange: Exchange) -> None:
    """Tell a browser what an allowed page may send."""
    exchange.logged = Logged.NEVER
    asked = exchange.request.requestHeaders
    headers = [
        (b"Access-Control-Allow-Methods", METHODS),
        (b"Access-Control-Max-Age", PREFLIGHT_AGE),
        (b"Vary", b"Access-Control-Request-Headers"),
    ]
    names = _said(asked, b"Access-Control-Request-Headers")
    if _NAMES.fullmatch(names):
        headers.append((b"Access-Control-Allow-Headers", names))
    if asked.hasHeader(b"Access-Control-Request-Private-Network"):
        headers.append((b"Access-Control-Allow-Private-Network", b"true"))
    exchange.client.begin(204, headers)
    exchange.client.finish()


def _of_a_page(origin: bytes, headers: Headers) -> bool:
    """
    Say whether a page of another site asks.

    Images and the like come without an origin, but browsers say of them that they are another
    site's (https://w3c.github.io/webappsec-fetch-metadata), as far as nobody follows a link.
    """
    if origin:
        return origin == b"null" or origin.startswith(_OF_PAGES)
    site, mode = _said(headers, b"Sec-Fetch-Site"), _said(headers, b"Sec-Fetch-Mode")
    return site in {b"cross-site", b"same-site"} and mode != b"navigate"


def _same(origin: bytes, host: bytes) -> bool:
    """Say whether a page that is at `host` itself asks, by way of a gate that serves both."""
    return bool(host) and origin.startswith(_OF_PAGES) and origin.partition(b"//")[2] == host


def _name(host: str) -> str:
    """Return the name, or the number, in a `Host` header."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


@lru_cache  # Clients give the same name again and again.
def _is_own(host: bytes, names: frozenset[str]) -> bool:
    """
    Say whether `host` is a name that leads nowhere else, or one that nobody can register.

    :param names: of this machine; `*` for all
    """
    name = _name(host.decode("latin-1"))
    return (
        name in names
        or "*" in names
        or "." not in name
        or name.endswith(_OWN_DOMAINS)
        or _is_number(name)
    )


def _is_number(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _shown(value: bytes) -> str:
    return value.decode("latin-1")[:_LONGEST_SHOWN]


def _said(headers: Headers, name: bytes) -> bytes:
    return b",".join(headers.getRawHeaders(name, [])).strip()
