"""Access control: API keys, and the responses without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.world import IDLE, Client, World, chat

KEY = "sk-one"
GOOD = {"Authorization": f"Bearer {KEY}"}


class Keys(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_text(f"alice: {KEY}\nbob: sk-two\n")
        self.path.chmod(0o600)
        self.world = World(api_keys_file=self.path)

    def get(self, target: str, **headers: str) -> Client:
        client = self.world.client()
        client.get(target, **headers)
        return client

    def assert_rejected(self, client: Client) -> None:
        self.assertEqual(client.status(), 401)
        self.assertEqual(client.headers()["www-authenticate"], "Bearer")
        error = client.error()
        self.assertEqual(
            (error["code"], error["type"]), ("invalid_api_key", "invalid_request_error")
        )
        self.assertIn("Authorization: Bearer", error["message"])
        self.assertEqual(self.world.connection_attempts(), 0)

    def test_without_a_key(self) -> None:
        for target in ("/v1/models", "/v1/models/m", "/ready", "/metrics", "/", "/nowhere", "*"):
            self.assert_rejected(self.get(target))
        for target in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/x"):
            client = self.world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: 9999\r\n\r\n")
            self.assert_rejected(client)

    def test_unknown_keys(self) -> None:
        for headers in (
            {"Authorization": "Bearer sk-tw"},
            {"Authorization": f"Bearer {KEY} {KEY}"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
            {"Authorization": "Bearer"},
            {"Authorization": ""},
            {"Authorization": f"Bearer {'x' * 5000}"},
            {"X_Api_Key": "sk-o"},
            {"Api_Key": ""},
            {"Cookie": f"key={KEY}"},
            {"Proxy_Authorization": f"Bearer {KEY}"},
        ):
            self.assert_rejected(self.get("/v1/models", **headers))
        self.assert_rejected(self.get(f"/v1/models?api_key={KEY}"))

    def test_a_repeated_header(self) -> None:
        client = self.world.client()
        client.send(
            f"GET /v1/models HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {KEY}\r\n"
            "Authorization: Bearer sk-x\r\n\r\n"
        )
        self.assert_rejected(client)

    def test_known_keys(self) -> None:
        for headers in (
            GOOD,
            {"Authorization": f"bearer   {KEY} "},
            {"X_Api_Key": KEY},
            {"Api_Key": KEY},
            {"Authorization": "Bearer none", "X_Api_Key": KEY},
        ):
            client = self.get("/v1/models", **headers)
            backend = self.world.backend()
            self.assertNotIn(b"sk-one", backend.request())
            backend.respond(b'{"data": []}')
            self.assertEqual(client.status(), 200, headers)

    def test_each_request_of_a_connection(self) -> None:
        client = self.get("/nowhere", **GOOD)
        self.assertEqual(client.status(), 404)
        client.wire.clear()
        client.get("/nowhere")
        self.assert_rejected(client)

    def test_a_chat(self) -> None:
        client = self.world.client()
        client.post("/v1/chat/completions", chat(stream=False), **GOOD)
        self.world.backend().respond({"choices": [{"index": 0, "message": {"content": "Hi"}}]})
        self.assertEqual(client.status(), 200)
        self.assertEqual(self.world.traffic.requests()[0].key, "alice")
        self.assertNotIn(KEY, str([each.key for each in self.world.traffic.requests()]))

    def test_health_without_a_key(self) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            client = self.get("/health", **headers)
            self.assertEqual(client.status(), 200)
            self.assertEqual(set(client.json()), {"status", "version"})
        self.assertIn("running", self.get("/health?x=1", **GOOD).json())
        self.assert_rejected(self.get("/h%65alth"))
        self.assert_rejected(self.get("/health/"))
        self.assertEqual(self.get("http://b/health").status(), 200)

    def test_each_key_has_its_own_sessions(self) -> None:
        names = []
        for key in (KEY, "sk-two", KEY):
            client = self.world.client()
            # The same key in another header: the session depends on the key alone.
            client.post("/v1/chat/completions", chat(), X_Api_Key=key, Authorization="Bearer x")
            self.world.backend().respond(b"no", "500 No")
            names.append(self.world.traffic.requests()[-1].session)
        self.assertEqual(names[0], names[2])
        self.assertNotEqual(names[0], names[1])

    def test_reload(self) -> None:
        self.path.write_text("carol: sk-three")
        self.world.daemon.reload()
        self.assert_rejected(self.get("/v1/models", **GOOD))
        self.get("/v1/models", Authorization="Bearer sk-three")
        self.assertEqual(self.world.connection_attempts(), 1)

    def test_nothing_is_left(self) -> None:
        for _ in range(3):
            client = self.world.client()
            client.post("/v1/x", b"x" * 100)
            client.disconnect()
        client = self.get("/health", **GOOD)
        health = client.json()
        self.assertEqual((health["running"], health["waiting"]), (0, 0))
        self.assertEqual(len(self.world.daemon.in_flight), 0)


class RejectionLogging(SynchronousTestCase):
    """Rejected clients cannot have the entries of others rotated out of the traffic log."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_text(f"alice: {KEY}\n")
        self.path.chmod(0o600)
        self.world = World(api_keys_file=self.path, cors_origin=("https://chat.example",))

    def reject_one(self, **headers: str) -> None:
        client = self.world.client()
        client.get("/v1/models", **headers)
        self.assertEqual(client.status(), 401)

    def logged_requests(self) -> list[tuple[str, str | None]]:
        """Return path and key owner of each request in the traffic log."""
        return [(each.path, each.key) for each in self.world.traffic.requests()]

    def log_lines(self, events: Sequence[LogEvent]) -> list[str]:
        texts = [formatEvent(each) for each in events if "log_source" in each]
        return [text for text in texts if "known API key" in text]

    def test_one_rejection_a_minute_is_logged(self) -> None:
        with capturedLogs() as events:
            for _ in range(50):
                self.reject_one(Authorization="Bearer sk-guessed")
        self.assertEqual(self.logged_requests(), [("/v1/models", None)])
        self.assertEqual(len(self.world.traffic.responses()), 1)
        (line,) = self.log_lines(events)
        self.assertIn("Rejected 1 requests without", line)
        self.assertIn("192.0.2.1", line)
        with capturedLogs() as events:
            self.world.pass_time(59)
            self.reject_one()
            self.world.pass_time(1)
            self.reject_one()
        self.assertEqual(len(self.logged_requests()), 2)
        (line,) = self.log_lines(events)
        self.assertIn("Rejected 51 requests without", line)
        self.assertEqual(self.request_count("401"), 52)

    def test_invalid_requests_are_sampled(self) -> None:
        for _ in range(20):
            self.world.client().send(b"GET / HTTP/1.1\r\nX : y\r\n\r\n")
        self.assertEqual(len(self.world.traffic.requests()), 1)
        self.assertEqual(len(self.world.traffic.responses()), 1)
        self.assertEqual(self.request_count("400"), 20)

    def test_all_requests_with_a_key_are_logged(self) -> None:
        self.reject_one()
        for _ in range(3):
            client = self.world.client()
            client.get("/nowhere", **GOOD)
            self.assertEqual(client.status(), 404)
        broken = self.world.client()
        broken.send(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {KEY}\r\n"
            "Transfer-Encoding: chunked\r\n\r\nno size\r\n"
        )
        self.assertEqual(broken.status(), 400)
        self.assertEqual(
            [path for path, _ in self.logged_requests()],
            ["/v1/models", *("/nowhere",) * 3, "/v1/chat/completions"],
        )

    def test_preflights_are_not_logged(self) -> None:
        for _ in range(3):
            client = self.world.client()
            client.send(
                "OPTIONS /v1/models HTTP/1.1\r\nHost: b\r\nOrigin: https://chat.example\r\n"
                "Access-Control-Request-Method: GET\r\n\r\n"
            )
            self.assertEqual(client.status(), 204)
        self.assertEqual(self.logged_requests(), [])

    def request_count(self, status: str) -> float:
        client = self.world.client()
        client.get("/metrics", **GOOD)
        line = f'blockops_requests_total{{outcome="failed",route="none",status="{status}"}} '
        (found,) = (each for each in client.body().decode().splitlines() if each.startswith(line))
        return float(found.removeprefix(line))


class ForwardedHeaders(SynchronousTestCase):
    """Headers of the client that the backend gets or does not get."""

    CREDENTIALS: ClassVar = {
        "Authorization": "Bearer  of The  client",
        "X_Api_Key": "secret-1",
        "Api_Key": "secret-2",
        "Cookie": "secret-3",
        "Proxy_Authorization": "secret-4",
    }

    def backend_request(self, world: World, target: str = "/v1/models") -> bytes:
        world.client().get(target, **self.CREDENTIALS)
        return world.backend().request()

    def test_no_credentials_of_clients(self) -> None:
        for world in (World(), World(backend_key="ours")):
            backend_request = self.backend_request(world).lower()
            self.assertNotIn(b"secret", backend_request)
            self.assertNotIn(b"of the", backend_request)

    def test_the_backend_key(self) -> None:
        self.assertIn(
            b"Authorization: Bearer ours\r\n", self.backend_request(World(backend_key="ours"))
        )

    def test_forward_auth(self) -> None:
        backend_request = self.backend_request(World(forward_auth=True))
        self.assertIn(b"\r\nAuthorization: Bearer  of The  client\r\n", backend_request)
        self.assertEqual(backend_request.lower().count(b"authorization"), 1)
        self.assertNotIn(b"secret", backend_request)

    def test_forward_auth_for_a_model_lookup(self) -> None:
        world = World(forward_auth=True)
        world.client().get("/v1/models/m", **self.CREDENTIALS)
        world.backend().respond(b"{}", "404 No")
        self.assertIn(b"Authorization: Bearer  of The  client", world.backend().request())

    def test_forward_auth_without_a_key(self) -> None:
        world = World(forward_auth=True)
        self.backend_request(world)
        world.client().get("/v1/models")
        self.assertNotIn(b"uthorization", world.backend().request())

    def test_no_forwarded_headers(self) -> None:
        world = World(cors_origin=("*",))
        world.client().get(
            "/v1/models",
            X_Forwarded_For="6.6.6.6",
            X_Forwarded_Host="evil.example",
            X_Forwarded_Proto="https",
            Forwarded="for=6.6.6.6;host=evil.example",
            X_Real_IP="6.6.6.6",
            Origin="http://evil.example",
            Referer="http://evil.example/",
        )
        backend_request = world.backend().request()
        self.assertNotIn(b"6.6.6.6", backend_request)
        self.assertNotIn(b"evil", backend_request)

    def test_no_cors_headers_of_the_backend(self) -> None:
        world = World()
        client = world.client()
        client.get("/v1/models")
        world.backend().send(
            "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 2\r\n"
            "Access-Control-Allow-Credentials: true\r\nX-Other: 1\r\n\r\n{}"
        )
        self.assertIn("x-other", client.headers())
        self.assertNotIn("access-control", str(client.headers()))


class NoKeys(SynchronousTestCase):
    def test_no_key_is_needed(self) -> None:
        world = World()
        client = world.client()
        client.get("/health", Authorization="Bearer whatever")
        self.assertEqual(client.status(), 200)
        self.assertEqual(world.load(), IDLE)

    def test_reload_without_keys(self) -> None:
        World().daemon.reload()
