"""Each kind of request, as both the client and the backend see it."""

from __future__ import annotations

import gzip
import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.server.response import WRITE_SIZE
from blockops.server.upload import UPLOAD_BUFFER
from tests.world import DONE, IDLE, Backend, Client, World, chat, chunk


class DisconnectTests(SynchronousTestCase):
    """A client that disconnects, at any stage, releases its slot and the backend's connection."""

    def test_while_queued(self) -> None:
        world = World(max_concurrent=1)
        first, _ = world.start_chat()
        second = world.client()
        second.post("/v1/chat/completions", chat())
        self.assertEqual(world.load(), {"running": 1, "waiting": 1, "exchanges": 2})
        second.disconnect()
        self.assertEqual(world.load(), {"running": 1, "waiting": 0, "exchanges": 1})
        self.assertEqual(world.connection_attempts(), 1)
        first.disconnect()
        self.assertEqual(world.load(), IDLE)

    def test_while_connecting(self) -> None:
        world = World()
        client = world.client()
        client.post("/v1/chat/completions", chat())
        self.assertEqual(world.connection_attempts(), 1)
        client.disconnect()
        connector = world.reactor.connectors[0]
        self.assertTrue(connector.stoppedConnecting)
        self.assertEqual(world.load(), IDLE)

    def test_during_the_upload(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/audio HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n\r\n12345")
        world.reactor.advance(0)
        backend = world.backend()
        self.assertTrue(backend.request().endswith(b"\r\n\r\n12345"))
        client.disconnect()
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_before_the_backends_headers(self) -> None:
        world = World()
        client, backend = world.start_chat()
        self.assertIn(b"POST /v1/chat/completions", backend.request())
        client.disconnect()
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_during_the_stream(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hello", role="assistant"))
        self.assertIn(b"Hello", client.body())
        client.disconnect()
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_while_paused(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hello", role="assistant"))
        client.pause()
        self.assertEqual(backend.wire.producerState, "paused")
        client.disconnect()
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_during_a_json_response(self) -> None:
        world = World()
        client, backend = world.start_chat(stream=False)
        backend.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        client.disconnect()
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)


class StreamTests(SynchronousTestCase):
    def test_a_call(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("", role="assistant"))
        for piece in ('<tool_call>{"name": "get_weather", ', '"arguments": {"city": "', 'Paris"}}'):
            backend.stream(chunk(piece))
        backend.stream(chunk("</tool_call>"), chunk(finish="stop"), DONE)
        backend.end_stream()
        world.reactor.advance(0)
        deltas = [json.loads(event)["choices"][0] for event in client.events()[:-1]]
        calls = [c for delta in deltas for c in delta["delta"].get("tool_calls", [])]
        self.assertEqual(calls[0]["function"]["name"], "get_weather")
        arguments = "".join(call["function"].get("arguments", "") for call in calls)
        self.assertEqual(json.loads(arguments), {"city": "Paris"})
        self.assertEqual(deltas[-1]["finish_reason"], "tool_calls")
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.is_complete())
        self.assertEqual(world.load(), IDLE)

    def test_the_request_is_forwarded_byte_for_byte(self) -> None:
        world = World()
        client = world.client()
        body = (
            b'{ "messages":[{"role":"user","content":"\\u00e9"}],\n "stream" : true, "x": 1.50,'
            b' "stream_options": {"include_usage": true} }'
        )
        client.post("/v1/chat/completions", body, Authorization="Bearer secret", X_Thing="7")
        request = world.backend().request()
        self.assertTrue(request.endswith(b"\r\n\r\n" + body))
        self.assertIn(b"X-Thing: 7\r\n", request)
        self.assertNotIn(b"secret", request)
        self.assertEqual(request.count(b"Content-Length"), 1)
        self.assertEqual(request.count(b"Host: 127.0.0.1:8082"), 1)

    def test_the_backends_key(self) -> None:
        world = World(backend_key="sesame")
        _, backend = world.start_chat()
        self.assertIn(b"Authorization: Bearer sesame\r\n", backend.request())

    def test_response_headers(self) -> None:
        world = World()
        client, backend = world.start_chat()
        self.assertEqual(client.status(), 0)
        backend.begin_stream()
        self.assertEqual(client.status(), 200)
        headers = client.headers()
        self.assertEqual(headers["content-type"], "text/event-stream; charset=utf-8")
        self.assertEqual(headers["cache-control"], "no-cache")
        self.assertEqual(headers["x-accel-buffering"], "no")
        self.assertTrue(headers["server"].startswith("blockops/"))

    def test_connection_stays_open_after_done(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertTrue(client.is_complete())
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_truncated_stream(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        backend.disconnect()
        world.reactor.advance(0)
        self.assertIn("error", json.loads(client.events()[-1]))
        self.assertTrue(client.is_complete())
        self.assertEqual(world.load(), IDLE)

    def test_stream_ended_by_closing(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.send("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        backend.send(chunk("Hi", role="assistant") + chunk(finish="stop") + DONE)
        backend.disconnect()
        world.reactor.advance(0)
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertTrue(client.is_complete())

    def test_json_response_to_a_streaming_request(self) -> None:
        world = World()
        client, backend = world.start_chat()
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        backend.respond({"id": "1", "object": "chat.completion", "choices": [choice]})
        self.assertEqual(client.headers()["content-type"], "text/event-stream; charset=utf-8")
        self.assertIn("Hello", client.body().decode())
        self.assertEqual(client.events()[-1], "[DONE]")

    def test_backpressure(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        client.pause()
        self.assertEqual(backend.wire.producerState, "paused")
        client.resume()
        self.assertEqual(backend.wire.producerState, "producing")

    def test_slow_client_receives_all_slices(self) -> None:
        world = World(client_timeout=60, heartbeat=1000)
        client, backend = world.start_chat()
        backend.begin_stream()
        event = chunk("x" * 4 * WRITE_SIZE, role="assistant")
        client.pause_every(WRITE_SIZE)
        backend.stream(event)
        self.assertEqual(len(client.body()), WRITE_SIZE)
        self.assertEqual(backend.wire.producerState, "paused")
        for slices in (2, 3, 4):
            world.pass_time(50)
            client.resume()
            self.assertEqual(len(client.body()), slices * WRITE_SIZE)
        backend.stream(chunk(finish="stop"), DONE)
        world.pass_time(50)
        self.assertFalse(client.is_complete())
        self.assertEqual(world.load()["running"], 0)
        client.resume()
        self.assertTrue(client.is_complete())
        (first, *_) = client.events()
        self.assertEqual(json.loads(first), json.loads(event.removeprefix("data: ")))
        self.assertEqual(world.load(), IDLE)

    def test_unread_end_of_a_response_is_aborted(self) -> None:
        world = World(client_timeout=60)
        client, backend = world.start_chat(stream=False)
        client.pause_every(WRITE_SIZE)
        message = {"role": "assistant", "content": "x" * 3 * WRITE_SIZE}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        backend.respond({"id": "1", "object": "chat.completion", "choices": [choice]})
        self.assertEqual(world.load(), {"running": 0, "waiting": 0, "exchanges": 1})
        world.pass_time(61)
        self.assertTrue(client.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_next_response_on_a_full_connection(self) -> None:
        """TLS requests a pause only once."""
        world = World(client_timeout=60, heartbeat=1000)
        client, backend = world.start_chat()
        client.pause()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        self.assertEqual(backend.wire.producerState, "paused")
        world.pass_time(61)
        self.assertTrue(client.wire.aborted)

    def test_requests_are_not_read_while_responses_are_unread(self) -> None:
        world = World(heartbeat=1000)
        client = world.client()
        client.get("/v1/a")
        client.pause_every(1000)
        world.backend().respond(b"x" * 1000)
        client.get("/v1/b")
        self.assertEqual(client.wire.producerState, "paused")
        self.assertEqual(world.connection_attempts(), 1)
        client.resume()
        world.reactor.advance(0)
        self.assertEqual(client.wire.producerState, "producing")
        self.assertEqual(world.connection_attempts(), 2)

    def test_stalled_client_is_aborted(self) -> None:
        world = World(client_timeout=60)
        client, backend = world.start_chat()
        backend.begin_stream()
        client.pause()
        sent = client.received()
        world.pass_time(59)
        self.assertFalse(client.wire.aborted)
        self.assertEqual(client.received(), sent)
        world.pass_time(2)
        self.assertTrue(client.wire.aborted)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)


class HeartbeatTests(SynchronousTestCase):
    def test_before_the_first_byte(self) -> None:
        world = World(heartbeat=10)
        client, backend = world.start_chat()
        world.pass_time(9)
        self.assertEqual(client.received(), b"")
        world.pass_time(2)
        self.assertEqual(client.status(), 200)
        self.assertEqual(client.body(), b": heartbeat\n\n")
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertEqual(client.events()[-1], "[DONE]")

    def test_within_the_stream(self) -> None:
        world = World(heartbeat=10)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        before = len(client.body())
        world.pass_time(21)
        self.assertEqual(client.body()[before:], b": heartbeat\n\n" * 2)

    def test_while_queued(self) -> None:
        world = World(heartbeat=10, max_concurrent=1)
        world.start_chat()
        second = world.client()
        second.post("/v1/chat/completions", chat())
        world.pass_time(11)
        self.assertEqual(second.body(), b": heartbeat\n\n")
        self.assertEqual(world.load()["waiting"], 1)

    def test_as_chunks(self) -> None:
        world = World(heartbeat=10, heartbeat_style="chunk")
        client, _ = world.start_chat()
        world.pass_time(11)
        delta = json.loads(client.events()[0])["choices"][0]["delta"]
        self.assertEqual(delta, {"role": "assistant"})

    def test_not_while_tokens_arrive(self) -> None:
        world = World(heartbeat=10)
        client, backend = world.start_chat()
        backend.begin_stream()
        for _ in range(4):
            backend.stream(chunk("Hi", role="assistant"))
            world.pass_time(8)
        self.assertNotIn(b"heartbeat", client.body())

    def test_before_a_json_document(self) -> None:
        world = World(heartbeat=10, heartbeat_json=True)
        client, backend = world.start_chat(stream=False)
        world.pass_time(21)
        self.assertEqual(client.body(), b"\n\n")
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        backend.respond({"id": "1", "object": "chat.completion", "choices": [choice]})
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "Hello")
        self.assertTrue(client.is_complete())

    def test_none_before_a_json_document_by_default(self) -> None:
        world = World(heartbeat=10)
        client, _ = world.start_chat(stream=False)
        world.pass_time(21)
        self.assertEqual(client.received(), b"")


class DeadlineTests(SynchronousTestCase):
    def test_no_first_byte(self) -> None:
        world = World(first_byte_timeout=30, heartbeat=100)
        client, backend = world.start_chat()
        world.pass_time(29)
        self.assertEqual(client.status(), 0)
        world.pass_time(2)
        self.assertEqual(client.status(), 504)
        self.assertEqual(client.error()["code"], "backend_timeout")
        self.assertIn("--first-byte-timeout", client.error()["message"])
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_no_first_byte_after_a_heartbeat(self) -> None:
        world = World(first_byte_timeout=30, heartbeat=10)
        client, backend = world.start_chat()
        world.pass_time(31)
        self.assertEqual(client.status(), 200)
        error = json.loads(client.events()[-1])["error"]
        self.assertEqual(error["code"], "backend_timeout")
        self.assertTrue(client.is_complete())
        self.assertTrue(backend.wire.aborted)

    def test_headers_but_no_first_byte(self) -> None:
        world = World(first_byte_timeout=30, idle_timeout=5)
        client, backend = world.start_chat()
        backend.begin_stream()
        world.pass_time(29)
        self.assertFalse(client.is_complete())
        world.pass_time(2)
        self.assertTrue(client.is_complete())

    def test_idle_stream(self) -> None:
        world = World(idle_timeout=20, heartbeat=100)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        world.pass_time(19)
        self.assertFalse(client.is_complete())
        world.pass_time(2)
        error = json.loads(client.events()[-1])["error"]
        self.assertIn("--idle-timeout", error["message"])
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_endless_comments(self) -> None:
        world = World(max_duration=100, idle_timeout=20, heartbeat=10, max_concurrent=1)
        client, backend = world.start_chat()
        waiting = world.client()
        waiting.post("/v1/chat/completions", chat())
        backend.begin_stream()
        for _ in range(9):
            backend.stream(": reading the prompt\n\n")
            world.pass_time(11)
        self.assertFalse(client.is_complete())
        world.pass_time(2)
        error = json.loads(client.events()[-1])["error"]
        self.assertEqual((error["code"], error["type"]), ("backend_timeout", "server_error"))
        self.assertIn("--max-duration", error["message"])
        self.assertTrue(client.is_complete())
        self.assertTrue(backend.wire.aborted)
        # The slot is released, and the time in the queue does not count.
        second = world.backend()
        second.begin_stream()
        world.pass_time(90)
        second.stream(chunk("Hi", role="assistant"), chunk(finish="stop"), DONE)
        self.assertEqual(waiting.events()[-1], "[DONE]")
        world.reactor.advance(0)
        self.assertEqual(world.load(), IDLE)

    def test_endless_white_space(self) -> None:
        world = World(max_duration=50, idle_timeout=20)
        client, backend = world.start_chat(stream=False)
        backend.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        for _ in range(10):
            backend.send(" ")
            world.pass_time(5.5)
        self.assertEqual(client.status(), 504)
        self.assertIn("within 50 seconds", client.error()["message"])
        self.assertEqual(world.load(), IDLE)

    def test_endless_response_to_a_stalled_client(self) -> None:
        world = World(max_duration=50, client_timeout=1000)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        client.pause()
        world.pass_time(49)
        self.assertFalse(backend.wire.aborted)
        world.pass_time(2)
        self.assertTrue(backend.wire.aborted)
        client.resume()
        world.reactor.advance(0)
        self.assertIn("--max-duration", json.loads(client.events()[-1])["error"]["message"])
        self.assertEqual(world.load(), IDLE)

    def test_a_stalled_client_suspends_the_idle_timeout(self) -> None:
        world = World(idle_timeout=20, client_timeout=60)
        client, backend = world.start_chat()
        backend.begin_stream()
        backend.stream(chunk("Hi", role="assistant"))
        client.pause()
        world.pass_time(40)
        client.resume()
        world.pass_time(10)
        self.assertFalse(client.is_complete())
        self.assertFalse(backend.wire.aborted)

    def test_too_long_in_the_queue(self) -> None:
        world = World(max_concurrent=1, queue_timeout=30, heartbeat=100)
        world.start_chat()
        second = world.client()
        second.post("/v1/chat/completions", chat())
        world.pass_time(31)
        self.assertEqual(second.status(), 429)
        self.assertEqual(second.error()["code"], "concurrency_limit")
        self.assertGreaterEqual(int(second.headers()["retry-after"]), 1)
        self.assertEqual(world.load()["waiting"], 0)

    def test_too_long_in_the_queue_after_a_heartbeat(self) -> None:
        world = World(max_concurrent=1, queue_timeout=30, heartbeat=10)
        world.start_chat()
        second = world.client()
        second.post("/v1/chat/completions", chat())
        world.pass_time(31)
        error = json.loads(second.events()[-1])["error"]
        self.assertEqual(error["code"], "concurrency_limit")


class ErrorTests(SynchronousTestCase):
    def test_the_queue_is_full(self) -> None:
        world = World(max_concurrent=1, max_queue=1)
        world.start_chat()
        for _ in range(2):
            client = world.client()
            client.post("/v1/chat/completions", chat())
        self.assertEqual(client.status(), 429)
        self.assertEqual(client.error()["code"], "concurrency_limit")
        self.assertIn("retry-after", client.headers())

    def test_the_backends_error_passes_unchanged(self) -> None:
        world = World()
        client, backend = world.start_chat()
        body = b'{"error": {"message": "too long", "type": "x", "n_ctx": 5}}'
        backend.respond(body, "400 Bad Request")
        self.assertEqual(client.status(), 400)
        self.assertEqual(client.body(), body)
        self.assertEqual(world.load(), IDLE)

    def test_the_backends_error_after_a_heartbeat(self) -> None:
        world = World(heartbeat=10)
        client, backend = world.start_chat()
        world.pass_time(11)
        backend.respond(b'{"error": {"message": "too long"}}', "400 Bad Request")
        self.assertEqual(json.loads(client.events()[-1])["error"]["message"], "too long")
        self.assertTrue(client.is_complete())

    def test_html_with_500(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.respond(b"<html><h1>Oh no</h1></html>", "500 Internal Server Error", "text/html")
        self.assertEqual(client.status(), 500)
        self.assertIn("Oh no", client.error()["message"])

    def test_unregistered_statuses(self) -> None:
        for status in (520, 599):
            world = World()
            client, backend = world.start_chat()
            backend.respond(b"oh", f"{status} Oh")
            self.assertEqual(client.status(), status)
            self.assertEqual(client.error()["message"], "oh")

    def test_html_instead_of_a_stream(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.respond(b"<html><h1>Welcome</h1></html>", "200 OK", "text/html")
        self.assertEqual(client.status(), 502)
        self.assertIn("Welcome", client.error()["message"])

    def test_the_backends_retry_after(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.send("HTTP/1.1 503 Loading\r\nRetry-After: 7\r\nContent-Length: 7\r\n\r\nloading")
        world.reactor.advance(0)
        self.assertEqual(client.status(), 503)
        self.assertEqual(client.headers()["retry-after"], "7")
        self.assertIn("loading", client.error()["message"])

    def test_further_headers_of_an_error(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.send(
            "HTTP/1.1 401 No\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n"
            "WWW-Authenticate: Bearer\r\nContent-Type: text/html\xff\r\nContent-Length: 0\r\n\r\n"
        )
        world.reactor.advance(0)
        self.assertEqual(client.status(), 401)
        self.assertEqual(client.headers()["retry-after"], "Fri, 31 Dec 1999 23:59:59 GMT")
        self.assertEqual(client.headers()["www-authenticate"], "Bearer")

    def test_garbage_instead_of_http(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.send("SSH-2.0-OpenSSH_9.2\r\n")
        world.reactor.advance(0)
        self.assertEqual(client.status(), 502)
        self.assertEqual(client.error()["code"], "backend_invalid_response")
        self.assertEqual(world.load(), IDLE)

    def test_closed_without_a_response(self) -> None:
        world = World()
        client, backend = world.start_chat()
        backend.disconnect()
        world.reactor.advance(0)
        self.assertEqual(client.status(), 502)
        self.assertIn("closed the connection", client.error()["message"])

    def test_truncated_json(self) -> None:
        world = World()
        client, backend = world.start_chat(stream=False)
        backend.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        backend.disconnect()
        world.reactor.advance(0)
        self.assertEqual(client.status(), 502)
        self.assertEqual(client.error()["code"], "backend_truncated")

    def test_json_that_is_too_large(self) -> None:
        world = World(max_answer=1024)
        client, backend = world.start_chat(stream=False)
        backend.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b" " * 1025)
        world.reactor.advance(0)
        self.assertEqual(client.status(), 502)
        self.assertIn("--max-answer", client.error()["message"])
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_invalid_requests_are_not_forwarded(self) -> None:
        world = World()
        for body in (b"", b"{", b"[1]", b"{}", b'{"messages": 7}', b'{"messages": []}', b"\xff"):
            client = world.client()
            client.post("/v1/chat/completions", body)
            self.assertEqual(client.status(), 400, body)
            self.assertEqual(client.error()["type"], "invalid_request_error")
        self.assertEqual(world.connection_attempts(), 0)
        self.assertEqual(world.load(), IDLE)


class PassthroughTests(SynchronousTestCase):
    def test_both_bodies_are_relayed_as_they_arrive(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/audio/x?y=%20 HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\nabc")
        world.reactor.advance(0)
        backend = world.backend()
        self.assertTrue(backend.request().startswith(b"POST /v1/audio/x?y=%20 HTTP/1.1\r\n"))
        self.assertIn(b"Content-Length: 6\r\n", backend.request())
        self.assertTrue(backend.request().endswith(b"abc"))
        client.send("def")
        self.assertTrue(backend.request().endswith(b"abcdef"))
        backend.send("HTTP/1.1 201 Made\r\nContent-Type: audio/wav\r\nContent-Length: 4\r\n\r\nRI")
        self.assertEqual(client.status(), 201)
        self.assertEqual(client.headers()["content-type"], "audio/wav")
        self.assertEqual(client.body(), b"RI")
        backend.send("FF")
        world.reactor.advance(0)
        self.assertTrue(client.is_complete())
        self.assertEqual(world.load(), IDLE)

    def test_chunked_upload(self) -> None:
        world = World()
        client = world.client()
        client.send(
            "POST /v1/x HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        world.reactor.advance(0)
        backend = world.backend()
        self.assertIn(b"Transfer-Encoding: chunked", backend.request())
        client.send("0\r\n\r\n")
        self.assertTrue(backend.request().endswith(b"3\r\nabc\r\n0\r\n\r\n"))
        backend.respond(b"{}")
        self.assertEqual(client.body(), b"{}")

    def test_backpressure_on_the_upload(self) -> None:
        world = World(header_timeout=60)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\nabc")
        world.reactor.advance(0)
        backend = world.backend()
        backend.pause()
        self.assertEqual(client.wire.producerState, "paused")
        world.pass_time(100, step=1)
        self.assertFalse(client.wire.closed)
        backend.resume()
        self.assertEqual(client.wire.producerState, "producing")

    def test_backend_does_not_read_the_upload(self) -> None:
        world = World(idle_timeout=30)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\nabc")
        world.reactor.advance(0)
        backend = world.backend()
        backend.pause()
        world.pass_time(31)
        self.assertEqual(client.status(), 504)
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_first_byte_timeout_starts_after_the_upload(self) -> None:
        world = World(first_byte_timeout=30, idle_timeout=50, header_timeout=60)
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\n")
        world.reactor.advance(0)
        backend = world.backend()
        for letter in "abc":
            world.pass_time(19)
            client.send(letter)
        self.assertEqual(client.status(), 0)
        self.assertFalse(backend.wire.aborted)

    def test_post_requests_take_a_slot(self) -> None:
        world = World(max_concurrent=1)
        world.start_chat()
        client = world.client()
        client.post("/v1/embeddings", b"{}")
        self.assertEqual(world.load()["waiting"], 1)

    def test_queued_upload_is_buffered_up_to_a_limit(self) -> None:
        world = World(max_concurrent=1)
        _, running = world.start_chat()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 2000000\r\n\r\n")
        client.send(b"x" * UPLOAD_BUFFER)
        self.assertEqual(client.wire.producerState, "producing")
        client.send(b"x" * 10)
        self.assertEqual(client.wire.producerState, "paused")
        running.respond(b"{}", "500 Oh no")
        world.reactor.advance(0)
        backend = world.backend()
        self.assertEqual(client.wire.producerState, "producing")
        self.assertEqual(len(backend.request().partition(b"\r\n\r\n")[2]), UPLOAD_BUFFER + 10)

    def test_get_requests_take_no_slot(self) -> None:
        world = World(max_concurrent=1)
        world.start_chat()
        client = world.client()
        client.get("/v1/models")
        world.backend().respond(b'{"data": []}')
        self.assertEqual(client.body(), b'{"data": []}')

    def test_error_response_during_the_upload(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\nabc")
        world.reactor.advance(0)
        world.backend().respond(b'{"detail": "no"}', "415 No")
        self.assertEqual(client.status(), 415)
        self.assertEqual(client.error()["message"], "no")
        self.assertTrue(client.is_complete())
        self.assertEqual(client.headers()["connection"], "close")
        self.assertFalse(client.wire.disconnecting)
        client.send("def")
        self.assertTrue(client.wire.disconnecting)

    def test_error_response_before_100_continue(self) -> None:
        world = World(max_concurrent=1, max_queue=0)
        world.start_chat()
        client = world.client()
        client.send(
            "POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assertEqual(client.status(), 429)
        self.assertEqual(client.headers()["connection"], "close")
        self.assertNotIn(b"100 Continue", client.received())

    def test_error_response_during_an_endless_upload(self) -> None:
        world = World()
        client = world.client()
        client.send("POST /v1/x HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\nabc")
        world.reactor.advance(0)
        world.backend().respond(b'{"detail": "no"}', "415 No")
        world.pass_time(31)
        self.assertTrue(client.wire.closed)

    def test_truncated_response_never_looks_complete(self) -> None:
        world = World()
        for head in ("Content-Length: 10", "Transfer-Encoding: chunked"):
            client = world.client()
            client.get("/v1/files/7/content")
            backend = world.backend()
            backend.send(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc")
            backend.disconnect()
            world.reactor.advance(0)
            self.assertFalse(client.is_complete())
            self.assertTrue(client.wire.closed)
        self.assertEqual(world.load(), IDLE)

    def test_hop_by_hop_headers_are_not_forwarded(self) -> None:
        world = World()
        client = world.client()
        client.get("/v1/x", Connection="keep-alive, X-Hop", X_Hop="1", TE="trailers", X_End="2")
        backend = world.backend()
        request = backend.request()
        for name in (b"X-Hop", b"trailers", b"keep-alive"):
            self.assertNotIn(name, request)
        self.assertIn(b"X-End: 2\r\n", request)
        backend.send(
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nX-End: 2\r\nServer: uvicorn\r\n"
            "Set-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
        )
        world.reactor.advance(0)
        headers = client.headers()
        self.assertEqual(headers["x-end"], "2")
        self.assertNotIn("keep-alive", headers)
        self.assertNotIn("set-cookie", headers)
        self.assertTrue(headers["server"].startswith("blockops/"))

    def test_unknown_event_stream(self) -> None:
        world = World(heartbeat=10)
        client = world.client()
        client.post("/v1/responses", b'{"stream": true}')
        backend = world.backend()
        backend.begin_stream()
        backend.stream("event: response.created\ndata: {}\n\n")
        world.pass_time(11)
        self.assertIn(b": heartbeat\n\n", client.body())
        backend.stream("event: response.completed\ndata: {}\n\n")
        backend.end_stream()
        world.reactor.advance(0)
        self.assertTrue(client.is_complete())
        self.assertEqual(
            client.body().replace(b": heartbeat\n\n", b""),
            b"event: response.created\ndata: {}\n\nevent: response.completed\ndata: {}\n\n",
        )

    def test_truncated_unknown_event_stream(self) -> None:
        world = World()
        client = world.client()
        client.post("/v1/responses", b'{"stream": true}')
        backend = world.backend()
        backend.begin_stream()
        backend.stream("event: response.created\ndata: {}\n\n")
        backend.disconnect()
        world.reactor.advance(0)
        self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "backend_truncated")
        self.assertTrue(client.is_complete())
        self.assertEqual(world.load(), IDLE)

    def test_head(self) -> None:
        world = World()
        client = world.client()
        client.request("HEAD", "/v1/models")
        backend = world.backend()
        self.assertTrue(backend.request().startswith(b"HEAD /v1/models"))
        backend.send("HTTP/1.1 200 OK\r\nContent-Length: 55\r\n\r\n")
        world.reactor.advance(0)
        self.assertEqual(client.status(), 200)
        self.assertTrue(client.received().endswith(b"\r\n\r\n"))
        self.assertEqual(world.load(), IDLE)


class WholeAsStreamTests(SynchronousTestCase):
    """`--whole-as-stream`: the backend streams, and the client receives one JSON document."""

    def start(self, **settings: Any) -> tuple[World, Client, Backend]:
        world = World(whole_as_stream=True, **settings)
        client, backend = world.start_chat(stream=False)
        request = backend.request_json()
        self.assertTrue(request["stream"])
        self.assertEqual(request["stream_options"], {"include_usage": True})
        return world, client, backend

    def test_a_call(self) -> None:
        world, client, backend = self.start()
        backend.begin_stream()
        for piece in ('Hm. <tool_call>{"name": "get_weather", ', '"arguments": {"city": "Rome"}}'):
            backend.stream(chunk(piece))
        self.assertEqual(client.status(), 0)
        backend.stream(chunk("</tool_call>"), chunk(finish="stop"))
        usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
        backend.stream(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n", DONE)
        world.reactor.advance(0)
        answer = client.json()
        self.assertEqual((answer["object"], answer["usage"]), ("chat.completion", usage))
        (choice,) = answer["choices"]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertEqual(choice["message"]["content"], "Hm.")
        (call,) = choice["message"]["tool_calls"]
        self.assertEqual(json.loads(call["function"]["arguments"]), {"city": "Rome"})
        self.assertEqual(world.load(), IDLE)
        (response,) = world.traffic.responses()
        self.assertEqual(list(response.calls), ["get_weather"])

    def test_client_disconnects(self) -> None:
        world, client, backend = self.start()
        backend.begin_stream()
        backend.stream(chunk("Hi"))
        client.disconnect()
        self.assertTrue(backend.wire.aborted)
        self.assertEqual(world.load(), IDLE)

    def test_heartbeats(self) -> None:
        world, client, backend = self.start(heartbeat=10, heartbeat_json=True)
        world.pass_time(11)
        backend.begin_stream()
        backend.stream(chunk("Hi"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertTrue(client.body().startswith(b"\n{"))
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "Hi")

    def test_truncated(self) -> None:
        world, client, backend = self.start()
        backend.begin_stream()
        backend.stream(chunk("Hi"))
        backend.disconnect()
        world.reactor.advance(0)
        self.assertEqual(client.status(), 502)
        self.assertEqual(client.error()["code"], "backend_truncated")
        self.assertEqual(world.load(), IDLE)

    def test_too_long(self) -> None:
        world, client, backend = self.start(max_answer=1024)
        backend.begin_stream()
        for _ in range(20):
            backend.stream(chunk("x" * 100))
        world.reactor.advance(0)
        self.assertEqual(client.status(), 502)
        self.assertTrue(backend.wire.aborted)

    def test_backend_sends_json(self) -> None:
        _, client, backend = self.start()
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        backend.respond({"id": "1", "object": "chat.completion", "choices": [choice]})
        self.assertEqual(client.json()["choices"][0]["message"]["content"], "Hello")

    def test_completions(self) -> None:
        world = World(whole_as_stream=True)
        client = world.client()
        client.post("/v1/completions", {"prompt": "x"})
        backend = world.backend()
        self.assertTrue(backend.request_json()["stream"])
        backend.begin_stream()
        for text, finish in (("a", None), ("b", "stop")):
            choice = {"index": 0, "text": text, "finish_reason": finish}
            backend.stream(f"data: {json.dumps({'id': '1', 'choices': [choice]})}\n\n")
        backend.stream(DONE)
        world.reactor.advance(0)
        self.assertEqual(client.json()["choices"][0]["text"], "ab")


class CompletionTests(SynchronousTestCase):
    def test_text_is_not_translated(self) -> None:
        world = World()
        client = world.client()
        client.post("/v1/completions", {"prompt": "x", "stream": True})
        backend = world.backend()
        backend.begin_stream()
        text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        body = {"id": "1", "choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}
        backend.stream(f"data: {json.dumps(body)}\n\n", DONE)
        world.reactor.advance(0)
        self.assertEqual(json.loads(client.events()[0]), body)
        self.assertEqual(client.events()[-1], "[DONE]")

    def test_json(self) -> None:
        world = World()
        client = world.client()
        client.post("/v1/completions", {"prompt": "x"})
        body = b'{"id": "1", "choices": [{"index": 0, "text": "<tool_call>", "x": 1.0}]}'
        world.backend().respond(body)
        self.assertEqual(client.body(), body)


class ModelTests(SynchronousTestCase):
    LIST = b'{"object": "list", "data": [{"id": "a"}, {"id": "org/b",  "owned_by": "me"}]}'

    def start(self, target: str) -> World:
        world = World()
        self.client = world.client()
        self.client.get(target)
        return world

    def test_from_the_backend(self) -> None:
        world = self.start("/v1/models/org/b")
        backend = world.backend()
        self.assertTrue(backend.request().startswith(b"GET /v1/models/org/b HTTP"))
        backend.respond(b'{"id": "org/b"}')
        self.assertEqual(self.client.body(), b'{"id": "org/b"}')

    def test_from_the_list(self) -> None:
        for target in ("/v1/models/org/b", "/v1/models/org%2Fb"):
            world = self.start(target)
            world.backend().respond(b"Not Found", "404 Not Found", "text/plain")
            world.backend().respond(self.LIST)
            self.assertEqual(self.client.body(), b'{"id": "org/b",  "owned_by": "me"}')
            self.assertEqual(world.load(), IDLE)

    def test_unknown_model(self) -> None:
        world = self.start("/v1/models/c")
        world.backend().respond(b"<html>", "501 Unsupported", "text/html")
        world.backend().respond(self.LIST)
        self.assertEqual(self.client.status(), 404)
        self.assertEqual(self.client.error()["code"], "model_not_found")

    def test_invalid_list(self) -> None:
        world = self.start("/v1/models/c")
        world.backend().respond(b"", "405 No")
        world.backend().respond(b'{"data": 7}')
        self.assertEqual(self.client.status(), 404)

    def test_invalid_entries(self) -> None:
        world = self.start("/v1/models/c")
        world.backend().respond(b"", "404 No")
        world.backend().respond(b'{"data": [7, null, {"id": 1}, {"id": null}, {"id": "c"}]}')
        self.assertEqual(self.client.json(), {"id": "c"})

    def test_the_list_is_rejected(self) -> None:
        world = self.start("/v1/models/c")
        world.backend().respond(b"", "404 No")
        world.backend().respond(b'{"error": {"message": "Who are you?"}}', "401 No")
        self.assertEqual(self.client.status(), 401)
        self.assertEqual(self.client.error()["message"], "Who are you?")

    def test_head(self) -> None:
        world = World()
        client = world.client()
        client.request("HEAD", "/v1/models/a")
        world.backend().send("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        world.reactor.advance(0)
        world.backend().respond(self.LIST)
        self.assertEqual(client.status(), 200)
        self.assertTrue(client.received().endswith(b"\r\n\r\n"))

    def test_another_error(self) -> None:
        world = self.start("/v1/models/c")
        world.backend().respond(b"busy", "503 Busy", "text/plain")
        self.assertEqual(self.client.status(), 503)
        self.assertEqual(self.client.error()["message"], "busy")


class ReadinessTests(SynchronousTestCase):
    def test_ready(self) -> None:
        world = World()
        client = world.client()
        client.get("/ready")
        world.backend().respond(b"anything", "404 Not Found")
        self.assertEqual(client.status(), 200)

    def test_backend_is_loading(self) -> None:
        world = World()
        client = world.client()
        client.get("/ready")
        world.backend().respond(b'{"error": {"message": "Loading model"}}', "503 Loading")
        self.assertEqual(client.status(), 503)
        self.assertEqual(client.error()["message"], "Loading model")

    def test_backend_hangs(self) -> None:
        world = World()
        client = world.client()
        client.get("/ready")
        backend = world.backend()
        world.pass_time(11)
        self.assertEqual(client.status(), 503)
        self.assertTrue(backend.wire.aborted)


class CompressionTests(SynchronousTestCase):
    """Responses that are compressed although the request does not accept that."""

    WHOLE = json.dumps({"choices": [{"index": 0, "message": {"content": "hi"}}]}).encode()

    def get_response(self, coding: str, body: bytes, kind: str, **fields: Any) -> Client:
        world = World()
        client, backend = world.start_chat(**fields)
        self.assertIn(b"Accept-Encoding: identity\r\n", backend.request())
        backend.respond(body, kind=f"{kind}\r\nContent-Encoding: {coding}")
        self.assertEqual(world.load(), IDLE)
        return client

    def assert_rejected(self, client: Client, coding: str, status: int = 502) -> None:
        self.assertEqual(client.status(), status)
        self.assertEqual(client.error()["code"], "backend_response_compressed")
        self.assertIn(f"({coding})", client.error()["message"])
        self.assertIn("Turn compression off", client.error()["message"])

    def test_answers_are_rejected(self) -> None:
        for coding, body in (("gzip", gzip.compress(self.WHOLE)), ("br", self.WHOLE)):
            for kind in ("application/json", "text/event-stream"):
                for stream in (True, False):
                    client = self.get_response(coding, body, kind, stream=stream)
                    self.assert_rejected(client, coding)

    def test_errors_keep_their_status(self) -> None:
        world = World()
        for stream in (True, False):
            client, backend = world.start_chat(stream=stream)
            kind = "application/json\r\nContent-Encoding: gzip"
            backend.respond(gzip.compress(b"{}"), "429 Too Many Requests", kind)
            self.assert_rejected(client, "gzip", 429)
            self.assertTrue(backend.wire.aborted)
            self.assertEqual(world.load(), IDLE)

    def test_other_bodies_that_blockops_reads_are_rejected(self) -> None:
        world = World(model_alias={"qwen": "Qwen/x"})
        for path, kind in (
            ("/v1/embeddings", "application/json"),
            ("/v1/responses", "text/event-stream"),
        ):
            client = world.client()
            client.post(path, {"model": "qwen"})
            world.backend().respond(b"tight", kind=f"{kind}\r\nContent-Encoding: deflate")
            self.assert_rejected(client, "deflate")
        client = world.client()
        client.get("/v1/models")
        world.backend().respond(b"tight", kind="application/json\r\nContent-Encoding: x-gzip")
        self.assert_rejected(client, "x-gzip")
        self.assertEqual(world.load(), IDLE)

    def test_passthrough_stays_compressed(self) -> None:
        world = World()
        for coding in ("br", "gzip"):
            client = world.client()
            client.get("/v1/files")
            world.backend().respond(b"tight", kind=f"text/plain\r\nContent-Encoding: {coding}")
            self.assertEqual(client.headers()["content-encoding"], coding)
            self.assertEqual(client.body(), b"tight")
