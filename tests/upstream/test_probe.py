"""One probe: its request, its response, and its failures."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.client import BackendClient
from blockops.upstream.probe import BackendProbe
from tests.world import Backend, Reactor


class BackendProbeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        client = BackendClient(self.reactor, "http://127.0.0.1:8082")
        self.response = BackendProbe(self.reactor, client).request("POST /x", {"a": 1})

    def backend(self) -> Backend:
        *_, factory, _, _ = self.reactor.tcpClients[-1]
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        backend = Backend(self.reactor, protocol)
        self.reactor.advance(0)
        return backend

    def test_a_response(self) -> None:
        backend = self.backend()
        self.assertIn(b"Content-Type: application/json", backend.request())
        self.assertEqual(backend.request_json(), {"a": 1})
        backend.respond({"b": 2}, "404 Not Found")
        response = self.successResultOf(self.response)
        assert response is not None
        self.assertEqual((response.status, response.is_success), (404, False))
        self.assertEqual(response.decode(dict[str, int]), {"b": 2})
        self.assertIsNone(response.decode(list[int]))

    def test_timeout(self) -> None:
        backend = self.backend()
        self.reactor.pump([1] * 6)
        self.assertIsNone(self.successResultOf(self.response))
        self.assertTrue(backend.wire.aborted)

    def test_truncated(self) -> None:
        backend = self.backend()
        backend.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
        backend.disconnect()
        response = self.successResultOf(self.response)
        assert response is not None
        self.assertEqual((response.status, response.is_complete), (200, False))

    def test_unreachable(self) -> None:
        self.backend().disconnect()
        self.assertIsNone(self.successResultOf(self.response))

    def test_cancelled(self) -> None:
        """A disconnected client must not look like a backend that does not respond."""
        backend = self.backend()
        self.response.cancel()
        self.failureResultOf(self.response, CancelledError)
        self.assertTrue(backend.wire.aborted)
