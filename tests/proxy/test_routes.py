"""Routes: the endpoint of each path, and the errors for unknown paths and methods."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockops import __version__
from blockops.proxy import routes
from tests.world import World, chat, chunk

ACCESS_PAGE = Path(__file__).parent.parent.parent / "docs" / "access.md"


class LabelTests(SynchronousTestCase):
    """The routes' labels in the metrics."""

    def test_the_page_lists_all_labels(self) -> None:
        labels = {"none"}  # of requests that no route serves
        for node in ast.walk(ast.parse(inspect.getsource(routes))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Route":
                labels |= {ast.literal_eval(label) for label in node.args[1:2]}
        row = re.search(r"Routes: (.*?)\. Statuses: ", ACCESS_PAGE.read_text("utf-8"))
        assert row is not None
        listed = re.findall(r"`([a-z]+)`", row[1])
        self.assertEqual(sorted(listed), sorted(labels))


class RouteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()

    def test_health(self) -> None:
        self.client.get("/health")
        self.assertEqual(self.client.status(), 200)
        status = self.client.json()
        self.assertEqual((status["status"], status["version"]), ("ok", __version__))
        self.assertEqual((status["running"], status["waiting"]), (0, 0))
        self.assertGreater(status["memory_available_percent"], 0)
        self.assertEqual(self.client.headers()["content-type"], "application/json")

    def test_head(self) -> None:
        for target, status in (("/health", 200), ("/nowhere", 404)):
            client = self.world.client()
            client.request("HEAD", target)
            self.assertEqual(client.status(), status)
            self.assertTrue(client.received().endswith(b"\r\n\r\n"))

    def test_unknown_routes(self) -> None:
        for target in ("/", "/v1", "/v2/models", "/favicon.ico", "/health/x", "/metrics/x"):
            client = self.world.client()
            client.get(target)
            self.assertEqual(client.status(), 404, target)
            self.assertEqual(client.error()["code"], "unknown_route")
            self.assertIn("/v1/chat/completions", client.error()["message"])
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_unsupported_methods(self) -> None:
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
                self.assertEqual(client.error()["code"], "method_not_allowed")
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_paths_that_escape_the_prefix(self) -> None:
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
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_scheme_and_host_are_ignored(self) -> None:
        self.client.get("http://evil.example/v1/models")
        self.assertTrue(self.world.backend().request().startswith(b"GET /v1/models HTTP"))
        self.assertEqual(self.world.reactor.tcpClients[0][:2], ("127.0.0.1", 8082))
        for target in ("http://evil.example", "HTTPS://evil.example/health/x"):
            client = self.world.client()
            client.get(target)
            self.assertEqual(client.status(), 404)

    def test_body_with_scheme_and_host(self) -> None:
        self.client.post("http://blockops/v1/chat/completions", chat())
        self.assertIn(b"Hello", self.world.backend().request())

    def test_asterisk_form(self) -> None:
        for method in ("GET", "OPTIONS"):
            client = self.world.client()
            client.request(method, "*")
            self.assertEqual(client.status(), 404)
            self.assertEqual(client.error()["code"], "unknown_route")

    def test_target_without_a_leading_slash(self) -> None:
        for target in ("xhealth", "%2Fhealth", "xv1/models", "%2Fv1/models", "x"):
            client = self.world.client()
            client.get(target)
            self.assertEqual(client.status(), 404, target)
            self.assertEqual(client.error()["code"], "unknown_route")
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_percent_encoded_path_is_the_same_route(self) -> None:
        for target in ("/v1/ch%61t/completions", "/v1/chat%2Fcompletions"):
            client = self.world.client()
            client.post(target, chat())
            backend = self.world.backend()
            self.assertTrue(backend.request().startswith(f"POST {target} HTTP".encode()))
            self.assertIn(b"Hello", backend.request())
            backend.begin_stream()
            call = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
            backend.stream(chunk(call, role="assistant"))
            self.assertIn(b"tool_calls", client.body())

    def test_percent_encoded_prefix_is_not_found(self) -> None:
        self.client.post("/%761/embeddings", b'{"input": 1}')
        self.assertEqual(self.client.status(), 404)
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_invalid_bytes_in_the_target(self) -> None:
        self.client.send(b"GET /v1/\xaa HTTP/1.1\r\nHost: b\r\n\r\n")
        self.assertEqual(self.client.status(), 400)
        self.assertIn("error", self.client.json())

    def test_the_query_is_forwarded(self) -> None:
        self.client.post("/v1/chat/completions?a=b%20c", chat())
        self.assertIn(b"POST /v1/chat/completions?a=b%20c HTTP", self.world.backend().request())

    def test_backend_url_with_a_path(self) -> None:
        world = World(backend="http://127.0.0.1:1/llm")
        world.client().get("/v1/models")
        self.assertIn(b"GET /llm/v1/models HTTP", world.backend().request())
