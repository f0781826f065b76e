"""The daemon: listening, systemd, reload, and drain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from errno import EADDRINUSE

from twisted.internet.error import CannotListenError
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.daemon.service import Daemon
from blockops.daemon.signals import SignalHandlers
from blockops.daemon.systemd import SystemdNotifier
from blockops.daemon.wiring import listen_endpoints
from blockops.settings.sources import SettingError
from blockops.settings.table import Settings
from tests.world import DONE, IDLE, Reactor, World, chat, chunk


class EndpointTests(SynchronousTestCase):
    def test_default(self) -> None:
        self.assertEqual(
            listen_endpoints(Settings()), ("tcp:8080:interface=127.0.0.1:backlog=1024",)
        )

    def test_ipv6_interface(self) -> None:
        settings = Settings(interface="::1", port=1)
        self.assertEqual(listen_endpoints(settings), (r"tcp6:1:interface=\:\:1:backlog=1024",))

    def test_endpoints(self) -> None:
        settings = Settings(listen=("unix:/run/b.sock", "tcp:9"))
        self.assertEqual(listen_endpoints(settings), ("unix:/run/b.sock", "tcp:9"))
        world = World(listen=("tcp:9:interface=127.0.0.1",))
        (port,) = world.reactor.tcpServers
        self.assertEqual((port[0], port[3]), (9, "127.0.0.1"))


class StartTests(SynchronousTestCase):
    def test_systemd_notifications(self) -> None:
        notifier = RecordingNotifier("/run/notify", watchdog=30.0)
        reactor = Reactor()
        daemon = Daemon(Settings(log_file=None), reactor, notifier=notifier)
        daemon.privilegedStartService()
        daemon.startService()
        self.assertEqual(notifier.messages, [])
        for call, args, kwargs in reactor.whenRunningHooks:
            call(*args, **kwargs)
        self.assertEqual(notifier.messages, ["READY"])
        reactor.pump([0.5] * 60)
        self.assertEqual(notifier.messages, ["READY"] + ["WATCHDOG"] * 3)
        daemon.stopService()
        self.assertEqual(notifier.messages[-1], "STOPPING")

    def test_port_in_use(self) -> None:
        reactor = Reactor()

        def listen_tcp(*_: object, **__: object) -> None:
            raise CannotListenError("127.0.0.1", 8080, OSError(EADDRINUSE, "in use"))

        self.patch(reactor, "listenTCP", listen_tcp)
        daemon = Daemon(Settings(log_file=None), reactor)
        exit_ = self.assertRaises(SystemExit, daemon.privilegedStartService)
        self.assertIn("127.0.0.1:8080", str(exit_))
        self.assertIn("another --port", str(exit_))
        self.assertNotIn("\n", str(exit_))

    def test_missing_directory_of_a_socket(self) -> None:
        reactor = Reactor()

        def listen_unix(*_: object, **__: object) -> None:
            raise FileNotFoundError(2, "No such file or directory", "/nope/x.sock")

        self.patch(reactor, "listenUNIX", listen_unix)
        daemon = Daemon(Settings(log_file=None, listen=("unix:/nope/x.sock",)), reactor)
        exit_ = self.assertRaises(SystemExit, daemon.privilegedStartService)
        self.assertIn("/nope/x.sock", str(exit_))


class ReloadTests(SynchronousTestCase):
    """SIGHUP; `tests.server.access.test_policy` tests the clients' keys."""

    def setUp(self) -> None:
        self.settings = {"backend_key": "old"}
        self.error: SettingError | None = None
        self.reopened: list[tuple[str, ...] | None] = []
        self.signals = FakeSignals()
        self.world = World(
            backend_key="old", signals=self.signals, read_settings=self.read_settings
        )
        self.patch(self.world.traffic, "reopen", lambda secrets=None: self.reopened.append(secrets))

    def read_settings(self) -> Settings:
        if self.error is not None:
            raise self.error
        return Settings(log_file=None, backend_key=self.settings["backend_key"])

    def backend_request(self) -> bytes:
        self.world.client().get("/v1/models")
        return self.world.backend().request()

    def test_backend_key(self) -> None:
        self.assertIn(b"Authorization: Bearer old\r\n", self.backend_request())
        self.settings["backend_key"] = "new"
        self.signals.hang_up()
        self.assertIn(b"Authorization: Bearer new\r\n", self.backend_request())
        self.assertEqual(self.reopened, [("new",)])

    def test_an_invalid_setting_keeps_the_key(self) -> None:
        self.error = SettingError("BLOCKOPS_BACKEND_KEY_FILE: cannot be read")
        with capturedLogs() as logs:
            self.signals.hang_up()
        errors = [each for each in logs if each["log_level"] is LogLevel.error]
        self.assertEqual(len(errors), 1)
        self.assertIn("BACKEND_KEY_FILE: cannot be read", str(errors[0]["error"]))
        self.assertFalse([each for each in logs if "Reloaded" in str(each.get("log_format"))])
        self.assertEqual(self.reopened, [None])
        self.assertIn(b"Authorization: Bearer old\r\n", self.backend_request())

    def test_systemd_notifications(self) -> None:
        notifier = RecordingNotifier("/run/notify")
        daemon = Daemon(Settings(log_file=None), Reactor(), notifier=notifier)
        daemon.running = True
        daemon.reload()
        self.assertEqual(notifier.messages, ["RELOADING", "READY"])

    def test_a_stopping_daemon_does_not_become_ready(self) -> None:
        notifier = RecordingNotifier("/run/notify")
        daemon = Daemon(Settings(log_file=None), Reactor(), notifier=notifier)
        daemon.running = True
        daemon.stopService()
        daemon.reload()
        self.assertEqual(notifier.messages, ["STOPPING"])

    def test_second_stop_signal(self) -> None:
        client, backend = self.world.start_chat()
        backend.begin_stream()
        stopped = self.world.stop()
        self.assertFalse(stopped())
        self.assertFalse(self.signals.restored)
        self.signals.stop_again()
        self.world.reactor.pump([0, 0, 0])
        self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "shutting_down")
        self.assertTrue(client.is_complete())
        self.assertTrue(stopped())
        self.assertTrue(self.signals.restored)


class RecordingNotifier(SystemdNotifier):
    """Records the first field of each message."""

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        super().__init__(address, watchdog)
        self.messages: list[str] = []

    def _send(self, fields: Mapping[str, str]) -> None:
        self.messages.append(next(iter(fields)))


class FakeSignals(SignalHandlers):
    """Signals that only the test sends."""

    hang_up: Callable[[], object]
    stop_again: Callable[[], object]
    restored = False

    def __init__(self) -> None:
        super().__init__(None)

    def on_hangup(self, reload: Callable[[], object]) -> None:
        self.hang_up = reload

    def on_repeated_stop(self, cancel: Callable[[], object]) -> None:
        self.stop_again = cancel

    def restore(self) -> None:
        self.restored = True


class DrainTests(SynchronousTestCase):
    def test_idle(self) -> None:
        world = World()
        idle = world.client()
        stopped = world.stop()
        world.reactor.advance(0)
        self.assertTrue(idle.wire.closed)
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_running_requests_finish(self) -> None:
        world = World(drain=30)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        stopped = world.stop()
        world.pass_time(20)
        self.assertFalse(stopped())
        backend.stream(chunk(finish="stop"), DONE)
        world.reactor.pump([0, 0, 0])
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.is_complete())
        self.assertTrue(client.wire.closed)
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_requests_that_exceed_the_drain_get_an_error(self) -> None:
        world = World(drain=30, heartbeat=100)
        streaming, backend = world.start_chat()
        backend.begin_stream()
        waiting, _ = world.start_chat(stream=False)
        stopped = world.stop()
        world.pass_time(31)
        error = json.loads(streaming.events()[-1])["error"]
        self.assertEqual(error["code"], "shutting_down")
        self.assertTrue(streaming.is_complete())
        self.assertEqual(waiting.status(), 503)
        self.assertIn("retry-after", waiting.headers())
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_a_client_that_never_reads(self) -> None:
        world = World(drain=30, client_timeout=1000, heartbeat=100)
        client, backend = world.start_chat()
        backend.begin_stream()
        client.pause()
        stopped = world.stop()
        world.pass_time(34)
        self.assertFalse(stopped())
        world.pass_time(2)
        self.assertTrue(client.wire.aborted)
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_a_client_that_does_not_read_the_end(self) -> None:
        world = World()
        client, backend = world.start_chat()
        client.wire.loseConnection = lambda: None  # type: ignore[method-assign]
        stopped = world.stop()
        backend.respond(b"no", "500 No")
        self.assertFalse(stopped())
        world.pass_time(6)
        self.assertTrue(client.wire.aborted)
        self.assertTrue(stopped())

    def test_new_requests_on_open_connections(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\n")
        world.start_chat()
        world.stop()
        body = json.dumps(chat())
        client.send(f"Content-Length: {len(body)}\r\n\r\n{body}")
        self.assertEqual(client.status(), 503)
        self.assertEqual(client.error()["code"], "shutting_down")
        world.reactor.advance(0)
        self.assertTrue(client.wire.closed)


class ManyClientsTests(SynchronousTestCase):
    def test_all_resources_are_released(self) -> None:
        world = World(max_concurrent=2, max_queue=100)
        clients = [world.client() for _ in range(20)]
        for client in clients:
            client.post("/v1/chat/completions", chat())
        for client in clients[::2]:
            client.disconnect()
            world.reactor.advance(0)
        answered: set[int] = set()
        while world.load() != IDLE:
            (which, *_) = set(world.wanted_connections()) - answered
            answered.add(which)
            world.backend(which).respond(b"no", "500 No")
            world.reactor.advance(0)
        self.assertEqual([client.status() for client in clients[1::2]], [500] * 10)
