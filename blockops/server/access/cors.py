"""
Web pages: CORS, and the rejection of requests from pages that are not allowed.

Browsers let any page send requests to any address, also to this machine. They only withhold the
response from the page, unless the response names the page's origin
(https://fetch.spec.whatwg.org, "CORS protocol"). By then the work would be done. So without API
keys, a request from a page is rejected unless its origin is allowed. Programs other than browsers
send no `Origin`.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.net.http_headers import header_excerpt, header_value

#: Response headers that pages may read, besides those that the standard lets them read.
EXPOSED_HEADERS = b"X-Request-Id, X-Blockops-Notice, Retry-After"
ALLOWED_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
#: Seconds for which a browser may cache a preflight response; Chrome's upper bound.
PREFLIGHT_MAX_AGE = b"7200"

#: A valid list of header names: the preflight response repeats it. Longer ones are not repeated.
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")
#: The schemes of web pages. Those of programs and extensions (`chrome-extension://`, `tauri://`)
#: were installed by the user, and are allowed.
_WEB_SCHEMES = (b"http://", b"https://")


@dataclass(frozen=True)
class PreflightResponse:
    """
    The response to a preflight request of an allowed page: status 204, without a body.

    :ivar headers: of the response, besides those of `OriginPolicy.add_cors_headers`
    """

    headers: tuple[tuple[bytes, bytes], ...]


class OriginPolicy:
    """
    Decides which web pages may send requests and read the responses.

    :param allowed: the origins of the pages, such as `https://chat.example`; `*` for all
    :ivar allows_any: False if no page is allowed
    """

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allows_all = "*" in allowed
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self.allows_any = bool(self._allowed)

    def add_cors_headers(self, headers: Headers, response_headers: Headers) -> None:
        """Add the headers that let the page of a request with `headers` read the response."""
        if self._allows_all:
            response_headers.setRawHeaders(b"Access-Control-Allow-Origin", [b"*"])
        else:
            response_headers.setRawHeaders(b"Vary", [b"Origin"])
            origin = header_value(headers, b"Origin")
            if origin not in self._allowed:
                return
            response_headers.setRawHeaders(b"Access-Control-Allow-Origin", [origin])
        response_headers.setRawHeaders(b"Access-Control-Expose-Headers", [EXPOSED_HEADERS])

    def preflight_response(self, headers: Headers) -> PreflightResponse | None:
        """Return the response if this is a preflight request of an allowed page, else None."""
        is_preflight = headers.hasHeader(b"Access-Control-Request-Method")
        if not is_preflight or not self._allows(header_value(headers, b"Origin")):
            return None
        response = [
            (b"Access-Control-Allow-Methods", ALLOWED_METHODS),
            (b"Access-Control-Max-Age", PREFLIGHT_MAX_AGE),
            (b"Vary", b"Access-Control-Request-Headers"),
        ]
        names = header_value(headers, b"Access-Control-Request-Headers")
        if _HEADER_NAMES.fullmatch(names):
            response.append((b"Access-Control-Allow-Headers", names))
        if headers.hasHeader(b"Access-Control-Request-Private-Network"):
            response.append((b"Access-Control-Allow-Private-Network", b"true"))
        return PreflightResponse(tuple(response))

    def check(self, headers: Headers, host: bytes, origin: bytes) -> ApiError | None:
        """
        Return the 403 for a request from a page that is not allowed, or None.

        :param host: the value of the `Host` header. A page with this host was served through the
            same reverse proxy, and is allowed.
        :param origin: the value of the `Origin` header
        """
        if not origin:
            # Images and the like have no `Origin`, but browsers mark them as requests of another
            # site (https://w3c.github.io/webappsec-fetch-metadata). A link that the user follows is
            # allowed.
            is_cross_site = (
                headers.hasHeader(b"Sec-Fetch-Site")
                and header_value(headers, b"Sec-Fetch-Site") in {b"cross-site", b"same-site"}
                and header_value(headers, b"Sec-Fetch-Mode") != b"navigate"
            )
        elif origin.startswith(_WEB_SCHEMES):
            is_cross_site = not host or origin.partition(b"//")[2] != host
        else:
            is_cross_site = origin == b"null"
        if not is_cross_site or self._allows(origin):
            return None
        pages = header_excerpt(origin) or "other sites"
        return ApiError(
            403,
            f"Web pages of {pages} may not send requests. To allow them, start blockops with"
            " --cors-origin ORIGIN, or with --api-keys-file and give them a key.",
            type="permission_error",
            code="origin_not_allowed",
        )

    def _allows(self, origin: bytes) -> bool:
        return bool(origin) and (self._allows_all or origin in self._allowed)
