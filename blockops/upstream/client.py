"""
`BackendClient`: requests to one backend, through treq. No other module imports treq.

Each request has its own connection. Reusing one would gain little, since a new connection costs 0.3
ms, and requests would fail: several servers close connections although they advertise keep-alive
(llama.cpp failed 43 of 300 requests that were sent at once on reused connections), and a POST that
was sent on a closing connection must not be sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, cast

from hyperlink import EncodedURL
from OpenSSL.crypto import Error as OpenSSLError
from treq.client import HTTPClient
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer
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
from zope.interface import implementer

from blockops.errors import ApiError
from blockops.upstream.http.agent import SingleUseAgent, change_codings
from blockops.upstream.http.response_parser import BadResponse


class ConnectError(ApiError):
    """No connection to the backend was made, so no byte of the request was sent."""


class _VerbatimURL(EncodedURL):
    """
    A URL that is sent as the client wrote it.

    hyperlink would encode some characters differently, and take as long as the rest of treq's work.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def to_uri(self) -> EncodedURL:
        return self

    def to_text(self, with_password: bool = False) -> str:  # noqa: FBT001, FBT002
        return self._text


@implementer(IBodyProducer)
class _BytesBody:
    """
    A request's body in memory, sent in one write with the head.

    treq's own producer needs the real reactor, and sends the headers and the body separately.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        # Release the body: the response may take minutes.
        body, self._body = self._body, b""
        consumer.write(body)
        return succeed(None)

    def stopProducing(self) -> None:
        """Do nothing: all of the body is written at once."""

    pauseProducing = resumeProducing = stopProducing


def https_policy(ca: Path | None) -> BrowserLikePolicyForHTTPS:
    """
    Return the policy that verifies the backend's certificate; without `ca`, the platform's.

    :raises ValueError: `ca` contains no certificate, or an invalid one; with one line for the user
    """
    if ca is None:
        return BrowserLikePolicyForHTTPS()
    end = b"-----END CERTIFICATE-----"
    pems = [part + end for part in ca.read_bytes().split(end) if b"BEGIN CERTIFICATE" in part]
    if not pems:
        raise ValueError(f"backend-ca: {ca} contains no certificate; give a PEM file")
    try:
        roots = [Certificate.loadPEM(pem) for pem in pems]
    except OpenSSLError:
        raise ValueError(
            f"backend-ca: {ca} contains an invalid certificate; give a PEM file"
        ) from None
    return BrowserLikePolicyForHTTPS(trustRootFromCertificates(roots))


class BackendClient:
    """
    The HTTP client of one backend.

    :param url: `http://host:port` and the path before its `/v1`, if any, without a trailing `/`
    :param ca: PEM file with the certificates to trust
    :param connect_timeout: seconds that connecting may take, TLS handshake included
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
        on_connected: Callable[[], object] = lambda: None,
    ) -> None:
        self.url = url
        self.key = key
        self._connect_timeout = connect_timeout
        self._reactor = reactor
        # Stores nothing: one client's cookies must not reach the next client's request.
        self._cookies = cast("Any", CookieJar(DefaultCookiePolicy(allowed_domains=[])))
        agent = SingleUseAgent(reactor, https_policy(ca), connect_timeout, on_connected)
        self._client = HTTPClient(agent, self._cookies)

    def request(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: bytes | IBodyProducer | None = None,
    ) -> Coroutine[Deferred[Any], Any, IResponse]:
        """
        Send a request; return a coroutine that returns the response when its headers are complete.

        The coroutine holds neither the headers nor the body of the request, since a prefill may
        take minutes. Cancelling aborts the connection.

        :param target: path and query as the client wrote them, from `/v1` on
        :param headers: belongs to the request from now on; the caller must not use it again
        :raises ApiError: 502, there is no valid response
        :raises ConnectError: 502 or 504, no connection was made, so nothing was sent
        """
        sent = headers if headers is not None else Headers()
        if self.key is not None:
            sent.setRawHeaders("Authorization", [f"Bearer {self.key}"])
        response = self._client.request(
            method,
            _VerbatimURL(self.url + target),
            headers=sent,
            data=_BytesBody(body) if isinstance(body, bytes) else body,
            # Otherwise treq makes a jar for each request.
            cookies=self._cookies,
            # Otherwise treq keeps the body of the response.
            unbuffered=True,
            # A redirect is the client's to follow.
            allow_redirects=False,
            # Otherwise treq imports the global reactor.
            reactor=self._reactor,
        )
        return self._response(response)

    async def _response(self, response: Deferred[Any]) -> IResponse:
        try:
            return change_codings(await response, bytes.lower)
        except CancelledError:
            raise
        except Exception as failure:
            raise self._to_api_error(failure) from failure

    def _to_api_error(self, failure: Exception) -> ApiError:
        cause = _root_cause(failure)
        error_class: type[ApiError] = ConnectError
        status, code = 502, "backend_unreachable"
        if isinstance(cause, error.TimeoutError):
            status = 504
            problem = (
                f"did not accept a connection within {self._connect_timeout:g} seconds. Is it "
                "overloaded, or is --backend wrong?"
            )
        elif isinstance(cause, error.ConnectError | error.DNSLookupError):
            problem = f"cannot be reached ({cause}). Is it running, and is --backend correct?"
        elif isinstance(cause, BadResponse):
            error_class, code = ApiError, "backend_invalid_response"
            problem = f"sent an invalid HTTP response ({cause}). Is --backend an HTTP server?"
        else:
            error_class = ApiError
            text = str(cause).strip()
            reason = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
            problem = f"closed the connection before it responded ({reason}). See its log."
            if self.url.startswith("https:"):
                problem += " If its certificate is the reason, check --backend-ca."
        return error_class(
            status, f"The backend at {self.url} {problem}", type="server_error", code=code
        )


def _root_cause(failure: Exception) -> Exception:
    wrappers = RequestGenerationFailed | ResponseNeverReceived | ResponseFailed
    while isinstance(failure, wrappers):
        reasons: list[Failure] = failure.reasons
        inner = reasons[0].value
        if not isinstance(inner, Exception):
            break
        failure = inner
    return failure
