"""
Events that fit a template are translated exactly as if they were decoded.

The reference is a translator that receives one byte at a time: it never has a complete event in one
read, so it decodes all of them.
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

from blockops.api.chat.chunks import OutgoingDelta
from blockops.api.chat.request import ChatRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.toolcalls.verbatim import Verbatim
from blockops.translation.event_template import EventTemplate, learn_template
from blockops.translation.stream import StreamTranslator
from tests.translation.merging import join_texts

DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
    return json.dumps({"id": "c", "object": "o", "choices": [choice], "model": "m"}).encode()


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class TemplateTests(SynchronousTestCase):
    def template(self, data: bytes) -> EventTemplate:
        template = learn_template(data)
        assert template is not None, data
        return template

    def test_other_texts(self) -> None:
        template = self.template(chunk({"content": "a"}))
        for text in ("b", "", "two words", '"quoted" and \\', "é 😀", "\n\t\0", "}]}", "</x>"):
            data = event(chunk({"content": text}))
            self.assertEqual(template.read_text(b"xx" + data, 2, len(data) + 2), text)
        self.assertEqual((template.index, template.is_content), (0, True))

    def test_reasoning(self) -> None:
        for delta in (
            {"content": None, "reasoning_content": "a"},
            {"reasoning": "a", "content": ""},
        ):
            template = self.template(chunk(delta))
            self.assertFalse(template.is_content)

    def test_other_events(self) -> None:
        template = self.template(chunk({"content": "a"}))
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
            self.assertIsNone(template.read_text(data, 0, len(data)), other)

    def test_chunks_with_other_content(self) -> None:
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
            self.assertIsNone(learn_template(data), data)

    def test_render(self) -> None:
        template = self.template(chunk({"role": "assistant", "content": "a", "refusal": None}))
        self.assertEqual(template.render([]), b"")
        first, second = (
            json.loads(each.removeprefix(b"data: "))["choices"][0]["delta"]
            for each in template.render(
                [OutgoingDelta({"content": "b"}), OutgoingDelta({"k": 1})]
            ).split(b"\n\n")[:2]
        )
        self.assertEqual((first, second), ({"refusal": None, "content": "b"}, {"k": 1}))


REQUEST = ChatRequest.parse(
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
OTHER_EVENTS = (
    b": a comment\n\n",
    event(chunk({"reasoning_content": "thought"})),
    event(chunk({"content": "with logprobs"}, logprobs={"content": [{"token": "t"}]})),
    event(chunk({"content": "another choice"}, index=1)),
    event(chunk({"content": "another spelling"}).replace(b'": ', b'":')),
    event(chunk({"content": "CRLF"})).replace(b"\n", b"\r\n"),
    b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n',
    event(chunk({"content": "bare"})).replace(b'"index": 0, ', b""),
)


def verbatim(pattern: str = ".+") -> Verbatim:
    return Verbatim(re.compile(pattern), re.compile(pattern.encode()))


class TextMatcherTests(SynchronousTestCase):
    """Text that matches would also pass unchanged if it were parsed."""

    def test_other_events(self) -> None:
        template = learn_template(chunk({"content": "a"}))
        assert template is not None
        matcher = template.matcher(verbatim(), None)
        event_data = event(chunk({"content": "word"}))
        self.assertTrue(matcher.matches(event_data, 0, len(event_data)))
        self.assertTrue(matcher.matches(b"xx" + event_data + b"x", 2, len(event_data) + 2))
        for split in range(len(event_data)):
            self.assertFalse(matcher.matches(event_data, 0, split))
            self.assertFalse(matcher.matches(event_data, split + 1, len(event_data)))
            other = event_data[:split] + event_data[split + 1 :] + b"\n"
            self.assertEqual(matcher.matches(other, 0, len(event_data)), other == event_data)
        for other in (
            event(chunk({"content": ""})),
            event(chunk({"content": "a"}, index=1)),
            event(chunk({"content": "a"}, finish_reason="stop")),
            event_data + event_data,
        ):
            self.assertFalse(matcher.matches(other, 0, len(other)), other)

    def test_rewrite(self) -> None:
        template = learn_template(chunk({"role": "assistant", "content": "a", "refusal": None}))
        assert template is not None
        matcher = template.matcher(verbatim(), 3)
        original = event(chunk({"role": "assistant", "content": "word", "refusal": None}))
        self.assertTrue(matcher.matches(original, 0, len(original)))
        call = {"index": 3, "function": {"arguments": "word"}}
        self.assertEqual(
            matcher.rewrite(original, 0, len(original)),
            template.render([OutgoingDelta({"tool_calls": [call]})]),
        )

    def test_one_matcher_for_each_kind_of_text(self) -> None:
        template = learn_template(chunk({"content": "a"}))
        assert template is not None
        words, all_ = verbatim("[a-z]+"), verbatim()
        matcher = template.matcher(words, None)
        self.assertIs(template.matcher(words, None), matcher)
        self.assertIsNot(template.matcher(words, 0), matcher)
        self.assertFalse(template.matcher(words, 0).matches(b"data: 1\n\n", 0, 9))
        self.assertIsNot(template.matcher(all_, 0), template.matcher(words, 0))


class StreamTests(SynchronousTestCase):
    """Complete events, and events split anywhere, give the same as single bytes."""

    def sent(self, pieces: list[bytes], **options: Any) -> tuple[bytes, object]:
        ids = iter(range(1000))
        translator = StreamTranslator(
            REQUEST,
            TranslationOptions(),
            new_id=lambda: f"call_{next(ids)}",
            **options,
        )
        out = b"".join(map(translator.receive_data, pieces))
        return out, (translator.report, translator.has_ended)

    def assert_same(self, stream: bytes, splits: list[int], **options: Any) -> None:
        byte_by_byte, result = self.sent(
            [stream[at : at + 1] for at in range(len(stream))], **options
        )
        ends = sorted({0, len(stream), *(split % len(stream) for split in splits)})
        pieces = [stream[start:end] for start, end in pairwise(ends)]
        out, split_result = self.sent(pieces, **options)
        self.assertEqual(join_texts(out), join_texts(byte_by_byte))
        self.assertEqual(split_result, result)

    @given(st.data())
    def test_any_stream(self, data: st.DataObject) -> None:
        events = [event(chunk({"role": "assistant", "content": ""}))]
        for text in data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4)):
            size = data.draw(st.sampled_from([1, 3, 4, 11]))
            events += [
                event(chunk({"content": text[at : at + size]})) for at in range(0, len(text), size)
            ]
        for other in data.draw(st.lists(st.sampled_from(OTHER_EVENTS), max_size=3)):
            events.insert(data.draw(st.integers(1, len(events))), other)
        events += [event(chunk({}, finish_reason="stop")), DONE]
        stream = b"".join(events)
        splits = data.draw(st.lists(st.integers(0, 100_000), max_size=6))
        alone = list(accumulate(map(len, events))) if data.draw(st.booleans()) else []
        self.assert_same(stream, splits + alone)

    def test_shapes_that_always_change(self) -> None:
        """Templates are given up, and all events are decoded."""
        events = [event(chunk({"content": f"word {n} "}, number=n)) for n in range(1, 40)]
        self.assert_same(b"".join([*events, DONE]), [])

    def test_no_template_after_the_last_miss(self) -> None:
        """The template of the last miss is not used after the finish reason either."""
        events = [event(chunk({"content": f"{n} "}, index=n % 2)) for n in range(17)]
        for more in (
            [event(chunk({}, index=0, finish_reason="stop"))],
            [event(chunk({}, index=1, finish_reason="stop"))],
        ):
            for index in (0, 1):
                late = event(chunk({"content": "late"}, index=index))
                stream = b"".join([*events, *more, late, DONE])
                self.assert_same(stream, [stream.index(late)])

    def test_too_long_event(self) -> None:
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

    def test_calls_of_the_backend(self) -> None:
        call = {"index": 0, "id": "x", "function": {"name": "f", "arguments": "{}"}}
        events = [
            event(chunk({"content": "a"})),
            event(chunk({"content": "b "})),
            event(chunk({"tool_calls": [call]})),
            event(chunk({"content": "c"})),
            event(chunk({}, finish_reason="tool_calls")),
            event(chunk({"content": "late"})),
            DONE,
        ]
        self.assert_same(b"".join(events), [])

    def test_decoded_events(self) -> None:
        """Text that passes through is not decoded, alone or with other events."""
        head, value = "<tool_call><function=f><parameter=a>\n", "plain characters " * 9
        rest = "</parameter></function></tool_call>"
        texts = ["Some", " words", " more", " words", "\n", head, "x = "]
        texts += [value[at : at + 9] for at in range(0, len(value), 9)]
        events = [event(chunk({"content": text})) for text in [*texts, rest]]
        with patch.object(
            EventTemplate, "read_text", autospec=True, side_effect=EventTemplate.read_text
        ) as read:
            out, _ = self.sent(events)
        # The template is learned from the first event; later ones are decoded if they need parsing.
        reads = [data[start:end] for _, data, start, end in (call.args for call in read.mock_calls)]
        self.assertEqual(reads, [*events[4:7], events[-1]])
        self.assertIn(b'"arguments":"plain cha"', out)
        self.assert_same(b"".join(events), [])
        self.assert_same(b"".join(events), list(accumulate(map(len, events))))

    def test_arguments_received_together_are_sent_together(self) -> None:
        head = "<tool_call><function=f><parameter=a>x"
        texts = ["Some", " words", " more", "\n", head, "one ", 'two\n"', "é ", "three"]
        events = [event(chunk({"content": text})) for text in texts]
        other = event(chunk({"content": "four"}, more=None))
        end = event(chunk({"content": "</parameter></function></tool_call> late"}))
        more = [event(chunk({"content": text})) for text in (" it", " all")]
        stream = b"".join([*events, other, *events[5:8], end, *more])
        out, _ = self.sent([stream])
        pieces = re.findall(rb'"arguments":("(?:[^"\\]|\\.)*")', out)
        self.assertEqual(
            list(map(json.loads, pieces)),
            ["", '{"a": "x', 'one two\\n\\"é three', "four", "one ", 'two\\n\\"é "}'],
        )
        self.assertIn(b'"content":" late it all"', out)
        self.assert_same(stream, [])
        self.assert_same(stream, list(accumulate(map(len, events))))

    def test_nothing_after_the_end(self) -> None:
        word = event(chunk({"content": "word"}))
        for end in ("fail", "done", "error", "closed"):
            translator = StreamTranslator(REQUEST, TranslationOptions())
            translator.receive_data(word)
            self.assertEqual(translator.receive_data(word), word)
            if end == "fail":
                translator.fail(ApiError(504, "Late."))
            elif end == "done":
                translator.receive_data(DONE)
            elif end == "error":
                translator.receive_data(b'data: {"error": {"message": "no"}}\n\n')
            else:
                translator.receive_data(event(chunk({}, finish_reason="stop")))
                translator.end(is_truncated=False)
            self.assertEqual(translator.receive_data(word), b"", end)

    def test_incomplete_event(self) -> None:
        word = event(chunk({"content": "word"}))
        for split in range(1, len(word)):
            self.assert_same(
                word * 6, [2 * len(word), 3 * len(word) + split, 4 * len(word) + split]
            )
