"""
The backend, as blockops speaks to it: the only module that knows treq.

A connection to a model's server is worth nothing once its answer has ended: a new one costs 0.3 ms.
Several servers close theirs although they advertise keep-alive (llama.cpp failed 43 of 300 requests
that came at once behind another one), and a POST that meets such an end is not sent again. So each
request has a connection of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, cast

import treq
from hyperlink import EncodedURL
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IConsumer,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import (
    IAgentEndpointFactory,
    IBodyProducer,
    IPolicyForHTTPS,
    IResponse,
)
from zope.interface import implementer

from blockops.wire.errors import ApiError

#: Seconds that the next address of a name waits for the one before it: with `::1` first and a
#: server on 127.0.0.1 only, Twisted's default costs 0.3 s a connection (twisted#9345).
ATTEMPT_DELAY = 0.02


class Unreached(ApiError):
    """There was no connection to the backend: not a byte of the request has left."""


@implementer(IBodyProducer)
class WholeBody:
    """
    A request's body that is already here.

    treq's own producer feeds bytes through the global cooperator, which needs the real reactor and
    sends headers and body apart.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        # Not kept: an answer may take minutes, and a body megabytes.
        body, self._body = self._body, b""
        consumer.write(body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All of it is written at once: there is nothing to pause."""

    resumeProducing = pauseProducing
    stopProducing = pauseProducing


class _Abrupt(ProtocolWrapper):
    """
    A connection that ends at once.

    To lose a TLS connection politely takes an answer from the peer; one that hangs never gives it,
    and the socket stays (twisted#8227 asks for the abort that Agent does not offer).
    """

    def loseConnection(self) -> None:
        self.disconnecting = 1
        if self.transport is not None:
            cast("ITCPTransport", self.transport).abortConnection()


class _AbruptFactory(WrappingFactory):
    """Makes connections end abruptly, and spares the log two lines for each of them."""

    protocol = _Abrupt
    noisy = False

    def __init__(self, wrapped: IProtocolFactory) -> None:
        super().__init__(cast("Factory", wrapped))  # type: ignore[no-untyped-call]

    def doStart(self) -> None:
        """No line in the log for each connection."""

    doStop = doStart


def _took_too_long(_: object, seconds: float) -> NoReturn:
    raise error.TimeoutError(f"{seconds:g} seconds")


@implementer(IStreamClientEndpoint)
class _AbruptEndpoint:
    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamClientEndpoint,
        timeout: float,
        connected: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._timeout = timeout
        self._connected = connected

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connecting = self._endpoint.connect(_AbruptFactory(protocolFactory))
        # The endpoint bounds each attempt, but not how long a name takes to become an address.
        connecting.addTimeout(self._timeout, self._reactor, _took_too_long)
        return connecting.addCallback(self._made)

    def _made(self, protocol: IProtocol) -> IProtocol:
        self._connected()
        return cast("ProtocolWrapper", protocol).wrappedProtocol


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Where Agent connects to: quick about names, bounded in time, abrupt at the end."""

    def __init__(
        self,
        reactor: IReactorTime,
        policy: IPolicyForHTTPS,
        connect_timeout: float,
        connected: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._policy = policy
        self._connect_timeout = connect_timeout
        self._connected = connected

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor,
            uri.host.strip(b"[]"),
            uri.port,
            timeout=self._connect_timeout,
            attemptDelay=ATTEMPT_DELAY,
        )
        if uri.scheme == b"https":
            context = self._policy.creatorForNetloc(uri.host.strip(b"[]"), uri.port)
            endpoint = wrapClientTLS(context, endpoint)
        return _AbruptEndpoint(self._reactor, endpoint, self._connect_timeout, self._connected)


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
        reactor: IReactorTime,
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
        self._agent = Agent.usingEndpointFactory(
            reactor,
            _Endpoints(reactor, trust(ca), connect_timeout, on_connected),
            pool=HTTPConnectionPool(reactor, persistent=False),
        )

    async def request(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: bytes | IBodyProducer | None = None,
    ) -> IResponse:
        """
        Ask the backend, and return its answer as soon as its headers are here.

        The body of the answer waits: `deliverBody` starts it. Cancelling closes the connection.

        :param target: path and query as the client wrote them, from `/v1` on
        :raises ApiError: 502 or 504, no answer came; the message says which part failed
        :raises Unreached: the same, and not a byte of the request has left
        """
        sent = headers.copy() if headers is not None else Headers()
        if self.key is not None:
            sent.setRawHeaders("Authorization", [f"Bearer {self.key}"])
        # treq.client.HTTPClient would keep one caller's cookies for the next one: each request
        # goes through a fresh one.
        asked = treq.request(
            method,
            EncodedURL.from_text(self.url + target),
            agent=self._agent,
            headers=sent,
            data=WholeBody(body) if isinstance(body, bytes) else body,
            unbuffered=True,
            allow_redirects=False,
        )
        try:
            return await _cancelled_plainly(cast("Deferred[IResponse]", asked))
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
        else:
            kind, status = ApiError, 502
            what = f"closed the connection before it answered ({_describe(reason)})"
        return kind(
            status,
            f"The backend at {self.url} {what}",
            type="api_error",
            code="backend_unreachable",
        )


def _cancelled_plainly(asked: Deferred[IResponse]) -> Deferred[IResponse]:
    """
    Return what `asked` fires with, but CancelledError when it is cancelled.

    What twisted.web fails with then depends on how far it was: DNSLookupError is among it.
    """

    def cancel(outcome: Deferred[IResponse]) -> None:
        outcome.errback(CancelledError())
        asked.cancel()

    outcome: Deferred[IResponse] = Deferred(cancel)
    asked.addCallbacks(
        lambda response: None if outcome.called else outcome.callback(response),
        lambda failure: None if outcome.called else outcome.errback(failure),
    )
    return outcome


def _root(failure: Exception) -> Exception:
    """Return what went wrong below the wrappers that twisted.web puts around it."""
    wrappers = (
        RequestGenerationFailed | RequestTransmissionFailed | ResponseNeverReceived | ResponseFailed
    )
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
