"""
Access control: the decision on each request once its headers are complete, before its body is read.

With API keys, a request needs one: as `Authorization: Bearer KEY`, as `x-api-key: KEY` (Anthropic's
clients) or as `api-key: KEY` (Azure's). Only `/health` needs none, because load balancers have no
keys; without one its response contains no details. A web page with a key is allowed wherever it
comes from. Without API keys, `cors` and `host_check` reject requests of pages that are not allowed.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.net.addresses import is_local
from blockops.net.http_headers import header_value
from blockops.server.access.api_keys import ApiKeyStore
from blockops.server.access.cors import OriginPolicy, PreflightResponse
from blockops.server.access.host_check import HostCheck
from blockops.server.request import ClientRequest

#: Bytes of a key that is compared; those in the file have at most 1024.
MAX_KEY_LENGTH = 4096


class Unauthorized(ApiError):
    """401: the request has no API key, or an unknown one."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"WWW-Authenticate", b"Bearer")]


class AccessPolicy:
    """
    Allows or rejects requests by their headers.

    :param keys: None if clients need none
    :param origins: the web pages that may send requests; with keys, those that may read responses
    :param hosts: the host names that requests may have if there are no keys
    """

    def __init__(self, keys: ApiKeyStore | None, origins: OriginPolicy, hosts: HostCheck) -> None:
        self._keys = keys
        self._origins = origins
        self._hosts = hosts

    def check(self, request: ClientRequest) -> ApiError | PreflightResponse | None:
        """
        Return the response to send in place of the route's, or None if the request is allowed.

        Adds the CORS headers of the response, and sets `request.api_key_owner`.
        """
        headers = request.requestHeaders
        if self._origins.allows_any:
            self._origins.add_cors_headers(headers, request.responseHeaders)
        if request.method == b"OPTIONS":
            preflight = self._origins.preflight_response(headers)
            if preflight is not None:
                return preflight
        if len(headers.getRawHeaders(b"Host", ())) > 1:
            return ApiError(
                400, "The request has more than one Host header. Send one (RFC 9112, section 3.2)."
            )
        return self._check_page(request) if self._keys is None else self._check_key(request)

    def check_admin(self, request: ClientRequest) -> ApiError | PreflightResponse | None:
        """
        Do the same as `check` for a request to `--admin-listen`.

        Programs on this machine need no key there: a metrics scraper may have no place for one.
        """
        if self.may_read_status(request):
            return self._check_page(request)
        return self.check(request)

    def is_authenticated(self, request: ClientRequest) -> bool:
        """Return True if the request has a known API key, or if clients need none."""
        return self._keys is None or bool(request.api_key_owner)

    def may_read_status(self, request: ClientRequest) -> bool:
        """Return True if a request to `--admin-listen` may read the detailed status."""
        return self.is_authenticated(request) or is_local(request.connection.server_address())

    def _check_key(self, request: ClientRequest) -> ApiError | None:
        assert self._keys is not None
        keys = _presented_keys(request.requestHeaders)
        for key in keys:
            request.api_key_owner = request.api_key_owner or self._keys.owner_of(key)
        if request.api_key_owner or request.route.is_public:
            return None
        problem = "This API key is unknown" if keys else "This request needs an API key"
        return Unauthorized(
            401,
            f"{problem}. Send a valid one as Authorization: Bearer KEY. The operator of blockops"
            " has the keys in --api-keys-file.",
            code="invalid_api_key",
        )

    def _check_page(self, request: ClientRequest) -> ApiError | None:
        headers = request.requestHeaders
        host, origin = header_value(headers, b"Host"), header_value(headers, b"Origin")
        unknown_host = self._hosts.check(host, request.connection.server_address)
        return unknown_host or self._origins.check(headers, host, origin)


def _presented_keys(headers: Headers) -> list[bytes]:
    """Return the keys of a request. A header that occurs twice is ignored."""
    keys = []
    for name in (b"Authorization", b"X-Api-Key", b"Api-Key"):
        values = headers.getRawHeaders(name, ())
        key = values[0].strip() if len(values) == 1 else b""
        if name == b"Authorization":
            scheme, _, credentials = key.partition(b" ")
            key = credentials.strip() if scheme.lower() == b"bearer" else b""
        if 0 < len(key) <= MAX_KEY_LENGTH:
            keys.append(key)
    return keys
