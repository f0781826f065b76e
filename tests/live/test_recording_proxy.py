"""The recording proxy relays and records all bytes, and slows responses down."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.live.backends import Backend, stream_text
from tests.live.harness import chat_body, open_stream, send_request
from tests.live.recording_proxy import READ_SIZE, RecordingProxy


class RecordingProxyTests(SynchronousTestCase):
    def test_a_stream_is_relayed_and_recorded(self) -> None:
        with Backend(stream_text("Hello there.")) as backend, RecordingProxy(backend.url) as proxy:
            stream = open_stream(proxy.url, chat_body("who is there?")).read()
            self.assertEqual((stream.text, stream.done_count), ("Hello there.", 1))
            self.assertIn(b"who is there?", proxy.request_bytes)
            self.assertIn(b"data: [DONE]", proxy.response_bytes)

    def test_many_connections(self) -> None:
        with Backend(stream_text("Hello there.")) as backend, RecordingProxy(backend.url) as proxy:
            for _ in range(5):
                self.assertEqual(send_request(proxy.url, chat_body()).status, 200)

    def test_a_pause_before_each_piece_of_a_response(self) -> None:
        text = "x" * (4 * READ_SIZE)
        with (
            Backend(stream_text(text, piece_size=READ_SIZE)) as backend,
            RecordingProxy(backend.url, pause=0.05) as proxy,
        ):
            start = time.monotonic()
            stream = open_stream(proxy.url, chat_body()).read()
            self.assertEqual(stream.text, text)
            self.assertGreater(time.monotonic() - start, 4 * 0.05)

    def test_a_disconnect_is_passed_on(self) -> None:
        with (
            Backend(stream_text("a" * 400, pause=0.05)) as backend,
            RecordingProxy(backend.url) as proxy,
        ):
            stream = open_stream(proxy.url, chat_body())
            next(stream.iter_lines())
            stream.close()
            self.assertTrue(backend.wait_until(lambda one: one.open_connections == 0))

    def test_no_server(self) -> None:
        with RecordingProxy("http://127.0.0.1:9") as proxy:
            parts = urlsplit(proxy.url)
            address = (parts.hostname or "", parts.port or 0)
            with socket.create_connection(address, timeout=20) as connection:
                self.assertEqual(connection.recv(1), b"")
