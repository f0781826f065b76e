"""Who may ask, and what the others are told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.world import NOTHING_LEFT, Client, World, chat

KEY = "sk-one"
GOOD = {"Authorization": f"Bearer {KEY}"}


class Keys(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_text(f"alice: {KEY}\nbob: sk-two\n")
        self.path.chmod(0o600)
        self.world = World(api_keys_file=self.path)

    def got(self, target: str, **headers: str) -> Client:
        client = self.world.client()
        client.get(target, **headers)
        return client

    def assert_refused(self, client: Client) -> None:
        self.assertEqual(client.status(), 401)
        self.assertEqual(client.headers()["www-authenticate"], "Bearer")
        error = client.error()
        self.assertEqual(
            (error["code"], error["type"]), ("invalid_api_key", "invalid_request_error")
        )
        self.assertIn("Authorization: Bearer", error["message"])
        self.assertEqual(self.world.connecting(), 0)

    def test_without_a_key(self) -> None:
        for target in ("/v1/models", "/v1/models/m", "/ready", "/metrics", "/", "/nowhere", "*"):
            self.assert_refused(self.got(target))
        for target in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/x"):
            client = self.world.client()
            client.send(f"POST {target} HTTP/1.1\r\nHost: b\r\nContent-Length: 9999\r\n\r\n")
            self.assert_refused(client)

    def test_wrong_ones(self) -> None:
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
            self.assert_refused(self.got("/v1/models", **headers))
        self.assert_refused(self.got(f"/v1/models?api_key={KEY}"))

    def test_two_of_a_kind_are_none(self) -> None:
        client = self.world.client()
        client.send(
            f"GET /v1/models HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {KEY}\r\n"
            "Authorization: Bearer sk-x\r\n\r\n"
        )
        self.assert_refused(client)

    def test_right_ones(self) -> None:
        for headers in (
            GOOD,
            {"Authorization": f"bearer   {KEY} "},
            {"X_Api_Key": KEY},
            {"Api_Key": KEY},
            {"Authorization": "Bearer none", "X_Api_Key": KEY},
        ):
            client = self.got("/v1/models", **headers)
            backend = self.world.backend()
            self.assertNotIn(b"sk-one", backend.request())
            backend.answer(b'{"data": []}')
            self.assertEqual(client.status(), 200, headers)

    def test_each_request_of_a_connection(self) -> None:
        client = self.got("/nowhere", **GOOD)
        self.assertEqual(client.status(), 404)
        client.wire.clear()
        client.get("/nowhere")
        self.assert_refused(client)

    def test_a_chat(self) -> None:
        client = self.world.client()
        client.post("/v1/chat/completions", chat(stream=False), **GOOD)
        self.world.backend().answer({"choices": [{"index": 0, "message": {"content": "Hi"}}]})
        self.assertEqual(client.status(), 200)
        self.assertEqual(self.world.traffic.requests()[0].key, "alice")
        self.assertNotIn(KEY, str([each.key for each in self.world.traffic.requests()]))

    def test_health_is_open_and_says_little_to_strangers(self) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            client = self.got("/health", **headers)
            self.assertEqual(client.status(), 200)
            self.assertEqual(set(client.json()), {"status", "version"})
        self.assertIn("running", self.got("/health?x=1", **GOOD).json())
        self.assert_refused(self.got("/h%65alth"))
        self.assert_refused(self.got("/health/"))
        self.assertEqual(self.got("http://b/health").status(), 200)

    def test_who_has_which_key_has_sessions_of_their_own(self) -> None:
        names = []
        for key in (KEY, "sk-two", KEY):
            client = self.world.client()
            # The same words in another header: it is the key that counts, not its spelling.
            client.post("/v1/chat/completions", chat(), X_Api_Key=key, Authorization="Bearer x")
            self.world.backend().answer(b"no", "500 No")
            names.append(self.world.traffic.requests()[-1].session)
        self.assertEqual(names[0], names[2])
        self.assertNotEqual(names[0], names[1])

    def test_the_file_is_read_again(self) -> None:
        self.path.write_text("carol: sk-three")
        self.world.daemon.reload()
        self.assert_refused(self.got("/v1/models", **GOOD))
        self.got("/v1/models", Authorization="Bearer sk-three")
        self.assertEqual(self.world.connecting(), 1)

    def test_nothing_is_left(self) -> None:
        for _ in range(3):
            client = self.world.client()
            client.post("/v1/x", b"x" * 100)
            client.leave()
        client = self.got("/health", **GOOD)
        told = client.json()
        self.assertEqual((told["running"], told["waiting"]), (0, 0))
        self.assertEqual(len(self.world.daemon.gateway), 0)


class Strangers(SynchronousTestCase):
    """Whoever knocks cannot have the traffic log rotated by it."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_text(f"alice: {KEY}\n")
        self.path.chmod(0o600)
        self.world = World(api_keys_file=self.path, cors_origin=("https://chat.example",))

    def knock(self, **headers: str) -> None:
        client = self.world.client()
        client.get("/v1/models", **headers)
        self.assertEqual(client.status(), 401)

    def written(self) -> list[tuple[str, str | None]]:
        """Return path and key of each request that the traffic log has."""
        return [(each.path, each.key) for each in self.world.traffic.requests()]

    def told(self, events: Sequence[LogEvent]) -> list[str]:
        texts = [formatEvent(each) for each in events if "log_source" in each]
        return [text for text in texts if "known API key" in text]

    def test_one_a_minute_stands_for_all(self) -> None:
        with capturedLogs() as events:
            for _ in range(50):
                self.knock(Authorization="Bearer sk-guessed")
        self.assertEqual(self.written(), [("/v1/models", None)])
        self.assertEqual(len(self.world.traffic.responses()), 1)
        (line,) = self.told(events)
        self.assertIn("refused: 1 since", line)
        self.assertIn("192.0.2.1", line)
        with capturedLogs() as events:
            self.world.pass_time(59)
            self.knock()
            self.world.pass_time(1)
            self.knock()
        self.assertEqual(len(self.written()), 2)
        (line,) = self.told(events)
        self.assertIn("refused: 51 since", line)
        self.assertEqual(self.counted("401"), 52)

    def test_what_is_no_request_is_sampled_too(self) -> None:
        for _ in range(20):
            self.world.client().send(b"GET / HTTP/1.1\r\nX : y\r\n\r\n")
        self.assertEqual(len(self.world.traffic.requests()), 1)
        self.assertEqual(len(self.world.traffic.responses()), 1)
        self.assertEqual(self.counted("400"), 20)

    def test_all_of_those_who_are_known_is_written(self) -> None:
        self.knock()
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
            [path for path, _ in self.written()],
            ["/v1/models", *("/nowhere",) * 3, "/v1/chat/completions"],
        )

    def test_what_browsers_ask_beforehand_is_not(self) -> None:
        for _ in range(3):
            client = self.world.client()
            client.send(
                "OPTIONS /v1/models HTTP/1.1\r\nHost: b\r\nOrigin: https://chat.example\r\n"
                "Access-Control-Request-Method: GET\r\n\r\n"
            )
            self.assertEqual(client.status(), 204)
        self.assertEqual(self.written(), [])

    def counted(self, status: str) -> float:
        client = self.world.client()
        client.get("/metrics", **GOOD)
        line = f'blockops_requests_total{{outcome="failed",route="none",status="{status}"}} '
        (found,) = (each for each in client.body().decode().splitlines() if each.startswith(line))
        return float(found.removeprefix(line))


class ToTheBackend(SynchronousTestCase):
    """What the backend hears of who asks."""

    CREDENTIALS: ClassVar = {
        "Authorization": "Bearer  of The  client",
        "X_Api_Key": "secret-1",
        "Api_Key": "secret-2",
        "Cookie": "secret-3",
        "Proxy_Authorization": "secret-4",
    }

    def heard(self, world: World, target: str = "/v1/models") -> bytes:
        world.client().get(target, **self.CREDENTIALS)
        return world.backend().request()

    def test_no_credentials_of_clients(self) -> None:
        for world in (World(), World(backend_key="ours")):
            heard = self.heard(world).lower()
            self.assertNotIn(b"secret", heard)
            self.assertNotIn(b"of the", heard)

    def test_its_own_key(self) -> None:
        self.assertIn(b"Authorization: Bearer ours\r\n", self.heard(World(backend_key="ours")))

    def test_the_clients_own_authorization_as_it_came(self) -> None:
        heard = self.heard(World(forward_auth=True))
        self.assertIn(b"\r\nAuthorization: Bearer  of The  client\r\n", heard)
        self.assertEqual(heard.lower().count(b"authorization"), 1)
        self.assertNotIn(b"secret", heard)

    def test_also_for_the_list_that_a_model_is_looked_up_in(self) -> None:
        world = World(forward_auth=True)
        world.client().get("/v1/models/m", **self.CREDENTIALS)
        world.backend().answer(b"{}", "404 No")
        self.assertIn(b"Authorization: Bearer  of The  client", world.backend().request())

    def test_nobody_elses(self) -> None:
        world = World(forward_auth=True)
        self.heard(world)
        world.client().get("/v1/models")
        self.assertNotIn(b"uthorization", world.backend().request())

    def test_nothing_of_who_they_say_they_are(self) -> None:
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
        heard = world.backend().request()
        self.assertNotIn(b"6.6.6.6", heard)
        self.assertNotIn(b"evil", heard)

    def test_a_page_is_told_nothing_by_the_backend(self) -> None:
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
    def test_none_are_asked_for(self) -> None:
        world = World()
        client = world.client()
        client.get("/health", Authorization="Bearer whatever")
        self.assertEqual(client.status(), 200)
        self.assertEqual(world.idle(), NOTHING_LEFT)

    def test_reloading_is_harmless(self) -> None:
        World().daemon.reload()
