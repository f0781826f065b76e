"""Web pages: CORS, requests from other pages, and DNS rebinding."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.world import DONE, Client, World, chat, chunk

PAGE = "https://chat.example"
OTHER = "https://evil.example"
PREFLIGHT = {
    "Access_Control_Request_Method": "POST",
    "Access_Control_Request_Headers": "authorization, content-type, x-stainless-os",
}


class Case(SynchronousTestCase):
    world: World

    def request(self, method: str = "GET", target: str = "/v1/models", **headers: str) -> Client:
        client = self.world.client()
        client.request(method, target, b"{}" if method == "POST" else None, **headers)
        return client

    def assert_rejected(self, client: Client, code: str = "origin_not_allowed") -> None:
        self.assertEqual((client.status(), client.error()["code"]), (403, code))
        self.assertEqual(self.world.connection_attempts(), 0)

    def assert_forwarded(self, client: Client) -> None:
        self.world.backend().respond(b"{}")
        self.assertEqual(client.status(), 200)

    def key_file(self) -> Path:
        path = Path(self.mktemp())
        path.write_text("alice: sk-one")
        return path


class WithoutCors(Case):
    """No page is allowed, even with requests that need no preflight."""

    def setUp(self) -> None:
        self.world = World()

    def test_pages_are_rejected(self) -> None:
        for origin in (PAGE, "http://localhost:3000", "http://127.0.0.1:8080", "null"):
            for target in ("/v1/models", "/v1/chat/completions", "/health", "/ready", "/x"):
                self.assert_rejected(self.request("POST", target, Origin=origin))
            self.assert_rejected(self.request(Origin=origin))
        client = self.request(Origin=PAGE)
        self.assertNotIn("access-control", str(client.headers()))
        self.assertIn("--cors-origin", client.error()["message"])
        self.assertIn(PAGE, client.error()["message"])

    def test_forms_and_json_sent_as_text(self) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            client = self.world.client()
            client.post("/v1/chat/completions", chat(), Content_Type=kind, Origin=OTHER)
            self.assert_rejected(client)

    def test_preflights(self) -> None:
        self.assert_rejected(self.request("OPTIONS", Origin=PAGE, **PREFLIGHT))

    def test_images_and_scripts(self) -> None:
        for site in ("cross-site", "same-site"):
            self.assert_rejected(self.request(Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors"))
        for site, mode in (("cross-site", "navigate"), ("none", "navigate"), ("same-origin", "x")):
            client = self.request(target="/health", Sec_Fetch_Site=site, Sec_Fetch_Mode=mode)
            self.assertEqual(client.status(), 200)

    def test_several_origins(self) -> None:
        self.world = World(cors_origin=(PAGE,))
        client = self.world.client()
        client.send(f"GET /v1/models HTTP/1.1\r\nOrigin: {PAGE}\r\nOrigin: {OTHER}\r\n\r\n")
        self.assert_rejected(client)

    def test_programs(self) -> None:
        for headers in (
            {},
            {"Origin": "chrome-extension://abc"},
            {"Origin": "tauri://localhost"},
            {"Content_Type": "text/plain"},
            {"User_Agent": "curl/8"},
        ):
            self.assert_forwarded(self.request("POST", "/v1/x", **headers))

    def test_a_key_allows_any_page(self) -> None:
        self.world = World(api_keys_file=self.key_file())
        self.assert_forwarded(self.request(Origin=PAGE, Authorization="Bearer sk-one"))
        client = self.request(Origin=PAGE)
        self.assertEqual(client.status(), 401)
        self.assertEqual(self.request("OPTIONS", Origin=PAGE, **PREFLIGHT).status(), 401)
        self.assertEqual(self.world.connection_attempts(), 1)

    def test_a_page_on_the_same_host(self) -> None:
        """For example nginx, which forwards both headers."""
        client = self.world.client()
        client.send("GET /v1/x HTTP/1.1\r\nHost: ai.lan\r\nOrigin: https://ai.lan\r\n\r\n")
        self.world.reactor.advance(0)
        self.assert_forwarded(client)


class WithCors(Case):
    def setUp(self) -> None:
        self.world = World(cors_origin=(PAGE, "http://localhost:3000"))

    def assert_readable(self, client: Client, origin: str = PAGE) -> None:
        headers = client.headers()
        self.assertEqual(headers["access-control-allow-origin"], origin)
        self.assertIn("X-Request-Id", headers["access-control-expose-headers"])
        self.assertNotIn("access-control-allow-credentials", headers)
        self.assertEqual(headers["vary"], "Origin")

    def test_preflights(self) -> None:
        for target in ("/v1/chat/completions", "/v1/embeddings", "/v1/x"):
            client = self.request("OPTIONS", target, Origin=PAGE, **PREFLIGHT)
            self.assertEqual((client.status(), client.body()), (204, b""))
            headers = client.headers()
            self.assertEqual(headers["access-control-allow-origin"], PAGE)
            self.assertIn("POST", headers["access-control-allow-methods"])
            self.assertEqual(
                headers["access-control-allow-headers"],
                PREFLIGHT["Access_Control_Request_Headers"],
            )
            self.assertNotIn("access-control-allow-private-network", headers)
            self.assertNotIn("content-length", headers)
            self.assertNotIn("transfer-encoding", headers)
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_a_preflight_for_a_private_network(self) -> None:
        client = self.request(
            "OPTIONS", Origin=PAGE, Access_Control_Request_Private_Network="true", **PREFLIGHT
        )
        self.assertEqual(client.headers()["access-control-allow-private-network"], "true")

    def test_a_preflight_with_invalid_headers(self) -> None:
        client = self.request(
            "OPTIONS",
            Origin=PAGE,
            Access_Control_Request_Method="X",
            Access_Control_Request_Headers='"; <b>',
        )
        self.assertEqual(client.status(), 204)
        self.assertNotIn("access-control-allow-headers", client.headers())

    def test_a_preflight_needs_no_key(self) -> None:
        self.world = World(cors_origin=(PAGE,), api_keys_file=self.key_file())
        self.assertEqual(self.request("OPTIONS", Origin=PAGE, **PREFLIGHT).status(), 204)
        self.assertEqual(self.request("OPTIONS", Origin=OTHER, **PREFLIGHT).status(), 401)
        # A browser's preflight has more headers; this request would go to the backend.
        self.assertEqual(self.request("OPTIONS", Origin=PAGE).status(), 401)
        client = self.request(Origin=PAGE)
        self.assertEqual(client.status(), 401)
        self.assert_readable(client)

    def test_a_preflight_with_a_body(self) -> None:
        client = self.world.client()
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in PREFLIGHT.items()]
        client.send("\r\n".join(["OPTIONS /v1/x HTTP/1.1", f"Origin: {PAGE}", *lines]))
        client.send("\r\nContent-Length: 5\r\n\r\nhello")
        self.assertEqual(client.status(), 204)
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_responses(self) -> None:
        client = self.request(Origin=PAGE)
        self.assert_forwarded(client)
        self.assert_readable(client)
        local = self.request(Origin="http://localhost:3000")
        self.assert_forwarded(local)
        self.assert_readable(local, "http://localhost:3000")

    def test_other_pages(self) -> None:
        for origin in (OTHER, f"{PAGE}.evil.example", "http://chat.example", "null", PAGE + ":1"):
            client = self.request(Origin=origin)
            self.assert_rejected(client)
            self.assertNotIn("access-control-allow-origin", client.headers())
            self.assertEqual(client.headers()["vary"], "Origin")

    def test_vary_without_an_origin(self) -> None:
        client = self.request()
        self.assert_forwarded(client)
        self.assertEqual(client.headers()["vary"], "Origin")
        self.assertNotIn("access-control-allow-origin", client.headers())

    def test_streams(self) -> None:
        client = self.world.client()
        client.post("/v1/chat/completions", chat(), Origin=PAGE)
        backend = self.world.backend()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"), chunk(finish="stop"), DONE)
        self.assert_readable(client)
        self.assertEqual(client.events()[-1], "[DONE]")

    def test_errors(self) -> None:
        for target, body, status in (
            ("/v1/chat/completions", b"no", 400),
            ("/nowhere", b"{}", 404),
            ("/health", b"{}", 405),
        ):
            client = self.world.client()
            client.post(target, body, Origin=PAGE)
            self.assertEqual(client.status(), status)
            self.assert_readable(client)

    def test_a_rejected_body(self) -> None:
        self.world = World(cors_origin=(PAGE,), max_body=1024)
        head = f"POST /v1/x HTTP/1.1\r\nHost: b\r\nOrigin: {PAGE}\r\nContent-Length: 9999\r\n\r\n"
        client = self.world.client()
        client.send(head)
        self.assertEqual(client.status(), 413)
        self.assert_readable(client)
        self.assertTrue(client.is_complete())

    def test_a_warning_for_all_pages_without_keys(self) -> None:
        for settings, warnings in (
            ({"cors_origin": ("*",)}, 1),
            ({"cors_origin": (PAGE,)}, 0),
            ({"cors_origin": ("*",), "api_keys_file": self.key_file()}, 0),
        ):
            with capturedLogs() as logs:
                World(**settings)
            warned = [each for each in logs if "any web page" in each["log_format"]]
            self.assertEqual(len(warned), warnings, settings)

    def test_all_pages(self) -> None:
        self.world = World(cors_origin=("*",))
        for origin in (PAGE, OTHER, "null"):
            client = self.request(Origin=origin)
            self.assert_forwarded(client)
            self.assertEqual(client.headers()["access-control-allow-origin"], "*")
            self.assertNotIn("vary", client.headers())
        self.assertEqual(self.request("OPTIONS", Origin=OTHER, **PREFLIGHT).status(), 204)


class HostNames(Case):
    """Pages whose host name points to 127.0.0.1."""

    def get_health(self, host: str, to: str = "127.0.0.1", **settings: Any) -> Client:
        self.world = World(**settings)
        client = self.world.client(to=to)
        client.send(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n")
        self.world.reactor.advance(0)
        return client

    def test_names_of_others(self) -> None:
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "a.b."):
            client = self.get_health(host)
            self.assert_rejected(client, "host_not_allowed")
            self.assertIn("--allowed-host", client.error()["message"])

    def test_names_of_this_machine(self) -> None:
        for host in (
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:8080",
            "[::1]:8080",
            "192.168.1.5",
            "blockops",
            "gpu.local",
            "host.docker.internal:80",
            "app.localhost",
            socket.gethostname(),
            "",
        ):
            self.assertEqual(self.get_health(host).status(), 200, host)

    def test_without_a_host(self) -> None:
        self.world = World()
        client = self.world.client(to="127.0.0.1")
        client.send("GET /health HTTP/1.0\r\n\r\n")
        self.assertEqual(client.status(), 200)

    def test_allowed_names(self) -> None:
        self.assertEqual(self.get_health("ai.lan", allowed_host=("ai.lan",)).status(), 200)
        self.assertEqual(self.get_health("AI.lan.:1", allowed_host=("ai.lan",)).status(), 200)
        self.assertEqual(self.get_health("x.ai.lan", allowed_host=("ai.lan",)).status(), 403)
        self.assertEqual(self.get_health("ai.lan", allowed_host=("*",)).status(), 200)

    def test_public_addresses_and_keys_allow_all_names(self) -> None:
        self.assertEqual(self.get_health("ai.lan", to="192.168.1.5").status(), 200)
        self.assertEqual(self.get_health("ai.lan", api_keys_file=self.key_file()).status(), 200)

    def test_a_unix_socket_allows_all_names(self) -> None:
        self.world = World()
        client = self.world.client()
        client.wire.hostAddr = UNIXAddress(b"/run/blockops")
        client.send("GET /health HTTP/1.1\r\nHost: ai.example\r\n\r\n")
        self.assertEqual(client.status(), 200)

    def test_the_same_origin_under_an_unknown_name(self) -> None:
        self.world = World()
        client = self.world.client(to="127.0.0.1")
        client.send("GET /v1/x HTTP/1.1\r\nHost: evil.a:1\r\nOrigin: http://evil.a:1\r\n\r\n")
        self.assert_rejected(client, "host_not_allowed")

    def test_two_hosts(self) -> None:
        for settings in ({}, {"api_keys_file": self.key_file()}):
            self.world = World(**settings)
            client = self.world.client()
            client.send("GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n")
            self.assertEqual(client.status(), 400)
            self.assertEqual(self.world.connection_attempts(), 0)
