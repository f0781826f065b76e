"""`BackendClient` over real sockets: requests, certificates, and errors without a response."""

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
from blockops.upstream.body import collect
from blockops.upstream.client import BackendClient, ConnectError, https_policy
from tests.certificates import Authority
from tests.faults.backend import FaultyBackend
from tests.faults.steps import Close, Reset
from tests.world import World, chat


class Echo(Resource):
    """Responds with the request's target and body, and with an unwanted cookie."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[Headers] = []

    def render(self, request: Request) -> bytes:
        self.headers.append(request.requestHeaders)
        request.addCookie(b"client", b"one")
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


class ClientTestCase(TestCase):
    async def listen(self, endpoint: str, factory: Any) -> int:
        port = await serverFromString(reactor, endpoint).listen(factory)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def echo(self, **options: Any) -> BackendClient:
        self.resource = Echo()
        port = await self.listen("tcp:0:interface=127.0.0.1", Site(self.resource))
        return BackendClient(reactor, f"http://127.0.0.1:{port}", **options)

    async def secure(self, name: str, host: str) -> tuple[Path, str]:
        """Start a server with a certificate for `name`; return the authority's file and a URL."""
        authority = Authority.make(self.folder())
        folder = authority.path.parent
        pem = authority.certify(folder, name)
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
        port = await self.listen(endpoint, Site(Echo()))
        return authority.path, f"https://{host}:{port}"

    def folder(self) -> Path:
        return new_folder(self)

    async def body(self, backend: BackendClient, target: str = "/v1/x") -> bytes:
        response = await backend.request("POST", target, None, b"hello")
        body, complete = await collect(response, 10_000)
        self.assertTrue(complete)
        return body

    async def error(self, backend: BackendClient) -> ApiError:
        response = Deferred.fromCoroutine(backend.request("GET", "/v1/models"))
        error = await self.assertFailure(cast("Deferred[ApiError]", response), ApiError)
        self.assertEqual(error.type, "server_error")
        self.assertIn(backend.url, error.message)
        return error


class PlainTests(ClientTestCase):
    async def test_a_request(self) -> None:
        backend = await self.echo()
        self.assertEqual(await self.body(backend, "/v1/x?a=%2F"), b"/v1/x?a=%2F hello")

    async def test_a_url_with_a_path(self) -> None:
        backend = await self.echo()
        backend.url += "/llm"
        self.assertEqual(await self.body(backend), b"/llm/v1/x hello")

    async def test_by_host_name(self) -> None:
        backend = await self.echo()
        backend.url = backend.url.replace("127.0.0.1", "localhost")
        self.assertEqual(await self.body(backend), b"/v1/x hello")

    async def test_cookies_are_not_stored(self) -> None:
        backend = await self.echo()
        await self.body(backend)
        await self.body(backend)
        self.assertFalse(self.resource.headers[1].hasHeader("Cookie"))

    async def test_the_key(self) -> None:
        backend = await self.echo(key="sesame")
        await self.body(backend)
        sent = self.resource.headers[0].getRawHeaders("Authorization")
        self.assertEqual(sent, ["Bearer sesame"])

    async def test_redirects_are_not_followed(self) -> None:
        backend = await self.echo()
        response = await backend.request("GET", "/v1/moved")
        self.assertEqual(response.code, 302)
        await collect(response, 100)
        self.assertEqual(len(self.resource.headers), 1)

    async def test_gzip_is_not_decoded(self) -> None:
        backend = await self.echo()
        response = await backend.request("GET", "/v1/gzip")
        self.assertEqual(response.headers.getRawHeaders("Content-Encoding"), ["gzip"])
        body = Deferred.fromCoroutine(collect(response, 100))
        error = await self.assertFailure(cast("Deferred[ApiError]", body), ApiError)
        self.assertEqual((error.status, error.code), (502, "backend_response_compressed"))
        self.assertIn("(gzip)", error.message)

    async def test_connection_refused(self) -> None:
        backend = await self.echo()
        backend.url = "http://127.0.0.1:1"
        error = await self.error(backend)
        self.assertEqual((error.status, error.code), (502, "backend_unreachable"))
        self.assertIn("Is it running", error.message)

    async def test_no_such_host(self) -> None:
        backend = await self.echo()
        backend.url = "http://nowhere.invalid:1"
        error = await self.error(backend)
        self.assertEqual(error.status, 502)
        self.assertIn("cannot be reached", error.message)


class TLSTests(ClientTestCase):
    async def test_a_private_authority(self) -> None:
        for name in ("127.0.0.1", "localhost"):
            ca, url = await self.secure(name, name)
            self.assertEqual(await self.body(BackendClient(reactor, url, ca=ca)), b"/v1/x hello")

    async def test_an_unknown_authority(self) -> None:
        _, url = await self.secure("127.0.0.1", "127.0.0.1")
        error = await self.error(BackendClient(reactor, url))
        self.assertEqual(error.status, 502)
        self.assertIn("certificate verify failed", error.message)

    async def test_another_authority(self) -> None:
        _, url = await self.secure("127.0.0.1", "127.0.0.1")
        other = Authority.make(self.folder(), "other")
        error = await self.error(BackendClient(reactor, url, ca=other.path))
        self.assertIn("certificate verify failed", error.message)

    async def test_another_name(self) -> None:
        ca, url = await self.secure("elsewhere.example", "localhost")
        error = await self.error(BackendClient(reactor, url, ca=ca))
        self.assertIn("DNSMismatch", error.message)

    async def test_a_server_that_never_answers_the_handshake(self) -> None:
        """A server without TLS accepts connections: the connect timeout covers the handshake."""
        connected: list[None] = []
        hanging = FaultyBackend(reactor, greeting=())
        port = await self.listen("tcp:0:interface=127.0.0.1", hanging)
        backend = BackendClient(
            reactor,
            f"https://127.0.0.1:{port}",
            connect_timeout=0.2,
            on_connected=lambda: connected.append(None),
        )
        error = await self.error(backend)
        self.assertIsInstance(error, ConnectError)
        self.assertEqual(error.status, 504)
        self.assertEqual(connected, [])
        await hanging.all_closed

    async def test_a_server_that_closes_during_the_handshake(self) -> None:
        for step in (Close(), Reset()):
            hanging = FaultyBackend(reactor, greeting=(step,))
            port = await self.listen("tcp:0:interface=127.0.0.1", hanging)
            error = await self.error(BackendClient(reactor, f"https://127.0.0.1:{port}"))
            self.assertEqual(error.status, 502)
            await hanging.all_closed

    async def test_on_connected_after_the_handshake(self) -> None:
        connected: list[None] = []
        ca, url = await self.secure("127.0.0.1", "127.0.0.1")
        backend = BackendClient(reactor, url, ca=ca, on_connected=lambda: connected.append(None))
        await self.body(backend)
        self.assertEqual(connected, [None])

    async def test_a_hung_server_is_aborted_at_once(self) -> None:
        """A regular TLS close would wait for a reply that never comes."""
        ended: Deferred[None] = Deferred()

        class Hanging(Protocol):
            def dataReceived(self, data: bytes) -> None:
                """Begin a response, and read nothing after it."""
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
        backend = BackendClient(reactor, f"https://127.0.0.1:{port}", ca=authority.path)
        response = await backend.request("GET", "/v1/x")
        collecting = Deferred.fromCoroutine(collect(response, 100))
        collecting.addErrback(lambda _: None)
        collecting.cancel()
        await ended


class HTTPSPolicyTests(SynchronousTestCase):
    def test_several_certificates(self) -> None:
        folder = new_folder(self)
        both = folder / "both.pem"
        pems = [Authority.make(folder, name).path.read_bytes() for name in ("a", "b")]
        both.write_bytes(b"# two of them\n" + b"".join(pems))
        self.assertIsNotNone(https_policy(both))

    def test_no_certificate(self) -> None:
        empty = Path(self.mktemp())
        empty.write_bytes(b"nothing")
        error = self.assertRaises(ValueError, https_policy, empty)
        self.assertEqual(
            str(error), f"backend-ca: {empty} contains no certificate; give a PEM file"
        )

    def test_an_invalid_certificate(self) -> None:
        broken = Path(self.mktemp())
        for content in (
            "",
            "-----END CERTIFICATE-----\n",
            "MII!!\n-----END CERTIFICATE-----\n",
            "TUlJ\n-----END CERTIFICATE-----\n",
        ):
            broken.write_text(f"-----BEGIN CERTIFICATE-----\n{content}")
            error = self.assertRaises(ValueError, https_policy, broken)
            self.assertEqual(
                str(error), f"backend-ca: {broken} contains an invalid certificate; give a PEM file"
            )


class ConnectTimeoutTests(SynchronousTestCase):
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
