"""
The HTTP server: bounded, with deadlines, with errors in OpenAI's shape.

twisted.web reads a request's whole body, however large, before anybody is asked; its errors are
bare or HTML; and a client that sends a byte now and then is never timed out. What is different:

- A body over the bound is refused as soon as that is known, be it from its declared length.
- Who may ask is decided when a request's headers are here, before anything of its body (`screen`).
- A request that need not be understood to be relayed (`streams_up`) is rendered when its headers
  are here. Its body follows through an `Upload`, at the speed of who takes it.
- Headers have to be whole within `header_timeout`; the next piece of a body within that, and all
  of it within the time that its size takes at `SLOWEST_BODY`; a connection may be idle for
  `KEEP_ALIVE` between two requests.
- A client that does not read its answers gets no more of them, and its further requests are not
  read, until it does.
- Connections beyond a bound are told so at once, and closed.
- A client that leaves while nothing is read from it is noticed (`Site.beat`).

The tree of resources and its requests are twisted.web's; what reads the connections is not
(`blockops.server.connection`): it is stricter, and takes half the time.
"""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.web.resource import IResource
from twisted.web.server import Site as TwistedSite

from blockops.errors import ApiError
from blockops.net.socket_state import departed
from blockops.server.body_budget import Room
from blockops.server.connection import Channel
from blockops.server.connection_limit import Crowd, TurnedAway
from blockops.server.request import IncomingRequest, Instead


class Site(TwistedSite):
    """
    Makes channels.

    :param max_body: bytes that a request's body may have
    :param room: for the bodies of all requests together
    :param header_timeout: seconds that a request's headers may take
    :param streams_up: given a request's target, says whether to render it before its body is here
    :param screen: given a request whose headers are here, says what answers it in place of its
        route; None lets it through
    :param crowd: says which connections are too many
    :param refused: is told of each channel that refuses what never became a request, and why
    :ivar channels: those that are open
    :ivar unread: those of them that nothing is read from, because nobody takes their upload
    :ivar closing: each connection closes behind the answer that is under way on it
    """

    noisy = False

    def __init__(
        self,
        resource: IResource,
        *,
        reactor: IReactorTime,
        max_body: int,
        room: Room,
        header_timeout: float,
        streams_up: Callable[[bytes], bool],
        crowd: Crowd,
        refused: Callable[[Channel, ApiError], object],
        screen: Callable[[IncomingRequest], Instead | None] = lambda _: None,
    ) -> None:
        super().__init__(resource, IncomingRequest, reactor=reactor)
        self.max_body = max_body
        self.room = room
        self.header_timeout = header_timeout
        self.streams_up = streams_up
        self.crowd = crowd
        self.refused = refused
        self.screen = screen
        self.channels: set[Channel] = set()
        self.unread: set[Channel] = set()
        self.closing = False
        self._all_closed: Deferred[None] | None = None

    def startFactory(self) -> None:
        """Keep no access log, and no clock that ticks every second for its time stamps."""

    stopFactory = startFactory

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> Channel | TurnedAway:
        full = self.crowd.full(addr)
        if full is not None:
            return self.crowd.turned_away(full)
        return Channel(self, IncomingRequest)

    def close_idle(self) -> None:
        """Close the connections that no request is on, and the others once theirs is answered."""
        self.closing = True
        for channel in list(self.channels):
            channel.close_when_idle()

    async def close(self, patience: float) -> None:
        """
        Close all connections.

        :param patience: seconds that clients have to read what was written for them
        """
        self.close_idle()
        if self.channels:
            self._all_closed = Deferred()
            late = self.reactor.callLater(patience, self._abort)
            await self._all_closed
            if late.active():
                late.cancel()

    def _abort(self) -> None:
        for channel in list(self.channels):
            channel.abort()

    def beat(self, now: float) -> None:
        """End what is late; find those who left while nothing was read from them."""
        for channel in list(self.channels):
            if channel.due is not None and channel.due <= now:
                channel.too_late()
        # Of these a transport does not tell.
        for channel in list(self.unread):
            if departed(channel.transport):
                channel.abort()

    def opened(self, channel: Channel) -> None:
        self.channels.add(channel)
        self.crowd.enter(channel.getPeer())

    def closed(self, channel: Channel) -> None:
        self.channels.discard(channel)
        self.crowd.leave(channel.getPeer())
        self.unread.discard(channel)
        if not self.channels and self._all_closed is not None:
            self._all_closed.callback(None)
            self._all_closed = None
