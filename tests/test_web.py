"""The tree of resources: which request goes where, and what is said where none goes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops import __version__
from tests.memory import World, chat


class Routes(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()

    def test_health(self) -> None:
        self.client.get("/health")
        self.assertEqual(self.client.status(), 200)
        told = self.client.json()
        self.assertEqual((told["status"], told["version"]), ("ok", __version__))
        self.assertEqual((told["running"], told["waiting"]), (0, 0))
        self.assertGreater(told["memory_available_percent"], 0)
        self.assertEqual(self.client.headers()["content-type"], "application/json")

    def test_unknown_routes(self) -> None:
        for target in ("/", "/v1", "/v2/models", "/favicon.ico", "/health/x", "/metrics"):
            client = self.world.client()
            client.get(target)
            self.assertEqual(client.status(), 404, target)
            self.assertEqual(client.error()["code"], "unknown_route")
            self.assertIn("/v1/chat/completions", client.error()["message"])
        self.assertEqual(self.world.connecting(), 0)

    def test_wrong_methods(self) -> None:
        for method, target, allowed in (
            ("GET", "/v1/chat/completions", "POST"),
            ("PUT", "/v1/completions", "POST"),
            ("HEAD", "/v1/chat/completions", "POST"),
            ("POST", "/health", "GET, HEAD"),
            ("DELETE", "/ready", "GET, HEAD"),
            ("BREW", "/v1/models", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        ):
            client = self.world.client()
            client.request(method, target)
            self.assertEqual(client.status(), 405, target)
            self.assertEqual(client.headers()["allow"], allowed)
            if method != "HEAD":
                self.assertEqual(client.error()["code"], "wrong_method")
        self.assertEqual(self.world.connecting(), 0)

    def test_paths_that_climb_out(self) -> None:
        for target in (
            "/v1/../admin",
            "/v1/./x",
            "/v1/%2e%2e/admin",
            "/v1/..%2fadmin",
            "/v1/x/%2E./%2e./y",
            "/v1/..%5cadmin",
        ):
            client = self.world.client()
            client.get(target)
            self.assertEqual(client.status(), 404, target)
        self.assertEqual(self.world.connecting(), 0)

    def test_another_host(self) -> None:
        self.client.get("http://evil.example/v1/models")
        self.assertEqual(self.client.status(), 404)
        self.assertEqual(self.world.connecting(), 0)

    def test_an_encoded_spelling_is_relayed_as_it_is(self) -> None:
        self.client.post("/v1/ch%61t/completions", chat())
        request = self.world.backend().request()
        self.assertTrue(request.startswith(b"POST /v1/ch%61t/completions HTTP/1.1\r\n"), request)
        self.assertIn(b"Hello", request)

    def test_the_query_goes_along(self) -> None:
        self.client.post("/v1/chat/completions?a=b%20c", chat())
        self.assertIn(b"POST /v1/chat/completions?a=b%20c HTTP", self.world.backend().request())

    def test_a_backend_below_a_path(self) -> None:
        world = World(backend="http://127.0.0.1:1/llm")
        world.client().get("/v1/models")
        self.assertIn(b"GET /llm/v1/models HTTP", world.backend().request())
