"""
Every limit at its edge: a value at the limit is accepted, and one above it is rejected.

Connections are in `test_connection_limit`, bytes of bodies in `test_body_budget`, connecting in
`upstream.test_circuit_breaker`, clients that do not read in `proxy.test_clients`, a backend's
headers in `upstream.http.test_response_parser`. The page docs/limits.md lists all limits with their
defaults.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockops.proxy import relay
from blockops.server import limits, upload
from blockops.server import response as response_module
from blockops.server.limits import KEEP_ALIVE, MAX_HEAD, MAX_LINE, MIN_UPLOAD_RATE
from blockops.settings.table import TABLE, Settings
from blockops.upstream.http import response_parser
from tests.faults.client import encode_request, encode_request_head
from tests.faults.responses import judge
from tests.faults.scripts import EVENTS, JSON_BODY
from tests.world import DONE, IDLE, Client, World, chat, chunk

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text("utf-8")

#: Numeric settings that are not upper bounds.
NOT_LIMITS = {
    "heartbeat",
    "port",
    "cold_start_notice",
    "memory_poll",
    "token_warn_threshold",
    "token_hard_threshold",
    "token_target",
}


def chat_of_size(size: int) -> bytes:
    """Return a chat request whose body has `size` bytes."""
    body = json.dumps(chat()).encode()
    return body + (size - len(body)) * b" "


def outcome_of(client: Client) -> str:
    return judge(client.received(), closed=client.wire.is_write_closed).outcome


class Heads(SynchronousTestCase):
    def get(self, head: bytes) -> str:
        client = World().client()
        client.send(head)
        client.reactor.advance(0)
        return outcome_of(client)

    def test_the_request_line(self) -> None:
        frame = len(b"GET  HTTP/1.1")
        for size, expected in (
            (MAX_LINE, "404 unknown_route"),
            (MAX_LINE + 1, "414 request_too_large"),
        ):
            target = b"/" + (size - frame - 1) * b"x"
            self.assertEqual(self.get(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target), expected)

    def test_one_header(self) -> None:
        for size, expected in (
            (MAX_LINE, "404 unknown_route"),
            (MAX_LINE + 1, "431 request_too_large"),
        ):
            header = b"X: " + (size - 3) * b"x"
            self.assertEqual(
                self.get(b"GET /x HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % header), expected
            )

    def test_all_headers(self) -> None:
        begin = b"GET /x HTTP/1.1\r\nHost: x\r\n"
        line = b"X: " + 995 * b"x" + b"\r\n"
        for size, expected in (
            (MAX_HEAD, "404 unknown_route"),
            (MAX_HEAD + 1, "431 request_too_large"),
        ):
            lines = (size - len(begin) - 100) // len(line)
            rest = size - len(begin) - lines * len(line) - len(b"Y: \r\n\r\n")
            head = begin + lines * line + b"Y: " + rest * b"y" + b"\r\n\r\n"
            self.assertEqual(len(head), size)
            self.assertEqual(self.get(head), expected)


class Bodies(SynchronousTestCase):
    def test_the_size(self) -> None:
        for size, expected in ((2048, "no response"), (2049, "413 request_too_large")):
            world = World(max_body=2048)
            body = chat_of_size(size)
            client = world.client()
            client.post("/v1/chat/completions", body)
            self.assertEqual(outcome_of(client), expected)

    def test_the_time(self) -> None:
        """Of a body whose pieces all come in time."""
        size = 16 * MIN_UPLOAD_RATE
        for step, expected in ((0.0, "no response"), (2.0, "408 request_timeout")):
            world = World(header_timeout=10, max_body=size)
            client = world.client()
            body = chat_of_size(size)
            client.send(encode_request_head(body))
            # All but the last byte come in 20 pieces; 26 seconds there are.
            for piece in range(20):
                world.pass_time(1.25 if step == 0.0 else 1.5, step=0.25)
                client.send(body[piece * 1000 : (piece + 1) * 1000])
            client.send(body[20_000:])
            world.reactor.advance(0)
            self.assertEqual(outcome_of(client), expected)


class Times(SynchronousTestCase):
    def test_headers(self) -> None:
        world = World(header_timeout=10)
        clients = [world.client(), world.client()]
        for client in clients:
            client.send(b"GET /health HTTP/1.1\r\n")
        world.pass_time(9.5)
        clients[0].send(b"Host: x\r\n\r\n")
        self.assertEqual(clients[0].status(), 200)
        world.pass_time(1.5)
        self.assertEqual(outcome_of(clients[1]), "408 request_timeout")

    def test_idle_connections(self) -> None:
        world = World()
        clients = [world.client(), world.client()]
        for client in clients:
            client.get("/health")
        world.pass_time(KEEP_ALIVE - 1)
        clients[0].wire.clear()
        clients[0].get("/health")
        self.assertEqual(clients[0].status(), 200)
        self.assertFalse(clients[1].wire.disconnecting)
        world.pass_time(2.5)
        self.assertTrue(clients[1].wire.disconnecting)
        self.assertFalse(clients[0].wire.disconnecting)

    def test_the_queue(self) -> None:
        world = World(max_concurrent=1, queue_timeout=20)
        world.start_chat()
        waiting = world.client()
        waiting.post("/v1/chat/completions", chat(stream=False))
        world.pass_time(19.5)
        self.assertEqual(outcome_of(waiting), "no response")
        world.pass_time(0.5)
        self.assertEqual(outcome_of(waiting), "429 concurrency_limit")

    def test_the_first_byte(self) -> None:
        world = World(first_byte_timeout=20, heartbeat=1000)
        client, _ = world.start_chat()
        world.pass_time(19)
        self.assertEqual(outcome_of(client), "no response")
        world.pass_time(2)
        self.assertEqual(outcome_of(client), "504 backend_timeout")

    def test_the_next_byte(self) -> None:
        world = World(idle_timeout=20, heartbeat=1000)
        client, backend = world.start_chat()
        backend.begin_stream()
        for _ in range(3):
            backend.stream(chunk("on", role="assistant"))
            world.pass_time(19)
            self.assertEqual(outcome_of(client), "truncated")
        world.pass_time(2)
        self.assertEqual(outcome_of(client), "event backend_timeout")

    def test_the_duration_of_a_response(self) -> None:
        for offset, expected in ((-1, "truncated"), (1, "event backend_timeout")):
            world = World(max_duration=100, heartbeat=1000)
            client, backend = world.start_chat()
            backend.begin_stream()
            for _ in range(10):
                backend.stream(chunk("on", role="assistant"))
                world.pass_time(9.5)
            world.pass_time(5 + offset)
            self.assertEqual(outcome_of(client), expected)

    def test_a_client_that_does_not_read(self) -> None:
        for offset, outcomes in ((-1, []), (1, ["failed"])):
            world, client = self.stalled()
            world.pass_time(20 + offset)
            self.assertEqual([each.outcome for each in world.traffic.responses()], outcomes)
            self.assertEqual(client.wire.aborted, bool(outcomes))

    def test_a_client_that_reads_slowly(self) -> None:
        """A read from the system's buffers counts too."""
        unsent = [1_000_000]
        self.patch(response_module, "unsent_bytes", lambda _: unsent[0])
        world, client = self.stalled()
        for _ in range(20):
            unsent[0] -= 1
            world.pass_time(15)
        self.assertFalse(client.wire.aborted)
        world.pass_time(6)
        self.assertTrue(client.wire.aborted)
        self.assertIn("read nothing for 20 s", str(world.traffic.responses()[0].error))

    def stalled(self) -> tuple[World, Client]:
        """Return a client that has just stopped to read a stream."""
        world = World(client_timeout=20, heartbeat=4)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("on", role="assistant"))
        client.pause()
        return world, client


class Amounts(SynchronousTestCase):
    def test_the_queue(self) -> None:
        world = World(max_concurrent=1, max_queue=2)
        clients = [world.client() for _ in range(4)]
        for client in clients:
            client.post("/v1/chat/completions", chat())
        expected = [outcome_of(client) for client in clients]
        self.assertEqual(expected, [*3 * ["no response"], "429 concurrency_limit"])
        self.assertIn("retry-after", clients[3].headers())

    def test_an_event(self) -> None:
        good = chunk("x" * 2000, role="assistant")
        size = len(good) - len("\n")  # the empty line after the event does not count
        for bound, expected in ((size, "complete"), (size - 1, "event backend_event_too_large")):
            client, backend = World(max_event=bound).start_chat()
            backend.begin_stream()
            backend.stream(good, chunk(finish="stop"), DONE)
            backend.reactor.advance(0)
            self.assertEqual(outcome_of(client), expected)

    def test_an_event_in_pieces(self) -> None:
        good = chunk("x" * 2000, role="assistant")
        size = len(good) - len("\n")  # the empty line after the event does not count
        for bound, expected in ((size, "complete"), (size - 1, "event backend_event_too_large")):
            client, backend = World(max_event=bound).start_chat()
            backend.begin_stream()
            for byte in good + chunk(finish="stop") + DONE:
                backend.stream(byte)
            backend.reactor.advance(0)
            self.assertEqual(outcome_of(client), expected)

    def test_a_response(self) -> None:
        body = JSON_BODY + (2048 - len(JSON_BODY)) * b" "
        for bound, expected in ((2048, "complete"), (2047, "502 backend_response_too_large")):
            client, backend = World(max_answer=bound).start_chat(stream=False)
            backend.respond(body)
            self.assertEqual(outcome_of(client), expected)

    def test_sessions(self) -> None:
        world = World(max_sessions=2)
        for name, known in (("a", 1), ("b", 2), ("a", 2), ("c", 2)):
            client = world.client()
            client.post("/v1/chat/completions", chat(), X_Session_Id=name)
            backend = world.backend()
            backend.begin_stream()
            backend.stream(*(event.decode() for event in EVENTS))
            world.reactor.advance(0)
            health = world.client()
            health.get("/health")
            self.assertEqual(health.json()["sessions"], known)
        self.assertEqual(world.load(), IDLE)

    def test_pipelined_requests(self) -> None:
        world = World()
        client = world.client()
        client.send(encode_request(chat()))
        self.assertEqual(client.wire.producerState, "producing")
        client.send(encode_request(chat(), X="y" * 4000) * 3)
        self.assertEqual(client.wire.producerState, "producing")
        client.send(encode_request(chat(), X="y" * 4000) * 3)
        self.assertEqual(client.wire.producerState, "paused")


class LimitsPage(SynchronousTestCase):
    """docs/limits.md."""

    def rows(self) -> dict[str, str]:
        """Return the default of each name on the page."""
        found = re.findall(
            r"^\| `([\w-]+)`(?: \(of responses\))? \| ([^|]*?) \|", PAGE, re.MULTILINE
        )
        self.assertGreater(len(found), 30)
        return dict(found)

    def test_all_settings_that_are_limits_are_listed(self) -> None:
        listed = {name.removeprefix("--").replace("-", "_") for name in self.rows()}
        defaults = Settings()
        numbers = {
            each.name
            for each in TABLE
            if isinstance(getattr(defaults, each.name), int | float) and not each.is_flag
        }
        self.assertEqual(numbers - listed - NOT_LIMITS, set())

    def test_defaults_of_settings(self) -> None:
        defaults = Settings()
        units = {"": 1, " KiB": 1 << 10, " MiB": 1 << 20, " s": 1, " day": 86400}
        for name, default in self.rows().items():
            if not name.startswith("--"):
                continue
            number, unit = re.fullmatch(r"(\d+)( \w+)?", default).groups("")  # type: ignore[union-attr]
            value = getattr(defaults, name.removeprefix("--").replace("-", "_"))
            self.assertEqual(value, int(number) * units[unit], name)

    def test_values_of_constants(self) -> None:
        constants = {
            "KEEP_ALIVE": (limits.KEEP_ALIVE, "75 s"),
            "MAX_PIPELINED": (limits.MAX_PIPELINED, "16 KiB"),
            "MAX_LINE": (limits.MAX_LINE, "8 KiB"),
            "MIN_UPLOAD_RATE": (limits.MIN_UPLOAD_RATE, "16 KiB/s"),
            "LINGER": (limits.LINGER, "30 s"),
            "UPLOAD_BUFFER": (upload.UPLOAD_BUFFER, "512 KiB"),
            "MAX_ERROR": (relay.MAX_ERROR, "1 MiB"),
            "WRITE_SIZE": (response_module.WRITE_SIZE, "64 KiB"),
        }
        units = {"KiB": 1 << 10, "KiB/s": 1 << 10, "MiB": 1 << 20, "s": 1}
        rows = self.rows()
        for name, (value, shown) in constants.items():
            number, _, unit = shown.partition(" ")
            self.assertEqual(value, int(number) * units[unit], name)
            self.assertEqual(rows[name], shown)
        self.assertEqual((limits.MAX_HEAD, response_parser.MAX_HEAD), (32 << 10, 64 << 10))
        self.assertIn("| `MAX_HEAD` | 32 KiB |", PAGE)
        self.assertIn("| `MAX_HEAD` (of responses) | 64 KiB |", PAGE)
