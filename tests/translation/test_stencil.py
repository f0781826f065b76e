"""
The shape that chunks share: what is read by comparing is what reading in full would have found.

The plain way that it is checked against is the transcoder itself, fed byte by byte: no event is
ever whole then, so all of them are read in full.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate, pairwise
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.chunks import Piece
from blockops.api.chat.request import ChatRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import Rules
from blockops.toolcalls.verbatim import Verbatim
from blockops.translation.stencil import Stencil, stencil_of
from blockops.translation.stream import StreamTranscoder
from tests.translation.merging import merged

DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
    return json.dumps({"id": "c", "object": "o", "choices": [choice], "model": "m"}).encode()


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class Shapes(SynchronousTestCase):
    def stencil(self, data: bytes) -> Stencil:
        stencil = stencil_of(data)
        assert stencil is not None, data
        return stencil

    def test_another_text(self) -> None:
        stencil = self.stencil(chunk({"content": "a"}))
        for text in ("b", "", "two words", '"quoted" and \\', "é 😀", "\n\t\0", "}]}", "</x>"):
            data = event(chunk({"content": text}))
            self.assertEqual(stencil.read(b"xx" + data, 2, len(data) + 2), text)
        self.assertEqual((stencil.index, stencil.content), (0, True))

    def test_thoughts(self) -> None:
        for delta in (
            {"content": None, "reasoning_content": "a"},
            {"reasoning": "a", "content": ""},
        ):
            stencil = self.stencil(chunk(delta))
            self.assertFalse(stencil.content)

    def test_another_shape(self) -> None:
        stencil = self.stencil(chunk({"content": "a"}))
        for other in (
            chunk({"content": "b", "more": 1}),
            chunk({"content": "b"}, finish_reason="stop"),
            chunk({"content": "b"}, index=1),
            chunk({"content": None}),
            chunk({"content": "a"}).replace(b'"a"', b'"a" '),
            chunk({"content": "a"}).replace(b'"a"', b'"a", "content": "b"'),
            chunk({"content": "a"}).replace(b'"a"', b'"\xff"'),
            chunk({"content": "a"}).replace(b'"a"', b'"a\nb"'),
            chunk({"content": "a"}).replace(b'"a"', b'"'),
        ):
            data = event(other)
            self.assertIsNone(stencil.read(data, 0, len(data)), other)

    def test_chunks_that_have_more_to_them(self) -> None:
        for data in (
            chunk({"content": "a", "extra": 1}),
            chunk({"content": "a"}, finish_reason="stop"),
            chunk({"content": "a"}, logprobs={"content": []}),
            chunk({"content": "a", "reasoning": "b"}),
            chunk({"content": ""}),
            chunk({"role": "assistant"}),
            chunk({"content": "a"}, index=None),
            chunk({"content": "a"}).replace(b'"delta"', b'"message"'),
            b'{"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"a": 1}}',
            b'{"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1}]}',
            b'{"choices":\n[{"index": 0, "delta": {"content": "a"}}]}',
            b'{"content": "a", "choices": []}',
            b'{"content": "a"}',
            b'{"choices": [{"index": 0, "delta": {"content": "a", "c\\u006fntent": "b"}}]}',
        ):
            self.assertIsNone(stencil_of(data), data)

    def test_what_stands_in_its_place(self) -> None:
        stencil = self.stencil(chunk({"role": "assistant", "content": "a", "refusal": None}))
        self.assertEqual(stencil.write([]), b"")
        first, second = (
            json.loads(each.removeprefix(b"data: "))["choices"][0]["delta"]
            for each in stencil.write([Piece({"content": "b"}), Piece({"k": 1})]).split(b"\n\n")[:2]
        )
        self.assertEqual((first, second), ({"refusal": None, "content": "b"}, {"k": 1}))


ASKED = ChatRequest.parse(
    json.dumps(
        {
            "messages": [{"role": "user", "content": "Go"}],
            "stream": True,
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
                    },
                }
            ],
        }
    ).encode()
)
TEXTS = (
    "Some words, and a line.\nAnother `code` <b>line</b> é😀 ",
    '<tool_call>\n{"name": "f", "arguments": {"a": "\\"y\\" \\u00e9 <z>\\n", "n": 1}}</tool_call>',
    'TOOL_CALL: {"name": "f", "arguments": {"a": "1", \'b\': True}}\n',
    '<tool_call><function=f><parameter=a>\nif x < 3:\n  y = "z"\n</parameter></function>',
    "</tool_call>",
    '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"b c\\"}"}</tool_call>',
    "<think>hm</think>",
)
BETWEEN = (
    b": a comment\n\n",
    event(chunk({"reasoning_content": "thought"})),
    event(chunk({"content": "with logprobs"}, logprobs={"content": [{"token": "t"}]})),
    event(chunk({"content": "another choice"}, index=1)),
    event(chunk({"content": "another spelling"}).replace(b'": ', b'":')),
    event(chunk({"content": "CRLF"})).replace(b"\n", b"\r\n"),
    b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n',
    event(chunk({"content": "bare"})).replace(b'"index": 0, ', b""),
)


def kind(pattern: str = ".+") -> Verbatim:
    return Verbatim(re.compile(pattern), re.compile(pattern.encode()))


class Passages(SynchronousTestCase):
    """Text that goes on unread is what would have been read, and would have gone on."""

    def test_another_shape(self) -> None:
        shape = stencil_of(chunk({"content": "a"}))
        assert shape is not None
        passage = shape.passage(kind(), None)
        whole = event(chunk({"content": "word"}))
        self.assertTrue(passage.takes(whole, 0, len(whole)))
        self.assertTrue(passage.takes(b"xx" + whole + b"x", 2, len(whole) + 2))
        for cut in range(len(whole)):
            self.assertFalse(passage.takes(whole, 0, cut))
            self.assertFalse(passage.takes(whole, cut + 1, len(whole)))
            other = whole[:cut] + whole[cut + 1 :] + b"\n"
            self.assertEqual(passage.takes(other, 0, len(whole)), other == whole)
        for other in (
            event(chunk({"content": ""})),
            event(chunk({"content": "a"}, index=1)),
            event(chunk({"content": "a"}, finish_reason="stop")),
            whole + whole,
        ):
            self.assertFalse(passage.takes(other, 0, len(other)), other)

    def test_what_is_told_elsewhere(self) -> None:
        shape = stencil_of(chunk({"role": "assistant", "content": "a", "refusal": None}))
        assert shape is not None
        passage = shape.passage(kind(), 3)
        said = event(chunk({"role": "assistant", "content": "word", "refusal": None}))
        self.assertTrue(passage.takes(said, 0, len(said)))
        call = {"index": 3, "function": {"arguments": "word"}}
        self.assertEqual(
            passage.retell(said, 0, len(said)), shape.write([Piece({"tool_calls": [call]})])
        )

    def test_one_is_made_for_each_kind(self) -> None:
        shape = stencil_of(chunk({"content": "a"}))
        assert shape is not None
        words, all_ = kind("[a-z]+"), kind()
        passage = shape.passage(words, None)
        self.assertIs(shape.passage(words, None), passage)
        self.assertIsNot(shape.passage(words, 0), passage)
        self.assertFalse(shape.passage(words, 0).takes(b"data: 1\n\n", 0, 9))
        self.assertIsNot(shape.passage(all_, 0), shape.passage(words, 0))


class Streams(SynchronousTestCase):
    """Whole reads, and reads cut anywhere, give what a stream gives byte by byte."""

    def sent(self, pieces: list[bytes], **options: Any) -> tuple[bytes, object]:
        ids = iter(range(1000))
        transcoder = StreamTranscoder(
            ASKED,
            Rules(),
            new_id=lambda: f"call_{next(ids)}",
            **options,
        )
        out = b"".join(map(transcoder.receive_data, pieces))
        return out, (transcoder.report, transcoder.ended)

    def assert_same(self, stream: bytes, cuts: list[int], **options: Any) -> None:
        slow, seen = self.sent([stream[at : at + 1] for at in range(len(stream))], **options)
        ends = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
        pieces = [stream[start:end] for start, end in pairwise(ends)]
        out, seen_too = self.sent(pieces, **options)
        self.assertEqual(merged(out), merged(slow))
        self.assertEqual(seen_too, seen)

    @given(st.data())
    def test_any_stream(self, data: st.DataObject) -> None:
        events = [event(chunk({"role": "assistant", "content": ""}))]
        for text in data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4)):
            size = data.draw(st.sampled_from([1, 3, 4, 11]))
            events += [
                event(chunk({"content": text[at : at + size]})) for at in range(0, len(text), size)
            ]
        for odd in data.draw(st.lists(st.sampled_from(BETWEEN), max_size=3)):
            events.insert(data.draw(st.integers(1, len(events))), odd)
        events += [event(chunk({}, finish_reason="stop")), DONE]
        stream = b"".join(events)
        cuts = data.draw(st.lists(st.integers(0, 100_000), max_size=6))
        alone = list(accumulate(map(len, events))) if data.draw(st.booleans()) else []
        self.assert_same(stream, cuts + alone)

    def test_shapes_that_change_each_time(self) -> None:
        """What cannot be learnt is given up, and read in full."""
        events = [event(chunk({"content": f"word {n} "}, number=n)) for n in range(1, 40)]
        self.assert_same(b"".join([*events, DONE]), [])

    def test_what_is_given_up_is_forgotten(self) -> None:
        """The shape of the last lesson does not count behind the finish reason either."""
        events = [event(chunk({"content": f"{n} "}, index=n % 2)) for n in range(17)]
        for more in (
            [event(chunk({}, index=0, finish_reason="stop"))],
            [event(chunk({}, index=1, finish_reason="stop"))],
        ):
            for index in (0, 1):
                behind = event(chunk({"content": "behind"}, index=index))
                stream = b"".join([*events, *more, behind, DONE])
                self.assert_same(stream, [stream.index(behind)])

    def test_an_event_that_is_too_long(self) -> None:
        texts = ["a", "b", "c" * 300, "d"]
        events = [event(chunk({"content": text})) for text in texts]
        stream = b"".join(events)
        self.assert_same(stream, [], max_event=200)
        self.assert_same(stream, list(accumulate(map(len, events))), max_event=200)
        out, _ = self.sent([stream], max_event=200)
        self.assertIn(b"backend_event_too_large", out)

    def test_several_choices(self) -> None:
        events = [event(chunk({"content": f"{n} "}, index=n % 3)) for n in range(90)]
        self.assert_same(b"".join([*events, DONE]), [5, 3000])

    def test_the_backends_own_calls(self) -> None:
        call = {"index": 0, "id": "x", "function": {"name": "f", "arguments": "{}"}}
        events = [
            event(chunk({"content": "a"})),
            event(chunk({"content": "b "})),
            event(chunk({"tool_calls": [call]})),
            event(chunk({"content": "c"})),
            event(chunk({}, finish_reason="tool_calls")),
            event(chunk({"content": "behind"})),
            DONE,
        ]
        self.assert_same(b"".join(events), [])

    def test_what_is_read(self) -> None:
        """Text that nothing has to be decided on is not, whether it comes alone or with more."""
        head, value = "<tool_call><function=f><parameter=a>\n", "plain characters " * 9
        rest = "</parameter></function></tool_call>"
        texts = ["Some", " words", " more", " words", "\n", head, "x = "]
        texts += [value[at : at + 9] for at in range(0, len(value), 9)]
        events = [event(chunk({"content": text})) for text in [*texts, rest]]
        with patch.object(Stencil, "read", autospec=True, side_effect=Stencil.read) as read:
            out, _ = self.sent(events)
        # The first one teaches the shape; others are read where something is decided.
        reads = [data[start:end] for _, data, start, end in (call.args for call in read.mock_calls)]
        self.assertEqual(reads, [*events[4:7], events[-1]])
        self.assertIn(b'"arguments":"plain cha"', out)
        self.assert_same(b"".join(events), [])
        self.assert_same(b"".join(events), list(accumulate(map(len, events))))

    def test_arguments_that_come_together_are_told_together(self) -> None:
        head = "<tool_call><function=f><parameter=a>x"
        texts = ["Some", " words", " more", "\n", head, "one ", 'two\n"', "é ", "three"]
        events = [event(chunk({"content": text})) for text in texts]
        other = event(chunk({"content": "four"}, more=None))
        end = event(chunk({"content": "</parameter></function></tool_call> behind"}))
        more = [event(chunk({"content": text})) for text in (" it", " all")]
        stream = b"".join([*events, other, *events[5:8], end, *more])
        out, _ = self.sent([stream])
        pieces = re.findall(rb'"arguments":("(?:[^"\\]|\\.)*")', out)
        self.assertEqual(
            list(map(json.loads, pieces)),
            ["", '{"a": "x', 'one two\\n\\"é three', "four", "one ", 'two\\n\\"é "}'],
        )
        self.assertIn(b'"content":" behind it all"', out)
        self.assert_same(stream, [])
        self.assert_same(stream, list(accumulate(map(len, events))))

    def test_nothing_goes_on_behind_the_end(self) -> None:
        word = event(chunk({"content": "word"}))
        for end in ("fail", "done", "error", "closed"):
            transcoder = StreamTranscoder(ASKED, Rules())
            transcoder.receive_data(word)
            self.assertEqual(transcoder.receive_data(word), word)
            if end == "fail":
                transcoder.fail(ApiError(504, "Late."))
            elif end == "done":
                transcoder.receive_data(DONE)
            elif end == "error":
                transcoder.receive_data(b'data: {"error": {"message": "no"}}\n\n')
            else:
                transcoder.receive_data(event(chunk({}, finish_reason="stop")))
                transcoder.end(cut=False)
            self.assertEqual(transcoder.receive_data(word), b"", end)

    def test_an_event_that_has_begun(self) -> None:
        word = event(chunk({"content": "word"}))
        for cut in range(1, len(word)):
            self.assert_same(word * 6, [2 * len(word), 3 * len(word) + cut, 4 * len(word) + cut])
