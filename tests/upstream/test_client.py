"""The backend over real sockets: what is believed, what is told when it cannot be reached."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import TimeoutError  # noqa: A004
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from blockops.errors import ApiError
from blockops.proxy.relay import collect
from blockops.upstream.client import Unreached, Upstream, trust
from tests.certificates import Authority
from tests.faults.backend import FaultyBackend
from tests.faults.steps import Close, Reset
from tests.world import World, chat


class Echo(Resource):
    """Answers with what it was asked, and with a cookie that nobody wants."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[Headers] = []

    def render(self, request: Request) -> bytes:
        self.headers.append(request.requestHeaders)
        request.addCookie(b"caller", b"one")
        if request.path == b"/v1/moved":
            request.redirect(b"/v1/elsewhere")
        if request.path == b"/v1/gzip":
            request.setHeader("Content-Encoding", "gzip")
            return gzip.compress(b"tight")
        assert request.content is not None
        return b"%s %s" % (request.uri, request.content.read())


def new_folder(test: SynchronousTestCase) -> Path:
    folder = Path(test.mktemp())
    folder.mkdir()
    return folder


class Backends(TestCase):
    async def listen(self, endpoint: str, factory: Any) -> int:
        port = await serverFromString(reactor, endpoint).listen(factory)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def echo(self, **options: Any) -> Upstream:
        self.resource = Echo()
        port = await self.listen("tcp:0:interface=127.0.0.1", Site(self.resource))
        return Upstream(reactor, f"http://127.0.0.1:{port}", **options)

    async def secure(self, name: str, host: str) -> tuple[Path, str]:
        """Start a server that has a certificate for `name`; return the authority's and its URL."""
        authority = Authority.make(self.folder())
        folder = authority.path.parent
        pem = authority.certify(folder, name)
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
        port = await self.listen(endpoint, Site(Echo()))
        return authority.path, f"https://{host}:{port}"

    def folder(self) -> Path:
        return new_folder(self)

    async def body(self, upstream: Upstream, target: str = "/v1/x") -> bytes:
        response = await upstream.request("POST", target, None, b"hello")
        body, whole = await collect(response, 10_000, lambda _: None)
        self.assertTrue(whole)
        return body

    async def refusal(self, upstream: Upstream) -> ApiError:
        asking = Deferred.fromCoroutine(upstream.request("GET", "/v1/models"))
        error = await self.assertFailure(cast("Deferred[ApiError]", asking), ApiError)
        self.assertEqual(error.type, "server_error")
        self.assertIn(upstream.url, error.message)
        return error


class Plain(Backends):
    async def test_a_request(self) -> None:
        upstream = await self.echo()
        self.assertEqual(await self.body(upstream, "/v1/x?a=%2F"), b"/v1/x?a=%2F hello")

    async def test_a_backend_below_a_path(self) -> None:
        upstream = await self.echo()
        upstream.url += "/llm"
        self.assertEqual(await self.body(upstream), b"/llm/v1/x hello")

    async def test_by_name(self) -> None:
        upstream = await self.echo()
        upstream.url = upstream.url.replace("127.0.0.1", "localhost")
        self.assertEqual(await self.body(upstream), b"/v1/x hello")

    async def test_nothing_is_kept_from_one_caller_to_the_next(self) -> None:
        upstream = await self.echo()
        await self.body(upstream)
        await self.body(upstream)
        self.assertFalse(self.resource.headers[1].hasHeader("Cookie"))

    async def test_the_key(self) -> None:
        upstream = await self.echo(key="sesame")
        await self.body(upstream)
        sent = self.resource.headers[0].getRawHeaders("Authorization")
        self.assertEqual(sent, ["Bearer sesame"])

    async def test_redirects_are_the_clients_to_follow(self) -> None:
        upstream = await self.echo()
        response = await upstream.request("GET", "/v1/moved")
        self.assertEqual(response.code, 302)
        await collect(response, 100, lambda _: None)
        self.assertEqual(len(self.resource.headers), 1)

    async def test_gzip(self) -> None:
        upstream = await self.echo()
        self.assertEqual(await self.body(upstream, "/v1/gzip"), b"tight")

    async def test_refused(self) -> None:
        upstream = await self.echo()
        upstream.url = "http://127.0.0.1:1"
        error = await self.refusal(upstream)
        self.assertEqual((error.status, error.code), (502, "backend_unreachable"))
        self.assertIn("Is it running", error.message)

    async def test_no_such_host(self) -> None:
        upstream = await self.echo()
        upstream.url = "http://nowhere.invalid:1"
        error = await self.refusal(upstream)
        self.assertEqual(error.status, 502)
        self.assertIn("cannot be reached", error.message)


class Secure(Backends):
    async def test_our_own_authority(self) -> None:
        for name in ("127.0.0.1", "localhost"):
            ca, url = await self.secure(name, name)
            self.assertEqual(await self.body(Upstream(reactor, url, ca=ca)), b"/v1/x hello")

    async def test_an_authority_that_nobody_knows(self) -> None:
        _, url = await self.secure("127.0.0.1", "127.0.0.1")
        error = await self.refusal(Upstream(reactor, url))
        self.assertEqual(error.status, 502)
        self.assertIn("certificate verify failed", error.message)

    async def test_another_authority(self) -> None:
        _, url = await self.secure("127.0.0.1", "127.0.0.1")
        other = Authority.make(self.folder(), "other")
        error = await self.refusal(Upstream(reactor, url, ca=other.path))
        self.assertIn("certificate verify failed", error.message)

    async def test_another_name(self) -> None:
        ca, url = await self.secure("elsewhere.example", "localhost")
        error = await self.refusal(Upstream(reactor, url, ca=ca))
        self.assertIn("DNSMismatch", error.message)

    async def test_a_server_that_never_shakes_hands(self) -> None:
        """What accepts connections and is no server of TLS: the time for connecting is for both."""
        connected: list[None] = []
        hanging = FaultyBackend(reactor, greeting=())
        port = await self.listen("tcp:0:interface=127.0.0.1", hanging)
        upstream = Upstream(
            reactor,
            f"https://127.0.0.1:{port}",
            connect_timeout=0.2,
            on_connected=lambda: connected.append(None),
        )
        error = await self.refusal(upstream)
        self.assertIsInstance(error, Unreached)
        self.assertEqual(error.status, 504)
        self.assertEqual(connected, [])
        await hanging.ended

    async def test_a_server_that_breaks_off_the_handshake(self) -> None:
        for step in (Close(), Reset()):
            hanging = FaultyBackend(reactor, greeting=(step,))
            port = await self.listen("tcp:0:interface=127.0.0.1", hanging)
            error = await self.refusal(Upstream(reactor, f"https://127.0.0.1:{port}"))
            self.assertEqual(error.status, 502)
            await hanging.ended

    async def test_who_is_known_is_connected(self) -> None:
        connected: list[None] = []
        ca, url = await self.secure("127.0.0.1", "127.0.0.1")
        upstream = Upstream(reactor, url, ca=ca, on_connected=lambda: connected.append(None))
        await self.body(upstream)
        self.assertEqual(connected, [None])

    async def test_a_server_that_hangs_is_let_go_at_once(self) -> None:
        """A polite end of TLS would wait for an answer that never comes."""
        ended: Deferred[None] = Deferred()

        class Hanging(Protocol):
            def dataReceived(self, data: bytes) -> None:
                """Begin an answer, and read nothing any more."""
                assert self.transport is not None
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")

            def connectionLost(self, reason: Any = None) -> None:
                ended.callback(None)

        authority = Authority.make(self.folder())
        folder = authority.path.parent
        pem = authority.certify(folder, "127.0.0.1")
        port = await self.listen(
            f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}",
            Factory.forProtocol(Hanging),
        )
        upstream = Upstream(reactor, f"https://127.0.0.1:{port}", ca=authority.path)
        response = await upstream.request("GET", "/v1/x")
        collecting = Deferred.fromCoroutine(collect(response, 100, lambda _: None))
        collecting.addErrback(lambda _: None)
        collecting.cancel()
        await ended


class Trust(SynchronousTestCase):
    def test_several_certificates(self) -> None:
        folder = new_folder(self)
        both = folder / "both.pem"
        pems = [Authority.make(folder, name).path.read_bytes() for name in ("a", "b")]
        both.write_bytes(b"# two of them\n" + b"".join(pems))
        self.assertIsNotNone(trust(both))

    def test_none_at_all(self) -> None:
        empty = Path(self.mktemp())
        empty.write_bytes(b"nothing")
        self.assertRaises(ValueError, trust, empty)


class InMemory(SynchronousTestCase):
    def test_a_backend_that_does_not_accept(self) -> None:
        world = World(connect_timeout=5)
        client = world.client()
        client.post("/v1/chat/completions", chat())
        (_, _, factory, timeout, _) = world.reactor.tcpClients[0]
        self.assertEqual(timeout, 5)
        factory.clientConnectionFailed(world.reactor.connectors[0], Failure(TimeoutError()))
        world.pass_time(1)
        self.assertEqual(client.status(), 504)
        self.assertIn("within 5 seconds", client.error()["message"])
