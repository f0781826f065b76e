"""What goes through the relay arrives, is remembered, and can be slow."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.live.backends import Backend, says
from tests.live.harness import ask, open_stream, question
from tests.live.wiretap import PIECE, Wiretap


class WiretapTests(SynchronousTestCase):
    def test_a_stream_comes_through_and_is_remembered(self) -> None:
        with Backend(says("Hello there.")) as backend, Wiretap(backend.url) as tap:
            stream = open_stream(tap.url, question("who is there?")).read()
            self.assertEqual((stream.text, stream.done), ("Hello there.", 1))
            self.assertIn(b"who is there?", tap.asked)
            self.assertIn(b"data: [DONE]", tap.answered)

    def test_many_connections(self) -> None:
        with Backend(says("Hello there.")) as backend, Wiretap(backend.url) as tap:
            for _ in range(5):
                self.assertEqual(ask(tap.url, question()).status, 200)

    def test_each_piece_of_an_answer_waits(self) -> None:
        text = "x" * (4 * PIECE)
        with Backend(says(text, piece=PIECE)) as backend, Wiretap(backend.url, pause=0.05) as tap:
            start = time.monotonic()
            stream = open_stream(tap.url, question()).read()
            self.assertEqual(stream.text, text)
            self.assertGreater(time.monotonic() - start, 4 * 0.05)

    def test_who_leaves_is_gone_on_the_other_side_too(self) -> None:
        with Backend(says("a" * 400, pause=0.05)) as backend, Wiretap(backend.url) as tap:
            stream = open_stream(tap.url, question())
            next(stream.lines())
            stream.close()
            self.assertTrue(backend.wait_until(lambda one: one.open == 0))

    def test_nobody_behind_it(self) -> None:
        with Wiretap("http://127.0.0.1:9") as tap:
            parts = urlsplit(tap.url)
            address = (parts.hostname or "", parts.port or 0)
            with socket.create_connection(address, timeout=20) as connection:
                self.assertEqual(connection.recv(1), b"")
