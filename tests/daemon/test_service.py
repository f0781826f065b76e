"""The daemon as a whole: where it listens, and how it drains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from twisted.internet.error import CannotListenError
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from blockops.daemon.service import Daemon, endpoints
from blockops.daemon.signals import Signals
from blockops.daemon.systemd import Supervisor
from blockops.settings.table import SettingError, Settings
from tests.world import DONE, NOTHING_LEFT, Reactor, World, chat, chunk


class Listening(SynchronousTestCase):
    def test_by_default(self) -> None:
        self.assertEqual(endpoints(Settings()), ("tcp:8080:interface=127.0.0.1:backlog=1024",))

    def test_another_interface(self) -> None:
        settings = Settings(interface="::1", port=1)
        self.assertEqual(endpoints(settings), (r"tcp6:1:interface=\:\:1:backlog=1024",))

    def test_endpoints(self) -> None:
        settings = Settings(listen=("unix:/run/b.sock", "tcp:9"))
        self.assertEqual(endpoints(settings), ("unix:/run/b.sock", "tcp:9"))
        world = World(listen=("tcp:9:interface=127.0.0.1",))
        (port,) = world.reactor.tcpServers
        self.assertEqual((port[0], port[3]), (9, "127.0.0.1"))


class Supervision(SynchronousTestCase):
    def test_what_systemd_is_told(self) -> None:
        told: list[str] = []

        class Systemd(Supervisor):
            def _send(self, message: Mapping[str, str]) -> None:
                told.append(next(iter(message)))

        reactor = Reactor()
        daemon = Daemon(
            Settings(log_file=None), reactor, supervisor=Systemd("/run/notify", watchdog=30.0)
        )
        daemon.privilegedStartService()
        daemon.startService()
        self.assertEqual(told, [])
        for when, args, kwargs in reactor.whenRunningHooks:
            when(*args, **kwargs)
        self.assertEqual(told, ["READY"])
        reactor.pump([0.5] * 60)
        self.assertEqual(told, ["READY"] + ["WATCHDOG"] * 3)
        daemon.stopService()
        self.assertEqual(told[-1], "STOPPING")

    def test_a_port_that_is_taken(self) -> None:
        reactor = Reactor()

        def taken(*_: object, **__: object) -> None:
            raise CannotListenError("127.0.0.1", 8080, OSError("taken"))

        self.patch(reactor, "listenTCP", taken)
        daemon = Daemon(Settings(log_file=None), reactor)
        stop = self.assertRaises(SystemExit, daemon.privilegedStartService)
        self.assertIn("127.0.0.1:8080", str(stop))
        self.assertNotIn("\n", str(stop))

    def test_a_socket_that_cannot_be(self) -> None:
        reactor = Reactor()

        def impossible(*_: object, **__: object) -> None:
            raise FileNotFoundError(2, "No such file or directory", "/nope/x.sock")

        self.patch(reactor, "listenUNIX", impossible)
        daemon = Daemon(Settings(log_file=None, listen=("unix:/nope/x.sock",)), reactor)
        stop = self.assertRaises(SystemExit, daemon.privilegedStartService)
        self.assertIn("/nope/x.sock", str(stop))


class Reloading(SynchronousTestCase):
    """What a SIGHUP does; `tests.server.access.test_policy` tells of the clients' keys."""

    def setUp(self) -> None:
        self.settings = {"backend_key": "old"}
        self.wrong: SettingError | None = None
        self.reopened: list[tuple[str, ...]] = []
        self.signals = NoSignals()
        self.world = World(backend_key="old", signals=self.signals, read=self.read)
        self.patch(self.world.traffic, "reopen", self.reopened.append)

    def read(self) -> Settings:
        if self.wrong is not None:
            raise self.wrong
        return Settings(log_file=None, backend_key=self.settings["backend_key"])

    def sent(self) -> bytes:
        self.world.client().get("/v1/models")
        return self.world.backend().request()

    def test_the_backends_key(self) -> None:
        self.assertIn(b"Authorization: Bearer old\r\n", self.sent())
        self.settings["backend_key"] = "new"
        self.signals.hang_up()
        self.assertIn(b"Authorization: Bearer new\r\n", self.sent())
        self.assertEqual(self.reopened, [("new",)])

    def test_a_file_that_has_become_bad(self) -> None:
        self.wrong = SettingError("BLOCKOPS_BACKEND_KEY_FILE: cannot be read")
        with capturedLogs() as logs:
            self.signals.hang_up()
        errors = [each for each in logs if each["log_level"] is LogLevel.error]
        self.assertEqual(len(errors), 1)
        self.assertIn("BACKEND_KEY_FILE: cannot be read", str(errors[0]["error"]))
        self.assertIn(b"Authorization: Bearer old\r\n", self.sent())

    def test_what_systemd_is_told(self) -> None:
        told: list[str] = []

        class Systemd(Supervisor):
            def _send(self, message: Mapping[str, str]) -> None:
                told.append(next(iter(message)))

        daemon = Daemon(Settings(log_file=None), Reactor(), supervisor=Systemd("/run/notify"))
        daemon.reload()
        self.assertEqual(told, ["RELOADING", "READY"])

    def test_asked_to_stop_twice(self) -> None:
        client, backend = self.world.ask()
        backend.begin_stream()
        stopped = self.world.stop()
        self.assertFalse(stopped())
        self.assertFalse(self.signals.restored)
        self.signals.stop_again()
        self.world.reactor.pump([0, 0, 0])
        self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "shutting_down")
        self.assertTrue(client.complete())
        self.assertTrue(stopped())
        self.assertTrue(self.signals.restored)


class NoSignals(Signals):
    """Signals that nobody sends but the test."""

    hang_up: Callable[[], object]
    stop_again: Callable[[], object]
    restored = False

    def __init__(self) -> None:
        super().__init__(None)

    def on_hangup(self, reload: Callable[[], object]) -> None:
        self.hang_up = reload

    def on_stop(self, hasten: Callable[[], object]) -> None:
        self.stop_again = hasten

    def restore(self) -> None:
        self.restored = True


class Draining(SynchronousTestCase):
    def test_at_rest(self) -> None:
        world = World()
        idle = world.client()
        stopped = world.stop()
        world.reactor.advance(0)
        self.assertTrue(idle.wire.closed)
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_running_answers_end(self) -> None:
        world = World(drain=30)
        client, backend = world.ask()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        stopped = world.stop()
        world.pass_time(20)
        self.assertFalse(stopped())
        backend.stream(chunk(finish="stop"), DONE)
        world.reactor.pump([0, 0, 0])
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.complete())
        self.assertTrue(client.wire.closed)
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_those_that_take_too_long_are_told(self) -> None:
        world = World(drain=30, heartbeat=100)
        streaming, backend = world.ask()
        backend.begin_stream()
        waiting, _ = world.ask(stream=False)
        stopped = world.stop()
        world.pass_time(31)
        error = json.loads(streaming.events()[-1])["error"]
        self.assertEqual(error["code"], "shutting_down")
        self.assertTrue(streaming.complete())
        self.assertEqual(waiting.status(), 503)
        self.assertIn("retry-after", waiting.headers())
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_a_client_that_reads_nothing_at_all(self) -> None:
        world = World(drain=30, client_timeout=1000, heartbeat=100)
        client, backend = world.ask()
        backend.begin_stream()
        client.pause()
        stopped = world.stop()
        world.pass_time(34)
        self.assertFalse(stopped())
        world.pass_time(2)
        self.assertTrue(client.wire.aborted)
        self.assertTrue(stopped())
        self.assertEqual(world.reactor.getDelayedCalls(), [])

    def test_a_client_that_does_not_read_its_end(self) -> None:
        world = World()
        client, backend = world.ask()
        client.wire.loseConnection = lambda: None  # type: ignore[method-assign]
        stopped = world.stop()
        backend.answer(b"no", "500 No")
        self.assertFalse(stopped())
        world.pass_time(6)
        self.assertTrue(client.wire.aborted)
        self.assertTrue(stopped())

    def test_new_requests_on_old_connections(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\n")
        world.ask()
        world.stop()
        body = json.dumps(chat())
        client.send(f"Content-Length: {len(body)}\r\n\r\n{body}")
        self.assertEqual(client.status(), 503)
        self.assertEqual(client.error()["code"], "shutting_down")
        world.reactor.advance(0)
        self.assertTrue(client.wire.closed)


class ManyClients(SynchronousTestCase):
    def test_nothing_is_left_behind(self) -> None:
        world = World(max_concurrent=2, max_queue=100)
        clients = [world.client() for _ in range(20)]
        for client in clients:
            client.post("/v1/chat/completions", chat())
        for client in clients[::2]:
            client.leave()
            world.reactor.advance(0)
        answered: set[int] = set()
        while world.idle() != NOTHING_LEFT:
            (which, *_) = set(world.wanted()) - answered
            answered.add(which)
            world.backend(which).answer(b"no", "500 No")
            world.reactor.advance(0)
        self.assertEqual([client.status() for client in clients[1::2]], [500] * 10)
