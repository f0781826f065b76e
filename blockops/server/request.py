"""A client's request: bounded, and rendered before its body is here where nobody needs it whole."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, cast
from urllib.parse import unquote_to_bytes as unquote

from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, OK, HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.server import Request, Site

from blockops.errors import ApiError
from blockops.net.socket_state import unread
from blockops.server.connection import SERVER, Channel, header_lines
from blockops.server.http1.head import Head
from blockops.server.limits import LINGER, too_large
from blockops.server.upload import Upload, discard

#: What answers a request in place of its route: given the exchange that the request has become.
Instead = Callable[[Any], Coroutine[Any, Any, None]]


#: Those of a request of which they were let go.
_NO_HEADERS = Headers()


def _nobody_asks() -> None:
    """Tell nobody."""


class IncomingRequest(Request):
    """
    A request whose body is bounded, and may still be on its way when the request is rendered.

    :ivar upload: the body of a request that `Site.streams_up`, or that is turned away; None for
        others, whose body `take_body` returns
    :ivar caller: the name of the API key that it came with; empty if it came without
    :ivar instead: what answers it without a byte of its body being read, as `Site.screen` decided
        when its headers were here; None for the usual route
    :ivar when_lost: is called when the client leaves before it has its answer; `notifyFinish` says
        so too, but takes half a kilobyte as long as nobody does
    """

    # What would not fit into a dictionary that shares its keys, or comes too late to get in.
    __slots__ = (
        "_bodiless",
        "_pieces",
        "_size",
        "_take",
        "_when_received",
        "caller",
        "chunked",
        "client",
        "clientproto",
        "code",
        "code_message",
        "host",
        "instead",
        "method",
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
        "when_lost",
    )

    channel: Channel  # type: ignore[assignment]  # as good as an HTTPChannel to it
    defaultContentType = None

    def __init__(self, channel: Channel, head: Head) -> None:
        super().__init__(cast("HTTPChannel", channel), parsePOSTFormSubmission=False)
        self.method, self.uri, self.clientproto, self.requestHeaders = head
        self.setResponseCode(OK)
        self.startedWriting = self.chunked = self.sentLength = 0
        self.producer = None
        self._bodiless = False
        self.upload: Upload | None = None
        self.caller = ""
        self.instead: Instead | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        # Bytes of the site's room that are taken.
        self._room = 0
        self._take: Callable[[bytes], object] = discard
        self._when_received: Callable[[], None] | None = None
        self.when_lost: Callable[[], object] = _nobody_asks

    def take_body(self) -> bytes:
        """Return the body, and keep it no longer."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def gotLength(self, length: int | None) -> None:
        site = self.channel.site
        self.instead = site.screen(self)
        if length == 0:
            return
        if self.instead is not None:
            self._turn_away(length)
            return
        if length is not None and length > site.max_body:
            self._refuse(too_large(site.max_body))
            return
        self.channel.expect_body(site.max_body if length is None else length)
        if site.streams_up(origin_form(self.uri)):
            self.upload = Upload(length, self.channel.reading)
            self._take = self.upload.received
            self._render()
        else:
            self._take = self._keep

    def handleContentChunk(self, data: bytes) -> None:
        self._size += len(data)
        limit = self.channel.site.max_body
        self.channel.body_came()
        if self._size <= limit or self._take is discard:
            self._take(data)
        elif self.upload is None:
            self._refuse(too_large(limit))
        else:
            self._take = discard
            self.upload.failed(too_large(limit))

    def _keep(self, data: bytes) -> None:
        full = self.channel.site.room.take(len(data))
        if full is not None:
            self._refuse(full)
            return
        self._room += len(data)
        self._pieces.append(data)

    def _give_room_back(self) -> None:
        if self._room:
            self.channel.site.room.give_back(self._room)
            self._room = 0

    def connectionLost(self, reason: Failure) -> None:
        self._give_room_back()
        when_lost, self.when_lost = self.when_lost, _nobody_asks
        super().connectionLost(reason)
        when_lost()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.channel.body_ended()
        # A reference to itself would keep it until the garbage is collected.
        self._take = discard
        received, self._when_received = self._when_received, None
        if received is not None:
            received()
        elif self.upload is None:
            self._render()
        else:
            self.upload.completed()

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
            # On the way there they were of use.
            self.prepath = self.postpath = None
            self.render(resource)
        except Exception:  # noqa: BLE001 - whatever a resource makes of it
            self.processingFailed(Failure())

    def write(self, data: bytes) -> None:
        if self.channel is None:
            return
        head = b"" if self.startedWriting else self._opening()
        if self._bodiless or not data:
            data = b""
        elif self.chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        if head or data:
            self.channel.write(head + data)

    def way_out(self) -> Callable[[bytes], object] | None:
        """
        Return what takes the chunks of the body, framed, as long as the answer is open.

        None where the head is not sent yet, or promises no chunks.
        """
        return self.channel.way_out() if self.chunked else None

    def _opening(self) -> bytes:
        """Return the answer's head, which is said now, and kept no longer."""
        self.startedWriting = 1
        early = self.upload is not None and not self.upload.complete
        if early or self.channel.site.closing:
            self.channel.persistent = False
        headers, self.responseHeaders = self.responseHeaders, Headers()
        for cookie in self.cookies:
            headers.addRawHeader(b"Set-Cookie", cookie)
        framing = b"" if self.channel.persistent else b"Connection: close\r\n"
        self._bodiless = self.method == b"HEAD" or self.code in NO_BODY_CODES
        unsized = not self._bodiless and not headers.hasHeader(b"Content-Length")
        if unsized and self.clientproto == b"HTTP/1.1":
            self.chunked = 1
            framing += b"Transfer-Encoding: chunked\r\n"
        return b"%s %d %s\r\n%s%s%s\r\n" % (
            self.clientproto,
            self.code,
            self.code_message,
            usual_lines(),
            header_lines(headers),
            framing,
        )

    def finish(self) -> None:
        # What is answered is not forgotten at once, but nobody waits for that any more.
        self._give_room_back()
        if self.upload is None or self.upload.complete:
            self._finish()
            return
        # The answer is there before the request is. Some clients read it when they have sent all.
        self.requestHeaders.removeHeader(b"Expect")
        self.upload.drop()
        self._when_received = self._finish
        self.channel.wait(LINGER)

    def _finish(self) -> None:
        self.when_lost = _nobody_asks
        super().finish()

    def let_go(self) -> None:
        """Keep nothing of what was asked but its first line, nor of the answer's head."""
        self.requestHeaders = self.responseHeaders = _NO_HEADERS

    def _turn_away(self, length: int | None) -> None:
        """Answer now, and let the client send its body into the void."""
        self._take = discard
        # Whoever waits for leave to send a body does not get it.
        self.requestHeaders.removeHeader(b"Expect")
        self.upload = Upload(length, self.channel.reading)
        self._render()

    def unread(self) -> int | None:
        """Return the bytes of answers that the client has not taken from the system, if known."""
        return None if self.channel is None else unread(self.channel.transport)

    def cut(self) -> None:
        """Break the connection."""
        self.channel.abort()

    def _refuse(self, error: ApiError) -> None:
        """Say at once why the body is not taken; then let the client send it into the void."""
        self._take = discard
        self._pieces.clear()
        self._give_room_back()
        self._when_received = self.channel.loseConnection
        # Whoever waits for leave to send such a body does not get it.
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.refuse(error)


class _UsualLines:
    """The headers that all answers have: made once a second, for the date's sake."""

    def __init__(self) -> None:
        self._second = 0
        self._said = b""

    def __call__(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._said = b"Server: %s\r\nDate: %s\r\n" % (SERVER, datetimeToString(second))
        return self._said


usual_lines = _UsualLines()


def origin_form(target: bytes) -> bytes:
    """
    Return a request's target without scheme and host.

    A server has to accept them (RFC 9112, section 3.2.2); here they lead nowhere else.
    """
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in {b"http", b"https"}:
        return target
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"
