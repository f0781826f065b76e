"""Chunks are taken apart and put together without touching what does not change."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.chunks import (
    Choice,
    Delta,
    Piece,
    Rewritten,
    as_chunk,
    decode_chunk,
    envelope,
    event,
    join,
    loose_chunk,
    spread,
    without_usage,
)
from blockops.api.lenient_json import UNREADABLE


def text(value: str) -> Piece:
    return Piece({"content": value})


class EventTests(SynchronousTestCase):
    def test_one_line(self) -> None:
        self.assertEqual(event(b'{"a": 1}'), b'data: {"a": 1}\n\n')

    def test_line_ends_are_taken_out(self) -> None:
        made = event(b'{\r\n "a": [1.50,\n "\\n"]\n}')
        self.assertEqual(made, b'data: {"a":[1.50,"\\n"]}\n\n')
        self.assertEqual(event(b'{\r"a":\r1}'), b'data: {"a":1}\n\n')


class ReadTests(SynchronousTestCase):
    def test_bytes_that_are_no_text(self) -> None:
        """Nothing that is no UTF-8 counts as read, wherever it stands."""
        good = b'{"choices":[{"delta":{"content":"\xc3\xa9"}}],"x":"\xc3\xa9"}'
        self.assertIsNotNone(decode_chunk(good).choices)
        for part in (b'"content":"\xc3\xa9"', b'"x":"\xc3\xa9"'):
            bad = good.replace(part, part.replace(b"\xa9", b""))
            self.assertRaises(UNREADABLE, decode_chunk, bad)

    def test_loose(self) -> None:
        """What has another type than it should counts as missing, what is right does not."""
        data = {
            "choices": [
                {"index": 1, "delta": {"role": "r", "content": 5}, "finish_reason": "stop"},
                {"index": "2", "message": {"content": "c"}, "text": "t"},
            ],
            "usage": {"a": 1},
            "error": 5,
        }
        read = loose_chunk(json.dumps(data).encode())
        self.assertEqual(
            read.choices,
            [
                Choice(1, Delta("r"), finish_reason="stop"),
                Choice(None, message=Delta(content="c"), text="t"),
            ],
        )
        self.assertEqual((read.usage, read.error), ({"a": 1}, 5))

    def test_nothing_like_a_chunk(self) -> None:
        for data in (b"[]", b"5", b'{"choices":[5]}', b'{"choices":[{},null]}'):
            self.assertRaises(ValueError, loose_chunk, data)
        self.assertIsNone(loose_chunk(b'{"choices":5}').choices)

    def test_envelope(self) -> None:
        data = b'{"id":"i","x":1,"created":1.0,"choices":[],"usage":null,"model":null}'
        self.assertEqual(
            {key: bytes(raw) for key, raw in envelope(data).items()},
            {"id": b'"i"', "created": b"1.0", "model": b"null"},
        )


class SpreadTests(SynchronousTestCase):
    CHUNK = (
        b'{"id":"i","choices":[{"index":0,"delta":{"role":"assistant","content":"ab","k":1.0},'
        b'"logprobs":{"l":2.0},"none":null,"finish_reason":"stop"}],"usage":{"u":3.0},"v":null}'
    )

    def spread(self, *pieces: Piece, rest: str = "along", data: bytes = CHUNK) -> list[bytes]:
        choices = decode_chunk(data).choices or []
        return spread(data, choices, [Rewritten(list(pieces), rest)])  # type: ignore[arg-type]

    def test_one_piece(self) -> None:
        (made,) = self.spread(text("x"))
        self.assertEqual(
            made,
            b'{"id":"i","choices":[{"index":0,"delta":{"k":1.0,"content":"x"},"logprobs":{"l":2.0},'
            b'"none":null,"finish_reason":null}],"usage":{"u":3.0},"v":null}',
        )

    def test_two_pieces(self) -> None:
        first, second = self.spread(text("a"), Piece({}, "length"))
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

    def test_calls_in_the_last_piece(self) -> None:
        """Thoughts stand in front of the text, calls behind it."""
        for field, said in (("tool_calls", b'[{"index":0}]'), ("function_call", b'{"name":"f"}')):
            data = self.CHUNK.replace(b'"k"', b'"%s":%s,"k"' % (field.encode(), said))
            made = self.spread(text("a"), Piece({}, "stop"), data=data)
            first, second = (json.loads(chunk)["choices"][0] for chunk in made)
            self.assertEqual(first["delta"], {"content": "a", "k": 1.0})
            self.assertEqual(second["delta"], {field: json.loads(said)})
            self.assertEqual(first["logprobs"], {"l": 2.0})
            self.assertNotIn("logprobs", second)

    def test_calls_behind_calls(self) -> None:
        data = b'{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}'
        made = self.spread(Piece({"tool_calls": [{"index": 7}]}), data=data)
        indexes = [json.loads(chunk)["choices"][0]["delta"]["tool_calls"] for chunk in made]
        self.assertEqual(indexes, [[{"index": 7}], [{"index": 0}]])

    def test_calls_that_are_none(self) -> None:
        data = b'{"choices":[{"delta":{"content":"ab","tool_calls":[],"function_call":null}}]}'
        first, second = map(json.loads, self.spread(text("a"), text("b"), data=data))
        nothing: dict[str, Any] = {"tool_calls": [], "function_call": None}
        self.assertEqual(first["choices"][0]["delta"], {"content": "a", **nothing})
        self.assertEqual(second["choices"][0]["delta"], {"content": "b"})

    def test_rest_in_a_piece_of_its_own(self) -> None:
        """Where the rest and a piece have a field in common, neither is lost."""
        made = [json.loads(chunk) for chunk in self.spread(Piece({"k": "x"}, "stop"))]
        choices = [chunk["choices"][0] for chunk in made]
        self.assertEqual([choice["delta"] for choice in choices], [{"k": 1.0}, {"k": "x"}])
        self.assertEqual([choice["finish_reason"] for choice in choices], [None, "stop"])

    def test_the_role_comes_first_all_the_same(self) -> None:
        made = map(json.loads, self.spread(Piece({"role": "assistant", "k": "x"})))
        deltas = [chunk["choices"][0]["delta"] for chunk in made]
        self.assertEqual(deltas, [{"role": "assistant", "k": 1.0}, {"k": "x"}])

    def test_no_piece(self) -> None:
        (made,) = map(json.loads, self.spread())
        self.assertEqual(made["choices"][0]["delta"], {"k": 1.0})
        self.assertEqual(made["choices"][0]["logprobs"], {"l": 2.0})
        self.assertEqual(made["usage"], {"u": 3.0})

    def test_nowhere(self) -> None:
        (made,) = self.spread(rest="nowhere")
        self.assertEqual(made, b'{"id":"i","choices":[],"usage":{"u":3.0},"v":null}')

    def test_nothing_left(self) -> None:
        data = b'{"id":"i","choices":[{"index":0,"delta":{"content":"a"},"x":null}],"usage":null}'
        self.assertEqual(self.spread(data=data), [])
        for nothing in (b'{"refusal":null,"content":"a"}', b'{"tool_calls":[],"content":"a"}'):
            self.assertEqual(self.spread(data=b'{"choices":[{"delta":%s}]}' % nothing), [])

    def test_choice_that_stays(self) -> None:
        data = b'{"choices":[{"index":0,"delta":{"content":"a"}, "x":1.0},{"index":1,"delta":{}}]}'
        choices = decode_chunk(data).choices or []
        made = spread(data, choices, [None, Rewritten([text("b")])])
        self.assertEqual(made[0], b'{"choices":[{"index":0,"delta":{"content":"a"},"x":1.0}]}')
        self.assertEqual(json.loads(made[1])["choices"][0]["delta"], {"content": "b"})

    def test_shift(self) -> None:
        data = b'{"choices":[{"delta":{"tool_calls":[{"index":1,"id":"a","k":1.0},{"id":"b"}]}}]}'
        choices = decode_chunk(data).choices or []
        (made,) = spread(data, choices, [Rewritten([], shift=2)])
        calls = b'[{"index":3,"id":"a","k":1.0},{"id":"b","index":3}]'
        self.assertIn(b'"tool_calls":' + calls, made)


class WholeTests(SynchronousTestCase):
    ANSWER = (
        b'{"id":"i","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
        b'"content":"a","k":1.0,"tool_calls":[{"id":"t","n":2.0}]},"finish_reason":"stop"}],'
        b'"usage":{"u":3.0}}'
    )

    def test_as_chunk(self) -> None:
        self.assertEqual(
            as_chunk(self.ANSWER),
            b'{"id":"i","object":"chat.completion.chunk","choices":[{"index":0,"finish_reason":"stop",'
            b'"delta":{"role":"assistant","content":"a","k":1.0,"tool_calls":'
            b'[{"index":0,"id":"t","n":2.0}]}}],"usage":{"u":3.0}}',
        )

    def test_without_usage(self) -> None:
        answer, usage = without_usage(self.ANSWER)
        self.assertNotIn(b"usage", answer)
        self.assertEqual(
            usage, b'{"id":"i","object":"chat.completion","choices":[],"usage":{"u":3.0}}'
        )

    def test_join(self) -> None:
        function = {"name": "f", "arguments": ""}
        call = {"index": 0, "id": "c", "type": "function", "function": function}
        pieces = [
            text("x"),
            Piece({"tool_calls": [call]}),
            Piece({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
            Piece({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
            text("y"),
            Piece({}, "tool_calls"),
        ]
        choices = [Choice(0, Delta(content="a"))]
        made = join(self.ANSWER, choices, [Rewritten(pieces)])
        self.assertEqual(
            made,
            b'{"id":"i","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
            b'"content":"xy","k":1.0,"tool_calls":[{"id":"c","type":"function","function":'
            b'{"name":"f","arguments":"{}"}},{"id":"t","n":2.0}]},"finish_reason":"tool_calls"}],'
            b'"usage":{"u":3.0}}',
        )
        self.assertEqual(function, {"name": "f", "arguments": ""})
