"""What blockops holds in memory for a stream that is under way."""

from __future__ import annotations

import gc
import tracemalloc

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from blockops.api.chat.request import ChatRequest
from blockops.conversation.turn import Turn
from tests.world import Backend, Client, World, chat, chunk


class Held(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(
            max_concurrent=1000, token_warn_threshold=1 << 30, token_hard_threshold=1 << 30
        )

    def begin(self, **fields: object) -> tuple[Client, Backend]:
        """Ask for a stream, and let it begin."""
        client = self.world.client()
        client.post("/v1/chat/completions", chat(**fields))
        backend = self.world.backend()
        backend.begin_stream()
        backend.stream(chunk("Hello"))
        self.assertIn(b"Hello", client.body())
        # What the test itself keeps is not meant.
        self.world.traffic.records.clear()
        client.wire.clear()
        backend.wire.clear()
        return client, backend

    def test_an_idle_stream_takes_little(self) -> None:
        """With its sockets and what its session is known by, it is 3 KB more."""
        for _ in range(20):
            self.begin()
        streams = [self.begin() for _ in range(100)]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        streams += [self.begin() for _ in range(100)]
        gc.collect()
        tests = ("*tests/*", "*internet/testing.py")
        ours = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(inclusive=False, filename_pattern=name) for name in tests]
        )
        held = sum(trace.size for trace in ours.traces) / 100
        self.assertLess(held, 13_000)

    def test_request_is_not_kept_while_its_answer_comes(self) -> None:
        gc.collect()
        before = _alive()
        self.begin()
        gc.collect()
        self.assertEqual(_alive(), before)

    def test_headers_are_not_kept_while_an_answer_comes(self) -> None:
        gc.collect()
        before = {id(each) for each in gc.get_objects() if isinstance(each, Headers)}
        self.begin()
        gc.collect()
        kept = [
            each
            for each in gc.get_objects()
            if isinstance(each, Headers) and id(each) not in before and _said(each)
        ]
        self.assertEqual(kept, [])

    def test_prompt_is_not_kept_while_its_answer_comes(self) -> None:
        size = 1_000_000
        self.begin()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.begin(messages=[{"role": "user", "content": "x" * size}])
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        self.assertLess(held, size / 2)


def _said(headers: Headers) -> list[tuple[bytes, object]]:
    return list(headers.getAllRawHeaders())


def _alive() -> int:
    """Return how many requests there are, and turns of conversations."""
    return sum(isinstance(each, ChatRequest | Turn) for each in gc.get_objects())
