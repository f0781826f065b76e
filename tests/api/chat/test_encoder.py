"""Chunks are rewritten and encoded; all that does not change keeps its bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.answer import (
    AnswerEvent,
    BackendCalls,
    CallArguments,
    CallStarted,
    ContentDelta,
    Finished,
    PartDropped,
    ReasoningDelta,
    RoleStarted,
)
from blockops.api.chat.chunks import ChunkChoice, Delta
from blockops.api.chat.decoder import decode_chunk, decode_chunk_leniently
from blockops.api.chat.encoder import (
    Rewrites,
    only_usage,
    response_as_chunk,
    rewrite_chunk,
    rewrite_response,
    without_usage,
)


def text(value: str) -> ContentDelta:
    return ContentDelta(0, value)


def rewrite_data(data: bytes, rewrites: Rewrites) -> list[bytes]:
    """Return the chunks that replace `data`, as JSON."""
    chunks = rewrite_chunk(data, decode_chunk(data).choices or [], rewrites)
    return [msgspec.json.encode(chunk) for chunk in chunks]


class RewriteChunkTests(SynchronousTestCase):
    CHUNK = (
        b'{"id":"i","choices":[{"index":0,"delta":{"role":"assistant","content":"ab","k":1.0},'
        b'"logprobs":{"l":2.0},"none":null,"finish_reason":"stop"}],"usage":{"u":3.0},"v":null}'
    )

    def rewrite(self, *events: AnswerEvent, data: bytes = CHUNK) -> list[bytes]:
        """Return the chunks that replace `data`, whose only choice is rewritten."""
        return rewrite_data(data, [events])

    def test_one_delta(self) -> None:
        (chunk,) = self.rewrite(text("x"))
        self.assertEqual(
            chunk,
            b'{"id":"i","choices":[{"index":0,"delta":{"k":1.0,"content":"x"},"logprobs":{"l":2.0},'
            b'"none":null,"finish_reason":null}],"usage":{"u":3.0},"v":null}',
        )

    def test_two_deltas(self) -> None:
        first, second = self.rewrite(text("a"), Finished(0, "length"))
        self.assertEqual(
            first,
            b'{"id":"i","choices":[{"index":0,"delta":{"k":1.0,"content":"a"},"logprobs":{"l":2.0},'
            b'"none":null,"finish_reason":null}],"v":null}',
        )
        self.assertEqual(
            second,
            b'{"id":"i","choices":[{"index":0,"delta":{},"none":null,"finish_reason":"length"}],'
            b'"usage":{"u":3.0},"v":null}',
        )

    def test_calls_go_into_the_last_delta(self) -> None:
        """Reasoning precedes the content, calls follow it."""
        for field, value in (("tool_calls", b'[{"index":0}]'), ("function_call", b'{"name":"f"}')):
            data = self.CHUNK.replace(b'"k"', b'"%s":%s,"k"' % (field.encode(), value))
            chunks = self.rewrite(text("a"), Finished(0, "stop"), data=data)
            first, second = (json.loads(chunk)["choices"][0] for chunk in chunks)
            self.assertEqual(first["delta"], {"content": "a", "k": 1.0})
            self.assertEqual(second["delta"], {field: json.loads(value)})
            self.assertEqual(first["logprobs"], {"l": 2.0})
            self.assertNotIn("logprobs", second)

    def test_calls_after_calls(self) -> None:
        data = b'{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}'
        chunks = self.rewrite(CallArguments(0, 7, "{"), data=data)
        indexes = [json.loads(chunk)["choices"][0]["delta"]["tool_calls"] for chunk in chunks]
        self.assertEqual(indexes, [[{"index": 7, "function": {"arguments": "{"}}], [{"index": 0}]])

    def test_empty_calls(self) -> None:
        data = b'{"choices":[{"delta":{"content":"ab","tool_calls":[],"function_call":null}}]}'
        first, second = map(json.loads, self.rewrite(text("a"), text("b"), data=data))
        empty: dict[str, Any] = {"tool_calls": [], "function_call": None}
        self.assertEqual(first["choices"][0]["delta"], {"content": "a", **empty})
        self.assertEqual(second["choices"][0]["delta"], {"content": "b"})

    def test_other_fields_in_a_separate_delta(self) -> None:
        """If the other fields and a delta share a field, both are sent."""
        data = self.CHUNK.replace(b'"k"', b'"reasoning_content"')
        events = (ReasoningDelta(0, "x"), Finished(0, "stop"))
        choices = [json.loads(chunk)["choices"][0] for chunk in self.rewrite(*events, data=data)]
        expected = [{"reasoning_content": 1.0}, {"reasoning_content": "x"}, {}]
        self.assertEqual([choice["delta"] for choice in choices], expected)
        self.assertEqual([choice["finish_reason"] for choice in choices], [None, None, "stop"])

    def test_role_comes_first(self) -> None:
        data = self.CHUNK.replace(b'"content":"ab","k":1.0', b'"content":1.0')
        chunks = rewrite_chunk(
            data,
            decode_chunk_leniently(data).choices or [],
            [[RoleStarted(0, "assistant"), text("x")]],
        )
        deltas = [json.loads(msgspec.json.encode(chunk))["choices"][0]["delta"] for chunk in chunks]
        self.assertEqual(deltas, [{"role": "assistant", "content": 1.0}, {"content": "x"}])

    def test_no_delta(self) -> None:
        (chunk,) = map(json.loads, self.rewrite())
        self.assertEqual(chunk["choices"][0]["delta"], {"k": 1.0})
        self.assertEqual(chunk["choices"][0]["logprobs"], {"l": 2.0})
        self.assertEqual(chunk["usage"], {"u": 3.0})

    def test_dropped_choice(self) -> None:
        (chunk,) = self.rewrite(PartDropped(0))
        self.assertEqual(chunk, b'{"id":"i","choices":[],"usage":{"u":3.0},"v":null}')

    def test_nothing_to_send(self) -> None:
        data = b'{"id":"i","choices":[{"index":0,"delta":{"content":"a"},"x":null}],"usage":null}'
        self.assertEqual(self.rewrite(data=data), [])
        for fields in (b'{"refusal":null,"content":"a"}', b'{"tool_calls":[],"content":"a"}'):
            self.assertEqual(self.rewrite(data=b'{"choices":[{"delta":%s}]}' % fields), [])

    def test_unchanged_choice(self) -> None:
        data = b'{"choices":[{"index":0,"delta":{"content":"a"}, "x":1.0},{"index":1,"delta":{}}]}'
        chunks = rewrite_data(data, [None, [text("b")]])
        self.assertEqual(chunks[0], b'{"choices":[{"index":0,"delta":{"content":"a"},"x":1.0}]}')
        self.assertEqual(json.loads(chunks[1])["choices"][0]["delta"], {"content": "b"})

    def test_index_offset(self) -> None:
        data = b'{"choices":[{"delta":{"tool_calls":[{"index":1,"id":"a","k":1.0},{"id":"b"}]}}]}'
        (chunk,) = rewrite_data(data, [[BackendCalls(0, 2)]])
        calls = b'[{"index":3,"id":"a","k":1.0},{"id":"b","index":3}]'
        self.assertIn(b'"tool_calls":' + calls, chunk)


class NonStreamingTests(SynchronousTestCase):
    RESPONSE = (
        b'{"id":"i","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
        b'"content":"a","k":1.0,"tool_calls":[{"id":"t","n":2.0}]},"finish_reason":"stop"}],'
        b'"usage":{"u":3.0}}'
    )

    def test_whole_as_chunk(self) -> None:
        self.assertEqual(
            response_as_chunk(self.RESPONSE),
            b'{"id":"i","object":"chat.completion.chunk","choices":[{"index":0,"finish_reason":"stop",'
            b'"delta":{"role":"assistant","content":"a","k":1.0,"tool_calls":'
            b'[{"index":0,"id":"t","n":2.0}]}}],"usage":{"u":3.0}}',
        )

    def test_split_usage(self) -> None:
        usage = only_usage(self.RESPONSE)
        self.assertNotIn(b"usage", without_usage(self.RESPONSE))
        self.assertEqual(
            usage, b'{"id":"i","object":"chat.completion","choices":[],"usage":{"u":3.0}}'
        )

    def test_rewrite_whole(self) -> None:
        events: list[AnswerEvent] = [
            text("x"),
            CallStarted(0, 0, "c", "f"),
            CallArguments(0, 0, "{"),
            CallArguments(0, 0, "}"),
            text("y"),
            Finished(0, "tool_calls"),
        ]
        choices = [ChunkChoice(0, Delta(content="a"))]
        response = rewrite_response(self.RESPONSE, choices, [events])
        self.assertEqual(
            response,
            b'{"id":"i","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
            b'"content":"xy","k":1.0,"tool_calls":[{"id":"c","type":"function","function":'
            b'{"name":"f","arguments":"{}"}},{"id":"t","n":2.0}]},"finish_reason":"tool_calls"}],'
            b'"usage":{"u":3.0}}',
        )
