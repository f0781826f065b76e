"""
Who may ask: decided when the headers of a request are here, before anything of its body.

With API keys, a request has to bring one, as `Authorization: Bearer KEY` or as `x-api-key: KEY`
(Anthropic's clients) or `api-key: KEY` (Azure's). `/health` alone is open, and then says no more
than that blockops is alive: load balancers ask it, and have no keys. A page that has a key may ask,
wherever it comes from; what keeps other pages away where there are no keys is in `origins`.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Iterator

from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.proxy.in_flight import refusal
from blockops.server.access.api_keys import KeyRing
from blockops.server.access.cors import Origins, preflight
from blockops.server.listener import is_local
from blockops.server.request import IncomingRequest, Instead, origin_form

#: Where no key is asked for.
OPEN = b"/health"

#: Bytes of a key that is looked at; that of a file is at most 1024 long.
_LONGEST = 4096


class Unauthorized(ApiError):
    """A request came without a key, or with a wrong one."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"WWW-Authenticate", b"Bearer")]


class Access:
    """
    Decides on requests.

    :param keys: what clients have to bring; None if they need no key
    :param origins: which web pages may ask; where there are keys, which may read the answers
    """

    def __init__(self, keys: KeyRing | None, origins: Origins) -> None:
        self._keys = keys
        self._origins = origins

    def screen(self, request: IncomingRequest) -> Instead | None:
        """
        Return what answers `request` instead of its route; None lets it through.

        Notes in `request.caller` whose key it has.
        """
        self._origins.mark(request)
        if self._origins.is_preflight(request):
            return preflight
        refused = self._refused(request)
        return None if refused is None else refusal(refused)

    def screen_status(self, request: IncomingRequest) -> Instead | None:
        """
        Return what answers `request` instead of its route on the port that tells of blockops.

        Programs of this machine need no key there: one that scrapes has nowhere to keep it.
        """
        if not self.trusts_status(request):
            return self.screen(request)
        refused = self._origins.refused(request)
        return None if refused is None else refusal(refused)

    def trusts(self, request: IncomingRequest) -> bool:
        """Say whether whoever sent `request` may know how blockops is in detail."""
        return self._keys is None or bool(request.caller)

    def trusts_status(self, request: IncomingRequest) -> bool:
        """Say the same of a request on the port that tells of blockops."""
        return self.trusts(request) or is_local(request.getHost())

    def _refused(self, request: IncomingRequest) -> ApiError | None:
        if len(request.requestHeaders.getRawHeaders(b"Host", [])) > 1:
            return ApiError(400, "A request has one Host (RFC 9112, section 3.2).")
        if self._keys is None:
            return self._origins.refused(request)
        given = list(_given(request.requestHeaders))
        for key in given:
            request.caller = request.caller or self._keys.name_of(key)
        if request.caller or path_of(request) == OPEN:
            return None
        what = "This API key is not known" if given else "This needs an API key"
        return Unauthorized(
            401,
            f"{what}. Send one that blockops knows, as Authorization: Bearer KEY; who runs "
            "blockops has them in its --api-keys-file.",
            code="invalid_api_key",
        )


def path_of(request: IncomingRequest) -> bytes:
    """Return the path of a request that is not rendered yet."""
    return origin_form(request.uri).partition(b"?")[0]


def _given(headers: Headers) -> Iterator[bytes]:
    """Yield the keys that a client says it has; what it says twice it does not say."""
    scheme, _, credentials = _only(headers, b"Authorization").partition(b" ")
    candidates = [_only(headers, b"X-Api-Key"), _only(headers, b"Api-Key")]
    if scheme.lower() == b"bearer":
        candidates.insert(0, credentials.strip())
    yield from (key for key in candidates if 0 < len(key) <= _LONGEST)


def _only(headers: Headers, name: bytes) -> bytes:
    values = headers.getRawHeaders(name, [])
    return values[0].strip() if len(values) == 1 else b""
