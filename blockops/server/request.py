"""A client's request with a bounded body, which may be rendered before the body is complete."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast
from urllib.parse import unquote_to_bytes as unquote

from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, OK, HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.server import Request, Site

from blockops.errors import ApiError
from blockops.net.socket_state import unsent_bytes
from blockops.server.access.cors import PreflightResponse
from blockops.server.common_headers import common_headers
from blockops.server.connection import ClientConnection
from blockops.server.http1.head import RequestHead
from blockops.server.http1.serialize import header_lines
from blockops.server.limits import LINGER, body_too_large
from blockops.server.upload import StreamingUpload, ignore_data

#: Replaces the headers of a request and its response once they are released.
_NO_HEADERS = Headers()


def _noop() -> None: ...


class Route(Protocol):
    """
    The part of a request's route that the server uses.

    :ivar streams_upload: the request is rendered before its body is complete
    :ivar is_public: no API key is needed
    """

    @property
    def streams_upload(self) -> bool: ...
    @property
    def is_public(self) -> bool: ...


class ClientRequest(Request):
    """
    A request whose body is bounded, and may still be arriving when the request is rendered.

    :ivar upload: the body, if the request is rendered before the body is complete: because of
        `Route.streams_upload` or an early response. None for other requests, whose body `pop_body`
        returns
    :ivar api_key_owner: the owner of the request's API key; empty without a key
    :ivar route: the route that `Site.match_route` has found
    :ivar early_response: the result of `Site.check_access`, the response to send in place of the
        route's. The body is ignored then. None if access is allowed
    :ivar on_disconnect: is called if the client disconnects before the response is sent. It is
        cheaper than `notifyFinish`, which costs 0.5 KB a request
    """

    # CPython's key-sharing dicts hold 30 attributes, and only those that are set first. The others
    # are slots, to keep idle streams small.
    __slots__ = (
        "_body_pieces",
        "_has_no_body",
        "_on_data",
        "_on_received",
        "_received_size",
        "api_key_owner",
        "chunked",
        "client",
        "clientproto",
        "code",
        "code_message",
        "early_response",
        "host",
        "method",
        "on_disconnect",
        "producer",
        "queued",
        "requestHeaders",
        "responseHeaders",
        "sentLength",
        "startedWriting",
        "streamingProducer",
        "transport",
        "upload",
        "uri",
    )

    route: Route
    channel: ClientConnection  # type: ignore[assignment]  # has an HTTPChannel's methods
    defaultContentType = None

    def __init__(self, channel: ClientConnection, head: RequestHead) -> None:
        super().__init__(cast("HTTPChannel", channel), parsePOSTFormSubmission=False)
        self.method, self.uri, self.clientproto, self.requestHeaders = head
        self.setResponseCode(OK)
        self.startedWriting = self.chunked = self.sentLength = 0
        self.producer = None
        self._has_no_body = False
        self.upload: StreamingUpload | None = None
        self.api_key_owner = ""
        self.early_response: ApiError | PreflightResponse | None = None
        self._body_pieces: list[bytes] = []
        self._received_size = 0
        # Bytes of the site's body budget.
        self._reserved_size = 0
        # Receives each piece of the body.
        self._on_data: Callable[[bytes], object] = ignore_data
        # Is called when the body is complete, in place of the usual action; None for that.
        self._on_received: Callable[[], None] | None = None
        self.on_disconnect: Callable[[], object] = _noop

    def pop_body(self) -> bytes:
        """Return the body and release it."""
        body = b"".join(self._body_pieces)
        self._body_pieces.clear()
        return body

    def gotLength(self, length: int | None) -> None:
        site = self.channel.site
        self.route = site.match_route(self.method, origin_form(self.uri))
        self.early_response = site.check_access(self)
        if length == 0:
            return
        if self.early_response is not None:
            # Respond now, and discard the body. Without `Expect`, no `100 Continue` is sent.
            self.requestHeaders.removeHeader(b"Expect")
            self.upload = StreamingUpload(length, self.channel.body_producer)
            self._render()
            return
        if length is not None and length > site.max_body:
            self._reject(body_too_large(site.max_body))
            return
        self.channel.start_body_deadline(site.max_body if length is None else length)
        if self.route.streams_upload:
            self.upload = StreamingUpload(length, self.channel.body_producer)
            self._on_data = self.upload.data_received
            self._render()
        else:
            self._on_data = self._buffer

    def handleContentChunk(self, data: bytes) -> None:
        self._received_size += len(data)
        limit = self.channel.site.max_body
        self.channel.extend_body_deadline()
        if self._received_size <= limit or self._on_data is ignore_data:
            self._on_data(data)
        elif self.upload is None:
            self._reject(body_too_large(limit))
        else:
            self._on_data = ignore_data
            self.upload.fail(body_too_large(limit))

    def _buffer(self, data: bytes) -> None:
        error = self.channel.site.body_budget.reserve(len(data))
        if error is not None:
            self._reject(error)
            return
        self._reserved_size += len(data)
        self._body_pieces.append(data)

    def _release_budget(self) -> None:
        if self._reserved_size:
            self.channel.site.body_budget.release(self._reserved_size)
            self._reserved_size = 0

    def connectionLost(self, reason: Failure) -> None:
        self._release_budget()
        on_disconnect, self.on_disconnect = self.on_disconnect, _noop
        super().connectionLost(reason)
        on_disconnect()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.channel.clear_body_deadline()
        # A bound method would keep the request alive until the next garbage collection.
        self._on_data = ignore_data
        on_received, self._on_received = self._on_received, None
        if on_received is not None:
            on_received()
        elif self.upload is None:
            self._render()
        else:
            self.upload.finish()

    def _render(self) -> None:
        self.uri = origin_form(self.uri)
        self.path = self.uri.partition(b"?")[0]
        if self.requestHeaders.hasHeader(b"Cookie"):
            self.parseCookies()
        self.process()

    def process(self) -> None:
        site = self.site = cast("Site", self.channel.site)
        self.prepath = []
        self.postpath = [unquote(part) for part in self.path[1:].split(b"/")]
        try:
            resource = site.getResourceFor(self)
            # Only `getResourceFor` needs them.
            self.prepath = self.postpath = None
            self.render(resource)
        except Exception:  # noqa: BLE001 - a resource may raise anything
            self.processingFailed(Failure())

    def write(self, data: bytes) -> None:
        if self.channel is None:
            return
        head = b"" if self.startedWriting else self._response_head()
        if self._has_no_body or not data:
            data = b""
        elif self.chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        if head or data:
            self.channel.write(head + data)

    def raw_write(self) -> Callable[[bytes], object] | None:
        """
        Return a function that sends data of the body that already has its chunk framing.

        It is valid while the response is open. None if the head is not sent yet, or if the response
        is not chunked.
        """
        return self.channel.raw_write() if self.chunked else None

    def _response_head(self) -> bytes:
        """Return the bytes of the response's head, and release its headers."""
        self.startedWriting = 1
        is_early = self.upload is not None and not self.upload.is_complete
        if is_early or self.channel.site.is_closing:
            self.channel.is_persistent = False
        headers, self.responseHeaders = self.responseHeaders, Headers()
        for cookie in self.cookies:
            headers.addRawHeader(b"Set-Cookie", cookie)
        framing = b"" if self.channel.is_persistent else b"Connection: close\r\n"
        self._has_no_body = self.method == b"HEAD" or self.code in NO_BODY_CODES
        has_length = self._has_no_body or headers.hasHeader(b"Content-Length")
        if not has_length and self.clientproto == b"HTTP/1.1":
            self.chunked = 1
            framing += b"Transfer-Encoding: chunked\r\n"
        return b"%s %d %s\r\n%s%s%s\r\n" % (
            self.clientproto,
            self.code,
            self.code_message,
            common_headers(),
            header_lines(headers),
            framing,
        )

    def finish(self) -> None:
        # The exchange may refer to the body for a little longer; the budget need not wait for that.
        self._release_budget()
        if self.upload is None or self.upload.is_complete:
            self._finish()
            return
        # The response is complete before the request is. Some clients read it only when they have
        # sent the whole body, so read and discard the rest.
        self.requestHeaders.removeHeader(b"Expect")
        self.upload.discard()
        self._on_received = self._finish
        self.channel.set_deadline(LINGER)

    def _finish(self) -> None:
        self.on_disconnect = _noop
        super().finish()

    def release(self) -> None:
        """Release the headers of the request and the response; the request line stays."""
        self.requestHeaders = self.responseHeaders = _NO_HEADERS

    def unsent_bytes(self) -> int | None:
        """Return how many bytes the system holds for the client, or None if unknown."""
        return None if self.channel is None else unsent_bytes(self.channel.transport)

    def abort(self) -> None:
        """Close the connection immediately."""
        self.channel.abort()

    def _reject(self, error: ApiError) -> None:
        """Send `error` now, discard the rest of the body, and then close the connection."""
        self._on_data = ignore_data
        self._body_pieces.clear()
        self._release_budget()
        self._on_received = self.channel.loseConnection
        # No `100 Continue` is sent for a body that is not wanted.
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.reject(error)


def origin_form(target: bytes) -> bytes:
    """
    Return a request's target without scheme and host.

    A server has to accept the absolute form (RFC 9112, section 3.2.2).
    """
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in {b"http", b"https"}:
        return target
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"
