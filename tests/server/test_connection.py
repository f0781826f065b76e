"""
Connections of clients, against `twisted.web.http.HTTPChannel`: slower, and known to be right.

Whatever a channel of ours takes for a request, Twisted's takes for the same one, wherever the
network cuts it. The other way round it is not so: ours is stricter.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http
from twisted.web.http_headers import Headers
from twisted.web.iweb import INonQueuedRequestFactory
from zope.interface import directlyProvides, provider

from blockops.errors import ApiError
from blockops.proxy.in_flight import refusal
from blockops.server import connection as channel
from blockops.server.connection import Channel, expects_leave, stays_open
from blockops.server.http1.head import Head
from blockops.server.limits import LINGER, MAX_HEAD, MAX_HELD, MAX_IN_A_ROW, MAX_LINE
from tests.world import NOTHING_LEFT, Client, World


class Seen(NamedTuple):
    method: bytes
    target: bytes
    version: bytes
    headers: dict[bytes, Sequence[bytes]]
    body: bytes


class Noting:
    """A request that is noted when all of it is here, and answered at once with nothing."""

    startedWriting = 0
    responseHeaders = Headers()

    def __init__(self, channel: Channel, head: Head, seen: list[Seen]) -> None:
        self.method, self.uri, self.clientproto, self.headers = head
        self._channel = channel
        self._body = b""
        self._seen = seen

    def gotLength(self, length: int | None) -> None:
        """It does not matter."""

    def handleContentChunk(self, data: bytes) -> None:
        self._body += data

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        headers = dict(self.headers.getAllRawHeaders())
        self._seen.append(Seen(command, path, version, headers, self._body))
        self._channel.requestDone(self)

    def connectionLost(self, reason: Failure) -> None:
        """Nothing is under way."""


@provider(INonQueuedRequestFactory)
class TheirRequest(http.Request):
    def process(self) -> None:
        headers = dict(self.requestHeaders.getAllRawHeaders())
        assert self.content is not None
        body = self.content.read()
        self.channel.seen.append(  # type: ignore[attr-defined]
            Seen(self.method, self.uri, self.clientproto, headers, body)
        )
        self.finish()


class TheirChannel(http.HTTPChannel):
    MAX_LENGTH = MAX_LINE
    totalHeadersSize = maxHeaders = 2 * MAX_HEAD
    requestFactory = TheirRequest
    timeOut = None

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []


class House(SimpleNamespace):
    """A site without a tree."""

    max_body = 1 << 40
    header_timeout = 60.0
    closing = False

    def __init__(self) -> None:
        super().__init__(reactor=Clock(), unread=set(), errors=[])

    def opened(self, channel: Channel) -> None:
        """It does not matter."""

    closed = opened

    def refused(self, channel: Channel, error: Exception) -> None:
        self.errors.append(error)


class Transport(StringTransport):
    """One whose end is its end: what comes behind a parting is not looked at here."""

    def loseWriteConnection(self) -> None:
        self.loseConnection()


def fed(protocol: Any, pieces: Iterable[bytes]) -> StringTransport:
    transport = Transport()
    protocol.makeConnection(transport)
    for piece in pieces:
        if not transport.disconnecting:
            protocol.dataReceived(piece)
    return transport


def ours(pieces: Iterable[bytes]) -> tuple[list[Seen], int]:
    """Return the requests that a channel takes, and with which status it refuses the rest."""
    seen: list[Seen] = []
    house = House()

    def noting(channel: Channel, head: Head) -> Any:
        return Noting(channel, head, seen)

    channel = Channel(cast("Any", house), noting)
    transport = fed(channel, pieces)
    while house.reactor.getDelayedCalls():
        house.reactor.advance(0)
    assert bool(house.errors) <= transport.disconnecting
    return seen, house.errors[0].status if house.errors else 0


def theirs(data: bytes) -> list[Seen]:
    channel = TheirChannel()
    fed(channel, [data])
    return channel.seen


METHODS = (b"GET", b"POST", b"HEAD", b"get", b"M-SEARCH", b"G T", b"", b"G\x00T", b"POST\t")
TARGETS = (b"/", b"/a?b=c", b"*", b"http://h/x", b"//", b"/%00", b"/\xe9", b"/ x", b"/\x01", b"")
VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.1 ",
)
HEADERS = (
    b"Host: h",
    b"host:h",
    b"X: 1",
    b"X-y:\t2 \t",
    b"Connection: close",
    b"Connection: keep-alive, Close",
    b"Connection: close x",
    b"Content-Length: 3",
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"Content-Length: 3, 3",
    b"Content-Length: +3",
    b"content-length : 3",
    b"Content_Length: 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding:\tCHUNKED",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: \x0bchunked",
    b"X: a\r\n b",
    b"X: a\nTransfer-Encoding: chunked",
    b"X: a\rb",
    b"X: \x00",
    b"nothing",
    b": x",
    b"Cookie: a=b",
    b"Expect: 100-continue",
)
BODIES = (
    b"",
    b"abc",
    b"abc",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"3 \r\nabc\r\n0\r\n\r\n",
    b"+3\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabcd\r\n0\r\n\r\n",
)
ENDS = (b"\r\n",) * 8 + (b"\n", b"\r", b"\r\r\n", b"\r\n ")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Make what looks like a request, and often is one."""
    line = b" ".join(draw(st.sampled_from(each)) for each in (METHODS, TARGETS, VERSIONS))
    lines = [line, *draw(st.lists(st.sampled_from(HEADERS), max_size=4)), b""]
    end = draw(st.sampled_from(ENDS))
    return b"".join(each + end for each in lines) + draw(st.sampled_from(BODIES))


@st.composite
def connections(draw: st.DrawFn) -> bytes:
    """Make what a client could send, some of it spoilt."""
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        junk = draw(st.sampled_from((b"", b"\r\n", b"\n", b" ", b"\x00", b":", b"0", b"\r\n\r\n")))
        data = data[:at] + junk + data[at + draw(st.integers(0, 2)) :]
    return data


class AsTwistedReads(SynchronousTestCase):
    @given(connections())
    def test_what_is_taken_is_taken_by_both(self, data: bytes) -> None:
        seen, _ = ours([data])
        self.assertEqual(seen, theirs(data)[: len(seen)])

    @given(connections(), st.data())
    def test_at_every_cut(self, data: bytes, choice: st.DataObject) -> None:
        whole = ours([data])
        self.assertEqual(ours(data[at : at + 1] for at in range(len(data))), whole)
        at = choice.draw(st.integers(0, len(data)))
        self.assertEqual(ours([data[:at], data[at:]]), whole)

    def test_good_ones_are_taken_by_both(self) -> None:
        """Else the above would be true of a channel that takes nothing."""
        data = (
            b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
            b"\r\nPOST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
            b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
            b"POST /d HTTP/1.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\nd"
            b"GET /behind HTTP/1.1\r\n\r\n"
        )
        seen, status = ours([data])
        self.assertEqual((seen, status), (theirs(data), 0))
        self.assertEqual([each.target for each in seen], [b"/a", b"/b", b"/c", b"/d"])
        self.assertEqual([each.body for each in seen], [b"", b"abc", b"abc", b"d"])


class Said(SynchronousTestCase):
    def said(self, *values: bytes, version: bytes = b"HTTP/1.1") -> bool:
        return stays_open(Head(b"GET", b"/", version, Headers({b"Connection": list(values)})))

    def test_whether_more_may_come(self) -> None:
        self.assertTrue(self.said())
        self.assertTrue(self.said(b"keep-alive"))
        self.assertTrue(self.said(b"closed, un-close"))
        self.assertFalse(self.said(b"close"))
        self.assertFalse(self.said(b"x,Close"))
        self.assertFalse(self.said(b"x", b"CLOSE ,y"))
        self.assertFalse(self.said(b"keep-alive", version=b"HTTP/1.0"))

    def test_whether_leave_is_waited_for(self) -> None:
        self.assertTrue(expects_leave(Headers({b"Expect": [b"100-Continue"]})))
        self.assertFalse(expects_leave(Headers({b"Expect": [b"wonders"]})))
        self.assertFalse(expects_leave(Headers()))


class Held(SynchronousTestCase):
    """What comes while a request is answered waits; not without bound."""

    def test_much(self) -> None:
        world = World(heartbeat=1000)
        client, backend = world.ask()
        one = b"GET /v1/models HTTP/1.1\r\n\r\n"
        many = MAX_HELD // len(one)
        client.send(one * many)
        self.assertEqual(client.wire.producerState, "producing")
        client.send(one)
        self.assertEqual(client.wire.producerState, "paused")
        self.assertIn(client.protocol, world.daemon.site.unread)
        backend.answer(b"{}")
        self.assertEqual(client.wire.producerState, "producing")
        self.assertNotIn(client.protocol, world.daemon.site.unread)

    def test_thousands_are_answered_without_sinking_deeper(self) -> None:
        world = World()
        client = world.client()
        client.send(b"GET /health HTTP/1.1\r\n\r\n" * 2000)
        for _ in range(2000 // MAX_IN_A_ROW):
            world.reactor.advance(0)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), 2000)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_others_have_their_turn_between_them(self) -> None:
        world = World()
        client = world.client()
        one = b"GET /health HTTP/1.1\r\n\r\n"
        client.send(one * MAX_HELD)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_IN_A_ROW)
        # What waits does not grow meanwhile.
        self.assertEqual(client.wire.producerState, "paused")
        client.send(one)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_IN_A_ROW)
        other = world.client()
        other.send(one)
        self.assertEqual(other.status(), 200)
        world.reactor.advance(0)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_HELD + 1)

    def test_who_leaves_between_them_is_answered_no_more(self) -> None:
        world = World()
        client = world.client()
        client.send(b"GET /health HTTP/1.1\r\n\r\n" * 100)
        client.leave()
        world.reactor.advance(0)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_IN_A_ROW)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_nothing_is_sent_behind_a_refusal(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        world.reactor.advance(0)
        backend = world.backend()
        # TLS takes its time to close.
        client.wire.loseConnection = lambda: None  # type: ignore[method-assign]
        client.send("nonsense\r\n")
        self.assertEqual(client.status(), 400)
        sent = client.received()
        backend.answer(b"{}")
        self.assertEqual(client.received(), sent)

    def test_a_broken_body_breaks_an_answer_that_has_begun(self) -> None:
        world = World()
        world.daemon.site.screen = lambda _: refusal(ApiError(403, "Go away."))
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        sent = client.received()
        self.assertEqual(client.status(), 403)
        client.send("nonsense\r\n")
        self.assertTrue(client.wire.aborted)
        self.assertEqual(client.received(), sent)


class Parting(SynchronousTestCase):
    """Who may still be sending gets to read the answer: what comes is read, and forgotten."""

    def parted(self, sent: str = "GET / HTTP/1.1\r\nX : y\r\n\r\n") -> tuple[World, Client]:
        world = World()
        client = world.client()
        client.send(sent)
        world.reactor.advance(0)
        return world, client

    def test_a_refusal(self) -> None:
        world, client = self.parted()
        self.assertEqual((client.status(), client.wire.half_closed), (400, True))
        said = client.received()
        for _ in range(20):
            client.send("GET /health HTTP/1.1\r\nHost: b\r\n\r\n" * 1000)
            world.pass_time(1)
        self.assertEqual(client.received(), said)
        self.assertEqual(world.daemon.site.channels, {client.protocol})
        client.leave()
        self.assertEqual(world.daemon.site.channels, set())

    def test_it_has_its_bound(self) -> None:
        world, client = self.parted()
        world.pass_time(LINGER - 1)
        self.assertFalse(client.wire.aborted)
        world.pass_time(2)
        self.assertTrue(client.wire.aborted)

    def test_a_body_that_is_none_holds_nothing(self) -> None:
        """Its request is over, though its connection is not."""
        world = World(max_concurrent=1)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        world.reactor.advance(0)
        backend = world.backend()
        client.send("nonsense\r\n")
        world.reactor.advance(0)
        self.assertTrue(client.wire.half_closed)
        self.assertFalse(client.wire.closed)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_what_was_sent_behind_the_last_request(self) -> None:
        asked = "GET /health HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
        for behind, parts in (("", False), ("GET ", True)):
            _, client = self.parted(asked + behind)
            self.assertEqual(client.status(), 200)
            self.assertEqual((client.wire.half_closed, client.wire.closed), (parts, not parts))

    def test_with_tls_that_takes_its_leave_by_itself(self) -> None:
        world = World()
        client = world.client()
        directlyProvides(client.wire, ISSLTransport)
        client.send("nonsense\r\n\r\n")
        self.assertEqual(client.status(), 400)
        self.assertEqual((client.wire.half_closed, client.wire.disconnecting), (False, True))

    def test_who_is_not_read_from_is_then(self) -> None:
        world = World()
        client = world.client()
        protocol = client.protocol
        assert isinstance(protocol, Channel)
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        protocol.pause_body()
        self.assertEqual(client.wire.producerState, "paused")
        protocol.part()
        self.assertEqual(client.wire.producerState, "producing")
        self.assertEqual(world.daemon.site.unread, set())

    def test_who_reads_what_is_left_for_him_has_time(self) -> None:
        left: list[int | None] = [5000]
        self.patch(channel, "unread", lambda _: left[0])
        world, client = self.parted()
        for _ in range(4):
            world.pass_time(LINGER)
            self.assertFalse(client.wire.aborted)
            left[0] = cast("int", left[0]) - 1
        world.pass_time(2 * LINGER + 2)
        self.assertTrue(client.wire.aborted)

    def test_who_has_all_has_not(self) -> None:
        for left in (0, None):
            self.patch(channel, "unread", lambda _, left=left: left)
            world, client = self.parted()
            world.pass_time(LINGER + 1)
            self.assertTrue(client.wire.aborted)


class Freed(SynchronousTestCase):
    """What is done with is not left to the garbage collector."""

    def test_a_request_that_was_answered(self) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        world = World()
        client, backend = world.ask(stream=False)
        request = weakref.ref(client.protocol.request)  # type: ignore[attr-defined]
        self.assertIsNotNone(request())
        message = {"role": "assistant", "content": "Hello"}
        backend.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        self.assertEqual(client.status(), 200)
        self.assertIsNone(request())

    def test_a_lost_connections_way_out(self) -> None:
        channel = Channel(cast("Any", House()), cast("Any", None))
        fed(channel, [])
        channel.connectionLost(Failure(ConnectionDone()))
        channel.transport = None
        lost = weakref.ref(channel)
        gc.disable()
        self.addCleanup(gc.enable)
        channel.write(b"late")
        channel.abort()
        channel.loseConnection()
        del channel
        self.assertIsNone(lost())


class AsAChannel(SynchronousTestCase):
    def test_it_takes_producers_that_push_one_at_a_time(self) -> None:
        channel = Channel(cast("Any", House()), cast("Any", None))
        fed(channel, [])
        producer = cast("Any", StringTransport())
        self.assertRaises(RuntimeError, channel.registerProducer, producer, streaming=False)
        channel.registerProducer(producer, streaming=True)
        self.assertRaises(RuntimeError, channel.registerProducer, producer, streaming=True)
        channel.pauseProducing()
        self.assertEqual(producer.producerState, "paused")
        channel.resumeProducing()
        self.assertEqual(producer.producerState, "producing")
        channel.unregisterProducer()
        channel.pauseProducing()
        self.assertEqual(producer.producerState, "producing")
        channel.registerProducer(producer, streaming=True)
        self.assertEqual(producer.producerState, "paused")

    def test_what_requests_want_to_know(self) -> None:
        channel = Channel(cast("Any", House()), cast("Any", None))
        transport = fed(channel, [])
        self.assertIsInstance(channel, Protocol)
        self.assertEqual(channel.getPeer(), transport.getPeer())
        self.assertEqual(channel.getHost(), transport.getHost())
        self.assertFalse(channel.isSecure())
