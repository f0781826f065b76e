"""A client's request with a bounded body, which may start before the body is complete."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.web.http_headers import Headers

from blockops.errors import ApiError
from blockops.server.access.cors import PreflightResponse
from blockops.server.http1.head import RequestHead
from blockops.server.limits import body_too_large
from blockops.server.upload import StreamingUpload

#: Replaces the headers of a request and its response once they are released.
_NO_HEADERS = Headers()


class Route(Protocol):
    """
    The part of a request's route that the server uses.

    :ivar streams_upload: the request starts before its body is complete
    :ivar is_public: no API key is needed
    """

    @property
    def streams_upload(self) -> bool: ...
    @property
    def is_public(self) -> bool: ...


class ClientRequest:
    """
    A request, which starts when its body is complete or when it can be forwarded as it arrives.

    :param connection: the `blockops.server.connection.ClientConnection`, whose module imports this
    :ivar uri: the target without scheme and host: path and query
    :ivar responseHeaders: headers of the response besides those of the handler
    :ivar upload: the body, if the request starts before the body is complete: because of
        `Route.streams_upload` or an early response. None for other requests, whose body `pop_body`
        returns
    :ivar api_key_owner: the owner of the request's API key; empty without a key
    :ivar route: the route that `Site.match_route` has found
    :ivar early_response: the result of `Site.check_access`, the response to send in place of the
        route's. The body is ignored then. None if access is allowed
    :ivar on_disconnect: is called if the client disconnects before the response is sent
    """

    __slots__ = (
        "__weakref__",
        "_body_pieces",
        "_reserved_size",
        "api_key_owner",
        "connection",
        "early_response",
        "method",
        "on_disconnect",
        "path",
        "requestHeaders",
        "responseHeaders",
        "route",
        "upload",
        "uri",
        "version",
    )

    route: Route

    def __init__(self, connection: Any, head: RequestHead) -> None:
        self.connection = connection
        self.method, target, self.version, self.requestHeaders = head
        self.uri = origin_form(target)
        self.path = self.uri.partition(b"?")[0]
        self.responseHeaders = Headers()
        self.upload: StreamingUpload | None = None
        self.api_key_owner = ""
        self.early_response: ApiError | PreflightResponse | None = None
        self.on_disconnect: Callable[[], object] = _noop
        self._body_pieces: list[bytes] = []
        self._reserved_size = 0  # bytes of the site's body budget

    def start(self, length: int | None) -> None:
        """
        Find the route and check access. Respond now if the body is not needed for it.

        :param length: of the body in bytes; None if it is chunked
        """
        site = self.connection.site
        self.route = site.match_route(self.method, self.uri)
        self.early_response = site.check_access(self)
        if length == 0:
            return
        if self.early_response is None and length is not None and length > site.max_body:
            self._reject(body_too_large(site.max_body))
        elif self.early_response is not None or self.route.streams_upload:
            self.upload = StreamingUpload(
                length, self.connection.pause_body, self.connection.resume_body
            )
            site.resource.render(self)

    def receive_data(self, data: bytes) -> None:
        site, upload = self.connection.site, self.upload
        if upload is not None:
            if upload.size + len(data) > site.max_body:
                upload.fail(body_too_large(site.max_body))
            else:
                upload.data_received(data)
            return
        if self._reserved_size + len(data) > site.max_body:
            error: ApiError | None = body_too_large(site.max_body)
        else:
            error = site.body_budget.reserve(len(data))
        if error is not None:
            self._reject(error)
            return
        self._reserved_size += len(data)
        self._body_pieces.append(data)

    def body_complete(self) -> None:
        """Respond, or end the upload."""
        if self.upload is None:
            self.connection.site.resource.render(self)
        else:
            self.upload.finish()

    def pop_body(self) -> bytes:
        """Return the body and release it."""
        body = b"".join(self._body_pieces)
        self._body_pieces.clear()
        return body

    def release(self) -> None:
        """Release the headers of the request and the response; the request line stays."""
        self.requestHeaders = self.responseHeaders = _NO_HEADERS

    def finish(self) -> None:
        """Release the request: its response is sent."""
        # The exchange may refer to the body for a little longer; the budget need not wait for that.
        self._release_budget()
        self.on_disconnect = _noop
        if self.upload is not None and not self.upload.is_complete:
            self.upload.discard()
        self.connection.response_sent()

    def disconnected(self) -> None:
        """Stop the request: its response cannot be sent any more."""
        self._release_budget()
        on_disconnect, self.on_disconnect = self.on_disconnect, _noop
        on_disconnect()

    def _reject(self, error: ApiError) -> None:
        """Send `error` now, discard the rest of the body, and then close the connection."""
        self._body_pieces.clear()
        self._release_budget()
        self.connection.reject(error)

    def _release_budget(self) -> None:
        self.connection.site.body_budget.release(self._reserved_size)
        self._reserved_size = 0


def _noop() -> None: ...


def origin_form(target: bytes) -> bytes:
    """Return a target without scheme and host: servers accept both (RFC 9112, section 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in {b"http", b"https"}:
        return target
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"
