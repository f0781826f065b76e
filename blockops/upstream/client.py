"""
The backend, as blockops speaks to it: the only module that knows treq.

A connection to a model's server is worth nothing once its answer has ended: a new one costs 0.3 ms.
Several servers close theirs although they advertise keep-alive (llama.cpp failed 43 of 300 requests
that came at once behind another one), and a POST that meets such an end is not sent again. So each
request has a connection of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, cast

from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import (
    BrowserLikePolicyForHTTPS,
    RequestGenerationFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse

from blockops.errors import ApiError
from blockops.upstream.http.agent import OneShotAgent, WholeBody
from blockops.upstream.http.response_parser import BadResponse


class Unreached(ApiError):
    """There was no connection to the backend: not a byte of the request has left."""


class _NoCookies(CookieJar):
    """Keeps no cookies: those of one caller would be sent with the next one's request."""

    def add_cookie_header(self, request: object) -> None:
        """There is none to add."""

    def extract_cookies(self, response: object, request: object) -> None:
        """None is wanted."""


class _AsWritten(EncodedURL):
    """
    An URL that stays as it was written.

    hyperlink would write some characters of it in another way (`"`, `<`, a lone `?`), and take as
    long for it as all else that treq does.
    """

    __slots__ = ("_written",)

    def __init__(self, written: str) -> None:
        self._written = written

    def to_uri(self) -> EncodedURL:
        return self

    def to_text(self, with_password: bool = False) -> str:  # noqa: FBT001, FBT002
        return self._written


def trust(ca: Path | None) -> BrowserLikePolicyForHTTPS:
    """
    Return whom to believe behind `https://`.

    :param ca: PEM file with the certificates to trust; None for those that the platform trusts
    :raises ValueError: there is no certificate in `ca`
    """
    if ca is None:
        return BrowserLikePolicyForHTTPS()
    end = b"-----END CERTIFICATE-----"
    pems = [part + end for part in ca.read_bytes().split(end) if b"BEGIN CERTIFICATE" in part]
    if not pems:
        raise ValueError(f"there is no PEM certificate in {ca}")
    roots = [Certificate.loadPEM(pem) for pem in pems]
    return BrowserLikePolicyForHTTPS(trustRootFromCertificates(roots))


def _nobody_asks() -> None:
    """Tell nobody."""


class Upstream:
    """
    One backend.

    :param url: `http://host:port` and the path above its `/v1`, if any, without `/` at the end
    :param key: sent as bearer token with each request
    :param connect_timeout: seconds that connecting may take
    :param on_connected: called when a connection is made, before anything is sent on it
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        key: str | None = None,
        ca: Path | None = None,
        connect_timeout: float = 5.0,
        on_connected: Callable[[], object] = _nobody_asks,
    ) -> None:
        self.url = url
        self.key = key
        self._connect_timeout = connect_timeout
        self._reactor = reactor
        self._no_cookies = cast("Any", _NoCookies())
        agent = OneShotAgent(reactor, trust(ca), connect_timeout, on_connected)
        self._client = HTTPClient(agent, self._no_cookies)

    def request(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: bytes | IBodyProducer | None = None,
    ) -> Coroutine[Deferred[Any], Any, IResponse]:
        """
        Ask the backend, and return what awaits its answer, which is here when its headers are.

        Nothing of what was asked is kept meanwhile: a model may read a prompt for minutes.

        The body of the answer waits: `deliverBody` starts it. Cancelling closes the connection.

        :param target: path and query as the client wrote them, from `/v1` on
        :param headers: the request's own from here on
        :raises ApiError: 502 or 504, no answer came; the message says which part failed
        :raises Unreached: the same, and not a byte of the request has left
        """
        sent = headers if headers is not None else Headers()
        if self.key is not None:
            sent.setRawHeaders("Authorization", [f"Bearer {self.key}"])
        asked = self._client.request(
            method,
            _AsWritten(self.url + target),
            headers=sent,
            data=WholeBody(body) if isinstance(body, bytes) else body,
            cookies=self._no_cookies,
            unbuffered=True,
            allow_redirects=False,
            reactor=self._reactor,
        )
        return self._answer(asked)

    async def _answer(self, asked: Deferred[Any]) -> IResponse:
        try:
            return cast("IResponse", await asked)
        except CancelledError:
            raise
        except Exception as failure:
            raise self._explain(failure) from failure

    def _explain(self, failure: Exception) -> ApiError:
        """Return what the client is told when no answer came."""
        reason = _root(failure)
        if isinstance(reason, ApiError):
            return reason  # the client's body was at fault
        kind: type[ApiError] = Unreached
        if isinstance(reason, error.TimeoutError):
            status = 504
            what = f"did not accept a connection within {self._connect_timeout:g} seconds."
        elif isinstance(reason, error.ConnectError | error.DNSLookupError):
            status, what = (
                502,
                f"cannot be reached ({reason}). Is it running, and is --backend right?",
            )
        elif isinstance(reason, BadResponse):
            return ApiError(
                502,
                f"The backend at {self.url} gave an answer that cannot be read as HTTP ({reason}). "
                "Is --backend an HTTP server?",
                type="server_error",
                code="backend_invalid_response",
            )
        else:
            kind, status = ApiError, 502
            what = f"closed the connection before it answered ({_describe(reason)})"
        return kind(
            status,
            f"The backend at {self.url} {what}",
            type="server_error",
            code="backend_unreachable",
        )


def _root(failure: Exception) -> Exception:
    """Return what went wrong below the wrappers that twisted.web puts around it."""
    wrappers = RequestGenerationFailed | ResponseNeverReceived | ResponseFailed
    while isinstance(failure, wrappers):
        reasons: list[Failure] = failure.reasons
        inner = reasons[0].value
        if not isinstance(inner, Exception):
            break
        failure = inner
    return failure


def _describe(reason: Exception) -> str:
    text = str(reason).strip()
    return f"{type(reason).__name__}: {text}" if text else type(reason).__name__
