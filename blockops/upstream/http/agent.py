"""
`SingleUseAgent`: an `IAgent` for treq that makes one connection for each request.

Compared with Twisted's own agent, a chunk of a body costs a tenth of the time (llhttp parses it),
and a connection can be aborted at once, which that agent cannot (twisted#8227): closing a TLS
connection in the regular way waits for the peer's reply, and a hung peer never sends one.

The agent requests no compression: it delays tokens, and between processes of one machine
decompressing takes longer than the shorter transfer saves. treq would decode a body that is
compressed nevertheless. To hide the coding from treq, the agent writes its name in upper case: treq
compares names exactly, although they are case-insensitive (RFC 9110, section 8.4.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.client import URI, HostnameCachingHTTPSPolicy
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from blockops.net.addresses import parse_ip
from blockops.upstream.http.connection import BackendConnection, BackendRequest, ConnectionFactory

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


@lru_cache(maxsize=1)
def _parse_server(base: bytes) -> tuple[URI, str, bool]:
    # Cached, since all requests go to one server: parsing its URL takes 8 us.
    server = URI.fromBytes(base)
    host = server.host.strip(b"[]").decode("ascii")
    return server, host, parse_ip(host) is not None


@implementer(IAgent)
class SingleUseAgent:
    """
    Sends each request over a new connection.

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

        Cancelling aborts the connection, or the attempt to make one. If no connection can be made,
        the Deferred fails with Twisted's error; otherwise see the table in `http.connection`.

        :raises ValueError: the method or the target contains characters that HTTP does not allow
        """
        # Neither part may change.
        start = uri.find(b"/", uri.find(b"://") + 3)
        base, target = (uri, b"/") if start < 0 else (uri[:start], uri[start:])
        if _METHOD.fullmatch(method) is None or _TARGET.fullmatch(target) is None:
            raise ValueError(f"invalid request line: {method!r} {target!r}")
        server, host, is_ip_address = _parse_server(base)
        sent = headers if headers is not None else Headers()
        head = _request_head(method, target, server.netloc, sent, bodyProducer)
        request = BackendRequest(method, uri, sent)
        connection = BackendConnection(request, head, bodyProducer, self._on_connected)
        response = cast("Deferred[IResponse]", connection.response)
        if is_ip_address and server.scheme == b"http":
            # An IP address needs no resolver (a thread), nor the protocol wrapper that endpoints
            # leave between the socket and its protocol.
            connection.cancel_connect = self._reactor.connectTCP(
                host, server.port, ConnectionFactory(connection), timeout=self._connect_timeout
            ).stopConnecting
        else:
            connection.cancel_connect = self._connect_by_name(connection, server, host)
        return response.addCallback(change_codings, bytes.upper)

    def _connect_by_name(
        self, connection: BackendConnection, server: URI, host: str
    ) -> Callable[[], object]:
        """Start to connect, over TLS or by a host name; return a function that cancels that."""
        timeout = self._connect_timeout
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, host, server.port, timeout=timeout, attemptDelay=ATTEMPT_DELAY
        )
        is_tls = server.scheme == b"https"
        if is_tls:
            context = self._policy.creatorForNetloc(host.encode(), server.port)
            endpoint = wrapClientTLS(context, endpoint)
        connecting: Deferred[Any] = endpoint.connect(ConnectionFactory(connection))
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


def change_codings(response: IResponse, change: Callable[[bytes], bytes]) -> IResponse:
    """Return `response` with the names of its content codings changed."""
    codings = response.headers.getRawHeaders(b"Content-Encoding")
    if codings is not None:
        response.headers.setRawHeaders(b"Content-Encoding", list(map(change, codings)))
    return response


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
