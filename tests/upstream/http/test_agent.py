"""Our agent, beside Twisted's: the plain way that it is checked against."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,  # noqa: A004
)
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestGenerationFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IClientRequest, IResponse
from zope.interface import implementer
from zope.interface.verify import verifyObject

from blockops.upstream.http.agent import OneShotAgent, WrongLength
from blockops.upstream.http.inflate import BadCoding
from blockops.upstream.http.response_parser import BadResponse
from tests.world import Backend, Reactor

URL = b"http://127.0.0.1:8082"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def ours(reactor: Reactor) -> IAgent:
    return OneShotAgent(reactor, BrowserLikePolicyForHTTPS(), 5, lambda: None)


def twisteds(reactor: Reactor) -> IAgent:
    return Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))


class Body(Protocol):
    """Keeps what it receives, and how that ended."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.end: Failure | None = None

    @property
    def source(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        assert self.end is None
        self.end = reason

    def content(self) -> bytes:
        return b"".join(self.pieces)


class Call:
    """One request of an agent, and the server's end of its connection."""

    def __init__(
        self,
        make: Callable[[Reactor], IAgent] = ours,
        method: bytes = b"GET",
        target: bytes = b"/v1/x",
        headers: Headers | None = None,
        body: IBodyProducer | None = None,
        *,
        accepted: bool = True,
    ) -> None:
        self.reactor = Reactor()
        self.response: IResponse | None = None
        self.failure: Failure | None = None
        self.answered = make(self.reactor).request(method, URL + target, headers, body)
        self.answered.addCallbacks(self._answer, self._fail)
        if accepted:
            self.accept()

    def accept(self) -> None:
        (host, port, factory, *_) = self.reactor.tcpClients[0]
        protocol: Any = factory.buildProtocol(IPv4Address("TCP", host, port))
        self.server = Backend(self.reactor, protocol)

    def _answer(self, response: IResponse) -> None:
        self.response = response

    def _fail(self, failure: Failure) -> None:
        self.failure = failure

    def take(self, body: Body | None = None) -> Body:
        """Let somebody have the response's body."""
        assert self.response is not None
        body = body or Body()
        self.response.deliverBody(body)
        return body

    def end(self, reason: Exception | None = None) -> None:
        """Let the server end the connection."""
        self.server.wire.lose(reason or ConnectionDone())

    def error(self) -> Exception:
        assert self.failure is not None
        return cast("Exception", self.failure.value)


@implementer(IBodyProducer)
class Bytes:
    """A body that is here."""

    def __init__(self, data: bytes, length: Any = None) -> None:
        self.length = len(data) if length is None else length
        self._data = data

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...


@implementer(IBodyProducer)
class Flowing:
    """A body that is still on its way."""

    def __init__(self, length: Any = UNKNOWN_LENGTH) -> None:
        self.length = length
        self.state = "flowing"
        self.over: Deferred[None] = Deferred()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.put = consumer.write
        self.put(b"first")
        return self.over

    def pauseProducing(self) -> None:
        self.state = "paused"

    def resumeProducing(self) -> None:
        self.state = "flowing"

    def stopProducing(self) -> None:
        self.state = "stopped"


class Alike(SynchronousTestCase):
    """Both agents, fed the same, tell the same."""

    #: Headers that are about the connection: Twisted keeps them to itself.
    HIDDEN = frozenset({b"Content-Length", b"Transfer-Encoding", b"Connection"})

    heads = st.lists(
        st.sampled_from(
            [b"A: b", b"a: c", b"Set-Cookie: d=e", b"Empty:", b"Connection: close", b"X:  spaces "]
        ),
        max_size=4,
    )
    bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=4)
    statuses = st.sampled_from([b"200 OK", b"201", b"204 None", b"304 Same", b"404 Not Found"])

    @given(st.data())
    def test_any_response(self, data: st.DataObject) -> None:
        response = data.draw(self.responses())
        method = data.draw(st.sampled_from([b"GET", b"HEAD", b"POST"]))
        cuts = data.draw(st.lists(st.integers(0, len(response)), max_size=8))
        self.assert_alike(method, response, cuts)

    @st.composite
    @staticmethod
    def responses(draw: Any) -> bytes:
        """Return a response, or its beginning."""
        lines = [b"HTTP/1.%d " % draw(st.integers(0, 1)) + draw(Alike.statuses)]
        lines += draw(Alike.heads)
        pieces = draw(Alike.bodies)
        framing = draw(st.sampled_from(["length", "chunks", "close"]))
        body = b"".join(pieces)
        if framing == "length":
            lines.append(b"Content-Length: %d" % len(body))
        elif framing == "chunks":
            lines.append(b"Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
            body += b"0\r\n\r\n"
        interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
        whole: bytes = interim + b"\r\n".join([*lines, b"", b""]) + body
        return whole[: draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))]

    def assert_alike(self, method: bytes, response: bytes, cuts: list[int]) -> None:
        ends = sorted({*cuts, 0, len(response)})
        pieces = [response[start:end] for start, end in pairwise(ends)]
        self.assertEqual(self.told(ours, method, pieces), self.told(twisteds, method, pieces))

    def told(
        self, make: Callable[[Reactor], IAgent], method: bytes, pieces: list[bytes]
    ) -> tuple[object, ...]:
        """Return what an agent makes of `pieces` and the connection's end."""
        call = Call(make, method)
        body = Body()
        call.answered.addCallback(lambda _: call.take(body) if call.response else None)
        for piece in pieces:
            call.server.send(piece)
        call.end()
        call.reactor.advance(0)
        if call.response is None:
            self.assertIsNotNone(call.failure)
            return ("no response",)
        assert body.end is not None
        return (
            call.response.version,
            call.response.code,
            call.response.phrase,
            sorted(
                (name, list(values))
                for name, values in call.response.headers.getAllRawHeaders()
                if name not in self.HIDDEN
            ),
            body.content(),
            body.end.type,
        )

    def test_at_every_cut(self) -> None:
        for response in (OK, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nhi"):
            for cut in range(len(response)):
                self.assert_alike(b"GET", response, [cut])
                self.assert_alike(b"GET", response[:cut], [])


class Sent(SynchronousTestCase):
    """What the server receives."""

    def sent(self, *args: Any, **more: Any) -> bytes:
        return Call(ours, *args, **more).server.received()

    def test_a_request(self) -> None:
        headers = Headers({"X-One": ["1", "2"], "Accept-Encoding": ["gzip"]})
        self.assertEqual(
            self.sent(b"GET", b"/v1/models", headers),
            b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:8082\r\nX-One: 1\r\nX-One: 2\r\n"
            b"Accept-Encoding: identity\r\nConnection: close\r\n\r\n",
        )

    def test_the_target_is_sent_as_it_was_written(self) -> None:
        for target in (b'/v1/x?a="b"&c=<d>|e', b"/v1/x?", b"/v1/%7e/../x", b"/", b"/a?b=http://c/"):
            self.assertEqual(self.sent(b"GET", target).split(b" ")[1], target)
        self.assertEqual(self.sent(b"GET", b"").split(b" ")[1], b"/")

    def test_what_would_be_another_request(self) -> None:
        for method, target in (
            (b"GET", b"/x HTTP/1.1\r\nA: b"),
            (b"GET", b"/ x"),
            (b"GET", b"/\xc3\xa9"),
            (b"GET /", b"/x"),
            (b"", b"/x"),
        ):
            self.assertRaises(ValueError, Call, ours, method, target, accepted=False)

    def test_headers_that_are_ours_to_say(self) -> None:
        said = {"Connection": ["keep-alive"], "Content-Length": ["9"], "Transfer-Encoding": ["x"]}
        head = self.sent(b"POST", b"/x", Headers(cast("Any", said)), Bytes(b"hi"))
        self.assertEqual(head.count(b"Content-Length"), 1)
        self.assertNotIn(b"keep-alive", head)
        self.assertNotIn(b"Transfer-Encoding", head)
        self.assertIn(b"Host: other\r\n", self.sent(headers=Headers({"Host": ["other"]})))

    def test_the_standard_port_is_left_unsaid(self) -> None:
        agent = ours(reactor := Reactor())
        agent.request(b"GET", b"http://192.0.2.7/").addErrback(lambda _: None)
        agent.request(b"GET", b"http://[::1]:81/").addErrback(lambda _: None)
        self.assertEqual(
            [client[:2] for client in reactor.tcpClients], [("192.0.2.7", 80), ("::1", 81)]
        )
        hosts = []
        for host, port, factory, *_ in reactor.tcpClients:
            protocol: Any = factory.buildProtocol(IPv4Address("TCP", host, port))
            hosts.append(Backend(reactor, protocol).received().split(b"\r\n")[1])
        self.assertEqual(hosts, [b"Host: 192.0.2.7", b"Host: [::1]:81"])

    def test_a_body_leaves_with_its_head(self) -> None:
        for body, end in (
            (Bytes(b"hello"), b"Content-Length: 5\r\n\r\nhello"),
            (Bytes(b"hello", UNKNOWN_LENGTH), b"chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            (Bytes(b""), b"Content-Length: 0\r\n\r\n"),
        ):
            server = Call(ours, b"POST", body=body).server
            self.assertTrue(server.received().endswith(end), server.received())
            self.assertEqual(server.wire.writes, 1)
            self.assertIsNone(server.wire.producer)

    def test_no_body_has_a_length_where_one_is_expected(self) -> None:
        for method, count in ((b"GET", 0), (b"DELETE", 0), (b"POST", 1), (b"PUT", 1)):
            self.assertEqual(self.sent(method).count(b"Content-Length: 0\r\n"), count)


class Flows(SynchronousTestCase):
    """A body that is sent while it comes."""

    def call(self, body: Flowing) -> Call:
        return Call(ours, b"POST", body=body)

    def test_in_chunks(self) -> None:
        body = Flowing()
        call = self.call(body)
        self.assertTrue(call.server.received().endswith(b"\r\n\r\n5\r\nfirst\r\n"))
        self.assertEqual(call.server.wire.writes, 1)
        body.put(b"")
        body.put(b"last")
        body.over.callback(None)
        self.assertTrue(call.server.received().endswith(b"first\r\n4\r\nlast\r\n0\r\n\r\n"))
        self.assertIsNone(call.server.wire.producer)
        call.server.send(OK)
        self.assertEqual(call.take().content(), b"hello")

    def test_of_a_known_length(self) -> None:
        body = Flowing(9)
        call = self.call(body)
        body.put(b"last")
        body.over.callback(None)
        self.assertTrue(call.server.received().endswith(b"Length: 9\r\n\r\nfirstlast"))

    def test_the_server_sets_the_pace(self) -> None:
        body = Flowing()
        call = self.call(body)
        call.server.pause()
        self.assertEqual(body.state, "paused")
        call.server.resume()
        self.assertEqual(body.state, "flowing")

    def test_a_length_that_was_a_lie(self) -> None:
        short, long = Flowing(9), Flowing(6)
        for body, then in (
            (short, lambda: short.over.callback(None)),
            (long, lambda: long.put(b"xx")),
        ):
            call = self.call(body)
            then()
            self.assertIsInstance(call.error(), RequestGenerationFailed)
            self.assertIsInstance(cast("Any", call.error()).reasons[0].value, WrongLength)
            self.assertTrue(call.server.wire.aborted)
        long.put(b"more of it")
        long.over.callback(None)

    def test_a_body_that_fails(self) -> None:
        body = Flowing()
        call = self.call(body)
        body.over.errback(KeyError("gone"))
        self.assertIsInstance(cast("Any", call.error()).reasons[0].value, KeyError)
        self.assertTrue(call.server.wire.aborted)

    def test_a_body_that_fails_behind_the_answers_headers(self) -> None:
        body = Flowing()
        call = self.call(body)
        call.server.send(OK[:-2])
        taken = call.take()
        body.over.errback(KeyError("gone"))
        call.reactor.advance(0)
        assert taken.end is not None
        taken.end.trap(ResponseFailed)

    def test_a_body_that_cannot_begin(self) -> None:
        class Broken(Flowing):
            def startProducing(self, consumer: IConsumer) -> Deferred[None]:
                raise KeyError("gone")

        call = self.call(Broken())
        self.assertIsInstance(call.error(), RequestGenerationFailed)

    def test_an_answer_before_the_body_is_sent(self) -> None:
        body = Flowing()
        call = self.call(body)
        call.server.send(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\nno")
        self.assertEqual(call.take().content(), b"no")
        self.assertEqual(body.state, "stopped")
        self.assertTrue(call.server.wire.aborted)
        self.assertIsNone(call.server.wire.producer)

    def test_a_connection_that_breaks(self) -> None:
        body = Flowing()
        call = self.call(body)
        call.end(ConnectionLost())
        self.assertIsInstance(call.error(), ResponseNeverReceived)
        self.assertEqual(body.state, "stopped")


class Answers(SynchronousTestCase):
    def test_what_it_provides(self) -> None:
        call = Call()
        verifyObject(IAgent, ours(call.reactor))
        call.server.send(OK)
        response: Any = call.response
        verifyObject(IResponse, response)
        verifyObject(IClientRequest, response.request)
        self.assertEqual(response.request.absoluteURI, URL + b"/v1/x")
        self.assertEqual(response.length, 5)
        response.setPreviousResponse(response)
        self.assertIs(response.previousResponse, response)

    def test_the_body_waits_for_somebody(self) -> None:
        call = Call()
        call.server.send(CHUNKED + b"5\r\nhello\r\n")
        self.assertEqual(call.server.wire.producerState, "paused")
        body = call.take()
        self.assertEqual(call.server.wire.producerState, "producing")
        self.assertEqual(body.pieces, [b"hello"])
        self.assertIsNone(body.end)
        call.server.send(b"2\r\n, \r\n3\r\nyou\r\n0\r\n\r\n")
        self.assertEqual(body.pieces, [b"hello", b", you"])
        self.assertTrue(call.server.wire.aborted)

    def test_a_whole_answer_waits_too(self) -> None:
        call = Call()
        call.server.send(OK)
        call.reactor.advance(0)
        body = call.take()
        self.assertEqual(body.content(), b"hello")
        assert body.end is not None
        body.end.trap(ResponseDone)
        self.assertRaises(RuntimeError, call.take)

    def test_a_whole_answer_that_came_in_one_piece_is_had_at_once(self) -> None:
        for answer, had in ((OK, True), (CHUNKED + b"5\r\nhello\r\n", False)):
            call = Call()
            taken: list[tuple[bytes, bool]] = []

            def take(_: object, call: Call = call) -> None:
                body = call.take()
                taken.append((body.content(), body.end is not None))  # noqa: B023 - asked at once

            call.answered.addCallback(take)
            call.server.send(answer)
            self.assertEqual(taken, [(b"hello", had)])
            self.assertEqual(call.server.wire.aborted, had)

    def test_a_pause_from_before_the_first_byte_holds(self) -> None:
        """With Twisted's agent it is undone (twisted#9623)."""

        class Full(Body):
            def connectionMade(self) -> None:
                self.source.pauseProducing()

        call = Call()
        call.server.send(CHUNKED)
        body = call.take(Full())
        self.assertEqual(call.server.wire.producerState, "paused")
        body.source.resumeProducing()
        self.assertEqual(call.server.wire.producerState, "producing")

    def test_a_body_can_end_the_connection(self) -> None:
        for end in ("loseConnection", "stopProducing", "abortConnection"):
            call = Call()
            call.server.send(CHUNKED)
            body = call.take()
            getattr(body.source, end)()
            self.assertTrue(call.server.wire.aborted)
            call.reactor.advance(0)
            assert body.end is not None
            body.end.trap(ResponseFailed)

    def test_a_body_without_a_length_that_breaks_off_is_not_whole(self) -> None:
        for reason, ending in (
            (ConnectionDone(), PotentialDataLoss),
            (ConnectionLost(), ResponseFailed),
        ):
            call = Call()
            call.server.send(b"HTTP/1.0 200 OK\r\n\r\nhello")
            body = call.take()
            call.end(reason)
            assert body.end is not None
            body.end.trap(ending)

    def test_what_cannot_be_read(self) -> None:
        call = Call()
        call.server.send(b"SSH-2.0-OpenSSH_9\r\n")
        failed = call.error()
        self.assertIsInstance(cast("Any", failed).reasons[0].value, BadResponse)
        self.assertTrue(call.server.wire.aborted)
        call.reactor.advance(0)

    def test_a_fault_in_the_middle(self) -> None:
        call = Call()
        call.server.send(CHUNKED + b"5\r\nhello\r\n")
        body = call.take()
        call.server.send(b"2\r\nhi\r\nfive\r\n")
        self.assertEqual(body.content(), b"hellohi")
        assert body.end is not None
        body.end.trap(ResponseFailed)
        self.assertTrue(call.server.wire.aborted)


class Codings(SynchronousTestCase):
    def answer(self, codings: bytes, body: bytes) -> tuple[Any, Body]:
        call = Call()
        call.server.send(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (codings, len(body), body)
        )
        return call.response, call.take()

    def test_undone(self) -> None:
        once = gzip.compress(b"hello")
        for codings, body in ((b"gzip", once), (b"GZip, gzip", gzip.compress(once))):
            response, taken = self.answer(codings, body)
            self.assertEqual(taken.content(), b"hello")
            self.assertFalse(response.headers.hasHeader("Content-Encoding"))
            self.assertIs(response.length, UNKNOWN_LENGTH)

    def test_unknown(self) -> None:
        response, taken = self.answer(b"br, gzip", gzip.compress(b"hello"))
        self.assertEqual(taken.content(), b"hello")
        self.assertEqual(response.headers.getRawHeaders("Content-Encoding"), ["br"])
        response, taken = self.answer(b"br", b"hello")
        self.assertEqual((taken.content(), response.length), (b"hello", 5))

    def test_a_lie(self) -> None:
        _, taken = self.answer(b"gzip", b"hello")
        assert taken.end is not None
        taken.end.trap(ResponseFailed)
        self.assertIsInstance(cast("Any", taken.end.value).reasons[0].value, BadCoding)


class Ends(SynchronousTestCase):
    """Cancelled, at every stage; and failures to connect."""

    def test_while_connecting(self) -> None:
        call = Call(accepted=False)
        call.answered.cancel()
        self.assertIsInstance(call.error(), CancelledError)
        self.assertTrue(call.reactor.connectors[0].stoppedConnecting)

    def test_a_connection_that_comes_all_the_same(self) -> None:
        call = Call(accepted=False)
        call.answered.cancel()
        call.accept()
        self.assertTrue(call.server.wire.aborted)
        self.assertEqual(call.server.received(), b"")

    def test_while_the_body_is_sent(self) -> None:
        body = Flowing()
        call = Call(ours, b"POST", body=body)
        call.answered.cancel()
        self.assertIsInstance(call.error(), CancelledError)
        self.assertTrue(call.server.wire.aborted)
        call.reactor.advance(0)
        self.assertEqual(body.state, "stopped")

    def test_while_waiting_for_headers(self) -> None:
        for begun in (b"", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:20]):
            call = Call()
            call.server.send(begun)
            call.answered.cancel()
            self.assertIsInstance(call.error(), CancelledError)
            self.assertTrue(call.server.wire.aborted)
            call.server.send(OK)
            call.reactor.advance(0)
            self.assertIsNone(call.response)

    def test_refused(self) -> None:
        call = Call(accepted=False)
        factory = call.reactor.tcpClients[0][2]
        factory.clientConnectionFailed(
            call.reactor.connectors[0], Failure(ConnectionRefusedError())
        )
        self.assertIsInstance(call.error(), ConnectError)

    def test_closed_without_an_answer(self) -> None:
        for reason in (ConnectionDone(), ConnectionLost(), ConnectionAborted()):
            call = Call()
            call.end(reason)
            self.assertIsInstance(call.error(), ResponseNeverReceived)
