"""Records of requests and responses for the traffic log, and internal errors."""

from __future__ import annotations

import json

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from blockops.conversation.turn import AnswerFeedback, Conversations
from blockops.proxy.endpoints import passthrough
from blockops.proxy.endpoints.health import HealthEndpoints
from blockops.server.response import ClientResponse
from blockops.translation.stream import StreamTranslator
from blockops.upstream.backend import Backend
from tests.world import DONE, IDLE, WEATHER, World, chat, chunk

CALL = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'


class RecordTests(SynchronousTestCase):
    def test_a_stream(self) -> None:
        world = World(max_concurrent=1)
        first, first_backend = world.start_chat()
        client = world.client()
        body = json.dumps(chat(model="tiny")).encode()
        client.post("/v1/chat/completions?x=1", body, User_Agent="me")
        world.pass_time(2)
        first_backend.respond(b"no", "500 No")
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
        rejected, response = world.traffic.responses()
        self.assertEqual(response.id, request.id)
        self.assertEqual(response.id, client.headers()["x-request-id"])
        self.assertNotEqual(response.id, rejected.id)
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
        self.assertEqual((rejected.status, rejected.outcome), (500, "failed"))
        self.assertEqual(rejected.error, first.error()["message"])

    def test_invalid_request(self) -> None:
        world = World()
        world.client().post("/v1/chat/completions", b"nonsense")
        (request,), (response,) = world.traffic.requests(), world.traffic.responses()
        self.assertEqual((request.body, request.model), (b"nonsense", None))
        self.assertEqual((response.status, response.outcome), (400, "failed"))

    def test_client_disconnects(self) -> None:
        world = World()
        client, _ = world.start_chat()
        client.disconnect()
        (response,) = world.traffic.responses()
        self.assertEqual((response.status, response.outcome), (None, "client left"))
        self.assertIsNone(response.first_byte_ms)

    def test_an_upload(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\nabcdef")
        world.reactor.advance(0)
        world.backend().respond(b"answer", kind="text/plain")
        (request,), (response,) = world.traffic.requests(), world.traffic.responses()
        self.assertEqual((request.size, request.body), (6, b"abcdef"))
        self.assertEqual((response.body, response.bytes_out), (b"answer", 6))

    def test_an_upload_of_unknown_length(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        world.reactor.advance(0)
        world.backend().respond(b"{}")
        self.assertEqual(world.traffic.requests()[0].size, 0)

    def test_unfinished_upload(self) -> None:
        world = World(log_body=4)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc")
        world.reactor.advance(0)
        self.assertEqual(world.traffic.records, [])
        client.send("def")
        client.disconnect()
        (request,), (response,) = world.traffic.requests(), world.traffic.responses()
        self.assertEqual((request.size, request.body), (6, b"abcd"))
        self.assertEqual(response.outcome, "client left")

    def test_rejected_requests(self) -> None:
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

    def test_truncated_response(self) -> None:
        world = World()
        world.client().get("/v1/x")
        backend = world.backend()
        backend.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        backend.disconnect()
        world.reactor.advance(0)
        (response,) = world.traffic.responses()
        self.assertEqual((response.status, response.outcome), (200, "failed"))
        self.assertIn("in the middle of its response", str(response.error))

    def test_stalled_client(self) -> None:
        world = World(client_timeout=5)
        client, backend = world.start_chat()
        backend.begin_stream()
        client.pause()
        world.pass_time(6)
        (response,) = world.traffic.responses()
        self.assertEqual(response.outcome, "failed")
        self.assertIn("read nothing for 5 seconds", str(response.error))

    def test_only_the_beginning_of_the_body_is_logged(self) -> None:
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

    def test_health_checks_are_not_logged(self) -> None:
        world = World()
        world.client().get("/health")
        world.client().get("/ready")
        world.backend().respond(b"{}")
        self.assertEqual(world.traffic.records, [])

    def test_every_request_has_a_response(self) -> None:
        world = World(drain=0)
        for target in ("/v1/models", "/v1/models/x", "/v1/files"):
            world.client().get(target)
        for target in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            world.client().post(target, chat())
        world.stop()
        world.pass_time(1)
        request_ids = [record.id for record in world.traffic.requests()]
        self.assertEqual(len(request_ids), 6)
        self.assertCountEqual(request_ids, [record.id for record in world.traffic.responses()])


class LogOrderTests(SynchronousTestCase):
    def test_queued_requests_are_logged_at_once(self) -> None:
        world = World(max_concurrent=1)
        world.start_chat()
        client = world.client()
        client.post("/v1/chat/completions", chat(model="second"))
        self.assertEqual([each.model for each in world.traffic.requests()], [None, "second"])

    def test_rejected_requests_are_logged_before_their_responses(self) -> None:
        world = World(max_concurrent=1, max_queue=0)
        world.start_chat()
        world.traffic.records.clear()
        for stream in (True, False):
            client = world.client()
            client.post("/v1/chat/completions", chat(stream=stream))
            self.assertEqual(client.status(), 429)
        names = [type(record).__name__ for record in world.traffic.records]
        self.assertEqual(names, ["RequestRecord", "ResponseRecord"] * 2)

    def test_a_request_that_fails_early_is_logged(self) -> None:
        for target, what in ((Conversations, "begin"), (StreamTranslator, "__init__")):
            world = World()
            patch = self.patch(target, what, lambda *_, **__: 1 // 0)
            client = world.client()
            client.post("/v1/chat/completions", chat())
            self.assertEqual(client.status(), 500)
            self.assertEqual(world.connection_attempts(), 0)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
            self.assertIn(b"Hello", world.traffic.requests()[0].body)
            self.assertEqual(len(world.traffic.requests()), 1)
            self.assertEqual(len(world.traffic.responses()), 1)
            self.assertEqual(world.load(), IDLE)
            patch.restore()


class InternalErrorTests(SynchronousTestCase):
    def test_bug_in_the_core(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()

        def fail(*_: object) -> bytes:
            raise ZeroDivisionError

        self.patch(StreamTranslator, "receive_data", fail)
        backend.stream(chunk("Hi"))
        world.reactor.advance(0)
        self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "internal_error")
        self.assertTrue(client.is_complete())
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_bug_after_a_complete_response(self) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(AnswerFeedback, "learn", fail)
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant", finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.is_complete())
        self.assertEqual(world.load(), IDLE)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual([each.outcome for each in world.traffic.responses()], ["done"])

    def test_handler_without_a_response(self) -> None:
        world = World()
        client = world.client()

        async def respond_nothing(*_: object) -> None:
            """Send no response."""

        self.patch(HealthEndpoints, "ready", respond_nothing)
        world = World()
        client = world.client()
        client.get("/ready")
        self.assertEqual(client.status(), 500)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_bug_while_sending_a_failure(self) -> None:
        world = World()

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(ClientResponse, "send_error", fail)
        client = world.client()
        client.get("/nowhere")
        world.reactor.advance(0)
        self.assertTrue(client.wire.closed)
        self.assertEqual(world.load(), IDLE)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_bug_between_the_backends_headers_and_body(self) -> None:
        world = World()
        client = world.client()
        client.get("/v1/x")
        backend = world.backend()

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(passthrough, "media_type", fail)
        backend.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        self.assertEqual(client.status(), 500)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_bug_in_the_backend(self) -> None:
        world = World()
        client = world.client()

        async def fail(*_: object) -> None:
            raise ZeroDivisionError

        self.patch(Backend, "request", fail)
        client.get("/v1/x")
        self.assertEqual(client.status(), 500)
        self.assertEqual(client.error()["code"], "internal_error")
        self.assertEqual(world.load(), IDLE)
        self.assertEqual(len(self.flushLoggedErrors()), 1)


class FindingTests(SynchronousTestCase):
    def answer(self, world: World, text: str, **fields: object) -> None:
        _, backend = world.start_chat(**fields)
        backend.begin_stream()
        backend.stream(chunk(text, role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    @provider(ILogObserver)
    def observe(self, event: LogEvent) -> None:
        self.events.append(event)

    def count_log_lines(self, part: str) -> int:
        lines = [
            str(event.get("finding", "")) + str(event.get("log_format")) for event in self.events
        ]
        return sum(part in line for line in lines)

    def test_untranslated_calls_are_logged_once(self) -> None:
        world = World()
        for _ in range(3):
            self.answer(world, CALL, tools=[])
        self.assertEqual(self.count_log_lines("--translate=always"), 1)

    def test_unknown_tool(self) -> None:
        world = World()
        self.answer(world, CALL.replace("get_weather", "get_whether"), tools=[WEATHER])
        self.assertEqual(self.count_log_lines("does not offer"), 1)

    def test_no_findings(self) -> None:
        self.answer(World(), CALL)
        self.assertEqual(self.count_log_lines("model"), 0)
