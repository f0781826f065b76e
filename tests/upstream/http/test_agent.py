"""`SingleUseAgent`, also compared with Twisted's `Agent`."""

from __future__ import annotations

import traceback
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

from blockops.upstream.body import discard
from blockops.upstream.http.agent import SingleUseAgent
from blockops.upstream.http.response_parser import BadResponse
from tests.world import Backend, Reactor

URL = b"http://127.0.0.1:8082"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def single_use_agent(reactor: Reactor) -> IAgent:
    return SingleUseAgent(reactor, BrowserLikePolicyForHTTPS(), 5, lambda: None)


def twisted_agent(reactor: Reactor) -> IAgent:
    return Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))


class Body(Protocol):
    """Records a body and its end."""

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
    """One request of an agent, and the server side of its connection."""

    def __init__(
        self,
        make: Callable[[Reactor], IAgent] = single_use_agent,
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
        self.result = make(self.reactor).request(method, URL + target, headers, body)
        self.result.addCallbacks(self._respond, self._fail)
        if accepted:
            self.accept()

    def accept(self) -> None:
        (host, port, factory, *_) = self.reactor.tcpClients[0]
        protocol: Any = factory.buildProtocol(IPv4Address("TCP", host, port))
        self.server = Backend(self.reactor, protocol)

    def _respond(self, response: IResponse) -> None:
        self.response = response

    def _fail(self, failure: Failure) -> None:
        self.failure = failure

    def deliver(self, body: Body | None = None) -> Body:
        """Deliver the response's body."""
        assert self.response is not None
        body = body or Body()
        self.response.deliverBody(body)
        return body

    def end(self, reason: Exception | None = None) -> None:
        """Close the connection at the server's side."""
        self.server.wire.connection_lost(reason or ConnectionDone())

    def error(self) -> Exception:
        assert self.failure is not None
        return cast("Exception", self.failure.value)


@implementer(IBodyProducer)
class ReadyBody:
    """A request body that is available at once."""

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
class StreamingBody:
    """A request body that arrives in pieces."""

    def __init__(self, length: Any = UNKNOWN_LENGTH) -> None:
        self.length = length
        self.state = "flowing"
        self.done: Deferred[None] = Deferred()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.put = consumer.write
        self.put(b"first")
        return self.done

    def pauseProducing(self) -> None:
        self.state = "paused"

    def resumeProducing(self) -> None:
        self.state = "flowing"

    def stopProducing(self) -> None:
        self.state = "stopped"


class ComparisonTests(SynchronousTestCase):
    """Both agents deliver the same for the same bytes."""

    #: Headers about the connection, which Twisted's agent hides.
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
        """Return a response, possibly truncated."""
        lines = [b"HTTP/1.%d " % draw(st.integers(0, 1)) + draw(ComparisonTests.statuses)]
        lines += draw(ComparisonTests.heads)
        pieces = draw(ComparisonTests.bodies)
        framing = draw(st.sampled_from(["length", "chunks", "close"]))
        body = b"".join(pieces)
        if framing == "length":
            lines.append(b"Content-Length: %d" % len(body))
        elif framing == "chunks":
            lines.append(b"Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
            body += b"0\r\n\r\n"
        interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
        response: bytes = interim + b"\r\n".join([*lines, b"", b""]) + body
        return response[: draw(st.just(len(response)) | st.integers(0, len(response)))]

    def assert_alike(self, method: bytes, response: bytes, cuts: list[int]) -> None:
        ends = sorted({*cuts, 0, len(response)})
        pieces = [response[start:end] for start, end in pairwise(ends)]
        self.assertEqual(
            self.outcome(single_use_agent, method, pieces),
            self.outcome(twisted_agent, method, pieces),
        )

    def outcome(
        self, make: Callable[[Reactor], IAgent], method: bytes, pieces: list[bytes]
    ) -> tuple[object, ...]:
        """Return the response that an agent delivers for `pieces` and the connection's end."""
        call = Call(make, method)
        body = Body()
        call.result.addCallback(lambda _: call.deliver(body) if call.response else None)
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


class RequestTests(SynchronousTestCase):
    """The bytes that the server receives."""

    def sent(self, *args: Any, **more: Any) -> bytes:
        return Call(single_use_agent, *args, **more).server.received()

    def test_a_request(self) -> None:
        headers = Headers({"X-One": ["1", "2"], "Accept-Encoding": ["gzip"]})
        self.assertEqual(
            self.sent(b"GET", b"/v1/models", headers),
            b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:8082\r\nX-One: 1\r\nX-One: 2\r\n"
            b"Accept-Encoding: identity\r\nConnection: close\r\n\r\n",
        )

    def test_the_target_is_sent_unchanged(self) -> None:
        for target in (b'/v1/x?a="b"&c=<d>|e', b"/v1/x?", b"/v1/%7e/../x", b"/", b"/a?b=http://c/"):
            self.assertEqual(self.sent(b"GET", target).split(b" ")[1], target)
        self.assertEqual(self.sent(b"GET", b"").split(b" ")[1], b"/")

    def test_characters_that_would_inject_a_request(self) -> None:
        for method, target in (
            (b"GET", b"/x HTTP/1.1\r\nA: b"),
            (b"GET", b"/ x"),
            (b"GET", b"/\xc3\xa9"),
            (b"GET /", b"/x"),
            (b"", b"/x"),
        ):
            self.assertRaises(ValueError, Call, single_use_agent, method, target, accepted=False)

    def test_managed_headers(self) -> None:
        headers = {
            "Connection": ["keep-alive"],
            "Content-Length": ["9"],
            "Transfer-Encoding": ["x"],
        }
        head = self.sent(b"POST", b"/x", Headers(cast("Any", headers)), ReadyBody(b"hi"))
        self.assertEqual(head.count(b"Content-Length"), 1)
        self.assertNotIn(b"keep-alive", head)
        self.assertNotIn(b"Transfer-Encoding", head)
        self.assertIn(b"Host: other\r\n", self.sent(headers=Headers({"Host": ["other"]})))

    def test_the_default_port_is_omitted(self) -> None:
        agent = single_use_agent(reactor := Reactor())
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

    def test_a_ready_body_is_sent_with_its_head(self) -> None:
        for body, end in (
            (ReadyBody(b"hello"), b"Content-Length: 5\r\n\r\nhello"),
            (ReadyBody(b"hello", UNKNOWN_LENGTH), b"chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            (ReadyBody(b""), b"Content-Length: 0\r\n\r\n"),
        ):
            server = Call(single_use_agent, b"POST", body=body).server
            self.assertTrue(server.received().endswith(end), server.received())
            self.assertEqual(server.wire.writes, 1)
            self.assertIsNone(server.wire.producer)

    def test_content_length_without_a_body(self) -> None:
        for method, count in ((b"GET", 0), (b"DELETE", 0), (b"POST", 1), (b"PUT", 1)):
            self.assertEqual(self.sent(method).count(b"Content-Length: 0\r\n"), count)


class StreamingBodyTests(SynchronousTestCase):
    """Request bodies that are sent as they arrive."""

    def call(self, body: StreamingBody) -> Call:
        return Call(single_use_agent, b"POST", body=body)

    def test_chunked(self) -> None:
        body = StreamingBody()
        call = self.call(body)
        self.assertTrue(call.server.received().endswith(b"\r\n\r\n5\r\nfirst\r\n"))
        self.assertEqual(call.server.wire.writes, 1)
        body.put(b"")
        body.put(b"last")
        body.done.callback(None)
        self.assertTrue(call.server.received().endswith(b"first\r\n4\r\nlast\r\n0\r\n\r\n"))
        self.assertIsNone(call.server.wire.producer)
        call.server.send(OK)
        self.assertEqual(call.deliver().content(), b"hello")

    def test_a_known_length(self) -> None:
        body = StreamingBody(9)
        call = self.call(body)
        body.put(b"last")
        body.done.callback(None)
        self.assertTrue(call.server.received().endswith(b"Length: 9\r\n\r\nfirstlast"))

    def test_backpressure(self) -> None:
        body = StreamingBody()
        call = self.call(body)
        call.server.pause()
        self.assertEqual(body.state, "paused")
        call.server.resume()
        self.assertEqual(body.state, "flowing")

    def test_a_body_that_fails(self) -> None:
        body = StreamingBody()
        call = self.call(body)
        body.done.errback(KeyError("gone"))
        self.assertTrue(call.server.wire.aborted)
        call.reactor.advance(0)
        self.assertIsInstance(cast("Any", call.error()).reasons[0].value, KeyError)

    def test_a_body_that_fails_after_the_response_headers(self) -> None:
        body = StreamingBody()
        call = self.call(body)
        call.server.send(OK[:-2])
        received = call.deliver()
        body.done.errback(KeyError("gone"))
        call.reactor.advance(0)
        assert received.end is not None
        received.end.trap(ResponseFailed)

    def test_a_body_that_cannot_start(self) -> None:
        class Broken(StreamingBody):
            def startProducing(self, consumer: IConsumer) -> Deferred[None]:
                raise KeyError("gone")

        call = self.call(Broken())
        call.reactor.advance(0)
        self.assertIsInstance(call.error(), RequestGenerationFailed)

    def test_a_response_before_the_body_is_sent(self) -> None:
        body = StreamingBody()
        call = self.call(body)
        call.server.send(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\nno")
        self.assertTrue(call.server.wire.aborted)
        call.reactor.advance(0)
        self.assertEqual(call.deliver().content(), b"no")
        self.assertEqual(body.state, "stopped")
        self.assertIsNone(call.server.wire.producer)

    def test_connection_lost(self) -> None:
        body = StreamingBody()
        call = self.call(body)
        call.end(ConnectionLost())
        self.assertIsInstance(call.error(), ResponseNeverReceived)
        self.assertEqual(body.state, "stopped")


class ResponseTests(SynchronousTestCase):
    def test_interfaces(self) -> None:
        call = Call()
        verifyObject(IAgent, single_use_agent(call.reactor))
        call.server.send(OK)
        response: Any = call.response
        verifyObject(IResponse, response)
        verifyObject(IClientRequest, response.request)
        self.assertEqual(response.request.absoluteURI, URL + b"/v1/x")
        self.assertEqual(response.length, 5)
        response.setPreviousResponse(response)
        self.assertIs(response.previousResponse, response)

    def test_the_body_is_held_until_it_is_delivered(self) -> None:
        call = Call()
        call.server.send(CHUNKED + b"5\r\nhello\r\n")
        self.assertEqual(call.server.wire.producerState, "paused")
        body = call.deliver()
        self.assertEqual(call.server.wire.producerState, "producing")
        self.assertEqual(body.pieces, [b"hello"])
        self.assertIsNone(body.end)
        call.server.send(b"2\r\n, \r\n3\r\nyou\r\n0\r\n\r\n")
        self.assertEqual(body.pieces, [b"hello", b", you"])
        self.assertTrue(call.server.wire.aborted)

    def test_a_complete_body_is_held_too(self) -> None:
        call = Call()
        call.server.send(OK)
        call.reactor.advance(0)
        body = call.deliver()
        self.assertEqual(body.content(), b"hello")
        assert body.end is not None
        body.end.trap(ResponseDone)
        self.assertRaises(RuntimeError, call.deliver)

    def test_the_end_is_delivered_outside_data_received(self) -> None:
        """The code that waits for the end does not run within the connection's `dataReceived`."""
        complete, invalid = (CHUNKED + b"5\r\nhello\r\n" + end for end in (b"0\r\n\r\n", b"x\r\n"))
        for data in (OK, complete, invalid):
            for cut in (len(data), -2):
                self.check_the_end(data[:cut], data[cut:])

    def check_the_end(self, *reads: bytes) -> None:
        stacks: list[list[str]] = []

        class RecordingBody(Body):
            def connectionLost(self, reason: Any = None) -> None:
                super().connectionLost(reason)
                stacks.append([frame.name for frame in traceback.extract_stack()])

        call, body = Call(), RecordingBody()
        call.result.addCallback(lambda _: call.deliver(body))
        for data in reads:
            call.server.send(data)
        self.assertTrue(call.server.wire.aborted)
        self.assertIsNone(body.end)
        call.reactor.advance(0)
        self.assertEqual(body.content(), b"hello")
        (stack,) = stacks
        self.assertNotIn("dataReceived", stack)

    def test_a_pause_in_connection_made_holds(self) -> None:
        """Twisted's agent resumes at once (twisted#9623)."""

        class PausingBody(Body):
            def connectionMade(self) -> None:
                self.source.pauseProducing()

        call = Call()
        call.server.send(CHUNKED)
        body = call.deliver(PausingBody())
        self.assertEqual(call.server.wire.producerState, "paused")
        body.source.resumeProducing()
        self.assertEqual(call.server.wire.producerState, "producing")

    def test_the_receiver_can_abort_the_connection(self) -> None:
        for end in ("loseConnection", "stopProducing", "abortConnection"):
            call = Call()
            call.server.send(CHUNKED)
            body = call.deliver()
            getattr(body.source, end)()
            self.assertTrue(call.server.wire.aborted)
            call.reactor.advance(0)
            assert body.end is not None
            body.end.trap(ResponseFailed)

    def test_a_lost_connection_is_not_aborted(self) -> None:
        """Twisted's TLS transports raise AttributeError if they are."""
        call = Call()
        call.server.send(CHUNKED)
        call.end(ConnectionLost())
        call.server.wire.abortConnection = self.fail  # type: ignore[method-assign]
        discard(cast("Any", call.response))
        with self.assertRaises(RuntimeError):
            call.deliver()

    def test_a_body_that_ends_with_the_connection(self) -> None:
        for reason, end in (
            (ConnectionDone(), PotentialDataLoss),
            (ConnectionLost(), ResponseFailed),
        ):
            call = Call()
            call.server.send(b"HTTP/1.0 200 OK\r\n\r\nhello")
            body = call.deliver()
            call.end(reason)
            assert body.end is not None
            body.end.trap(end)

    def test_an_invalid_response(self) -> None:
        call = Call()
        call.server.send(b"SSH-2.0-OpenSSH_9\r\n")
        self.assertTrue(call.server.wire.aborted)
        call.reactor.advance(0)
        error = call.error()
        self.assertIsInstance(cast("Any", error).reasons[0].value, BadResponse)

    def test_invalid_framing_within_a_body(self) -> None:
        call = Call()
        call.server.send(CHUNKED + b"5\r\nhello\r\n")
        body = call.deliver()
        call.server.send(b"2\r\nhi\r\nfive\r\n")
        self.assertEqual(body.content(), b"hellohi")
        self.assertTrue(call.server.wire.aborted)
        call.reactor.advance(0)
        assert body.end is not None
        body.end.trap(ResponseFailed)


class CancellationTests(SynchronousTestCase):
    """Cancellation at every stage, and failures to connect."""

    def test_while_connecting(self) -> None:
        call = Call(accepted=False)
        call.result.cancel()
        self.assertIsInstance(call.error(), CancelledError)
        self.assertTrue(call.reactor.connectors[0].stoppedConnecting)

    def test_a_connection_made_after_cancellation(self) -> None:
        call = Call(accepted=False)
        call.result.cancel()
        call.accept()
        self.assertTrue(call.server.wire.aborted)
        self.assertEqual(call.server.received(), b"")

    def test_while_the_body_is_sent(self) -> None:
        body = StreamingBody()
        call = Call(single_use_agent, b"POST", body=body)
        call.result.cancel()
        self.assertIsInstance(call.error(), CancelledError)
        self.assertTrue(call.server.wire.aborted)
        call.reactor.advance(0)
        self.assertEqual(body.state, "stopped")

    def test_while_waiting_for_headers(self) -> None:
        for received in (b"", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:20]):
            call = Call()
            call.server.send(received)
            call.result.cancel()
            self.assertIsInstance(call.error(), CancelledError)
            self.assertTrue(call.server.wire.aborted)
            call.server.send(OK)
            call.reactor.advance(0)
            self.assertIsNone(call.response)

    def test_connection_refused(self) -> None:
        call = Call(accepted=False)
        factory = call.reactor.tcpClients[0][2]
        factory.clientConnectionFailed(
            call.reactor.connectors[0], Failure(ConnectionRefusedError())
        )
        self.assertIsInstance(call.error(), ConnectError)

    def test_closed_without_a_response(self) -> None:
        for reason in (ConnectionDone(), ConnectionLost(), ConnectionAborted()):
            call = Call()
            call.end(reason)
            self.assertIsInstance(call.error(), ResponseNeverReceived)
