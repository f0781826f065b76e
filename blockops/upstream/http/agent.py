"""
`SingleUseAgent`: an `IAgent` for treq that makes one connection for each request.

This module chooses the endpoint, opens the connection and writes the request's head;
`http.connection` does the rest. Compared with Twisted's own agent, a chunk of a body costs a tenth
of the time (llhttp parses it), and a connection can be aborted at once, which that agent cannot
(twisted#8227): closing a TLS connection in the regular way waits for the peer's reply, and a hung
peer never sends one.

The agent requests no compression, whatever its caller's headers are: compression delays tokens, and
between processes of one machine decompressing takes longer than the shorter transfer saves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IConnector, IStreamClientEndpoint
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, HostnameCachingHTTPSPolicy
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from blockops.net.addresses import parse_ip
from blockops.upstream.http.connection import BackendConnection, BackendRequest

#: Seconds after which the next address of a host name is tried while the one before it is pending.
#: With `::1` first and a server on 127.0.0.1 only, Twisted's default costs 0.3 s for each
#: connection (twisted#9345).
ATTEMPT_DELAY = 0.02

#: Headers that the agent sets itself; those of its caller are dropped.
MANAGED_HEADERS = frozenset(
    {b"Accept-Encoding", b"Connection", b"Content-Length", b"Transfer-Encoding"}
)
#: Characters of a request target and of a method (RFC 9112, section 3; RFC 9110, section 5.6.2).
_TARGET = re.compile(rb"[!-~]+")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Methods for which a request without a body states its length (RFC 9110, section 8.6).
_METHODS_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})

#: Cached, since all requests go to one server: parsing its URL takes 8 us.
_parse_server = lru_cache(maxsize=1)(URI.fromBytes)


@implementer(IAgent)
class SingleUseAgent:
    """
    Sends each request over a new connection.

    :param policy: verifies the certificates of `https` servers
    :param connect_timeout: seconds that connecting may take, TLS handshake included
    :param on_connected: called whenever a connection is made, for TLS after the handshake
    """

    def __init__(
        self,
        reactor: Any,
        policy: IPolicyForHTTPS,
        connect_timeout: float,
        on_connected: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        # Making a TLS context takes long: it loads all trusted certificates.
        self._policy = HostnameCachingHTTPSPolicy(policy)
        self._connect_timeout = connect_timeout
        self._on_connected = on_connected

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """
        Send a request; return a Deferred of its response, fired when the headers are complete.

        Cancelling aborts the connection, or the attempt to make one. The Deferred fails with
        Twisted's error if no connection can be made, with `RequestGenerationFailed` if
        `bodyProducer` fails, with `ResponseFailed` if the response is invalid, and with
        `ResponseNeverReceived` if the connection is lost before the headers are complete.

        :raises ValueError: the method or the target contains characters that HTTP does not allow
        """
        base, target = _split_url(uri)
        if _METHOD.fullmatch(method) is None or _TARGET.fullmatch(target) is None:
            raise ValueError(f"invalid request line: {method!r} {target!r}")
        server = _parse_server(base)
        sent = headers if headers is not None else Headers()
        head = _request_head(method, target, server.netloc, sent, bodyProducer)
        request = BackendRequest(method, uri, sent)
        connection = BackendConnection(request, head, bodyProducer, self._on_connected)
        response = connection.response()
        connection.cancel_connect = self._connect(connection, server)
        return response

    def _connect(self, connection: BackendConnection, server: URI) -> Callable[[], object]:
        """Start to connect `connection`; return a function that cancels the attempt."""
        host, port = server.host.strip(b"[]").decode("ascii"), server.port
        timeout = self._connect_timeout
        factory = _Factory(connection)
        is_tls = server.scheme == b"https"
        if not is_tls and parse_ip(host) is not None:
            # An IP address needs no resolver (a thread), nor the protocol wrapper that endpoints
            # leave between the socket and its protocol.
            return self._reactor.connectTCP(  # type: ignore[no-any-return]
                host, port, factory, timeout=timeout
            ).stopConnecting
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, host, port, timeout=timeout, attemptDelay=ATTEMPT_DELAY
        )
        if is_tls:
            context = self._policy.creatorForNetloc(host.encode(), port)
            endpoint = wrapClientTLS(context, endpoint)
        connecting: Deferred[Any] = endpoint.connect(factory)
        if is_tls:
            handshake: Deferred[None] = Deferred(lambda _: connection.abortConnection())
            connection.handshake = handshake
            connecting.addCallback(lambda _: handshake)
        # The endpoint's own timeout covers each attempt, but neither the name resolution nor the
        # TLS handshake.
        connecting.addTimeout(timeout, self._reactor, _raise_timeout)
        connecting.addErrback(connection.fail)
        return connecting.cancel


def _raise_timeout(_: object, seconds: float) -> NoReturn:
    raise error.TimeoutError(f"{seconds:g} seconds")


class _Factory(ClientFactory):
    """Connects one `BackendConnection`, without log lines."""

    noisy = False

    def __init__(self, connection: BackendConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> BackendConnection:
        return self._connection

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self._connection.fail(reason)


def _split_url(uri: bytes) -> tuple[bytes, bytes]:
    """Return the parts of `uri` before and from its path on, both unchanged."""
    start = uri.find(b"/", uri.find(b"://") + 3)
    return (uri, b"/") if start < 0 else (uri[:start], uri[start:])


def _request_head(
    method: bytes, target: bytes, netloc: bytes, headers: Headers, body: IBodyProducer | None
) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, target)]
    if not headers.hasHeader(b"Host"):
        lines.append(b"Host: " + netloc)
    for name, values in headers.getAllRawHeaders():
        if name not in MANAGED_HEADERS:
            lines += [b"%s: %s" % (name, value) for value in values]
    lines.append(b"Accept-Encoding: identity\r\nConnection: close")
    if body is None:
        if method in _METHODS_WITH_BODY:
            lines.append(b"Content-Length: 0")
    elif body.length is UNKNOWN_LENGTH:
        lines.append(b"Transfer-Encoding: chunked")
    else:
        lines.append(b"Content-Length: %d" % body.length)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)
