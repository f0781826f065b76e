"""The memory that blockops holds for an open stream."""

from __future__ import annotations

import gc
import tracemalloc

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from blockops.api.request import ChatRequest
from blockops.conversation.turn import ChatTurn, UncountedItem
from tests.world import Backend, Client, World, chat, chunk


class FootprintTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(
            max_concurrent=1000, token_warn_threshold=1 << 30, token_hard_threshold=1 << 30
        )

    def open_stream(self, **fields: object) -> tuple[Client, Backend]:
        """Request a stream, and send its first chunk."""
        client = self.world.client()
        client.post("/v1/chat/completions", chat(**fields))
        backend = self.world.backend()
        backend.begin_stream()
        backend.stream(chunk("Hello"))
        self.assertIn(b"Hello", client.body())
        # The test's own copies do not count.
        self.world.traffic.records.clear()
        client.wire.clear()
        backend.wire.clear()
        return client, backend

    def test_an_idle_stream_is_small(self) -> None:
        """Its sockets and its session take another 3 KB."""
        for _ in range(20):
            self.open_stream()
        streams = [self.open_stream() for _ in range(100)]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        streams += [self.open_stream() for _ in range(100)]
        gc.collect()
        tests = ("*tests/*", "*internet/testing.py")
        ours = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(inclusive=False, filename_pattern=name) for name in tests]
        )
        size = sum(trace.size for trace in ours.traces) / 100
        self.assertLess(size, 13_000)

    def test_the_request_is_released_while_streaming(self) -> None:
        gc.collect()
        before = _count_live()
        self.open_stream()
        gc.collect()
        self.assertEqual(_count_live(), before)

    def test_the_history_is_released_while_streaming(self) -> None:
        """Also the messages whose tokens were not known yet."""
        self.world = World(
            token_hard_threshold=10_000, token_warn_threshold=9_000, token_target=8_000
        )
        client = self.world.client()
        history = "the history of a long conversation " * 500
        client.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": history}]))
        tokenizer = self.world.backend()
        self.assertIn(b"/tokenize", tokenizer.request())
        tokenizer.respond(b"{}", "404 Not Found")
        backend = self.world.backend()
        backend.begin_stream()
        backend.stream(chunk("Hello"))
        self.assertIn(b"Hello", client.body())
        gc.collect()
        self.assertFalse(any(isinstance(each, UncountedItem) for each in gc.get_objects()))

    def test_headers_are_released_while_streaming(self) -> None:
        gc.collect()
        before = {id(each) for each in gc.get_objects() if isinstance(each, Headers)}
        self.open_stream()
        gc.collect()
        leaked = [
            each
            for each in gc.get_objects()
            if isinstance(each, Headers) and id(each) not in before and _fields(each)
        ]
        self.assertEqual(leaked, [])

    def test_the_prompt_is_released_while_streaming(self) -> None:
        size = 1_000_000
        self.open_stream()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.open_stream(messages=[{"role": "user", "content": "x" * size}])
        gc.collect()
        traced, _ = tracemalloc.get_traced_memory()
        self.assertLess(traced, size / 2)


def _fields(headers: Headers) -> list[tuple[bytes, object]]:
    return list(headers.getAllRawHeaders())


def _count_live() -> int:
    """Return the number of chat requests and turns that exist."""
    return sum(isinstance(each, ChatRequest | ChatTurn) for each in gc.get_objects())
