"""
Client connections, compared with `twisted.web.http.HTTPChannel`.

Twisted's channel is slower, and known to be correct.

Every request that `ClientConnection` accepts, Twisted's channel accepts too, however the network
splits it. The reverse does not hold: `ClientConnection` is stricter.
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
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http
from twisted.web.http_headers import Headers
from twisted.web.iweb import INonQueuedRequestFactory
from zope.interface import directlyProvides, provider

from blockops.errors import ApiError
from blockops.server import connection as connection_module
from blockops.server.body_budget import BodyBudget
from blockops.server.connection import ClientConnection
from blockops.server.http1.head import RequestHead, expects_continue, wants_keep_alive
from blockops.server.limits import LINGER, MAX_HEAD, MAX_LINE, MAX_PIPELINED, MAX_REQUESTS_PER_TURN
from blockops.server.request import ClientRequest, origin_form
from tests.world import IDLE, Client, World, chunk


class ReceivedRequest(NamedTuple):
    method: bytes
    target: bytes
    version: bytes
    headers: dict[bytes, Sequence[bytes]]
    body: bytes


@provider(INonQueuedRequestFactory)
class TwistedRequest(http.Request):
    def process(self) -> None:
        headers = dict(self.requestHeaders.getAllRawHeaders())
        assert self.content is not None
        body = self.content.read()
        self.channel.received.append(  # type: ignore[attr-defined]
            ReceivedRequest(self.method, origin_form(self.uri), self.clientproto, headers, body)
        )
        self.finish()


class TwistedChannel(http.HTTPChannel):
    MAX_LENGTH = MAX_LINE
    totalHeadersSize = maxHeaders = 2 * MAX_HEAD
    requestFactory = TwistedRequest
    timeOut = None

    def __init__(self) -> None:
        super().__init__()
        self.received: list[ReceivedRequest] = []


class FakeSite(SimpleNamespace):
    """Records each complete request, and ends it at once without a response."""

    max_body = 1 << 40
    header_timeout = 60.0
    is_closing = False

    def __init__(self) -> None:
        super().__init__(
            reactor=Clock(),
            paused_connections=set(),
            errors=[],
            received=[],
            body_budget=BodyBudget(1 << 40),
            resource=self,
        )

    def match_route(self, method: bytes, target: bytes) -> Any:
        return SimpleNamespace(streams_upload=False)

    def check_access(self, request: ClientRequest) -> None: ...

    def render(self, request: ClientRequest) -> None:
        headers = dict(request.requestHeaders.getAllRawHeaders())
        body = request.pop_body()
        self.received.append(
            ReceivedRequest(request.method, request.uri, request.version, headers, body)
        )
        request.finish()

    def on_opened(self, connection: ClientConnection) -> None: ...

    on_closed = on_opened

    def on_rejected(self, connection: ClientConnection, error: Exception) -> None:
        self.errors.append(error)


class Transport(StringTransport):
    """A transport whose half-close is a close: the tests ignore later input."""

    def loseWriteConnection(self) -> None:
        self.loseConnection()


def feed(protocol: Any, pieces: Iterable[bytes]) -> StringTransport:
    transport = Transport()
    protocol.makeConnection(transport)
    for piece in pieces:
        if not transport.disconnecting:
            protocol.dataReceived(piece)
    return transport


def read_requests(pieces: Iterable[bytes]) -> tuple[list[ReceivedRequest], int]:
    """Return the accepted requests, and the status of the rejection; 0 without one."""
    site = FakeSite()
    transport = feed(ClientConnection(cast("Any", site)), pieces)
    while site.reactor.getDelayedCalls():
        site.reactor.advance(0)
    assert bool(site.errors) <= transport.disconnecting
    return site.received, site.errors[0].status if site.errors else 0


def read_with_twisted(data: bytes) -> list[ReceivedRequest]:
    channel = TwistedChannel()
    feed(channel, [data])
    return channel.received


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
    """Make a request that is often valid."""
    line = b" ".join(draw(st.sampled_from(each)) for each in (METHODS, TARGETS, VERSIONS))
    lines = [line, *draw(st.lists(st.sampled_from(HEADERS), max_size=4)), b""]
    end = draw(st.sampled_from(ENDS))
    return b"".join(each + end for each in lines) + draw(st.sampled_from(BODIES))


@st.composite
def connections(draw: st.DrawFn) -> bytes:
    """Make the input of a connection, some of it with an error."""
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        junk = draw(st.sampled_from((b"", b"\r\n", b"\n", b" ", b"\x00", b":", b"0", b"\r\n\r\n")))
        data = data[:at] + junk + data[at + draw(st.integers(0, 2)) :]
    return data


class SameAsTwisted(SynchronousTestCase):
    @given(connections())
    def test_requests_are_the_same(self, data: bytes) -> None:
        received, _ = read_requests([data])
        self.assertEqual(received, read_with_twisted(data)[: len(received)])

    @given(connections(), st.data())
    def test_at_every_split(self, data: bytes, choice: st.DataObject) -> None:
        whole = read_requests([data])
        self.assertEqual(read_requests(data[at : at + 1] for at in range(len(data))), whole)
        at = choice.draw(st.integers(0, len(data)))
        self.assertEqual(read_requests([data[:at], data[at:]]), whole)

    def test_valid_requests(self) -> None:
        """Without this, a connection that rejects everything would pass the tests above."""
        data = (
            b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
            b"\r\nPOST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
            b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
            b"POST /d HTTP/1.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\nd"
            b"GET /after HTTP/1.1\r\n\r\n"
        )
        received, status = read_requests([data])
        self.assertEqual((received, status), (read_with_twisted(data), 0))
        self.assertEqual([each.target for each in received], [b"/a", b"/b", b"/c", b"/d"])
        self.assertEqual([each.body for each in received], [b"", b"abc", b"abc", b"d"])


class ConnectionHeaders(SynchronousTestCase):
    def keeps_alive(self, *values: bytes, version: bytes = b"HTTP/1.1") -> bool:
        return wants_keep_alive(
            RequestHead(b"GET", b"/", version, Headers({b"Connection": list(values)}))
        )

    def test_wants_keep_alive(self) -> None:
        self.assertTrue(self.keeps_alive())
        self.assertTrue(self.keeps_alive(b"keep-alive"))
        self.assertTrue(self.keeps_alive(b"closed, un-close"))
        self.assertFalse(self.keeps_alive(b"close"))
        self.assertFalse(self.keeps_alive(b"x,Close"))
        self.assertFalse(self.keeps_alive(b"x", b"CLOSE ,y"))
        self.assertFalse(self.keeps_alive(b"keep-alive", version=b"HTTP/1.0"))

    def expects_continue(self, *values: bytes, version: bytes = b"HTTP/1.1") -> bool:
        headers = Headers({b"Expect": list(values)} if values else {})
        return expects_continue(RequestHead(b"POST", b"/", version, headers))

    def test_expects_continue(self) -> None:
        self.assertTrue(self.expects_continue(b"100-Continue"))
        self.assertFalse(self.expects_continue(b"wonders"))
        self.assertFalse(self.expects_continue())
        self.assertFalse(self.expects_continue(b"100-continue", version=b"HTTP/1.0"))


class Pipelining(SynchronousTestCase):
    """Input during a response waits, up to a limit."""

    def test_the_limit(self) -> None:
        world = World(heartbeat=1000)
        client, backend = world.start_chat()
        one = b"GET /v1/models HTTP/1.1\r\n\r\n"
        many = MAX_PIPELINED // len(one)
        client.send(one * many)
        self.assertEqual(client.wire.producerState, "producing")
        client.send(one)
        self.assertEqual(client.wire.producerState, "paused")
        self.assertIn(client.protocol, world.daemon.site.paused_connections)
        backend.respond(b"{}")
        self.assertEqual(client.wire.producerState, "producing")
        self.assertNotIn(client.protocol, world.daemon.site.paused_connections)

    def test_thousands_of_requests_without_recursion(self) -> None:
        world = World()
        client = world.client()
        client.send(b"GET /health HTTP/1.1\r\n\r\n" * 2000)
        for _ in range(2000 // MAX_REQUESTS_PER_TURN):
            world.reactor.advance(0)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), 2000)
        self.assertEqual(world.load(), IDLE)

    def test_other_connections_get_a_turn(self) -> None:
        world = World()
        client = world.client()
        one = b"GET /health HTTP/1.1\r\n\r\n"
        client.send(one * MAX_PIPELINED)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_REQUESTS_PER_TURN)
        # The pending input does not grow meanwhile.
        self.assertEqual(client.wire.producerState, "paused")
        client.send(one)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_REQUESTS_PER_TURN)
        other = world.client()
        other.send(one)
        self.assertEqual(other.status(), 200)
        world.reactor.advance(0)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_PIPELINED + 1)

    def test_a_disconnect_ends_processing(self) -> None:
        world = World()
        client = world.client()
        client.send(b"GET /health HTTP/1.1\r\n\r\n" * 100)
        client.disconnect()
        world.reactor.advance(0)
        self.assertEqual(client.received().count(b"HTTP/1.1 200"), MAX_REQUESTS_PER_TURN)
        self.assertEqual(world.load(), IDLE)

    def test_nothing_is_sent_after_a_rejection(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        world.reactor.advance(0)
        backend = world.backend()
        # TLS may take long to close.
        client.wire.loseConnection = lambda: None  # type: ignore[method-assign]
        client.send("nonsense\r\n")
        self.assertEqual(client.status(), 400)
        sent = client.received()
        backend.respond(b"{}")
        self.assertEqual(client.received(), sent)

    def test_an_invalid_body_aborts_a_response_that_has_begun(self) -> None:
        world = World()
        world.daemon.site.check_access = lambda _: ApiError(403, "Go away.")
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        sent = client.received()
        self.assertEqual(client.status(), 403)
        client.send("nonsense\r\n")
        self.assertTrue(client.wire.aborted)
        self.assertEqual(client.received(), sent)


class LingeringClose(SynchronousTestCase):
    """A client that may still be sending can read the response: its input is discarded."""

    def reject(self, sent: str = "GET / HTTP/1.1\r\nX : y\r\n\r\n") -> tuple[World, Client]:
        world = World()
        client = world.client()
        client.send(sent)
        world.reactor.advance(0)
        return world, client

    def test_after_a_rejection(self) -> None:
        world, client = self.reject()
        self.assertEqual((client.status(), client.wire.half_closed), (400, True))
        response = client.received()
        for _ in range(20):
            client.send("GET /health HTTP/1.1\r\nHost: b\r\n\r\n" * 1000)
            world.pass_time(1)
        self.assertEqual(client.received(), response)
        self.assertEqual(world.daemon.site.connections, {client.protocol})
        client.disconnect()
        self.assertEqual(world.daemon.site.connections, set())

    def test_the_time_limit(self) -> None:
        world, client = self.reject()
        world.pass_time(LINGER - 1)
        self.assertFalse(client.wire.aborted)
        world.pass_time(2)
        self.assertTrue(client.wire.aborted)

    def test_an_invalid_body_releases_its_slot(self) -> None:
        """Its request ends, although its connection stays open."""
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
        self.assertEqual(world.load(), IDLE)

    def test_input_after_the_last_request(self) -> None:
        request = "GET /health HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
        for extra_input, half_closes in (("", False), ("GET ", True)):
            _, client = self.reject(request + extra_input)
            self.assertEqual(client.status(), 200)
            self.assertEqual(
                (client.wire.half_closed, client.wire.closed), (half_closes, not half_closes)
            )

    def test_tls_has_its_own_close(self) -> None:
        world = World()
        client = world.client()
        directlyProvides(client.wire, ISSLTransport)
        client.send("nonsense\r\n\r\n")
        self.assertEqual(client.status(), 400)
        self.assertEqual((client.wire.half_closed, client.wire.disconnecting), (False, True))

    def test_paused_input_is_resumed(self) -> None:
        world = World()
        client = world.client()
        protocol = client.protocol
        assert isinstance(protocol, ClientConnection)
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        protocol.pause_body()
        self.assertEqual(client.wire.producerState, "paused")
        protocol.lingering_close()
        self.assertEqual(client.wire.producerState, "producing")
        self.assertEqual(world.daemon.site.paused_connections, set())

    def test_a_client_that_reads_has_more_time(self) -> None:
        unsent: list[int | None] = [5000]
        self.patch(connection_module, "unsent_bytes", lambda _: unsent[0])
        world, client = self.reject()
        for _ in range(4):
            world.pass_time(LINGER)
            self.assertFalse(client.wire.aborted)
            unsent[0] = cast("int", unsent[0]) - 1
        world.pass_time(2 * LINGER + 2)
        self.assertTrue(client.wire.aborted)

    def test_without_unsent_bytes(self) -> None:
        for unsent in (0, None):
            self.patch(connection_module, "unsent_bytes", lambda _, unsent=unsent: unsent)
            world, client = self.reject()
            world.pass_time(LINGER + 1)
            self.assertTrue(client.wire.aborted)


class Released(SynchronousTestCase):
    """Objects that are no longer used are freed without the garbage collector."""

    def test_a_finished_request(self) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        world = World()
        client, backend = world.start_chat(stream=False)
        request = weakref.ref(client.protocol.request)  # type: ignore[attr-defined]
        self.assertIsNotNone(request())
        message = {"role": "assistant", "content": "Hello"}
        backend.respond({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        self.assertEqual(client.status(), 200)
        self.assertIsNone(request())

    def test_a_lost_connection(self) -> None:
        connection = ClientConnection(cast("Any", FakeSite()))
        feed(connection, [])
        connection.connectionLost(Failure(ConnectionDone()))
        connection.transport = None
        lost = weakref.ref(connection)
        gc.disable()
        self.addCleanup(gc.enable)
        del connection
        self.assertIsNone(lost())


class Backpressure(SynchronousTestCase):
    def test_a_response_that_begins_while_the_client_does_not_read(self) -> None:
        client, backend = World().start_chat()
        client.pause()
        backend.begin_stream()
        backend.stream(chunk("a"))
        self.assertEqual(backend.wire.producerState, "paused")
        self.assertNotIn(b'"a"', client.received())
        client.resume()
        self.assertEqual(backend.wire.producerState, "producing")
        self.assertIn(b'"a"', client.received())

    def test_each_response_of_a_connection(self) -> None:
        client = World().client()
        for _ in range(2):
            client.wire.clear()
            client.pause()
            client.get("/health")
            self.assertEqual(client.received(), b"")
            client.resume()
            self.assertEqual(client.status(), 200)
