"""What is written down of a request and its answer, and what becomes of our own mistakes."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from blockops.conversation.turn import Lesson
from blockops.operations.traffic_log.records import Record
from blockops.proxy import chat as answering
from blockops.proxy.chat import Answering
from blockops.server.response import Downstream
from blockops.translation.stream import StreamTranscoder
from blockops.upstream.backend import Backend
from tests.world import DONE, NOTHING_LEFT, WEATHER, World, chat, chunk

CALL = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'


class Records(SynchronousTestCase):
    def test_a_stream(self) -> None:
        world = World(max_concurrent=1)
        first, running = world.ask()
        client = world.client()
        body = json.dumps(chat(model="tiny")).encode()
        client.post("/v1/chat/completions?x=1", body, User_Agent="me")
        world.pass_time(2)
        running.answer(b"no", "500 No")
        backend = world.backend()
        world.pass_time(1)
        backend.begin_stream()
        events = [chunk(CALL, role="assistant"), chunk(finish="stop"), DONE]
        backend.stream(events[0])
        world.pass_time(3)
        backend.stream(*events[1:])
        world.reactor.advance(0)

        request = world.traffic.requests()[1]
        self.assertEqual((request.method, request.client), ("POST", "192.0.2.1"))
        self.assertEqual(request.path, "/v1/chat/completions?x=1")
        self.assertEqual((request.model, request.stream), ("tiny", True))
        self.assertEqual((request.messages, request.tools), (1, 1))
        self.assertEqual((request.size, request.body), (len(body), body))
        self.assertEqual(request.headers["user-agent"], "me")
        refused, response = world.traffic.responses()
        self.assertEqual(response.id, request.id)
        self.assertEqual(response.id, client.headers()["x-request-id"])
        self.assertNotEqual(response.id, refused.id)
        self.assertEqual((response.status, response.outcome), (200, "done"))
        self.assertEqual(
            (response.queued_ms, response.first_byte_ms, response.last_byte_ms),
            (2000, 3000, 6000),
        )
        self.assertEqual(response.body, "".join(events).encode())
        self.assertEqual(response.bytes_in, len(response.body))
        self.assertEqual(response.bytes_out, len(client.body()))
        self.assertEqual(list(response.calls), ["get_weather"])
        self.assertEqual(list(response.finish_reasons), ["tool_calls"])
        self.assertEqual((refused.status, refused.outcome), (500, "failed"))
        self.assertEqual(refused.error, first.error()["message"])

    def test_a_request_that_is_none(self) -> None:
        world = World()
        world.client().post("/v1/chat/completions", b"nonsense")
        (request,), (response,) = world.traffic.requests(), world.traffic.responses()
        self.assertEqual((request.body, request.model), (b"nonsense", None))
        self.assertEqual((response.status, response.outcome), (400, "failed"))

    def test_a_client_that_leaves(self) -> None:
        world = World()
        client, _ = world.ask()
        client.leave()
        (response,) = world.traffic.responses()
        self.assertEqual((response.status, response.outcome), (None, "client left"))
        self.assertIsNone(response.first_byte_ms)

    def test_an_upload(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\nabcdef")
        world.reactor.advance(0)
        world.backend().answer(b"answer", kind="text/plain")
        (request,), (response,) = world.traffic.requests(), world.traffic.responses()
        self.assertEqual((request.size, request.body), (6, b"abcdef"))
        self.assertEqual((response.body, response.bytes_out), (b"answer", 6))

    def test_an_upload_of_unknown_length(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        world.reactor.advance(0)
        world.backend().answer(b"{}")
        self.assertEqual(world.traffic.requests()[0].size, 0)

    def test_an_upload_that_is_still_on_its_way(self) -> None:
        world = World(log_body=4)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        world.reactor.advance(0)
        self.assertEqual(world.traffic.records, [])
        client.send("def")
        client.leave()
        (request,), (response,) = world.traffic.requests(), world.traffic.responses()
        self.assertEqual((request.size, request.body), (6, b"abcd"))
        self.assertEqual(response.outcome, "client left")

    def test_refusals(self) -> None:
        world = World(max_body=10)
        world.client().get("/nowhere")
        world.client().request("PUT", "/v1/completions")
        world.client().post("/v1/chat/completions", b"x" * 11)
        world.client().send("nonsense\r\n")
        self.assertEqual(
            [record.path for record in world.traffic.requests()],
            ["/nowhere", "/v1/completions", "/v1/chat/completions", ""],
        )
        self.assertEqual(
            [record.status for record in world.traffic.responses()], [404, 405, 413, 400]
        )

    def test_an_answer_that_breaks_off(self) -> None:
        world = World()
        world.client().get("/v1/x")
        backend = world.backend()
        backend.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        backend.leave()
        world.reactor.advance(0)
        (response,) = world.traffic.responses()
        self.assertEqual((response.status, response.outcome), (200, "failed"))
        self.assertIn("closed the connection", str(response.error))

    def test_a_client_that_does_not_read(self) -> None:
        world = World(client_timeout=5)
        client, backend = world.ask()
        backend.begin_stream()
        client.pause()
        world.pass_time(6)
        (response,) = world.traffic.responses()
        self.assertEqual(response.outcome, "failed")
        self.assertIn("read nothing for 5 seconds", str(response.error))

    def test_of_the_backends_body_only_the_beginning_is_kept(self) -> None:
        world = World(log_body=10)
        client = world.client()
        client.get("/v1/x")
        backend = world.backend()
        backend.send(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n")
        for _ in range(4):
            backend.send(b"abcd")
        world.reactor.advance(0)
        (response,) = world.traffic.responses()
        self.assertEqual((response.body, response.bytes_in), (b"abcdabcdab", 16))

    def test_asking_how_it_is_is_no_traffic(self) -> None:
        world = World()
        world.client().get("/health")
        world.client().get("/ready")
        world.backend().answer(b"{}")
        self.assertEqual(world.traffic.records, [])

    def test_every_request_has_its_response(self) -> None:
        world = World(drain=0)
        for target in ("/v1/models", "/v1/models/x", "/v1/files"):
            world.client().get(target)
        for target in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            world.client().post(target, chat())
        world.stop()
        world.pass_time(1)
        came = [record.id for record in world.traffic.requests()]
        self.assertEqual(len(came), 6)
        self.assertCountEqual(came, [record.id for record in world.traffic.responses()])


class PutOff(SynchronousTestCase):
    """What the log and the answer need is made while the backend has the request."""

    def watched(self, world: World) -> list[tuple[str, bool]]:
        """Return what happens, and whether the backend was being asked by then."""
        happened: list[tuple[str, bool]] = []
        write, make = world.traffic.write, StreamTranscoder.__init__

        def wrote(record: Record) -> None:
            happened.append((type(record).__name__, bool(world.reactor.tcpClients)))
            write(record)

        def made(*args: Any, **more: Any) -> None:
            happened.append(("StreamTranscoder", bool(world.reactor.tcpClients)))
            make(*args, **more)

        # Each part was given the bound method.
        self.patch(type(world.traffic), "write", lambda _, record: wrote(record))
        self.patch(StreamTranscoder, "__init__", made)
        return happened

    def test_the_request_leaves_first(self) -> None:
        world = World()
        happened = self.watched(world)
        client, backend = world.ask()
        self.assertEqual(happened, [("RequestRecord", True), ("StreamTranscoder", True)])
        backend.begin_stream()
        backend.stream(chunk("hi", finish="stop"), DONE)
        self.assertEqual(client.events()[-1], "[DONE]")
        world.reactor.advance(0)
        self.assertEqual(len(happened), 3)

    def test_who_waits_is_written_down_at_once(self) -> None:
        world = World(max_concurrent=1)
        world.ask()
        client = world.client()
        client.post("/v1/chat/completions", chat(model="second"))
        self.assertEqual([each.model for each in world.traffic.requests()], [None, "second"])

    def test_who_gets_no_further_is_written_down_before_the_end(self) -> None:
        world = World(max_concurrent=1, max_queue=0)
        world.ask()
        happened = self.watched(world)
        for stream in (True, False):
            client = world.client()
            client.post("/v1/chat/completions", chat(stream=stream))
            self.assertEqual(client.status(), 429)
        names = [name for name, _ in happened if name != "StreamTranscoder"]
        self.assertEqual(names, ["RequestRecord", "ResponseRecord"] * 2)

    def test_a_failure_is_one_of_the_request(self) -> None:
        for where, what in ((Answering, "_chat_came"), (StreamTranscoder, "__init__")):
            world = World()
            patch = self.patch(where, what, lambda *_, **__: 1 // 0)
            client, backend = world.ask()
            self.assertEqual(client.status(), 500)
            self.assertTrue(backend.wire.aborted)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
            self.assertEqual(len(world.traffic.requests()), 1)
            self.assertEqual(len(world.traffic.responses()), 1)
            self.assertEqual(world.idle(), NOTHING_LEFT)
            patch.restore()


class OurOwnMistakes(SynchronousTestCase):
    def test_a_bug_in_the_core_is_told_and_logged(self) -> None:
        world = World()
        client, backend = world.ask()
        backend.begin_stream()

        def broken(*_: object) -> bytes:
            raise ZeroDivisionError

        self.patch(StreamTranscoder, "receive_data", broken)
        backend.stream(chunk("Hi"))
        world.reactor.advance(0)
        self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "internal_error")
        self.assertTrue(client.complete())
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.idle(), NOTHING_LEFT)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_bug_behind_a_whole_answer_is_logged(self) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(Lesson, "learn", broken)
        world = World()
        client, backend = world.ask()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant", finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.complete())
        self.assertEqual(world.idle(), NOTHING_LEFT)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual([each.outcome for each in world.traffic.responses()], ["done"])

    def test_work_that_forgets_to_answer(self) -> None:
        world = World()
        client = world.client()

        async def forgetful(*_: object) -> None:
            """Answer nothing."""

        self.patch(Answering, "ready", forgetful)
        world = World()
        client = world.client()
        client.get("/ready")
        self.assertEqual(client.status(), 500)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_failure_that_cannot_be_told(self) -> None:
        world = World()

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(Downstream, "refuse", broken)
        client = world.client()
        client.get("/nowhere")
        world.reactor.advance(0)
        self.assertTrue(client.wire.closed)
        self.assertEqual(world.idle(), NOTHING_LEFT)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_bug_between_the_backends_headers_and_its_body(self) -> None:
        world = World()
        client = world.client()
        client.get("/v1/x")
        backend = world.backend()

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(answering, "media_type", broken)
        backend.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        self.assertEqual(client.status(), 500)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_bug_is_told_and_logged(self) -> None:
        world = World()
        client = world.client()

        async def broken(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(Backend, "granted", broken)
        client.get("/v1/x")
        self.assertEqual(client.status(), 500)
        self.assertEqual(client.error()["code"], "internal_error")
        self.assertEqual(world.idle(), NOTHING_LEFT)
        self.assertEqual(len(self.flushLoggedErrors()), 1)


class Remarks(SynchronousTestCase):
    def answer(self, world: World, text: str, **fields: object) -> None:
        _, backend = world.ask(**fields)
        backend.begin_stream()
        backend.stream(chunk(text, role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.keep)
        self.addCleanup(globalLogPublisher.removeObserver, self.keep)

    @provider(ILogObserver)
    def keep(self, event: LogEvent) -> None:
        self.events.append(event)

    def said(self, part: str) -> int:
        told = [str(event.get("what", "")) + str(event.get("log_format")) for event in self.events]
        return sum(part in line for line in told)

    def test_calls_that_nobody_asked_for_are_hinted_at_once(self) -> None:
        world = World()
        for _ in range(3):
            self.answer(world, CALL, tools=[])
        self.assertEqual(self.said("--translate=always"), 1)

    def test_a_tool_that_is_not_offered(self) -> None:
        world = World()
        self.answer(world, CALL.replace("get_weather", "get_whether"), tools=[WEATHER])
        self.assertEqual(self.said("does not offer"), 1)

    def test_nothing_to_remark(self) -> None:
        self.answer(World(), CALL)
        self.assertEqual(self.said("model"), 0)
